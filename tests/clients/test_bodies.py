"""What one request body may cost the server: its peak of memory for bodies made to be expensive, on every path that reads
JSON, and what bodies that are held back cost everybody else."""

import contextlib
import json
import pathlib
import socket
import sys
import time
import unittest

import house

MIB = 1 << 20
#: Of a hostile body.
SIZE = 8 * MIB
#: The promise: three times the body and this.
SPARE = 4 * MIB
#: Until a body is refused or answered, on a usual machine: several times what it takes.
BODY_S = 5 * house.PATIENCE
#: The most that one body may have, and all of them (`BODY_BYTES_MAX`, `BODY_BYTES_TOTAL_MAX`).
BODY_MAX, ROOM = 64 * MIB, 256 * MIB

PATHS = ("/api/generate", "/api/chat", "/api/embed", "/api/embeddings", "/api/show", "/api/create", "/api/copy", "/api/pull",
         "/api/push", "/api/ollmlx/why", "/api/ollmlx/fit", "/api/ollmlx/logs", "/v1/chat/completions", "/v1/completions",
         "/v1/embeddings", "/v1/messages")


def filled(head, part, tail, size=SIZE):
    """The head, as many of these parts as it takes, and the tail, with commas between the parts."""
    count = max(1, (size - len(head) - len(tail)) // (len(part) + 1))
    return (head + ",".join([part] * count) + tail).encode()


def text(name, letters, size=SIZE):
    return f'{{"model":"none","max_tokens":1,"{name}":"'.encode() + letters * (size // len(letters)) + b'"}'


def listed(name, part):
    return filled(f'{{"model":"none","max_tokens":1,"{name}":[', part, "]}")


def many_keys(head, tail, size=SIZE):
    return (head + ",".join(f'"{number:x}":1' for number in range(size // 10)) + tail).encode()


USER = '{"model":"none","max_tokens":1,"messages":[{"role":"user","content":"x"}],"prompt":"x","input":"x",'
#: The paths that read what is in it; every other one skips it.
BODIES = {
    "small objects in an ignored field": lambda: filled(USER + '"a":[', '{"":0}', "]}"),
    "empty lists in an ignored field": lambda: filled(USER + '"a":[', "[]", "]}"),
    "a list of lists": lambda: filled("[", "[[]]", "]"),
    "keys that nobody knows": lambda: many_keys(USER, "}"),
    "the same key again and again": lambda: filled("{", '"model":"none"', "}"),
    "a key in every case": lambda: filled("{", '"mOdEl":"none","MESSAGES":[]', "}"),
    "empty messages": lambda: listed("messages", "{}"),
    "tiny messages": lambda: listed("messages", '{"role":"user","content":"a"}'),
    "messages of 200 letters": lambda: listed("messages", '{"role":"user","content":"' + "a" * 200 + '"}'),
    "parts of a message": lambda: filled(USER[:-1] + ',"messages":[{"role":"user","content":[', '{"type":"text","text":"a"}', "]}]}"),
    "results of tools": lambda: filled(
        '{"model":"none","max_tokens":1,"messages":[{"role":"assistant","content":"","tool_calls":[{"id":"c","function":{"name":"'
        + "n" * 10_000 + '"}}]},', '{"role":"tool","tool_call_id":"c","content":"1"}', "]}"),
    "calls of tools": lambda: filled('{"model":"none","messages":[{"role":"assistant","content":"","tool_calls":[',
                                     '{"function":{"name":"f","arguments":{}}}', "]}]}"),
    "tools": lambda: filled(USER + '"tools":[', '{"function":{"name":"f"}}', "]}"),
    "a schema of small objects": lambda: filled(USER + '"format":{"a":[', "{}", "]}}"),
    "a schema beside a format": lambda: filled(USER + '"response_format":{"type":"json_schema","schema":{"a":[', "{}", "]}}}"),
    "a tool of small objects": lambda: filled(USER + '"tools":[{"name":"f","input_schema":{"a":[', "0", ']},"function":{"name":"f"}}]}'),
    "arguments in a text": lambda: filled(
        '{"model":"none","messages":[{"role":"assistant","tool_calls":[{"function":{"name":"f","arguments":"{\\"a\\":[',
        "{}", ']}"}}]}]}'),
    "options that nobody knows": lambda: many_keys(USER + '"options":{', "}}"),
    "parameters": lambda: many_keys(USER + '"parameters":{', "}}"),
    "one option of small objects": lambda: filled(USER + '"options":{"temperature":[', "{}", "]}}"),
    "stop strings": lambda: filled(USER + '"options":{"stop":[', '"a"', "]}}"),
    "stop strings of others": lambda: filled(USER + '"stop":[', '"a"', '],"stop_sequences":["a"]}'),
    "short inputs": lambda: listed("input", '"a"'),
    "tokens": lambda: listed("context", "1").replace(b'"max', b'"prompt":"x","max'),
    "images": lambda: listed("images", '""').replace(b'"max', b'"prompt":"x","max'),
    "licences": lambda: listed("license", '""'),
    "files": lambda: many_keys(USER + '"files":{', "}}"),
    "a long text": lambda: text("prompt", b"a"),
    "a text of escapes": lambda: text("prompt", b"\\u0061"),
    "a text with one escape": lambda: text("prompt", b"a").replace(b'":"a', b'":"\\n', 3),
    "lone surrogates": lambda: text("prompt", b"\\ud800"),
    "a text that is no UTF-8": lambda: text("prompt", b"\xff"),
    "an image with escapes": lambda: b'{"model":"none","prompt":"x","images":["' + b"ab\\/d" * (SIZE // 5) + b'"]}',
    "a name that has no end": lambda: text("model", b"n"),
    "a role that has no end": lambda: b'{"model":"none","max_tokens":1,"messages":[{"content":"x","role":"' + b"R" * SIZE + b'"}]}',
    "a word that is none": lambda: text("think", b"\\u0001"),
    "a time that is none": lambda: text("keep_alive", b"\\u0001"),
    "an effort that is none": lambda: USER.encode() + b'"reasoning_effort":"' + b"\\u0001" * (SIZE // 6) + b'"}',
    "a number that has no end": lambda: b'{"model":"none","keep_alive":' + b"1" * SIZE + b"}",
    "brackets": lambda: b"[" * SIZE,
    "a system text": lambda: text("system", b"\\u0001"),
}


@unittest.skipUnless(sys.platform == "linux", "reads and clears peaks in /proc")
class Cost(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = house.Server(models=("smol",))
        cls.addClassCleanup(cls.server.stop)
        cls.proc = pathlib.Path("/proc") / str(cls.server.pid)

    def memory(self, field):
        lines = (self.proc / "status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))

    def cost(self, path, body, **headers):
        """(status, answer, bytes by which the server grew meanwhile, seconds)"""
        # From here on the peak is counted anew.
        (self.proc / "clear_refs").write_text("5")
        before, began = self.memory("VmRSS"), time.monotonic()
        status, answer = self.server.raw("POST", path, body, headers)
        return status, answer, self.memory("VmHWM") - before, time.monotonic() - began

    def check(self, what, path, body, **headers):
        status, answer, grown, seconds = self.cost(path, body, **headers)
        most = 3 * len(body) + SPARE
        told = f"{what}, {path}: {len(body) / MIB:.1f} MiB, {status}, {grown / MIB:.1f} MiB more, {seconds:.1f} s"
        self.assertLessEqual(grown, most, told)
        self.assertLess(seconds, BODY_S, told)
        self.assertLess(status, 505, told)
        if status >= 400:
            self.assertTrue(json.loads(answer)["error"], told)
            self.assertLess(len(answer), 10_000, told)
        return status, grown

    def test_row_54_no_body_costs_more_than_three_times_its_bytes_on_any_path(self):
        for what, make in BODIES.items():
            body = make()
            for path in PATHS:
                with self.subTest(what, path=path):
                    self.check(what, path, body)
        self.assertEqual(self.server.raw("GET", "/healthz")[0], 200)

    def test_what_a_model_is_given_of_a_body_counts_as_well(self):
        """Bodies that are accepted, on their way to a worker; the deadline ends them there."""
        long = "word " * (SIZE // 5)
        turns = [{"role": "user", "content": "word " * 60}] * (SIZE // 400)
        for path, body in {
            "/api/generate": {"model": "smol", "prompt": long, "options": {"num_predict": 1}},
            "/api/chat": {"model": "smol", "messages": turns, "options": {"num_predict": 1}},
            "/v1/chat/completions": {"model": "smol", "messages": turns, "max_tokens": 1},
            "/v1/messages": {"model": "smol", "messages": [{"role": "user", "content": long}], "max_tokens": 1},
        }.items():
            with self.subTest(path):
                status, _ = self.check("an accepted body", path, json.dumps(body).encode(), **{"X-Ollmlx-Timeout": "2s"})
                self.assertIn(status, (200, 400, 503, 504))


def held(server, size, address="127.0.0.1"):
    """A connection whose body lacks its last byte."""
    link = socket.create_connection(("127.0.0.1", server.port), timeout=house.ANSWER_S, source_address=(address, 0))
    # One that comes when there is no room any more may be ended before it is there.
    with contextlib.suppress(ConnectionError):
        link.sendall(b"POST /api/show HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % size)
        link.sendall(b'{"a":"' + b"a" * (size - 7))
    return link


@unittest.skipUnless(sys.platform == "linux", "a Mac has one loopback address")
class Held(unittest.TestCase):
    """Row 52: bodies that lack a byte fill the room for all of them."""

    def setUp(self):
        self.server = house.Server(models=())
        self.addCleanup(self.server.stop)

    def ask(self, link, filler=0):
        body = json.dumps({"model": "none", "a": "a" * filler}).encode()
        head = b"POST /api/show HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
        link.sendall(head + body)
        answer = b""
        while more := link.recv(65536):
            answer += more
        return int(answer.split()[1])

    def fill(self, address, size=BODY_MAX - 1):
        links = [held(self.server, size, address) for _ in range(ROOM // size + 1)]
        for link in links:
            self.addCleanup(link.close)
        return links

    def test_row_52_held_bodies_give_way_to_a_quick_one_of_any_address(self):
        for address in ("127.0.0.2", "127.0.0.1"):
            with self.subTest(address):
                links = self.fill(address)
                began = time.monotonic()
                for _ in range(5):
                    with socket.create_connection(("127.0.0.1", self.server.port), timeout=house.ANSWER_S) as link:
                        self.assertEqual(self.ask(link, filler=MIB), 404)
                self.assertLess(time.monotonic() - began, BODY_S)
                told = self.told(links)
                self.assertTrue(told and set(told) <= {408, 503}, told)

    def told(self, links):
        """The statuses of those that were ended; the others are silent."""
        found = []
        for link in links:
            link.settimeout(0.2)
            with contextlib.suppress(TimeoutError, ConnectionError):
                if answer := link.recv(4096):
                    found.append(int(answer.split()[1]))
            link.close()
        return found

    def test_row_52_a_crowd_of_small_held_bodies_leaves_room_as_well(self):
        links = self.fill("127.0.0.2", size=MIB)
        with socket.create_connection(("127.0.0.1", self.server.port), timeout=house.ANSWER_S) as link:
            self.assertEqual(self.ask(link, filler=20 * MIB), 404)
        for link in links:
            link.close()


if __name__ == "__main__":
    unittest.main()
