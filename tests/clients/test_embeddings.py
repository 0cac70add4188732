"""Embeddings of a model that generates: their time and their memory. Each test has a server of its own."""

import json
import pathlib
import unittest

import house
from test_faults import Streamer

LONG = "the ship left the harbour in the morning " * 300


class Embeddings(unittest.TestCase):
    def serve(self, **settings):
        server = house.Server(models=("smol",), **settings)
        self.addCleanup(server.stop)
        return server

    def resident(self, server):
        rows = server.call("GET", "/api/ps")[1]["models"]
        return {row["name"]: row for row in rows}["smol:latest"]

    def test_a_long_input_is_no_hang_and_ends_no_stream_beside_it(self):
        # One thread, so that all of it takes longer than the patience, and a part of it does not by far, even
        # where other tests and builds keep the machine busy.
        server = self.serve(OLLMLX_HANG_TIMEOUT="20s", OLLMLX_THREADS="1", OLLMLX_FAULT="slow=50")
        ask = {"model": "smol", "prompt": "Tell me a long story about a ship.",
               "options": {"num_predict": 40, "temperature": 0}}
        streams = [Streamer(server, ask) for _ in range(2)]
        for stream in streams:
            self.assertTrue(stream.started.wait(house.ANSWER_S))
        status, answer = server.call("POST", "/api/embed", {"model": "smol", "input": LONG}, seconds=5 * house.ANSWER_S)
        self.assertEqual(status, 200, answer)
        self.assertEqual([len(vector) for vector in answer["embeddings"]], [576])
        self.assertGreater(answer["prompt_eval_count"], 2000)
        for stream in streams:
            stream.join(house.ANSWER_S)
            self.assertEqual((stream.broken, stream.lines[-1].get("eval_count")), (None, 40), stream.lines[-1])
        self.assertEqual(self.resident(server)["restarts"], 0)

    def test_a_client_that_leaves_a_long_input_frees_the_model(self):
        server = self.serve(OLLMLX_FAULT="slow=300")
        server.call("POST", "/api/generate", {"model": "smol", "stream": False})
        with self.assertRaises(TimeoutError):
            server.call("POST", "/api/embed", {"model": "smol", "input": [LONG] * 20}, seconds=1)
        # All of them would take some 800 steps of 300 ms.
        status, answer = server.call("POST", "/api/generate", {"model": "smol", "prompt": "hi", "stream": False,
                                                               "options": {"num_predict": 2}}, seconds=60)
        self.assertEqual(status, 200, answer)
        self.assertEqual(self.resident(server)["restarts"], 0)

    @unittest.skipUnless(pathlib.Path("/proc/self/status").exists(), "the system's own count is Linux's")
    def test_a_long_input_stays_within_what_the_model_is_planned_with(self):
        server = self.serve()
        status, answer = server.call("POST", "/api/embed", {"model": "smol", "input": [LONG, "short"]}, seconds=5 * house.ANSWER_S)
        self.assertEqual((status, len(answer["embeddings"])), (200, 2), json.dumps(answer)[:200])
        (worker,) = server.workers()
        lines = pathlib.Path(f"/proc/{worker}/status").read_text().splitlines()
        peak = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
        planned = self.resident(server)["memory"]["estimated"]["total"]
        print(f"embedding on a generative model: planned {planned / 1e6:.0f} MB, peak {peak / 1e6:.0f} MB")
        self.assertLess(peak, planned * 1.1)


if __name__ == "__main__":
    unittest.main()
