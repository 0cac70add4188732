"""The unit's walls, around a server that works: what it may not do, and what it must be able to."""

import errno
import os
import pathlib
import shutil
import unittest

import house
from service import Service

MODEL = pathlib.Path(os.environ["OLLMLX_MODEL_SMOL"])
HOME = pathlib.Path("/home/somebody")


class Walls(unittest.TestCase):
    def test_s17_the_unit_s_server_serves_from_a_home_and_writes_nowhere_else(self):
        HOME.mkdir(parents=True, exist_ok=True)
        self.addCleanup(shutil.rmtree, HOME, ignore_errors=True)
        shutil.copy(MODEL, HOME / "mine.gguf")
        server = Service(models=())
        self.addCleanup(server.stop)
        ask = {"model": str(HOME / "mine.gguf"), "prompt": "The ship", "raw": True, "stream": False, "options": {"num_predict": 2}}
        status, answer = server.call("POST", "/api/generate", ask)
        self.assertEqual(status, 200, answer)

        (worker,) = server.workers()
        for pid in (server.pid, worker):
            facts = dict(line.split(":", 1) for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines())
            facts = {name: value.strip() for name, value in facts.items()}
            self.assertEqual((facts["NoNewPrivs"], facts["Seccomp"], int(facts["CapBnd"], 16)), ("1", "2", 0), pid)
        seen = pathlib.Path(f"/proc/{server.pid}/root")
        for folder in ("etc", "usr/local/bin", "home/somebody", "root", "var/lib"):
            with self.assertRaises(OSError, msg=folder) as failed:
                (seen / folder / "mark").write_text("x")
            self.assertEqual(failed.exception.errno, errno.EROFS, folder)
        for folder in ("var/lib/ollmlx", "tmp", str(server.folder).lstrip("/")):
            (seen / folder / "mark").write_text("x")
        self.assertFalse(pathlib.Path("/tmp/mark").exists(), "its /tmp is its own")
        self.assertTrue(list((server.group).glob("ollmlx-worker-*")), "it divides its control group all the same")
        self.assertEqual(pathlib.Path("/var/lib/ollmlx").stat().st_mode & 0o777, 0o700)


if __name__ == "__main__":
    unittest.main()
