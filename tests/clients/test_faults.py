"""Processes that die at the wrong moment. Each test has a server of its own."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import threading
import unittest

import http.client

import house

LONG = {"prompt": "Tell me a long story about a ship.", "options": {"num_predict": 400, "temperature": 0}}
SHORT = {"prompt": "hi", "stream": False, "options": {"num_predict": 2}}


class Streamer(threading.Thread):
    """A client that reads one streamed answer to its end."""

    def __init__(self, server, body):
        super().__init__(daemon=True)
        self.server, self.body = server, json.dumps(body)
        self.lines, self.broken, self.started = [], None, threading.Event()
        self.start()

    def run(self):
        link = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=house.ANSWER_S)
        try:
            link.request("POST", "/api/generate", self.body)
            for line in link.getresponse():
                self.lines.append(json.loads(line))
                self.started.set()
        except (OSError, http.client.HTTPException, ValueError) as error:
            self.broken = error
        finally:
            self.started.set()
            link.close()

    @property
    def text(self):
        return "".join(line.get("response", "") for line in self.lines)


class Faults(unittest.TestCase):
    backend, tokens = "gguf", 400

    def serve(self):
        server = house.Server(models=("smol",), backend=self.backend)
        self.addCleanup(server.stop)
        self.name = "smol"
        self.short = SHORT | {"model": self.name}
        self.long = LONG | {"model": self.name, "options": LONG["options"] | {"num_predict": self.tokens}}
        return server

    def setUp(self):
        self.server = self.serve()

    def stream(self):
        """A client in the midst of a long answer."""
        client = Streamer(self.server, self.long)
        self.assertTrue(client.started.wait(house.ANSWER_S))
        return client

    def load(self):
        status, answer = self.server.call("POST", "/api/generate", self.short)
        self.assertEqual(status, 200, answer)
        return house.until("one worker", house.SOON_S, self.server.workers)

    def test_row_04_a_killed_worker_costs_nobody_more_than_a_pause(self):
        (worker,) = self.load()
        clients = [Streamer(self.server, self.long) for _ in range(2)]
        for client in clients:
            self.assertTrue(client.started.wait(house.ANSWER_S))
        os.kill(worker, signal.SIGKILL)
        self.assertEqual(self.server.call("GET", "/api/tags", seconds=house.SOON_S)[0], 200)
        for client in clients:
            client.join(house.ANSWER_S)
            self.assertIsNone(client.broken, "the stream must end cleanly")
            last = client.lines[-1]
            self.assertTrue(last.get("done"), last)
            self.assertEqual(sum(1 for line in client.lines if line.get("done") or line.get("error")), 1)
        status, answer = self.server.call("POST", "/api/generate", self.short)
        self.assertEqual(status, 200, answer)
        (fresh,) = self.server.workers()
        self.assertNotEqual(fresh, worker)
        row = next(line for line in self.server.cli("ps", "-v").stdout.splitlines() if line.startswith(self.name))
        self.assertRegex(row, rf" {fresh} ")
        self.assertRegex(row, r" 1 +.*(9|SIGKILL|killed)")

    def test_a_resumed_answer_is_the_answer(self):
        (worker,) = self.load()
        calm = self.stream()
        calm.join(house.ANSWER_S)
        troubled = self.stream()
        os.kill(worker, signal.SIGKILL)
        troubled.join(house.ANSWER_S)
        self.assertTrue(troubled.lines[-1].get("done"), troubled.lines[-1])
        self.assertEqual(troubled.text, calm.text)
        for count in ("prompt_eval_count", "eval_count"):
            self.assertEqual(troubled.lines[-1][count], calm.lines[-1][count])

    def test_row_33_a_killed_server_leaves_no_worker(self):
        (worker,) = self.load()
        self.server.process.kill()
        self.server.process.wait()
        house.until("without a worker", 2, lambda: worker not in house.processes())

    def test_sigterm_ends_everything_with_status_0(self):
        for kind in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            with self.subTest(signal=kind):
                server = self.serve()
                server.call("POST", "/api/generate", self.short)
                family = house.descendants(server.process.pid)
                self.assertTrue(family)
                self.assertEqual(server.stop(kind), 0)
                self.assertFalse(family & house.processes().keys())

    def test_whoever_ignores_hang_ups_outlives_its_terminal(self):
        server = house.Server.__new__(house.Server)

        def launch():
            with open(server.log_path, "wb") as log:
                server.process = subprocess.Popen(["nohup", house.OLLMLX, "serve"], env=server.env, stdin=subprocess.DEVNULL,
                                                  stdout=log, stderr=log, start_new_session=True)

        server.launch = launch
        server.__init__(models=(), backend=self.backend)
        server.process.send_signal(signal.SIGHUP)
        self.assertEqual(server.call("GET", "/api/version")[0], 200)
        if sys.platform == "linux":
            status = pathlib.Path(f"/proc/{server.pid}/status").read_text()
            masks = dict(line.split(":\t") for line in status.splitlines() if line.startswith("Sig"))
            self.assertEqual([int(masks[name], 16) & 1 for name in ("SigIgn", "SigCgt")], [1, 0])
        self.assertEqual(server.stop(), 0)

    def test_a_server_whose_log_nobody_reads_goes_on(self):
        reader, writer = os.pipe()
        server = house.Server.__new__(house.Server)

        def launch():
            server.process = subprocess.Popen([house.OLLMLX, "serve"], env=server.env, stdin=subprocess.DEVNULL, stdout=writer,
                                              stderr=writer, start_new_session=True)
            os.close(writer)
            text = b""
            while b"Listening on" not in text:
                piece = os.read(reader, 4096)
                self.assertTrue(piece, "the server ended")
                text += piece
            os.close(reader)
            server.log_path.write_bytes(text)

        server.launch = launch
        # From here on each line of its log fails.
        server.__init__(models=("smol",), backend=self.backend, OLLMLX_DEBUG="1")
        status, answer = server.call("POST", "/api/generate", self.short | {"model": "smol"})
        self.assertEqual((status, answer["done"]), (200, True))
        (worker,) = server.workers()
        os.kill(worker, signal.SIGKILL)
        self.assertEqual(server.call("POST", "/api/generate", self.short | {"model": "smol"})[0], 200)
        self.assertEqual(server.stop(), 0)

    def test_an_answer_does_not_go_on_with_another_model(self):
        ours = self.server.folder / ("model.gguf" if self.backend == "gguf" else "model")
        fresh = ours.with_name("fresh.gguf" if self.backend == "gguf" else "fresh")
        for target, name in ((ours, "smol"), (fresh, "base")):
            source = house.FILES[self.backend][name]
            shutil.copytree(source, target) if self.backend == "mlx" else shutil.copy(source, target)
        client = Streamer(self.server, self.long | {"model": str(ours)})
        self.assertTrue(client.started.wait(house.ANSWER_S))
        (worker,) = self.server.workers()
        # A new download takes the old one's place.
        ours.rename(ours.with_name("old"))
        fresh.rename(ours)
        os.kill(worker, signal.SIGKILL)
        client.join(house.ANSWER_S)
        self.assertIn("files have changed", client.lines[-1].get("error", ""), client.lines[-1])
        status, answer = self.server.call("POST", "/api/generate", self.short | {"model": str(ours)})
        self.assertEqual((status, answer["done"]), (200, True))

    def test_row_45_sigterm_during_an_answer_ends_it_cleanly(self):
        self.load()
        client = self.stream()
        self.assertEqual(self.server.stop(), 0)
        client.join(house.ANSWER_S)
        self.assertIsNone(client.broken)
        self.assertTrue(client.lines[-1].get("done") or client.lines[-1].get("error"))

    def test_row_46_a_second_signal_ends_it_at_once(self):
        self.load()
        client = self.stream()
        family = house.descendants(self.server.process.pid)
        self.server.process.send_signal(signal.SIGINT)
        self.server.process.send_signal(signal.SIGTERM)
        self.assertEqual(self.server.process.wait(house.SOON_S), 0)
        self.assertFalse(family & house.processes().keys())

    def test_row_47_a_client_that_leaves_frees_its_slot(self):
        self.load()
        link = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=house.ANSWER_S)
        # Who counts has no end by itself for long.
        endless = {"model": self.name, "prompt": "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16", "raw": True,
                   "options": {"num_predict": -1, "num_ctx": 4096, "temperature": 0}}
        link.request("POST", "/api/generate", json.dumps(endless))
        link.getresponse().readline()
        link.close()

        def idle():
            rows = self.server.cli("ps", "-v").stdout.splitlines()
            return any(line.startswith(self.name) and " idle " in line for line in rows)

        house.until("idle", 10, idle)


class FaultsOnMlx(Faults):
    backend, tokens = "mlx", 60


if __name__ == "__main__":
    unittest.main()
