"""The server as a service: one for a state folder, a status for settings that make no sense, and what a service manager
hears of it. No model is needed."""

import os
import pathlib
import plistlib
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import unittest

import house

UNITS = pathlib.Path(__file__).resolve().parents[2] / "supervisor" / "service"
#: Of ten, as `systemd-analyze security` counts: what is left is what the server is for, see the comments of the unit.
EXPOSURE_MAX = 3.0
#: Until a server that can't be one has said so and left.
REFUSED_S = 30
#: Until a sign, of a service manager's or of a process's end.
SIGN_S = 30


def serve(env, *flags):
    return subprocess.run([house.OLLMLX, "serve", *flags], env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          timeout=REFUSED_S, check=False)


class Served(unittest.TestCase):
    def server(self, **settings):
        server = house.Server(models=(), **settings)
        self.addCleanup(self.end, server)
        return server

    def end(self, server):
        """Also the one that has taken over from it."""
        pid = self.pid(server)
        if pid and pid != server.process.pid:
            os.kill(pid, signal.SIGTERM)
            self.until_gone(pid)
        server.stop()

    def pid(self, server):
        try:
            return server.call("GET", "/api/ollmlx/server", seconds=5)[1]["pid"]
        except OSError:
            return None

    def until_gone(self, pid):
        house.until(f"without process {pid}", SIGN_S, lambda: pid not in house.processes())

    def upgrade(self, server):
        """The process that serves then."""
        done = server.cli("upgrade")
        self.assertEqual(done.returncode, 0, done.stderr)
        return self.pid(server)


class StateFolder(Served):
    def setUp(self):
        self.first = self.server()
        self.lock = self.first.folder / "state" / "serve.lock"

    def other(self, **settings):
        """The environment of a server at another port with the same folders."""
        return self.first.env | {"OLLAMA_HOST": f"127.0.0.1:{house.free_port()}"} | settings

    def assert_refused(self, pid):
        before = sorted(self.first.folder.rglob("*"))
        done = serve(self.other())
        self.assertEqual(done.returncode, 1, done.stderr)
        self.assertIn(f"Error: another server uses the state folder {self.first.folder / 'state'}: process {pid} at "
                      f"{self.first.host}, since ", done.stderr)
        for advice in (f"OLLMLX_HOST={self.first.host} ollmlx upgrade", "--state-dir", "OLLMLX_STATE_DIR="):
            self.assertIn(advice, done.stderr)
        self.assertNotIn("Listening", done.stderr)
        self.assertEqual(sorted(self.first.folder.rglob("*")), before)

    def orphan(self):
        """A blob that a server removes when it starts: no model names it, and it is old."""
        blob = self.first.folder / "models" / "blobs" / ("sha256-" + 64 * "0")
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(b"x")
        os.utime(blob, (1, 1))
        return blob

    def test_row_36_a_second_server_says_who_has_the_state_folder_and_touches_nothing(self):
        blob = self.orphan()
        self.assert_refused(self.first.process.pid)
        self.assertTrue(blob.exists())
        self.assertEqual(self.first.raw("GET", "/readyz"), (200, b"ready\n"))
        elsewhere = self.server(OLLMLX_MODELS=self.first.env["OLLMLX_MODELS"])
        self.assertFalse(blob.exists(), "with a state folder of its own it is a server, which tidies up")
        self.assertEqual(elsewhere.raw("GET", "/readyz")[0], 200)

    def test_row_36_a_killed_server_is_in_nobodys_way(self):
        self.first.process.kill()
        self.first.process.wait()
        self.assertIn(f"pid = {self.first.process.pid}\n", self.lock.read_text(), "it is left over")
        second = self.server(OLLMLX_STATE_DIR=self.first.env["OLLMLX_STATE_DIR"])
        self.assertIn(f"pid = {second.process.pid}\n", self.lock.read_text())
        self.assertIn(f"address = {second.host}\n", self.lock.read_text())

    def test_row_36_rubbish_in_the_lock_s_place_is_no_obstacle(self):
        self.first.stop()
        state = pathlib.Path(self.first.env["OLLMLX_STATE_DIR"])
        state.mkdir(parents=True)
        self.addCleanup(shutil.rmtree, self.first.folder, ignore_errors=True)
        self.lock.write_bytes(b"\xff\x00pid = 1\n" * 1000)
        second = self.server(OLLMLX_STATE_DIR=str(state))
        self.assertIn(f"process {second.process.pid} at ", serve(self.other()).stderr)
        second.stop()
        self.lock.unlink()
        self.lock.mkdir()
        third = self.server(OLLMLX_STATE_DIR=str(state))
        self.assertIn("the state folder can't be locked", third.log())

    @unittest.skipUnless(sys.platform == "linux", "a folder that nobody can write to, not even root")
    def test_row_36_a_state_folder_that_can_t_be_written_to_is_a_warning(self):
        server = self.server(OLLMLX_STATE_DIR="/proc/ollmlx")
        self.assertIn("the state folder can't be locked", server.log())
        self.assertIn(self.upgrade(server), house.processes())

    def test_s03_a_state_folder_with_content_of_its_own_keeps_it(self):
        self.first.stop()
        state = pathlib.Path(self.first.env["OLLMLX_STATE_DIR"])
        self.addCleanup(shutil.rmtree, self.first.folder, ignore_errors=True)
        files = ("views/admin/page.html", "views/notes", f"views/{64 * '0'}/page.html", "views/.new-1/page.html", "cards/ace.json",
                 "blobs/x.tmp", "other/file")
        for name in files:
            (state / name).parent.mkdir(parents=True, exist_ok=True)
            (state / name).write_text("mine")
        second = self.server(OLLMLX_STATE_DIR=str(state))
        self.assertEqual([(state / name).read_text() for name in files], len(files) * ["mine"])
        self.assertIn("what no server has made was left where it is", second.log())

    def test_s07_a_link_where_the_server_would_write_is_not_followed(self):
        self.first.stop()
        state = pathlib.Path(self.first.env["OLLMLX_STATE_DIR"])
        state.mkdir(parents=True)
        self.addCleanup(shutil.rmtree, self.first.folder, ignore_errors=True)
        victim = self.first.folder / "victim"
        victim.write_text("somebody's")
        for name in ("serve.lock", "learned.json", "cards", "views"):
            (state / name).symlink_to(victim)
            done = serve(self.other())
            self.assertEqual(done.returncode, 78, done.stderr)
            self.assertIn(f"Error: the state folder {state} can't be used: {name} in it is a link", done.stderr)
            self.assertIn("--state-dir", done.stderr)
            self.assertEqual(victim.read_text(), "somebody's")
            (state / name).unlink()

    def test_row_36_the_lock_goes_to_the_successor_and_is_free_with_its_end(self):
        old = self.first.process.pid
        new = self.upgrade(self.first)
        self.assert_refused(new)
        self.assertEqual(self.first.process.wait(SIGN_S), 0)
        self.assert_refused(new)
        last = self.upgrade(self.first)
        self.until_gone(new)
        self.assertNotIn(last, (old, new))
        self.assert_refused(last)
        os.kill(last, signal.SIGKILL)
        self.until_gone(last)
        self.server(OLLMLX_STATE_DIR=self.first.env["OLLMLX_STATE_DIR"])

    def test_row_36_an_upgrade_that_fails_leaves_the_lock_with_the_old_one(self):
        folder = pathlib.Path(tempfile.mkdtemp(prefix="ollmlx-service-"))
        self.addCleanup(shutil.rmtree, folder, ignore_errors=True)
        program = house.OLLMLX
        self.addCleanup(setattr, house, "OLLMLX", program)
        house.OLLMLX = str(folder / "ollmlx")
        shutil.copy2(program, house.OLLMLX)
        self.first.stop()
        self.first = self.server()
        broken = folder / "broken"
        # It has the lock too, as long as it lives.
        broken.write_text("#!/bin/sh\necho it is broken\nexit 3\n")
        broken.chmod(0o755)
        os.replace(broken, house.OLLMLX)
        house.OLLMLX = program
        done = self.first.cli("upgrade")
        self.assertEqual(done.returncode, 1)
        self.assertIn("the old server goes on", done.stderr)
        self.assert_refused(self.first.process.pid)

    @unittest.skipUnless(sys.platform == "linux", "reads /proc")
    def test_row_36_a_server_that_was_replaced_and_still_answers_has_the_lock_no_more(self):
        with socket.create_connection(("127.0.0.1", self.first.port), timeout=SIGN_S) as link:
            # The rest of it comes later.
            link.sendall(b"POST /api/blobs/sha256:" + b"0" * 64 + b" HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nhalf")
            house.until("received", SIGN_S, lambda: any((self.first.folder / "models").rglob("*")))
            new = self.upgrade(self.first)
            house.until("let go", SIGN_S, lambda: self.holders() == {new})
            self.assertIsNone(self.first.process.poll(), "it waits for the rest")
            link.sendall(b"other")
            self.assertIn(b"HTTP/1.1 400", link.recv(4096))
        self.assertEqual(self.first.process.wait(SIGN_S), 0)

    def test_row_36_no_other_process_has_the_lock_open(self):
        new = self.upgrade(self.first)
        self.assertEqual(self.first.process.wait(SIGN_S), 0)
        self.assertEqual(self.holders(), {new})

    def holders(self):
        holders = set()
        for link in pathlib.Path("/proc").glob("[0-9]*/fd/*"):
            try:
                if os.readlink(link) == str(self.lock):
                    holders.add(int(link.parts[2]))
            except OSError:
                pass  # It has closed it, or is another user's.
        return holders


class Settings(unittest.TestCase):
    def setUp(self):
        folder = tempfile.mkdtemp(prefix="ollmlx-service-")
        self.addCleanup(shutil.rmtree, folder, ignore_errors=True)
        self.env = {"PATH": "/usr/bin:/bin", "HOME": folder, "OLLAMA_HOST": f"127.0.0.1:{house.free_port()}"}

    def test_row_38_settings_that_make_no_sense_have_a_status_of_their_own(self):
        for flags, settings, words in (
            (("--max-queue", "many"), {}, 'invalid value for --max-queue: must be a whole number, not "many"'),
            (("--bogus",), {}, "unknown flag: --bogus"),
            (("word",), {}, "word"),
            ((), {"OLLMLX_FAULT": "crush@3"}, 'unknown fault "crush"'),
        ):
            with self.subTest(flags=flags, settings=settings):
                done = serve(self.env | settings, *flags)
                self.assertEqual(done.returncode, 78, done.stderr)
                self.assertIn(words, done.stderr)
                self.assertIn("Error: ", done.stderr)

    def test_row_38_what_may_be_better_later_is_tried_again(self):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            done = serve(self.env | {"OLLAMA_HOST": f"127.0.0.1:{taken.getsockname()[1]}"})
            self.assertEqual(done.returncode, 1, done.stderr)
        # An address that this machine does not have, or not yet.
        done = serve(self.env | {"OLLAMA_HOST": "192.0.2.1:11434"})
        self.assertEqual(done.returncode, 1, done.stderr)


class Manager:
    """A service manager's ear; `address` is what it tells its service."""

    def __init__(self, address):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self.socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self.socket.setblocking(False)
        self.heard = []

    def listen(self):
        """Everything so far, as (process, line)."""
        while True:
            try:
                text, control, _, _ = self.socket.recvmsg(4096, socket.CMSG_SPACE(12))
            except BlockingIOError:
                return self.heard
            pid, _, _ = struct.unpack("iII", control[0][2])
            self.heard += [(pid, line) for line in text.decode().splitlines()]

    def until(self, pid, line):
        house.until(f"heard of {line} from {pid}", SIGN_S, lambda: (pid, line) in self.listen())


@unittest.skipUnless(sys.platform == "linux", "systemd's protocol, with the sender's process")
class Notify(Served):
    def test_row_35_38_a_manager_hears_of_start_life_upgrade_and_end(self):
        folder = tempfile.mkdtemp(prefix="ollmlx-service-")
        self.addCleanup(shutil.rmtree, folder, ignore_errors=True)
        for address in (f"{folder}/notify", f"@ollmlx-test-{os.getpid()}"):
            with self.subTest(address):
                manager = Manager(address)
                self.addCleanup(manager.socket.close)
                server = self.server(NOTIFY_SOCKET=address, WATCHDOG_USEC="200000", WATCHDOG_PID="1")
                old = server.process.pid
                manager.until(old, "READY=1")
                manager.until(old, f"STATUS=Listening on {server.host}")
                manager.until(old, "WATCHDOG=1")
                new = self.upgrade(server)
                manager.until(old, f"MAINPID={new}")
                self.assertEqual(server.process.wait(SIGN_S), 0)
                told = manager.listen()
                after = told[told.index((old, f"MAINPID={new}")) + 1:]
                self.assertNotIn(old, [pid for pid, _ in after], "it is not the service any more")
                self.assertNotIn("STOPPING=1", [line for _, line in told])
                manager.heard.clear()
                manager.until(new, "WATCHDOG=1")
                os.kill(new, signal.SIGTERM)
                manager.until(new, "STOPPING=1")
                self.until_gone(new)

    def test_row_36_38_a_worker_gets_neither_the_manager_s_address_nor_the_lock(self):
        server = self.server(NOTIFY_SOCKET="@ollmlx-test-nobody", WATCHDOG_USEC="60000000", OLLMLX_WORKER_DIR=self.spies(),
                             OLLMLX_WORKER_SANDBOX="off")
        server.call("POST", "/api/show", {"model": house.FILES["gguf"]["smol"]})
        told = house.until("spied", SIGN_S, lambda: self.spied.exists() and self.spied.read_text())
        self.assertIn("PWD=", told)
        self.assertIn(" 0 -> ", told)
        self.assertNotRegex(told, "NOTIFY_SOCKET|WATCHDOG|serve.lock")

    def spies(self):
        """A folder of workers that only tell what they were told."""
        folder = pathlib.Path(tempfile.mkdtemp(prefix="ollmlx-service-"))
        self.addCleanup(shutil.rmtree, folder, ignore_errors=True)
        self.spied = folder / "spied"
        for backend in house.FILES:
            spy = folder / f"ollmlx-worker-{backend}"
            spy.write_text(f"#!/bin/sh\n(env; ls -l /proc/$$/fd) >'{self.spied}.part'\nmv '{self.spied}.part' '{self.spied}'\n")
            spy.chmod(0o755)
        return str(folder)


class Units(unittest.TestCase):
    def complaints(self, unit):
        """What systemd says about a unit of this text."""
        folder = pathlib.Path(tempfile.mkdtemp(prefix="ollmlx-service-"))
        self.addCleanup(shutil.rmtree, folder, ignore_errors=True)
        path = folder / "ollmlx.service"
        path.write_text(unit)
        said = ""
        for whose in ((), ("--user",)):
            done = subprocess.run(["systemd-analyze", "verify", *whose, str(path)], capture_output=True, text=True, timeout=60,
                                  env=os.environ | {"XDG_RUNTIME_DIR": str(folder)}, check=False)
            said += "".join(line for line in done.stderr.splitlines(True) if "ollmlx" in line or done.returncode)
        return said

    @unittest.skipUnless(shutil.which("systemd-analyze"), "systemd is not there")
    def test_row_38_systemd_takes_the_unit(self):
        for name in ("ollmlx.service", "user/ollmlx.service"):
            unit, count = re.subn("(?m)^ExecStart=/usr/local/bin/ollmlx", f"ExecStart={house.OLLMLX}", (UNITS / name).read_text())
            self.assertEqual(count, 1)
            self.assertEqual(self.complaints(unit), "", name)
            self.assertIn("Unknown key", self.complaints(unit.replace("StartLimitBurst", "StartLimitBrust")), "it would complain")

    @unittest.skipUnless(shutil.which("systemd-analyze"), "systemd is not there")
    def test_s17_the_machine_s_unit_is_walled_in(self):
        done = subprocess.run(["systemd-analyze", "security", "--offline=true", "--no-pager", str(UNITS / "ollmlx.service")],
                              capture_output=True, text=True, timeout=60, env=os.environ | {"LC_ALL": "C"}, check=False)
        level = re.search(r"Overall exposure level for ollmlx\.service: ([0-9.]+)", done.stdout)
        self.assertIsNotNone(level, done.stdout + done.stderr)
        self.assertLessEqual(float(level[1]), EXPOSURE_MAX, done.stdout)

    def test_row_38_launchd_s_property_list_is_one(self):
        settings = plistlib.loads((UNITS / "io.ollmlx.serve.plist").read_bytes())
        self.assertEqual(settings["Label"], "io.ollmlx.serve")
        self.assertEqual(settings["ProgramArguments"][1:], ["serve"])
        self.assertEqual(settings["KeepAlive"], {"SuccessfulExit": False})
        self.assertGreaterEqual(settings["ThrottleInterval"], 10)


if __name__ == "__main__":
    unittest.main()
