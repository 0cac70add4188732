"""What is particular to MLX: its answers are mlx-lm's, and it works beside llama.cpp without either noticing the other.

The expected answers were written by tests/models/mlx_golden.py with mlx-lm, from the same checkpoints.
"""

import hashlib
import json
import math
import os
import pathlib
import signal
import threading
import unittest

import house
from test_faults import Streamer

GOLDEN = pathlib.Path(__file__).resolve().parents[1] / "models" / "golden"


class AsMlxLm(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = house.shared("mlx")

    def golden(self, name):
        golden = json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))
        weights = pathlib.Path(house.FILES["mlx"][name]) / "model.safetensors"
        digest = hashlib.sha256(weights.read_bytes()).hexdigest()
        self.assertEqual(digest, golden["model_sha256"], "another checkpoint than the answers were made with")
        options = {"temperature": 0, "repeat_penalty": 1.0, "num_predict": golden["num_predict"]}
        return {"model": name, "stream": False, "options": options}, golden["answers"]

    def ask(self, body, want):
        if "messages" in want:
            return self.server.call("POST", "/api/chat", body | {"messages": want["messages"]})
        return self.server.call("POST", "/api/generate", body | {"prompt": want["prompt"], "raw": True})

    def check(self, want, status, got):
        with self.subTest(ask=want.get("prompt") or want["messages"]):
            self.assertEqual(status, 200, got)
            text = got["message"]["content"] if "messages" in want else got["response"]
            self.assertEqual(text.rstrip("\ufffd"), want["text"], f"least margin of the logits: {want['least_margin']}")
            facts = (got["prompt_eval_count"], got["eval_count"], got["done_reason"])
            self.assertEqual(facts, (want["prompt_tokens"], want["tokens"], want["done_reason"]))

    def compare(self, name):
        body, wanted = self.golden(name)
        for want in wanted:
            self.check(want, *self.ask(body, want))

    def test_computed_together_they_are_the_same(self):
        body, wanted = self.golden("smol")
        found, crowd = {}, []
        for at in range(0, len(wanted), 3):
            crowd.append(threading.Thread(target=lambda at=at: found.update({at: self.ask(body, wanted[at])})))
            crowd[-1].start()
        for thread in crowd:
            thread.join(house.ANSWER_S)
        self.assertEqual(len(found), len(crowd))
        for at, answer in found.items():
            self.check(wanted[at], *answer)

    def test_smollm2_answers_as_with_mlx_lm(self):
        self.compare("smol")

    def test_gemma3_answers_as_with_mlx_lm(self):
        self.compare("base")


class NoOrphans(unittest.TestCase):
    def test_row_33_a_killed_server_leaves_no_worker_that_computes(self):
        prompt = " ".join(f"{number}," for number in range(1200))
        body = {"model": "smol", "prompt": prompt, "raw": True, "options": {"num_ctx": 8192, "num_predict": 1}}
        for _ in range(3):
            server = house.Server(models=("smol",), backend="mlx")
            self.addCleanup(server.stop)
            asking = threading.Thread(target=self.ask_in_vain, args=(server, body), daemon=True)
            asking.start()
            (worker,) = house.until("a worker", house.ANSWER_S, server.workers)
            house.until("a worker that computes", house.ANSWER_S, lambda: self.seconds(worker) > 4)
            server.process.kill()
            server.process.wait()
            house.until("without a worker", 2, lambda: worker not in house.processes())
            asking.join(house.ANSWER_S)

    def ask_in_vain(self, server, body):
        try:
            server.raw("POST", "/api/generate", json.dumps(body))
        except OSError:
            pass  # It was killed, as was meant.

    def seconds(self, pid):
        """What it has computed so far."""
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class BothEmbed(unittest.TestCase):
    def test_vectors_and_token_counts_are_alike(self):
        texts = ["a cat", "Über 漢字 😀", "The stock market fell by 3.5% on Monday.", "word " * 600]
        answers = {}
        for backend in house.FILES:
            status, answers[backend] = house.shared(backend).call("POST", "/api/embed", {"model": "embed", "input": texts})
            self.assertEqual(status, 200, answers[backend])
        gguf, mlx = answers["gguf"], answers["mlx"]
        self.assertEqual(gguf["prompt_eval_count"], mlx["prompt_eval_count"])
        for one, other in zip(gguf["embeddings"], mlx["embeddings"], strict=True):
            self.assertAlmostEqual(math.hypot(*other), 1, places=4)
            self.assertGreater(sum(x * y for x, y in zip(one, other)), 0.999)


class BothAtOnce(unittest.TestCase):
    """One server, one model per backend, a stream on each."""

    @classmethod
    def setUpClass(cls):
        cls.server = house.Server(models=())
        cls.addClassCleanup(cls.server.stop)
        cls.asks, cls.calm = {}, {}
        for backend, count in (("gguf", 160), ("mlx", 48)):
            cls.server.create(f"smol-{backend}", f"FROM {house.FILES[backend]['smol']}\n")
            options = {"num_predict": count, "temperature": 0}
            cls.asks[backend] = {"model": f"smol-{backend}", "prompt": "Tell me a long story about a ship.", "options": options}
            cls.calm[backend] = cls.ask(backend).text

    @classmethod
    def ask(cls, backend):
        client = Streamer(cls.server, cls.asks[backend])
        client.join(house.ANSWER_S)
        return client

    def worker(self, backend):
        (row,) = [row for row in self.server.call("GET", "/api/ps")[1]["models"] if row["backend"] == backend]
        return row["pid"]

    def test_both_answer_at_the_same_time(self):
        clients = {backend: Streamer(self.server, ask) for backend, ask in self.asks.items()}
        for backend, client in clients.items():
            client.join(house.ANSWER_S)
            self.assertTrue(client.lines[-1].get("done"), client.lines[-1])
            self.assertEqual(client.text, self.calm[backend])

    def test_the_death_of_either_worker_touches_no_stream(self):
        for victim in self.asks:
            with self.subTest(victim=victim):
                clients = {backend: Streamer(self.server, ask) for backend, ask in self.asks.items()}
                for client in clients.values():
                    self.assertTrue(client.started.wait(house.ANSWER_S))
                bystanders = {backend: self.worker(backend) for backend in self.asks if backend != victim}
                os.kill(self.worker(victim), signal.SIGKILL)
                for backend, client in clients.items():
                    client.join(house.ANSWER_S)
                    self.assertIsNone(client.broken)
                    self.assertTrue(client.lines[-1].get("done"), client.lines[-1])
                    self.assertEqual(client.text, self.calm[backend], backend)
                for backend, pid in bystanders.items():
                    self.assertEqual(self.worker(backend), pid)


if __name__ == "__main__":
    unittest.main()
