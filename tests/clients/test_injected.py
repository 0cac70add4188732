"""Faults that real workers commit on purpose (OLLMLX_FAULT). Each test has a server of its own."""

import json
import subprocess
import unittest

import http.client

import house

STORY = {"model": "smol", "prompt": "Tell me a story about a ship.", "options": {"num_predict": 60, "temperature": 0}}


def ask(server, body=STORY):
    """All lines of one streamed answer, and their text."""
    link = http.client.HTTPConnection("127.0.0.1", server.port, timeout=house.ANSWER_S)
    try:
        link.request("POST", "/api/generate", json.dumps(body))
        lines = [json.loads(line) for line in link.getresponse()]
    finally:
        link.close()
    return lines, "".join(line.get("response", "") for line in lines)


class Injected(unittest.TestCase):
    #: The limit leaves room for the model of this backend, and not for much more.
    backend, memory_limit = "gguf", "1GiB"

    def server(self, fault, **settings):
        server = house.Server(models=("smol",), backend=self.backend, OLLMLX_FAULT=fault, **settings)
        self.addCleanup(server.stop)
        return server

    @classmethod
    def setUpClass(cls):
        calm = house.Server(models=("smol",), backend=cls.backend)
        try:
            cls.calm = ask(calm)[1]
        finally:
            calm.stop()

    def last_death(self, server):
        (row,) = server.call("GET", "/api/ps")[1]["models"]
        return row["last_death"] or ""

    def test_row_01_23_24_an_answer_survives_every_way_to_die_in_the_middle(self):
        for fault, says in [
            ("crash@20;times=1", "SIGSEGV"),
            ("abort@20;times=1", "SIGABRT"),
            ("exit=7@20;times=1", "status 7"),
            ("garbage@20;times=1", "protocol"),
            ("half@20;times=1", "status 4"),
        ]:
            with self.subTest(fault=fault):
                server = self.server(fault)
                self.assertIn("FAULTS ARE ON", server.log())
                lines, text = ask(server)
                self.assertTrue(lines[-1].get("done"), lines[-1])
                self.assertEqual(text, self.calm)
                self.assertIn(says, self.last_death(server))
                server.stop()

    def test_row_15_a_request_that_kills_every_worker_ends_with_an_error_and_others_are_answered(self):
        server = self.server("crash@3;text=doom")
        lines, _ = ask(server, STORY | {"prompt": "doom"})
        self.assertIn("error", lines[-1])
        lines, text = ask(server)
        self.assertTrue(lines[-1].get("done"), lines[-1])
        self.assertEqual(text, self.calm)

    def test_row_11_a_crash_in_the_load_is_told_and_the_next_process_answers(self):
        server = self.server("abort-load;times=1")
        # The next process may compute at a lower CPU level, so its words may be others.
        lines, _ = ask(server)
        self.assertTrue(lines[-1].get("done"), lines[-1])
        self.assertIn("SIGABRT", self.last_death(server))

    def test_slow_steps_are_no_reason_to_kill(self):
        server = self.server("slow=20")
        lines, text = ask(server)
        self.assertEqual(text, self.calm)
        (row,) = server.call("GET", "/api/ps")[1]["models"]
        self.assertEqual(row["restarts"], 0)

    def test_row_20_21_a_leak_beyond_the_limit_costs_the_process_not_the_server(self):
        server = self.server("leak=400;times=1", OLLMLX_MEMORY_LIMIT=self.memory_limit)
        server.call("POST", "/api/generate", {"model": "smol", "keep_alive": -1, "stream": False})
        (first,) = server.workers()
        house.until("without the leaking worker", house.SOON_S, lambda: first not in house.processes())
        lines, text = ask(server)
        self.assertEqual(text, self.calm)

    def test_a_misspelt_fault_keeps_the_server_from_starting(self):
        env = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", "OLLAMA_HOST": f"127.0.0.1:{house.free_port()}",
               "OLLMLX_FAULT": "crush@3"}
        done = subprocess.run([house.OLLMLX, "serve"], env=env, capture_output=True, text=True, timeout=house.SOON_S)
        self.assertEqual(done.returncode, 78)
        self.assertIn('unknown fault "crush"', done.stderr)


class InjectedOnMlx(Injected):
    backend, memory_limit = "mlx", "3GiB"


if __name__ == "__main__":
    unittest.main()
