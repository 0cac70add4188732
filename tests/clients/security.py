"""The frame of the checks of attacks (`test_security_*.py`): a server of their own with three small models, what a check
may ask of it, and what must hold after every one of them: the server's process is the same, a bystander's greedy streams on
another model kept their text, a plain request is answered, files outside the store are untouched, and the server grew by
less than 50 MB. The checks are numbered as in the list that they come from, so that a result can be found in both.

`strace` and `ss` are used where they are there; as root, the checks also try another user.
"""

import functools
import http.client
import http.server
import json
import os
import pathlib
import re
import resource
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
import unittest

import forge
import house
from forge import MB

STRACE = shutil.which("strace")
#: The server may keep this much of what one check made it do.
GROWTH_MAX = 50 * MB
#: A bystander's token may take three calm ones; below this much more a machine of two cores can't be told from a slow one.
HICCUP_S = 0.03


class Server(house.Server):
    """A server in the folder `work`, without a model. `trace`: a file for its connects, opens and starts of programs."""

    def __init__(self, work, trace=None, program=house.OLLMLX, **settings):
        self.trace, self.program = trace, str(program)
        usual = {"OLLMLX_MEMORY_LIMIT": "5GB", "OLLMLX_KEEP_ALIVE": "30m"}
        super().__init__(models=(), parent=work, **usual | settings)

    def launch(self):
        for name in ("hub", "tmp", "models"):
            (self.folder / name).mkdir(exist_ok=True)
        self.env |= {"HF_HUB_CACHE": str(self.folder / "hub"), "TMPDIR": str(self.folder / "tmp"),
                     "OLLMLX_READ_MODELS": str(self.folder / "none")}
        self.env.pop("XDG_RUNTIME_DIR", None)
        command = [self.program, "serve"]
        if self.trace:
            seen = "trace=connect,execve,openat,open"
            command = [STRACE, "-f", "-qq", "-o", str(self.trace), "-e", seen, *command]
        with open(self.log_path, "wb") as log:
            self.process = subprocess.Popen(command, env=self.env, cwd=self.folder, stdin=subprocess.DEVNULL,
                                            stdout=log, stderr=log, start_new_session=True)

    @property
    def pid(self):
        if not self.trace:
            return self.process.pid
        tracer = self.process.pid
        return int(pathlib.Path(f"/proc/{tracer}/task/{tracer}/children").read_text().split()[0])

    @property
    def models(self):
        return self.env["OLLMLX_MODELS"]

    @property
    def state(self):
        return self.env["OLLMLX_STATE_DIR"]

    def again(self):
        """Starts it once more, in the same folders."""
        self.launch()
        house.until("listening", house.START_S, self._listening)

    def leave(self):
        """Ends it, and leaves its folders."""
        if self.process.poll() is None:
            os.kill(self.pid, signal.SIGTERM)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def stop(self, kind=signal.SIGTERM):
        self.leave()
        return super().stop(kind)

    def resident(self, most=False):
        """Bytes of the server's own process: now, or the most there ever were."""
        status = pathlib.Path(f"/proc/{self.pid}/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+)" if most else r"VmRSS:\s+(\d+)", status)[1]) * 1024

    def children(self):
        """(pid, name) of its workers and inspectors."""
        return [(pid, name) for pid, (parent, name) in house.processes().items() if parent == self.pid]

    def request(self, method, path, body=None, headers=None, timeout=60):
        """Status, text, headers. A dictionary is sent as JSON."""
        link = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            data = body if isinstance(body, (bytes, type(None))) else json.dumps(body).encode()
            link.putrequest(method, path, skip_host=bool(headers and "Host" in headers), skip_accept_encoding=True)
            for key, value in (headers or {}).items():
                link.putheader(key, value)
            if data is not None:
                link.putheader("Content-Length", str(len(data)))
            link.endheaders()
            if data is not None:
                try:
                    link.send(data)
                except (BrokenPipeError, ConnectionResetError):
                    pass  # A refusal may come before the whole body has left.
            answer = link.getresponse()
            return answer.status, answer.read().decode("utf8", "replace"), dict(answer.getheaders())
        finally:
            link.close()

    def upload(self, content):
        digest = "sha256:" + forge.sha256(content)
        status, text, _ = self.request("POST", "/api/blobs/" + digest, content)
        assert status in (200, 201), f"upload: {status} {text[:200]}"
        return digest

    def manifest(self, name, content):
        """Puts a manifest into the store by hand."""
        where = pathlib.Path(self.models) / "manifests/registry.ollama.ai/library" / name
        where.mkdir(parents=True, exist_ok=True)
        return forge.write(where / "latest", content)

    def deaths(self, model):
        status, text, _ = self.request("POST", "/api/ollmlx/why", {"model": model})
        return json.loads(text).get("death_count", 0) if status == 200 else 0


def raw(port, data, timeout=10):
    """Sends bytes as they are: status (0: closed without one), and all that came back."""
    came = b""
    with socket.create_connection(("127.0.0.1", port), timeout) as link:
        try:
            link.sendall(data)
            while got := link.recv(65536):
                came += got
        except OSError:
            pass
    status = re.match(rb"HTTP/1\.\d (\d+)", came)
    return int(status[1]) if status else 0, came


def error_of(text):
    """The error in an answer of any dialect, or nothing."""
    try:
        for line in text.splitlines():
            error = json.loads(line).get("error")
            if error:
                return error.get("message", str(error)) if isinstance(error, dict) else error
    except (ValueError, AttributeError):
        pass
    return ""


class Listener(threading.Thread):
    """Takes connections and notes what came."""

    def __init__(self):
        super().__init__(daemon=True)
        self.socket, self.seen = socket.create_server(("127.0.0.1", 0)), []
        self.port = self.socket.getsockname()[1]
        self.start()

    def run(self):
        while True:
            link, _ = self.socket.accept()
            with link:
                link.settimeout(1)
                try:
                    self.seen.append(link.recv(4096))
                except OSError:
                    self.seen.append(b"")


class Registry:
    """Answers /v2/… from a table: path → (status, headers, body). Notes every request."""

    def __init__(self):
        table, seen = {}, []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                seen.append((self.command, self.path, dict(self.headers)))
                status, headers, body = table.get(self.path, (404, {}, b"{}"))
                self.send_response(status)
                for key, value in headers.items():
                    self.send_header(key, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                try:
                    self.wfile.write(body)
                except OSError:
                    pass

            do_HEAD = do_GET

            def log_message(self, *_):
                pass

        self.table, self.seen = table, seen
        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.http.server_address[1]
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def pull(self, server, name="ns/m:t"):
        body = {"model": f"http://127.0.0.1:{self.port}/{name}", "insecure": True, "stream": False}
        return server.request("POST", "/api/pull", body, timeout=30)


class Bystander(threading.Thread):
    """Greedy streams of the model `other`, one after the other; each must begin as the calm one did."""

    def __init__(self, server, calm=None, rest=1.5, tokens=32):
        super().__init__(daemon=True)
        self.server, self.calm, self.rest, self.tokens = server, calm, rest, tokens
        self.gaps, self.faults, self.end = [], [], threading.Event()

    def once(self):
        """The text of one stream, or what went wrong."""
        link, text, last, done = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=60), "", None, False
        try:
            options = {"temperature": 0, "num_predict": self.tokens}
            body = {"model": "other", "prompt": "Write a long story about a dragon.", "options": options}
            link.request("POST", "/api/generate", json.dumps(body))
            answer = link.getresponse()
            if answer.status != 200:
                return f"status {answer.status}: {answer.read()[:200]}"
            while line := answer.readline():
                now = time.monotonic()
                if last:
                    self.gaps.append(now - last)
                last = now
                part = json.loads(line)
                if "error" in part:
                    return str(part)
                text, done = text + part.get("response", ""), part.get("done")
            return text if done else "cut: " + text
        finally:
            link.close()

    def run(self):
        while not self.end.is_set():
            try:
                text = self.once()
            except (OSError, ValueError, http.client.HTTPException) as error:
                text = repr(error)
            if not text or not self.calm.startswith(text):
                self.faults.append(text[:120])
            self.end.wait(self.rest)

    def stop(self):
        self.end.set()
        self.join(90)
        return self

    def median(self):
        gaps = sorted(self.gaps)
        return gaps[len(gaps) // 2] if gaps else 0


class Peak(threading.Thread):
    """The most that any worker grew by since this was made."""

    def __init__(self, server):
        super().__init__(daemon=True)
        self.server, self.grew, self.end = server, 0, threading.Event()
        self.before = {pid: resident(pid) for pid, _ in server.children()}
        self.start()

    def run(self):
        while not self.end.wait(0.1):
            for pid, _ in self.server.children():
                self.grew = max(self.grew, resident(pid) - self.before.get(pid, 0))

    def stop(self):
        self.end.set()
        self.join()
        return self.grew


def resident(pid):
    try:
        return int(re.search(r"VmRSS:\s+(\d+)", pathlib.Path(f"/proc/{pid}/status").read_text())[1]) * 1024
    except (OSError, TypeError):
        return 0


def inspect(backend, path, timeout=40):
    """Runs the inspector: exit status, answer, peak memory in bytes, seconds."""
    began, worker = time.monotonic(), str(house.BIN / f"ollmlx-worker-{backend}")
    with tempfile.TemporaryFile() as out:
        quiet = {"stderr": subprocess.DEVNULL, "stdin": subprocess.DEVNULL}
        process = subprocess.Popen([worker, "inspect", path], stdout=out, **quiet)
        timer = threading.Timer(timeout, process.kill)
        timer.start()
        _, status, usage = os.wait4(process.pid, 0)
        timer.cancel()
        process.returncode = status
        out.seek(0)
        text = out.read(MB).decode("utf8", "replace")
    # A child's peak begins with what this program had when it was started; less than that can't be seen.
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    size = usage.ru_maxrss * 1024 if usage.ru_maxrss > own + 4096 else 0
    return os.waitstatus_to_exitcode(status), text, size, time.monotonic() - began


def check(run):
    """A check that goes on after its first fault, so that one run tells them all."""

    @functools.wraps(run)
    def checked(self):
        self.begin()
        try:
            run(self)
        finally:
            self.bystander.stop()
        self.look_around()
        if self.notes:
            print(f"{run.__name__}: " + " | ".join(dict.fromkeys(self.notes)), flush=True)
        if self.faults:
            self.fail("\n".join(dict.fromkeys(self.faults)))

    return checked


class Checked(unittest.TestCase):
    """One server for all checks of a class, with the models `smol` and `other` (GGUF) and `smolx` (MLX)."""

    count = 0

    @classmethod
    def setUpClass(cls):
        cls.work = pathlib.Path(tempfile.mkdtemp(prefix="ollmlx-security-"))
        cls.others = {}
        (cls.work / "canary").mkdir()
        forge.write(cls.work / "canary" / "keep", b"keep me")
        try:
            cls.server = Server(cls.work)
            cls.server.create("smol", f"FROM {house.FILES['gguf']['smol']}\n")
            cls.server.create("other", f"FROM {house.FILES['gguf']['smol']}\nPARAMETER num_keep 4\n")
            cls.server.create("smolx", f"FROM {house.FILES['mlx']['smol']}\n")
            first = Bystander(cls.server)
            first.once()
            cls.calm = first.once()
        except BaseException:
            shutil.rmtree(cls.work, ignore_errors=True)
            raise

    @classmethod
    def tearDownClass(cls):
        for server in (cls.server, *cls.others.values()):
            server.stop()
        shutil.rmtree(cls.work, ignore_errors=True)

    # --- what surrounds a check ---

    def begin(self):
        self.faults, self.notes = [], []
        self.before = self.server.pid, self.server.resident()
        self.watch_canaries()
        self.bystander = Bystander(self.server, self.calm, rest=4)
        self.bystander.start()

    def look_around(self):
        """What must hold after each of them."""
        pid, size = self.before
        if self.server.status() is not None:
            self.faults.append(f"the server died: {self.server.log()[-500:]}")
            self.server.again()
            return
        self.expect(self.server.pid == pid, "the server is another process")
        status, text, _ = self.ask("smol", timeout=90)
        self.expect(status == 200, f"a plain request afterwards: {status} {text[:200]}")
        self.expect(not self.bystander.faults, f"a bystander's stream changed: {self.bystander.faults[:1]}")
        self.expect(self.canaries() == self.untouched, "canaries changed")
        grown = lambda: self.server.resident() - size
        if grown() > GROWTH_MAX:
            # What was freed may not have been given back yet.
            try:
                house.until("small again", 5, lambda: grown() <= GROWTH_MAX, every_s=0.5)
            except AssertionError:
                self.expect(False, f"the server grew by {grown() // MB} MB, to {self.server.resident() // MB} MB")

    def watch_canaries(self):
        self.untouched = self.canaries()

    def canaries(self):
        """What lies outside the store, and what an attack would have put somewhere."""
        found = {}
        for base in (self.work / "canary", self.server.folder / "canary"):
            for path in base.rglob("*"):
                found[path] = path.read_bytes(), path.stat().st_mtime_ns
        strays = [name for folder in ("/tmp", self.work) for name in os.listdir(folder) if "pwn" in name]
        return found, sorted(strays)

    def expect(self, holds, why):
        if not holds:
            self.faults.append(str(why))
        return holds

    def note(self, text):
        self.notes.append(str(text))

    # --- files ---

    def path(self, name):
        """A path of that name in a folder of its own."""
        Checked.count += 1
        folder = self.work / "files" / str(Checked.count)
        folder.mkdir(parents=True)
        return str(folder / name)

    def write(self, name, content):
        return forge.write(self.path(name), content)

    def gguf(self, content):
        return self.write("m.gguf", content)

    def checkpoint(self, **lies):
        return forge.checkpoint(self.path("ckpt"), **lies)

    # --- servers ---

    def other(self, name, **more):
        """Another server, kept for all checks of the class."""
        if name not in self.others:
            self.others[name] = Server(self.work, **more)
        return self.others[name]

    def own(self, **more):
        """Another server, for this check alone."""
        server = Server(self.work, **more)
        self.addCleanup(server.stop)
        return server

    def traced(self):
        """A server whose every connect, start of a program and open is written down."""
        return self.other("traced", trace=self.work / "trace.txt")

    def trace(self):
        return (self.work / "trace.txt").read_text(errors="replace").splitlines()

    # --- requests ---

    def ask(self, model, prompt="hi", timeout=60, server=None, **more):
        """Status, text, seconds."""
        options = {"num_predict": 4, "temperature": 0}
        body = {"model": model, "prompt": prompt, "stream": False, "options": options} | more
        began = time.monotonic()
        status, text, _ = (server or self.server).request("POST", "/api/generate", body, timeout=timeout)
        return status, text, time.monotonic() - began

    def chat(self, model, messages, timeout=60, **more):
        options = {"num_predict": 4, "temperature": 0}
        body = {"model": model, "messages": messages, "stream": False, "options": options} | more
        began = time.monotonic()
        status, text, _ = self.server.request("POST", "/api/chat", body, timeout=timeout)
        return status, text, time.monotonic() - began

    def unload(self, model, server=None):
        (server or self.server).request("POST", "/api/generate", {"model": model, "keep_alive": 0})

    def calm_median(self):
        """A bystander's usual time for a token."""
        calm = Bystander(self.server, self.calm, rest=0)
        calm.start()
        house.until("a few streams", house.ANSWER_S, lambda: len(calm.gaps) > 100)
        return calm.stop().median()

    def registry_part(self):
        """Whether a part that needs a registry can be checked; where there is no client of one, that it reaches nobody."""
        registry = Registry()
        status, text, _ = registry.pull(self.server)
        if status != 501:
            return True
        self.expect(not registry.seen, f"pull: {status} {text[:100]}, the registry saw {registry.seen}")
        with self.subTest("registry"):
            self.skipTest("registry part n/a: /api/pull is 501 and connects to nobody")
        return False

    # --- refusals ---

    def blobs(self):
        return sorted(os.listdir(os.path.join(self.server.models, "blobs")))

    def refuses(self, body, what, words, seconds, before):
        """A creation that is refused soon, with these words, and leaves nothing. Returns the error."""
        began = time.monotonic()
        status, text, _ = self.server.request("POST", "/api/create", {"model": "evil", "stream": False} | body)
        took = time.monotonic() - began
        if not self.expect(400 <= status < 500, f"{what}: create said {status} {text[:120]}"):
            self.server.request("DELETE", "/api/delete", {"model": "evil"})
            return text
        error = error_of(text)
        self.expect(took < seconds * house.PATIENCE, f"{what}: took {took:.1f} s")
        if words:
            self.expect(any(word in error for word in words), f"{what}: none of {words} in {error[-150:]}")
        self.expect(self.blobs() == before, f"{what}: new blobs")
        self.expect('"evil' not in self.server.request("GET", "/api/tags")[1], f"{what}: is listed")
        return error

    def refuses_gguf(self, content, what):
        """Of an upload; the error names the file."""
        digest = self.server.upload(content)
        before = self.blobs()
        self.refuses({"files": {"m.gguf": digest}}, what, ("m.gguf",), 5, before)
        os.remove(os.path.join(self.server.models, "blobs", digest.replace(":", "-")))

    def refuses_folder(self, where, what, words=()):
        return self.refuses({"from": where}, what, words, 5, self.blobs())
