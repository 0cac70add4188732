#!/usr/bin/env python3
"""Runs the end-to-end tests with real clients against real servers: Python's unittest, node's test runner, and the cases
from the wild (tests/cases). At the end it says what took longest and what was skipped.

usage: run.py           everything, each module in a process of its own
       run.py NAME…     only test modules, classes or methods that contain a NAME, such as `test_cli`

A test may not depend on how busy the machine is, so two modules run at a time; the few tests that measure run alone, last.
"""

import concurrent.futures
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
import unittest

HERE = pathlib.Path(__file__).resolve().parent
CASES = HERE.parent / "cases" / "run.py"
sys.path.insert(0, str(HERE))
import house  # noqa: E402
import timed  # noqa: E402

#: What they assert and print is a time, so nothing else runs meanwhile.
MEASURE = ("a_leak_is_caught_within_a_second", "can_never_fit_is_refused_at_once", "row_33_a_killed_server_leaves_no_worker",
           "s31_a_tokenizer_is_code", "s33_a_template_is_bounded", "s41_a_parser_that_is_fed_badly",
           "hostile_requests_cost_their_companions_nothing", "test_companions")
#: Modules at a time: half the time a test waits for something rather than computes.
JOBS = 2
#: These are begun first, so that none of them is left alone at the end.
LONG = ("test_memory", "test_every_index", "test_faults", "test_fit", "test_upgrade", "test_chaos", "test_security_mlx")


def tests_of(suite):
    for item in suite:
        yield from tests_of(item) if isinstance(item, unittest.TestSuite) else (item,)


def python_tests(names, pattern="test_*.py", without=()):
    loader = unittest.TestLoader()
    if names:
        loader.testNamePatterns = [f"*{name}*" for name in names]
    found = tests_of(loader.discover(str(HERE), pattern=pattern))
    suite = unittest.TestSuite(test for test in found if not any(name in test.id() for name in without))
    done = unittest.TextTestRunner(verbosity=2, stream=sys.stdout, resultclass=timed.Result).run(suite)
    skipped = [f"{test.id()}: {reason}" for test, reason in done.skipped]
    return {"passed": done.wasSuccessful() and done.testsRun > 0, "seconds": done.seconds, "skipped": skipped}


def node_tests():
    node = shutil.which("node")
    if node is None or "OLLMLX_NPM" not in os.environ:
        print("node or OLLMLX_NPM is missing: the npm client was not tested")
        return {"passed": False}
    env = os.environ | {"OLLAMA_HOST": house.shared().url}
    return {"passed": subprocess.run([node, "--test", str(HERE / "test_npm.mjs")], env=env, check=False).returncode == 0}


def cases(backend):
    command = [sys.executable, str(CASES), "--base", house.shared(backend).url]
    return {"passed": subprocess.run(command, check=False).returncode == 0}


def job(name, report):
    """One job in a process of its own."""
    try:
        if name == "npm client":
            result = node_tests()
        elif name.startswith("cases, "):
            result = cases(name.removeprefix("cases, "))
        elif name == "measured":
            result = python_tests(MEASURE)
        else:
            result = python_tests([], f"{name}.py", without=MEASURE)
    finally:
        house.close_shared()
    pathlib.Path(report).write_text(json.dumps(result))
    return 0 if result["passed"] else 1


def start(name):
    """Runs a job to its end, then prints what it said."""
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        report = pathlib.Path(folder) / "report.json"
        command = [sys.executable, "-u", __file__, "--job", name, str(report)]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", check=False)
        result = json.loads(report.read_text()) if report.is_file() else {"passed": False}
    sys.stdout.write(f"\n--- {name}, {time.monotonic() - begin:.0f} s\n{done.stdout}")
    sys.stdout.flush()
    return name, result | {"passed": result["passed"] and done.returncode == 0}


def everything():
    modules = sorted(path.stem for path in HERE.glob("test_*.py") if path.stem not in MEASURE)
    modules.sort(key=lambda name: LONG.index(name) if name in LONG else len(LONG))
    jobs = [*modules, *(f"cases, {backend}" for backend in house.FILES), "npm client"]
    with concurrent.futures.ThreadPoolExecutor(JOBS) as pool:
        return dict(pool.map(start, jobs)) | dict([start("measured")])


def main():
    words = sys.argv[1:]
    if words[:1] == ["--job"]:
        return job(*words[1:])
    begin = time.monotonic()
    try:
        results = {" ".join(words): python_tests(words)} if words else everything()
    finally:
        house.close_shared()
    seconds = [entry for result in results.values() for entry in result.get("seconds", ())]
    skipped = [line for result in results.values() for line in result.get("skipped", ())]
    print(f"\nend-to-end tests, {time.monotonic() - begin:.0f} s; the longest:\n{timed.longest(seconds)}", end="")
    for name, result in results.items():
        print(f"  {'ok' if result['passed'] else 'FAILED':<7}{name}")
    print(f"{len(skipped)} skipped" + "".join(f"\n  {line}" for line in skipped))
    if words:
        print("not asked for: the npm client, the cases")
    return 0 if all(result["passed"] for result in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
