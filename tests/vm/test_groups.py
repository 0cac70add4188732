"""Control groups as the kernel and systemd make them, with real workers of both backends."""

import concurrent.futures
import json
import signal
import unittest

import house
from service import UNIT, Service, systemctl, told

MIB = 1 << 20
PROMPT = "The ship"


def body(model, tokens, prompt=PROMPT):
    return {"model": model, "prompt": prompt, "raw": True, "stream": False, "options": {"num_predict": tokens, "temperature": 0}}


def groups(server):
    """{pid of the worker: its group's folder}"""
    return {int((group / "cgroup.procs").read_text().split()[0]): group
            for group in server.group.glob("ollmlx-worker-*") if (group / "cgroup.procs").read_text()}


def sample(server, name):
    lines = server.raw("GET", "/metrics")[1].decode().splitlines()
    return int(next(line.rpartition(" ")[2] for line in lines if line.startswith(name + " ")))


class Groups(unittest.TestCase):
    # Few: emulated, each takes some seconds.
    backend, tokens = "gguf", 5

    def test_row_21_the_kernel_ends_a_balloon_and_nothing_else(self):
        server = Service(backend=self.backend, OLLMLX_FAULT="balloon=2000@4;text=ship;times=1")
        self.addCleanup(server.stop)
        server.create("other", "FROM smol\n")
        status, calm = server.call("POST", "/api/generate", body("other", self.tokens, "The sea"))
        self.assertEqual(status, 200, calm)
        ((other, group),) = groups(server).items()
        self.assertEqual(server.workers(), [other])

        of = 'ollmlx_worker_memory_bytes{model="other:latest"}'
        budget, limit = sample(server, of), sample(server, "ollmlx_memory_limit_bytes")
        most = int((group / "memory.max").read_text())
        # The kernel counts in pages.
        self.assertAlmostEqual(most, min(budget + max(budget // 4, 512 * MIB), limit + limit // 10), delta=8192)
        self.assertLess(most, 2000 * MIB, "what is blown up does not fit")
        self.assertEqual((group / "memory.swap.max").read_text(), "0\n")
        self.assertEqual((group / "memory.oom.group").read_text(), "1\n")

        with concurrent.futures.ThreadPoolExecutor() as pool:
            beside = pool.submit(server.call, "POST", "/api/generate", body("other", 2 * self.tokens, "The sea"))
            status, answer = server.call("POST", "/api/generate", body("smol", self.tokens))
            self.assertEqual((status, beside.result()[0]), (200, 200), (answer, beside.result()))
        self.assertTrue(beside.result()[1]["response"].startswith(calm["response"]))
        self.assertIn(other, server.workers(), "the other one is the same process")
        deaths = json.loads(server.cli("why", "smol", "--json").stdout)["deaths"]
        self.assertEqual([death["class"] for death in deaths], ["out-of-memory"], deaths)
        self.assertEqual(json.loads(server.cli("why", "other", "--json").stdout)["deaths"], [])
        # The second process has no fault to commit.
        self.assertEqual(server.call("POST", "/api/generate", body("smol", self.tokens))[1]["response"], answer["response"])
        self.assertEqual(sorted(groups(server)), sorted(server.workers()))
        self.assertEqual(len(list(server.group.glob("ollmlx-worker-*"))), 2, "that of the dead is gone")
        self.assertGreaterEqual(sample(server, 'ollmlx_worker_deaths_total{model="smol:latest",cause="out-of-memory"}'), 1)


class GroupsOnMlx(Groups):
    backend, tokens = "mlx", 5


class OneBackend(unittest.TestCase):
    """Nothing of this depends on an engine."""

    def test_the_server_is_killed_and_comes_back_to_a_clean_house(self):
        server = Service()
        self.addCleanup(server.stop)
        self.assertEqual(server.call("POST", "/api/generate", body("smol", 2))[0], 200)
        ((worker, group),) = groups(server).items()
        first = server.pid
        server.kill(signal.SIGKILL)
        house.until("another server", 60, lambda: server.pid not in (0, first) and server.answers())
        self.assertNotIn(worker, house.processes())
        self.assertFalse(group.exists())
        self.assertEqual(server.call("POST", "/api/generate", body("smol", 2))[0], 200)
        self.assertEqual(told("NRestarts"), "1")

    def test_row_43_a_reload_hands_over_and_leaves_the_old_one_s_worker_alone(self):
        server = Service(OLLMLX_FAULT="slow=300")
        self.addCleanup(server.stop)
        _, calm = server.call("POST", "/api/generate", body("smol", 12))
        ((worker, _),) = groups(server).items()
        first = server.pid
        with concurrent.futures.ThreadPoolExecutor() as pool:
            stream = pool.submit(server.call, "POST", "/api/generate", body("smol", 12))
            house.until("at work", 60, lambda: server.call("GET", "/api/ps")[1]["models"][0].get("in_flight", 1))
            server.reload()
            house.until("another server", 60, lambda: server.pid not in (0, first))
            self.assertIn(worker, house.processes(), "the new one swept a group that is in use")
            self.assertEqual(server.call("POST", "/api/generate", body("smol", 2))[0], 200)
            status, answer = stream.result()
        self.assertEqual((status, answer["response"]), (200, calm["response"]))
        house.until("without the old server", 60, lambda: first not in house.processes())
        self.assertEqual(told("ActiveState"), "active")
        self.assertEqual(sorted(groups(server)), sorted(server.workers()))

    def test_auto_is_a_share_of_what_the_service_may_take(self):
        server = Service(models=(), unit=("MemoryMax=800M",))
        self.addCleanup(server.stop)
        self.assertEqual(sample(server, "ollmlx_memory_limit_bytes"), 800 * MIB * 80 // 100)
        self.assertIn("80% of the control group's limit", server.log())

    def test_row_38_what_makes_no_sense_is_not_started_again(self):
        flags = ("ExecStart=", "ExecStart=/usr/local/bin/ollmlx serve --memory-limit much", "StandardOutput=null",
                 "StandardError=null")
        with self.assertRaises(AssertionError):
            self.addCleanup(Service(models=(), unit=flags).stop)
        systemctl("start", UNIT, check=False)
        self.addCleanup(Service.forget)
        self.assertEqual((told("ExecMainStatus"), told("NRestarts"), told("ActiveState")), ("78", "0", "failed"))

    def test_a_server_that_hangs_is_replaced(self):
        server = Service(models=(), unit=("WatchdogSec=20", "TimeoutAbortSec=2"))
        self.addCleanup(server.stop)
        first = server.pid
        server.kill(signal.SIGSTOP)
        house.until("another server", 120, lambda: server.pid not in (0, first) and server.answers())
        self.assertNotEqual(told("NRestarts"), "0")
