"""Memory limits that hold, with real workers of both backends. Limits are put together from what the models are found to
take on this machine, so that no number here depends on a model's size."""

import concurrent.futures
import datetime
import json
import pathlib
import re
import time
import unittest

import house
from test_faults import Streamer

MIB = 1 << 20
PROMPT = "Tell me a long story about a ship."
CAUGHT_S = 1.0


def body(model, tokens):
    return {"model": model, "prompt": PROMPT, "options": {"num_predict": tokens, "temperature": 0}}


def heard(client):
    """The whole text of a streamed answer, and its last line."""
    client.join(house.ANSWER_S)
    return client.text, client.lines[-1]


def resident(pid):
    """Private and mapped memory of a process, as the server counts it; 0 where it is gone."""
    try:
        lines = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    return sum(int(fields.get(name, "0 kB").split()[0]) * 1024 for name in ("RssAnon", "RssFile", "RssShmem"))


def metrics(server):
    """The samples without labels, and those of the ladder by their step."""
    found = {}
    for line in server.raw("GET", "/metrics")[1].decode().splitlines():
        if line.startswith("#") or " " not in line:
            continue
        name, value = line.rsplit(" ", 1)
        found[name] = float(value)
    return found


def told_to_go(server):
    """How many processes memory has ended, asked or killed: one that grows so fast that it would not obey in time is not
    asked, and how fast it grows is also a matter of what else the machine does."""
    samples = metrics(server)
    return sum(samples[f'ollmlx_memory_relief_total{{step="{step}"}}'] for step in ("drain", "kill"))


class Memory(unittest.TestCase):
    backend, tokens, models = "gguf", 300, ("smol", "base")

    @classmethod
    def setUpClass(cls):
        """What each model is planned with, and an answer without trouble."""
        server = house.Server(models=cls.models, backend=cls.backend, OLLMLX_MEMORY_LIMIT="none")
        try:
            cls.calm, _ = heard(Streamer(server, body("smol", cls.tokens)))
            cls.needs = {}
            for name in cls.models:
                server.call("POST", "/api/generate", {"model": name, "stream": False, "keep_alive": -1})
            samples = metrics(server)
            for name in cls.models:
                cls.needs[name] = int(samples[f'ollmlx_worker_memory_bytes{{model="{name}:latest"}}'])
        finally:
            server.stop()

    def server(self, limit, models=None, **settings):
        server = house.Server(models=models or self.models, backend=self.backend, OLLMLX_MEMORY_LIMIT=str(limit),
                              **settings)
        self.addCleanup(server.stop)
        self.assertIn("memory limit", server.log())
        return server

    def test_a_leak_is_caught_within_a_second_of_the_limit_and_its_client_goes_on(self):
        limit = self.needs["smol"] + 500 * MIB
        server = self.server(limit, models=("smol",), OLLMLX_FAULT="leak=400;times=1,slow=10")
        client = Streamer(server, body("smol", self.tokens))
        client.started.wait(house.ANSWER_S)
        (first,) = server.workers()
        crossed, peak = None, 0

        def is_gone():
            nonlocal crossed, peak
            held = resident(first)
            peak = max(peak, held)
            if held > limit:
                crossed = crossed or time.time()
            return held == 0

        house.until("without its process", house.SOON_S, is_gone, every_s=0.005)
        gone = time.time()
        self.assertIsNotNone(crossed, f"it never took more than {peak / MIB:.0f} MiB")
        text, last = heard(client)
        self.assertTrue(last.get("done"), last)
        self.assertEqual(text, self.calm)
        # From then on its process takes no more work; how long it takes to end is the system's affair, and with a leak that
        # a busy machine makes slower it may have some seconds to finish what it runs. One that grows so fast that it would
        # not obey in time is killed without being asked.
        found = re.search(r'^(\S+)Z .* state_to="(?:draining|exiting)"', server.log(), re.MULTILINE)
        self.assertIsNotNone(found, "it was seen")
        caught = datetime.datetime.fromisoformat(found[1] + "+00:00").timestamp()
        print(f"{self.backend}: leak of 400 MB/s caught {(caught - crossed) * 1000:.0f} ms and gone "
              f"{(gone - crossed) * 1000:.0f} ms after the limit of {limit / MIB:.0f} MiB, peak {peak / MIB:.0f} MiB")
        self.assertLess(caught - crossed, CAUGHT_S)
        self.assertGreater(told_to_go(server), 0)

    def test_a_balloon_costs_only_the_process_that_blew_it_up(self):
        limit = sum(self.needs.values()) + 300 * MIB
        server = self.server(limit, OLLMLX_FAULT="balloon=2000@20;text=ship;times=1,slow=10")
        other = {"model": "base", "prompt": "Once upon a time", "raw": True, "stream": False,
                 "options": {"num_predict": 40, "temperature": 0}}
        server.call("POST", "/api/generate", other)
        (calm,) = server.workers()
        with concurrent.futures.ThreadPoolExecutor() as pool:
            beside = pool.submit(server.call, "POST", "/api/generate", other)
            text, last = heard(Streamer(server, body("smol", self.tokens)))
            status, answer = beside.result()
        self.assertEqual((status, bool(last.get("done"))), (200, True), (answer, last))
        self.assertEqual(text, self.calm)
        self.assertIn(calm, server.workers(), "the other one is the same process")
        rows = {row["name"]: row for row in server.call("GET", "/api/ps")[1]["models"]}
        self.assertEqual(rows["base:latest"]["restarts"], 0)
        self.assertEqual(rows["smol:latest"]["restarts"], 1)

    def test_a_leak_above_a_model_s_own_limit_is_caught_and_its_client_goes_on(self):
        limit = (self.needs["smol"] + 300 * MIB) // 10**6
        server = self.server("none", models=("smol",), OLLMLX_FAULT="leak=400;times=1,slow=10")
        server.create("tight", f"FROM smol\nPARAMETER ollmlx_memory_limit {limit}MB\n")
        text, last = heard(Streamer(server, body("tight", self.tokens)))
        self.assertTrue(last.get("done"), last)
        self.assertEqual(text, self.calm)
        deaths = server.call("POST", "/api/ollmlx/why", {"model": "tight"})[1]["deaths"]
        self.assertEqual([(death["class"], death["requests"][0]["fate"]) for death in deaths],
                         [("over-own-limit", "resumed")], deaths)
        self.assertRegex(deaths[0]["cause"], r"took more memory \(.*\) than its own limit allows \(.*\)")
        self.assertEqual(metrics(server)['ollmlx_worker_deaths_total{model="tight:latest",cause="over-own-limit"}'], 1)
        self.assertIn("than its own limit allows", server.log())

    def test_after_a_leak_the_model_still_loads(self):
        server = self.server(self.needs["smol"] + 60 * MIB, models=("smol",), OLLMLX_MEMORY_SHRINK="none",
                             OLLMLX_FAULT="leak=200;times=1,slow=10")
        for _ in range(2):
            text, last = heard(Streamer(server, body("smol", self.tokens)))
            self.assertTrue(last.get("done"), last)
            self.assertEqual(text, self.calm)
            server.call("POST", "/api/generate", {"model": "smol", "keep_alive": 0})
            # Whether the leak or the answer is first at its end is a matter of what else the machine does; that a leak is
            # caught is the affair of the test that measures it.
            house.until("unloaded", house.SOON_S, lambda: not server.workers())

    def test_two_models_that_do_not_fit_together_alternate_under_load(self):
        one, two = self.models
        limit = max(self.needs.values()) + min(self.needs.values()) // 2
        server = self.server(limit)
        ask = lambda name: server.call("POST", "/api/generate", body(name, 8) | {"stream": False})
        with concurrent.futures.ThreadPoolExecutor(6) as pool:
            answers = list(pool.map(ask, [one, two, one, two, two, one] * 2))
        self.assertEqual([status for status, _ in answers], [200] * 12, answers)
        samples = metrics(server)
        self.assertFalse([name for name in samples if name.startswith("ollmlx_worker_deaths_total")])

    def test_ten_first_requests_to_five_models_in_room_for_two_are_answered(self):
        names = [f"smol{index}" for index in range(5)]
        server = self.server(self.needs["smol"] * 5 // 2, models=("smol",))
        for name in names:
            server.create(name, f"FROM smol\nSYSTEM You are {name}.\n")
        ask = lambda name: server.call("POST", "/api/generate", body(name, 4) | {"stream": False})
        with concurrent.futures.ThreadPoolExecutor(10) as pool:
            answers = list(pool.map(ask, names * 2))
        self.assertEqual([status for status, _ in answers], [200] * 10, answers)
        samples = metrics(server)
        self.assertLessEqual(samples["ollmlx_memory_reserved_bytes"], samples["ollmlx_memory_limit_bytes"])

    def test_a_model_that_can_never_fit_is_refused_at_once_with_numbers(self):
        server = self.server(32 * MIB, models=("smol",))
        ask = body("smol", 4) | {"stream": False}
        took = []
        for _ in range(10):
            begun = time.monotonic()
            status, answer = server.call("POST", "/api/generate", ask)
            took.append(time.monotonic() - begun)
            self.assertGreaterEqual(status, 400)
            self.assertRegex(answer["error"], r"requires more memory \(\S+ [MG]B\) than the limit allows \(33\.5 MB\)")
            self.assertEqual(server.workers(), [])
        print(f"{self.backend}: refused in {min(took) * 1000:.1f} to {max(took) * 1000:.1f} ms")
        # Whoever shares the machine may hold up some of them, and not all.
        self.assertLess(min(took), 0.1)


class MemoryOnMlx(Memory):
    backend, tokens = "mlx", 60


if __name__ == "__main__":
    unittest.main()
