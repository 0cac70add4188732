#!/usr/bin/env python3
"""Runs the end-to-end tests with real clients against a real server: Python's unittest, node's test runner, and the
cases from the wild where a folder with their run.py is there (OLLMLX_CASES, or ../shared/cases beside the clone).

usage: run.py [NAME…]    only test modules, classes or methods that contain a NAME, such as `test_cli`
"""

import os
import pathlib
import shutil
import subprocess
import sys
import time
import unittest

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
import house  # noqa: E402


def python_tests(names):
    loader = unittest.TestLoader()
    if names:
        loader.testNamePatterns = [f"*{name}*" for name in names]
    suite = loader.discover(str(HERE), pattern="test_*.py")
    return unittest.TextTestRunner(verbosity=2, stream=sys.stdout).run(suite).wasSuccessful()


def node_tests(server):
    node = shutil.which("node")
    if node is None or "OLLMLX_NPM" not in os.environ:
        print("node or OLLMLX_NPM is missing: the npm client was not tested")
        return False
    env = os.environ | {"OLLAMA_HOST": server.url}
    return subprocess.run([node, "--test", str(HERE / "test_npm.mjs")], env=env, check=False).returncode == 0


def cases(server):
    beside = HERE.parents[2] / "shared" / "cases"
    folder = pathlib.Path(os.environ.get("OLLMLX_CASES", beside))
    if not (folder / "run.py").is_file():
        print(f"no cases in {folder}: skipped")
        return True
    command = [sys.executable, str(folder / "run.py"), "--base", server.url]
    return subprocess.run(command, check=False).returncode == 0


def main():
    names = sys.argv[1:]
    begin = time.monotonic()
    results = {}
    try:
        results["python clients, command line, bad inputs, faults"] = python_tests(names)
        if not names:
            results["npm client"] = node_tests(house.shared())
            for backend in house.FILES:
                results[f"cases from the wild, {backend}"] = cases(house.shared(backend))
    finally:
        house.close_shared()
    print(f"\nend-to-end tests, {time.monotonic() - begin:.0f} s:")
    for name, passed in results.items():
        print(f"  {'ok' if passed else 'FAILED':<7}{name}")
    return 0 if all(results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
