"""Runs in the virtual machine: the tests of this folder, and says how they ended on the console."""

import os
import pathlib
import subprocess
import sys
import unittest

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(HERE.parent / "clients")]
sys.dont_write_bytecode = True
import timed  # noqa: E402

# What is emulated takes its time.
os.environ |= {"OLLMLX_BIN": "/usr/local/bin", "OLLMLX_TEST_PATIENCE": "4"}
for name in ("SMOL", "BASE", "EMBED"):
    os.environ |= {f"OLLMLX_MODEL_{name}": str(ROOT / "models/smol.gguf"), f"OLLMLX_MODEL_{name}_MLX": str(ROOT / "models/smol-mlx")}


def complete():
    """Whether all libraries have come along."""
    missing = []
    for name in ("ollmlx", "ollmlx-worker-gguf", "ollmlx-worker-mlx"):
        text = subprocess.run(["ldd", f"/usr/local/bin/{name}"], capture_output=True, text=True).stdout
        missing += [line.strip() for line in text.splitlines() if "not found" in line]
    print("missing:", *(missing or ["nothing"]), sep="\n", flush=True)
    return not missing


class AtOnce(timed.Result):
    """Tells what failed when it does: the machine may be ended before the last test has."""

    def addFailure(self, test, err):
        super().addFailure(test, err)
        self.stream.writeln(self.failures[-1][1])

    def addError(self, test, err):
        super().addError(test, err)
        self.stream.writeln(self.errors[-1][1])


def main():
    print("guest: begins", flush=True)
    if not complete():
        return print("guest: status 1", flush=True)
    words = pathlib.Path("/proc/cmdline").read_text().split()
    names = next(word.partition("=")[2] for word in words if word.startswith("guest=")).split(",")
    loader = unittest.TestLoader()
    loader.testNamePatterns = [f"*{name}*" for name in names]
    suite = loader.discover(str(HERE), pattern="test_*.py")
    done = unittest.TextTestRunner(verbosity=2, stream=sys.stdout, resultclass=AtOnce).run(suite)
    print(f"the longest:\n{timed.longest(done.seconds)}", end="", flush=True)
    print(f"guest: status {0 if done.wasSuccessful() and done.testsRun else 1}", flush=True)
    os.sync()


main()
