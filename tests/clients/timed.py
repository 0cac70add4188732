"""How long each test took, with what its class has prepared."""

import time
import unittest


class Result(unittest.TextTestResult):
    """`seconds`: (seconds, test) of all that ran."""

    def __init__(self, *more, **named):
        super().__init__(*more, **named)
        self.seconds, self.since = [], time.monotonic()

    def stopTest(self, test):
        super().stopTest(test)
        now = time.monotonic()
        self.seconds.append((now - self.since, test.id()))
        self.since = now


def longest(seconds, count=15):
    """The lines of a table."""
    return "".join(f"  {took:6.1f} s  {name}\n" for took, name in sorted(seconds, reverse=True)[:count])
