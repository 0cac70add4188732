"""A machine that sleeps, and a clock that is set."""

import http.client
import json
import pathlib
import threading
import time
import unittest

import house
from service import Service

ALARM = pathlib.Path("/sys/class/rtc/rtc0/wakealarm")
PATIENCE_S = 15
DAY_S = 86_400
#: Three before what happens in the middle, and two after it; emulated, each takes some seconds.
TOKENS = 5
BODY = {"model": "smol", "prompt": "The ship", "raw": True, "options": {"num_predict": TOKENS, "temperature": 0}}


def sleep(seconds):
    """Until the clock's alarm wakes the machine."""
    ALARM.write_text("0")
    ALARM.write_text(f"+{seconds}")
    pathlib.Path("/sys/power/state").write_text("mem")


class Sleep(unittest.TestCase):
    backend = "gguf"

    @classmethod
    def setUpClass(cls):
        patience = f"{PATIENCE_S}s"
        cls.server = Service(backend=cls.backend, OLLMLX_FAULT="slow=300", OLLMLX_HANG_TIMEOUT=patience,
                             OLLMLX_KEEP_ALIVE="1m")
        cls.addClassCleanup(cls.server.stop)
        for _ in range(2):  # The first one loads as well.
            begun = time.monotonic()
            status, answer = cls.server.call("POST", "/api/generate", BODY | {"stream": False})
            took = time.monotonic() - begun
        assert status == 200, answer
        cls.calm, cls.deadline_s = answer["response"], round(3 * took) + 5
        cls.workers = cls.server.workers()

    def stream(self, meanwhile):
        """The text of an answer in whose middle something happens; it must end in its time."""
        link = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=house.ANSWER_S)
        self.addCleanup(link.close)
        link.request("POST", "/api/generate", json.dumps(BODY), {"X-Ollmlx-Timeout": f"{self.deadline_s}s"})
        answer = link.getresponse()
        lines = [json.loads(answer.readline()) for _ in range(3)]
        meanwhile()
        lines += [json.loads(line) for line in answer]
        self.assertTrue(lines[-1].get("done"), lines[-1])
        return "".join(line.get("response", "") for line in lines)

    def test_row_42_nobody_is_given_up_for_time_that_was_slept(self):
        # Longer than anything is waited for: time that nobody was awake for counts for nothing.
        asleep_s = max(self.deadline_s, PATIENCE_S) + 5
        wall, awake = time.time(), time.monotonic()
        self.assertEqual(self.stream(lambda: sleep(asleep_s)), self.calm)
        self.assertGreater((time.time() - wall) - (time.monotonic() - awake), asleep_s - 5, "it slept")
        self.assertEqual(self.server.workers(), self.workers)
        self.assertNotIn("exiting", self.server.log())
        self.assertEqual([row["name"] for row in self.server.call("GET", "/api/ps")[1]["models"]], ["smol:latest"])

    def test_row_42_a_clock_that_is_set_changes_nothing(self):
        real = time.CLOCK_REALTIME
        for days in (1, -2, 1):
            jump = lambda: time.clock_settime(real, time.clock_gettime(real) + days * DAY_S)
            self.assertEqual(self.stream(jump), self.calm)
            self.assertEqual(self.server.workers(), self.workers)
        self.assertNotIn("exiting", self.server.log())


class SleepOnMlx(Sleep):
    backend = "mlx"
