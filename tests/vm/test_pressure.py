"""Other programs of the machine that are short of memory, as the kernel tells it."""

import pathlib
import subprocess
import sys
import unittest

import house
from service import GROUPS, Service

MIB = 1 << 20
#: Wants more than its group may have, for ever.
GREEDY = f"""
import os
open("/sys/fs/cgroup/greedy/cgroup.procs", "w").write(str(os.getpid()))
while True:
    del_me = bytearray(200 * {MIB})
"""


class Pressure(unittest.TestCase):
    def test_what_others_lack_unloads_what_nobody_uses(self):
        server = Service()
        self.addCleanup(server.stop)
        body = {"model": "smol", "prompt": "The ship", "raw": True, "stream": False, "options": {"num_predict": 2}}
        self.assertEqual(server.call("POST", "/api/generate", body)[0], 200)
        self.assertEqual(len(server.workers()), 1)
        (GROUPS / "cgroup.subtree_control").write_text("+memory")
        group = GROUPS / "greedy"
        group.mkdir()
        (group / "memory.high").write_text(str(32 * MIB))
        other = subprocess.Popen([sys.executable, "-c", GREEDY])
        try:
            house.until("without a worker", 120, lambda: not server.workers())
        finally:
            other.kill()
            other.wait()
            house.until("empty", 30, lambda: not (group / "cgroup.procs").read_text())
            group.rmdir()
        text = server.raw("GET", "/metrics")[1].decode()
        self.assertRegex(text, r'ollmlx_memory_relief_total\{step="evict"\} [1-9]')
        self.assertRegex(text, r'ollmlx_memory_relief_total\{step="kill"\} 0')
        self.assertEqual(server.call("POST", "/api/generate", body)[0], 200)
