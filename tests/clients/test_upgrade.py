"""`ollmlx upgrade`: a new server takes the socket over; nobody is refused and no answer is cut."""

import http.client
import http.server
import json
import os
import pathlib
import shutil
import signal
import subprocess
import tempfile
import threading
import unittest

import house
from test_faults import Streamer
from test_memory import resident

LONG = {"model": "smol", "prompt": "Tell me a story.", "options": {"num_predict": 200, "temperature": 0}}


class Knocker(threading.Thread):
    """Connects again and again until told to stop."""

    def __init__(self, port):
        super().__init__(daemon=True)
        self.port, self.served, self.errors, self.done = port, 0, [], threading.Event()

    def run(self):
        while not self.done.is_set():
            link = http.client.HTTPConnection("127.0.0.1", self.port, timeout=house.SOON_S)
            try:
                link.request("GET", "/api/version")
                assert link.getresponse().status == 200
                self.served += 1
            except (OSError, http.client.HTTPException, AssertionError) as error:
                self.errors.append(repr(error))
            finally:
                link.close()


class Upgrade(unittest.TestCase):
    def setUp(self):
        # A copy of the program, so that the test may replace it.
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="ollmlx-upgrade-"))
        self.addCleanup(shutil.rmtree, self.folder, ignore_errors=True)
        shutil.copy2(house.OLLMLX, self.folder / "ollmlx")
        self.program = house.OLLMLX
        house.OLLMLX = str(self.folder / "ollmlx")
        self.addCleanup(setattr, house, "OLLMLX", self.program)
        self.server = house.Server(models=("smol",), OLLMLX_WORKER_DIR=str(house.BIN))
        self.addCleanup(self.end)

    def end(self):
        pid = self.pid()
        if pid:
            os.kill(pid, signal.SIGTERM)
            house.until("without the new server", house.SOON_S, lambda: pid not in house.processes())
        self.server.stop()

    def replace(self, script):
        """Puts a script in the place of the server's program; the command line stays what it is."""
        fresh = self.folder / "fresh"
        fresh.write_text(f"#!/bin/sh\n{script}\n")
        fresh.chmod(0o755)
        os.replace(fresh, house.OLLMLX)
        house.OLLMLX = self.program

    def pid(self):
        try:
            return self.server.call("GET", "/api/ollmlx/server", seconds=5)[1]["pid"]
        except OSError:
            return None

    def test_models_are_loaded_after_the_program_was_replaced(self):
        self.replace("exit 1")
        body = {"model": "smol", "prompt": "x", "stream": False, "options": {"num_predict": 1}}
        status, answer = self.server.call("POST", "/api/generate", body)
        self.assertEqual(status, 200, answer)

    def test_row_43_no_connection_is_refused_and_no_answer_is_cut(self):
        self.server.call("POST", "/api/generate", LONG | {"stream": False, "options": {"num_predict": 1}})
        link = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=house.ANSWER_S)
        self.addCleanup(link.close)
        link.request("POST", "/api/generate", json.dumps(LONG))
        answer = link.getresponse()
        lines = [json.loads(answer.readline())]
        knockers = [Knocker(self.server.port) for _ in range(4)]
        for knocker in knockers:
            knocker.start()
        old = self.server.process.pid
        # What lies at the path now is another file.
        fresh = self.folder / "fresh"
        shutil.copy2(self.program, fresh)
        os.replace(fresh, house.OLLMLX)
        done = self.server.cli("upgrade")
        self.assertEqual(done.returncode, 0, done.stderr)
        new = self.pid()
        self.assertNotEqual(new, old)
        self.assertIn(str(new), done.stdout)
        lines += [json.loads(line) for line in answer]
        self.assertTrue(lines[-1].get("done"), lines[-1])
        self.assertEqual(lines[-1]["eval_count"], sum(1 for line in lines if line.get("response")) or 1)
        self.assertEqual(self.server.process.wait(house.SOON_S), 0, "the old server ends by itself")
        served = [knocker.served for knocker in knockers]
        self.assertTrue(all(served), "all along")
        house.until("served by the new one", house.SOON_S,
                    lambda: all(knocker.served > count for knocker, count in zip(knockers, served)))
        for knocker in knockers:
            knocker.done.set()
            knocker.join(house.SOON_S)
            self.assertEqual(knocker.errors, [])
        status, answer = self.server.call("POST", "/api/generate", LONG | {"stream": False})
        self.assertEqual((status, answer["done"]), (200, True))
        # And once more, from the second to a third.
        self.assertEqual(self.server.cli("upgrade").returncode, 0)
        self.assertNotIn(self.pid(), (old, new))

    def test_a_signal_to_leave_is_heard_while_the_new_program_hangs(self):
        self.replace("exec sleep 60")
        self.server.process.send_signal(signal.SIGUSR2)
        asleep = lambda: [pid for pid in house.descendants(self.server.process.pid) if house.processes()[pid][1] == "sleep"]
        (child,) = house.until("a new program", house.SOON_S, asleep)
        self.server.process.terminate()
        self.assertEqual(self.server.process.wait(house.SOON_S), 0)
        self.assertNotIn(child, house.processes())

    def test_a_process_that_is_no_server_is_not_signalled(self):
        bystander = subprocess.Popen(["sleep", "60"])
        self.addCleanup(bystander.wait)
        self.addCleanup(bystander.kill)

        class Door(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                body = json.dumps({"pid": bystander.pid, "version": "0.1.0"}).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_HEAD = do_GET

            def log_message(self, *_):
                pass

        door = http.server.HTTPServer(("127.0.0.1", 0), Door)
        self.addCleanup(door.server_close)
        self.addCleanup(door.shutdown)
        threading.Thread(target=door.serve_forever, daemon=True).start()
        done = self.server.cli("upgrade", env=self.server.env | {"OLLAMA_HOST": f"127.0.0.1:{door.server_address[1]}"})
        self.assertEqual(done.returncode, 1)
        self.assertIn("is no ollmlx on this machine", done.stderr)
        self.assertIsNone(bystander.poll())

    def test_who_follows_a_log_is_let_go(self):
        self.server.stop()
        self.server = house.Server(models=("smol",), OLLMLX_WORKER_DIR=str(house.BIN), OLLMLX_FAULT="crash@1;times=1")
        self.server.call("POST", "/api/generate", LONG | {"stream": False, "options": {"num_predict": 2}})
        reader = subprocess.Popen([house.OLLMLX, "logs", "smol", "-f"], env=self.server.env, stdout=subprocess.PIPE)
        self.addCleanup(reader.stdout.close)
        self.addCleanup(reader.kill)
        self.assertTrue(reader.stdout.readline())
        self.assertEqual(self.server.cli("upgrade").returncode, 0)
        self.assertEqual(reader.wait(house.SOON_S), 0)
        self.assertEqual(self.server.process.wait(house.SOON_S), 0, "the old server ends by itself")

    def test_row_44_a_new_program_that_does_not_start_leaves_the_old_one_serving(self):
        self.replace("echo it is broken >&2\nexit 3")
        done = self.server.cli("upgrade")
        self.assertEqual(done.returncode, 1)
        self.assertIn("the old server goes on", done.stderr)
        self.assertIn("exit status: 3", done.stderr)
        self.assertEqual(self.pid(), self.server.process.pid)
        self.assertEqual(self.server.raw("GET", "/readyz"), (200, b"ready\n"))

    def test_s17_a_program_that_others_could_change_is_not_executed(self):
        first, mark, program = self.pid(), self.folder / "mark", self.folder / "ollmlx"
        self.replace(f"touch '{mark}'\nexit 3")
        for place, mode in ((program, 0o757), (program, 0o775), (self.folder, 0o777)):
            before = place.stat().st_mode & 0o7777
            place.chmod(mode)
            done = self.server.cli("upgrade")
            self.assertEqual((done.returncode, mark.exists(), self.pid()), (1, False, first), (mode, done.stderr))
            self.assertIn(f"is not executed, since somebody else could change it: {place}", done.stderr)
            self.assertIn("chmod go-w", done.stderr)
            place.chmod(before)
        if os.getuid() == 0:
            os.chown(program, 65534, 65534)
            self.assertIn("belongs to user 65534", self.server.cli("upgrade").stderr)
            self.assertFalse(mark.exists())
            os.chown(program, 0, 0)
        self.assertNotEqual(self.server.cli("upgrade").returncode, 0)
        self.assertTrue(mark.exists(), "without the fault it would have been executed")

    def test_s17_a_worker_that_others_could_change_is_not_executed(self):
        workers = self.folder / "workers"
        workers.mkdir()
        mark = self.folder / "mark"
        for backend in ("gguf", "mlx"):
            worker = workers / f"ollmlx-worker-{backend}"
            worker.write_text(f"#!/bin/sh\ntouch '{mark}'\nexit 3\n")
            worker.chmod(0o757)
        server = house.Server(models=(), OLLMLX_WORKER_DIR=str(workers), OLLMLX_MODELS=self.server.env["OLLMLX_MODELS"])
        self.addCleanup(server.stop)
        for path, body in (("/api/generate", {"model": "smol", "prompt": "x"}), ("/api/show", {"model": "smol"})):
            status, answer = server.call("POST", path, body)
            self.assertGreaterEqual(status, 500, answer)
            self.assertIn("may not be executed", json.dumps(answer))
        self.assertFalse(mark.exists())
        self.assertIn("everybody can write to it", server.log())

    def slots(self):
        """What the server's settings come to: how many slots a model gets that is loaded now."""
        self.server.cli("stop", "smol")
        self.server.call("POST", "/api/generate", LONG | {"stream": False, "options": {"num_predict": 1}})
        return self.server.call("GET", "/api/ps")[1]["models"][0]["slots"]

    def test_row_44_broken_settings_leave_the_old_server_with_its_own_and_the_line_is_told(self):
        told = lambda: self.server.call("GET", "/api/ollmlx/server")[1]
        old = told()["pid"]
        self.assertEqual((told()["upgrade_error"], self.slots()), (None, 4))
        self.assertNotIn("upgrade", self.server.cli("ps", "-v").stdout)
        settings = self.server.folder / "state" / "config"
        settings.write_text("# ours\nnum_parallel = 1\nmax_queue = several\n")
        done = self.server.cli("upgrade")
        reason = 'line 3 of the settings file: max_queue: must be a whole number, not "several"'
        self.assertEqual((done.returncode, done.stdout), (1, ""))
        self.assertIn("the old server goes on", done.stderr)
        self.assertIn(reason, done.stderr)
        self.assertEqual((told()["pid"], self.server.process.poll()), (old, None))
        self.assertIn(reason, told()["upgrade_error"])
        line = f"the last upgrade failed: the new server did not start: {reason}\n"
        self.assertIn(line, self.server.cli("ps", "-v").stdout)
        self.assertIn("the upgrade failed and this server goes on", self.server.log())
        self.assertIn(reason, self.server.log())
        self.assertEqual(self.slots(), 4, "none of the file's other lines holds")
        # A file that can't be read at all is no better.
        settings.write_bytes(b"num_parallel = \xff\n")
        self.assertIn("the settings file can't be read", self.server.cli("upgrade").stderr)
        self.assertEqual(told()["pid"], old)
        # Mended, it is what the next server goes by.
        settings.write_text("num_parallel = 2\n")
        done = self.server.cli("upgrade")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertNotEqual(told()["pid"], old)
        self.assertEqual((told()["upgrade_error"], self.slots()), (None, 2))

    def instead(self, **settings):
        """Another server, whose answers take some seconds."""
        self.server.stop()
        self.server = house.Server(models=("smol", "base"), OLLMLX_WORKER_DIR=str(house.BIN), OLLMLX_FAULT="slow=40",
                                   **settings)

    def need(self, name):
        told = self.server.cli("fit", name, "--json", env=self.server.env | {"OLLAMA_HOST": f"127.0.0.1:{house.free_port()}"})
        return json.loads(told.stdout)["needs"]["total"]

    def held(self, servers):
        """What all workers of these servers take."""
        pids = set().union(*(house.descendants(pid) for pid in servers if pid))
        table = house.processes()
        return sum(resident(pid) for pid in pids if "worker" in table.get(pid, (0, ""))[1])

    def test_both_servers_together_stay_within_the_limit_and_both_answer(self):
        needs = [self.need(house.FILES["gguf"][name]) for name in ("smol", "base")]
        limit = max(needs) * 5 // 4
        self.assertGreater(sum(needs), limit, "they do not fit together")
        self.instead(OLLMLX_MEMORY_LIMIT=str(limit))
        old = self.pid()
        stream = Streamer(self.server, LONG)
        self.assertTrue(stream.started.wait(house.ANSWER_S))
        done = self.server.cli("upgrade")
        self.assertEqual(done.returncode, 0, done.stderr)
        new = self.pid()
        told = json.loads(self.server.cli("fit", "base", "--json").stdout)
        self.assertEqual((told["verdict"], told["fits"]), ("after_others", True))
        self.assertGreater(told["held_by_predecessor"], 0)
        self.assertIn("held by the server being replaced", self.server.cli("ps", "-v").stdout)
        other = Streamer(self.server, LONG | {"model": "base", "options": {"num_predict": 8}})
        peak, beside = 0, False
        while stream.is_alive() or other.is_alive():
            peak = max(peak, self.held((old, new)))
            beside |= bool(other.lines) and stream.is_alive()
            (stream if stream.is_alive() else other).join(0.05)
        self.assertLess(peak, limit * 102 // 100, f"limit {limit}")
        self.assertGreater(peak, 50e6)
        self.assertFalse(beside, "the other model waits for the old server's")
        self.assertTrue(stream.lines[-1].get("done") and other.lines[-1].get("done"), (stream.lines[-1], other.lines[-1]))
        house.until("without the old server", house.SOON_S, lambda: old not in house.processes())
        house.until("nothing held", house.SOON_S, lambda: self.server.call("GET", "/api/ps")[1]["memory"]["predecessor"] == 0)

    def test_a_replaced_server_keeps_no_idle_model(self):
        self.instead()
        self.server.call("POST", "/api/generate", {"model": "base", "keep_alive": -1, "stream": False})
        stream = Streamer(self.server, LONG)
        self.assertTrue(stream.started.wait(house.ANSWER_S))
        self.assertEqual(len(self.server.workers()), 2)
        self.assertEqual(self.server.cli("upgrade").returncode, 0)
        new = self.pid()
        of_old = lambda: set(self.server.workers()) - house.descendants(new)
        house.until("one worker left", house.SOON_S, lambda: len(of_old()) == 1)
        self.assertTrue(stream.is_alive(), "the long answer still runs")
        stream.join(house.ANSWER_S)
        self.assertTrue(stream.lines[-1].get("done"), stream.lines[-1])

    def test_a_server_of_another_machine_is_not_signalled(self):
        env = self.server.env | {"OLLAMA_HOST": "192.0.2.1:11434"}
        env.pop("OLLMLX_HOST", None)
        done = subprocess.run([house.OLLMLX, "upgrade"], env=env, capture_output=True, text=True, timeout=house.SOON_S, check=False)
        self.assertEqual(done.returncode, 1)
        self.assertIn("on another machine", done.stderr)


if __name__ == "__main__":
    unittest.main()
