"""`ollmlx chaos`: every fault of OLLMLX_FAULT and hostile requests against private servers, and what they must not touch."""

import json
import signal
import subprocess
import unittest

import house


class Chaos(unittest.TestCase):
    backend = "gguf"
    # All faults on one backend; on the other those where the engine itself has a part.
    faults = ("faults",)
    rows = 12
    # One of each kind; `ollmlx chaos MODEL requests` makes all of them.
    requests = ("schema-product", "prompt-control", "turns", "tools", "template", "stops", "body-objects", "body-deep")

    @classmethod
    def setUpClass(cls):
        cls.server = house.Server(models=("smol",), backend=cls.backend)

    @classmethod
    def tearDownClass(cls):
        cls.server.stop()

    def test_every_fault_ends_as_expected(self):
        store = sorted(path.name for path in (self.server.folder / "models").rglob("*"))
        done = self.server.cli("chaos", "smol", *self.faults, "--json", seconds=5 * house.ANSWER_S)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        answer = json.loads(done.stdout)
        self.assertEqual(answer["model"], "smol")
        self.assertEqual(len(answer["faults"]), self.rows)
        for row in answer["faults"]:
            self.assertTrue(row["as_expected"], row)
            self.assertEqual(row["requests_lost"], 1 if row["expected"].endswith("one error") else 0, row)
            if "no death" not in row["expected"]:
                self.assertIsNotNone(row["detected_ms"], row)
        # The user's own server and store did not notice.
        self.assertEqual(self.server.call("GET", "/api/ps")[1]["models"], [])
        self.assertEqual(sorted(path.name for path in (self.server.folder / "models").rglob("*")), store)


    def test_hostile_requests_cost_their_companions_nothing(self):
        done = self.server.cli("chaos", "smol", *self.requests, "--json", seconds=5 * house.ANSWER_S)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        answer = json.loads(done.stdout)
        self.assertEqual(answer["faults"], [])
        self.assertEqual(len(answer["requests"]), len(self.requests))
        for row in answer["requests"]:
            self.assertTrue(row["as_expected"], row)


class ChaosOnMlx(Chaos):
    backend = "mlx"
    faults = ("crash", "garbage", "abort-load")
    rows = 4
    requests = ("schema-product", "prompt-control", "template", "body-objects")


class Words(unittest.TestCase):
    def test_a_table_is_printed_and_no_server_of_the_user_is_needed(self):
        server = house.Server(models=("smol",))
        self.addCleanup(server.stop)
        server.process.terminate()
        server.process.wait()
        done = server.cli("chaos", "smol", "exit")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertRegex(done.stdout.splitlines()[0], r"^FAULT +EXPECTED +SEEN +DETECTED +RECOVERED +LOST +AS EXPECTED")
        self.assertRegex(done.stdout, r"exit=7@4;times=1 +exited, the calm answer +exited, the calm answer +\d+ ms +\d+ ms +0 +yes")

    def test_interrupted_it_leaves_nothing(self):
        server = house.Server(models=("smol",))
        self.addCleanup(server.stop)
        folder = server.folder / "tmp"
        folder.mkdir()
        chaos = subprocess.Popen([house.OLLMLX, "chaos", "smol"], env=server.env | {"TMPDIR": str(folder)}, text=True,
                                 stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.assertEqual(chaos.stderr.readline(), "crash@4;times=1\n")
        family = house.until("a private server", house.SOON_S, lambda: house.descendants(chaos.pid))
        chaos.send_signal(signal.SIGINT)
        _, told = chaos.communicate(timeout=house.SOON_S)
        self.assertEqual(chaos.returncode, 1)
        self.assertIn("interrupted", told)
        house.until("without its servers", house.SOON_S, lambda: not family & house.processes().keys())
        self.assertEqual(list(folder.glob("ollmlx-chaos-*")), [])

    def test_an_unknown_fault_or_model_is_named(self):
        server = house.Server(models=())
        self.addCleanup(server.stop)
        done = server.cli("chaos", "smol", "crush")
        self.assertEqual(done.returncode, 1)
        self.assertIn('unknown fault "crush"; known are crash, abort', done.stderr)
        done = server.cli("chaos", "nobody", "crash")
        self.assertEqual(done.returncode, 1)
        self.assertIn("nobody does not answer without a fault", done.stderr)


if __name__ == "__main__":
    unittest.main()
