"""A server for tests: starts `ollmlx serve` on a free port with a store of its own, creates the models through the
command line, and ends it again. Standard library only.

The programs are in the folder OLLMLX_BIN, the models in the files OLLMLX_MODEL_SMOL, _BASE and _EMBED, the same for
MLX in the folders OLLMLX_MODEL_SMOL_MLX and so on. What holds for every backend is tested once for each: a class of
tests names its `backend`, and a second class, which inherits all, names the other.
"""

import http.client
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

# Whoever runs the tests under nohup must not make every server deaf for it.
signal.signal(signal.SIGHUP, signal.SIG_DFL)

BIN = pathlib.Path(os.environ["OLLMLX_BIN"])
OLLMLX = str(BIN / "ollmlx")
NAMES = ("smol", "base", "embed")
FILES = {backend: {name: os.environ[f"OLLMLX_MODEL_{name.upper()}{end}"] for name in NAMES}
         for backend, end in (("gguf", ""), ("mlx", "_MLX"))}
#: How many times slower than a usual one this machine may be.
PATIENCE = int(os.environ.get("OLLMLX_TEST_PATIENCE", "1"))
START_S = 30 * PATIENCE
#: What takes a moment has happened by then, beside a compiler on every core too.
SOON_S = 30 * PATIENCE
ANSWER_S = 120 * PATIENCE


def until(what, seconds, probe, every_s=0.05):
    """Asks again and again; returns the first truthy answer."""
    end = time.monotonic() + seconds
    pause = threading.Event()
    while True:
        found = probe()
        if found:
            return found
        if time.monotonic() > end:
            raise AssertionError(f"after {seconds} s: not {what}")
        pause.wait(every_s)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def processes():
    """{pid: (parent, name)} of the living; zombies are no processes any more."""
    found = {}
    if sys.platform == "linux":
        for entry in pathlib.Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                text = (entry / "stat").read_text()
                command = (entry / "cmdline").read_bytes().split(b"\0")[0].decode(errors="replace")
            except OSError:
                continue
            state, parent = text.rpartition(")")[2].split()[:2]
            if state not in "ZX":
                found[int(entry.name)] = (int(parent), os.path.basename(command))
        return found
    listing = subprocess.run(["ps", "-axo", "pid=,ppid=,stat=,comm="], capture_output=True, text=True, check=True)
    for line in listing.stdout.splitlines():
        pid, parent, state, command = line.split(None, 3)
        if "Z" not in state:
            found[int(pid)] = (int(parent), os.path.basename(command))
    return found


def descendants(pid):
    table = processes()
    tree, grown = {pid}, True
    while grown:
        more = {child for child, (parent, _) in table.items() if parent in tree} - tree
        grown = bool(more)
        tree |= more
    return tree - {pid}


class Server:
    """One server, with the models of one backend. `settings` are OLLMLX_… variables."""

    def __init__(self, models=NAMES, backend="gguf", parent=None, **settings):
        self.backend = backend
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="ollmlx-test-", dir=parent))
        self.port = free_port()
        self.host = f"127.0.0.1:{self.port}"
        self.url = f"http://{self.host}"
        foreign = ("OLLAMA_", "OLLMLX_", "NOTIFY_SOCKET", "WATCHDOG_")
        clean = {key: value for key, value in os.environ.items() if not key.startswith(foreign)}
        self.env = clean | {
            "HOME": str(self.folder),
            "OLLAMA_HOST": self.host,
            "OLLMLX_MODELS": str(self.folder / "models"),
            "OLLMLX_STATE_DIR": str(self.folder / "state"),
        } | settings
        self.log_path = self.folder / "serve.log"
        try:
            self.launch()
            until("listening", START_S, self._listening)
            for name in models:
                self.create(name, f"FROM {FILES[backend][name]}\n")
        except BaseException:
            print(self.log(), file=sys.stderr)
            self.stop()
            raise

    def launch(self):
        with open(self.log_path, "wb") as log:
            self.process = subprocess.Popen([OLLMLX, "serve"], env=self.env, stdin=subprocess.DEVNULL, stdout=log,
                                            stderr=log, start_new_session=True)

    @property
    def pid(self):
        return self.process.pid

    def status(self):
        """Its exit status; `None` while it lives."""
        return self.process.poll()

    def _listening(self):
        if self.status() is not None:
            raise AssertionError(f"the server ended with {self.status()}")
        return "Listening on" in self.log()

    def log(self):
        return self.log_path.read_text(errors="replace")

    def create(self, name, modelfile):
        path = self.folder / "Modelfile"
        path.write_text(modelfile)
        done = self.cli("create", name, "-f", str(path))
        assert done.returncode == 0, done.stderr

    def cli(self, *words, stdin="", seconds=ANSWER_S, env=None):
        return subprocess.run([OLLMLX, *words], env=env or self.env, input=stdin, capture_output=True, text=True,
                              timeout=seconds)

    def raw(self, method, path, body=None, headers=None, seconds=ANSWER_S):
        """(status, bytes of the body)"""
        link = http.client.HTTPConnection("127.0.0.1", self.port, timeout=seconds)
        try:
            try:
                link.request(method, path, body, headers or {})
            except (BrokenPipeError, ConnectionResetError):
                pass  # A refusal may come before the whole body has left.
            answer = link.getresponse()
            return answer.status, answer.read()
        finally:
            link.close()

    def call(self, method, path, body=None, **more):
        """(status, parsed body)"""
        status, text = self.raw(method, path, None if body is None else json.dumps(body), **more)
        return status, json.loads(text) if text.strip() else None

    def workers(self):
        return [pid for pid in descendants(self.pid) if "worker" in processes().get(pid, (0, ""))[1]]

    def stop(self, kind=signal.SIGTERM):
        """Ends it and removes its folder; returns the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(kind)
        try:
            status = self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            status = self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)
        return status


_shared = {}


def shared(backend="gguf"):
    """The server that most tests of a backend share. It also has `short`: smol, greedy, at most 24 tokens."""
    if backend not in _shared:
        server = _shared[backend] = Server(backend=backend)
        server.create("short", "FROM smol\nPARAMETER num_predict 24\nPARAMETER temperature 0\nSYSTEM You are brief.\n")
    return _shared[backend]


def close_shared():
    while _shared:
        _shared.popitem()[1].stop()
