"""Rows of the catalogue of faults that need the real program and a real network: descriptors, idle crowds, slow and odd
clients. Each test has its row's number in its name."""

import http.client
import json
import resource
import socket
import subprocess
import sys
import threading
import unittest

import house

#: The head of a request must be there within 10 s (HEADER_READ_TIMEOUT_MS); the rest is patience.
HEADER_S = 25
IDLE = 2000
#: The goal for one idle connection, in bytes.
IDLE_BYTES = 16 * 1024


def connect(server):
    return socket.create_connection(("127.0.0.1", server.port), timeout=HEADER_S)


def last_words(link):
    """What the server says until it closes; `None` where it does not."""
    heard = b""
    try:
        while more := link.recv(4096):
            heard += more
    except ConnectionResetError:
        pass
    except TimeoutError:
        return None
    return heard


def resident(pid):
    with open(f"/proc/{pid}/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


class SlowReader(unittest.TestCase):
    """Its worker waits for it, and for nobody else."""

    def test_row_32_49_a_client_that_does_not_read_holds_up_its_own_answer_only_and_loses_nothing(self):
        # Silence that lasts longer than this would be taken for a hang.
        server = house.Server(models=("smol",), OLLMLX_HANG_TIMEOUT="3s")
        self.addCleanup(server.stop)
        body = {"model": "smol", "prompt": "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16", "raw": True, "logprobs": True,
                "top_logprobs": 20, "options": {"temperature": 0, "num_predict": 900, "repeat_penalty": 1.3}}
        with socket.socket() as link:
            link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            link.settimeout(house.ANSWER_S)
            link.connect(("127.0.0.1", server.port))
            text = json.dumps(body).encode()
            link.sendall(b"POST /api/generate HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s"
                         % (len(text), text))
            paused = "\nollmlx_requests_paused_total 1\n"
            house.until("paused", house.ANSWER_S, lambda: paused in server.raw("GET", "/metrics")[1].decode())
            short = body | {"stream": False, "prompt": "Hello", "options": {"num_predict": 40, "seed": 1}}
            for _ in range(4):
                status, answer = server.call("POST", "/api/generate", short)
                self.assertEqual((status, answer["done"]), (200, True))
            worker = server.workers()
            # Longer than the patience with a process that computes.
            with self.assertRaises(AssertionError):
                house.until("another process", 4, lambda: server.workers() != worker)
            answer = http.client.HTTPResponse(link)
            answer.begin()
            lines = [json.loads(line) for line in answer]
        self.assertTrue(lines[-1].get("done"), lines[-1])
        tokens = sum(len(line.get("logprobs") or ()) for line in lines)
        self.assertEqual(lines[-1]["eval_count"], tokens)
        self.assertEqual(tokens, 900)
        self.assertEqual(server.workers(), worker)


class Rows(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = house.Server(models=("smol",), OLLMLX_FAULT="slow=60", OLLMLX_MAX_QUEUE="2", OLLMLX_NUM_PARALLEL="1")
        cls.addClassCleanup(cls.server.stop)

    def generate(self, tokens=5):
        link = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=house.ANSWER_S)
        body = {"model": "smol", "prompt": "Hello", "stream": False, "options": {"num_predict": tokens}}
        try:
            link.request("POST", "/api/generate", json.dumps(body))
            answer = link.getresponse()
            return answer.status, answer.headers, json.loads(answer.read())
        finally:
            link.close()

    def test_a_request_ends_at_its_own_deadline_and_frees_its_slot(self):
        self.assertEqual(self.generate()[0], 200, "it is loaded now")
        # Nothing drawn: an answer must not end by itself before its time.
        body = {"model": "smol", "prompt": "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16", "raw": True,
                "options": {"num_predict": 300, "temperature": 0}}
        for path, more in (("/api/generate", {"stream": False}), ("/api/generate", {"stream": True}),
                           ("/v1/completions", {"stream": False, "max_tokens": 300, "temperature": 0})):
            with self.subTest(path=path, more=more):
                status, text = self.server.raw("POST", path, json.dumps(body | more), headers={"X-Ollmlx-Timeout": "700ms"})
                # A stream has its status with the first token, where that came in time.
                self.assertIn(status, (200, 504) if more["stream"] else (504,), text)
                self.assertIn("deadline", json.dumps(json.loads(text.decode().splitlines()[-1])["error"]))
                self.assertEqual(self.generate()[0], 200, "the only slot is free")
        for wrong in ("soon", "0", "-1", ""):
            status, text = self.server.raw("POST", "/api/generate", json.dumps(body), headers={"X-Ollmlx-Timeout": wrong})
            self.assertEqual(status, 400, text)
            self.assertIn("x-ollmlx-timeout must be", json.loads(text)["error"])

    def test_row_36_37_a_second_server_at_the_same_place_says_so_and_leaves(self):
        done = subprocess.run([house.OLLMLX, "serve"], env=self.server.env, capture_output=True, text=True, timeout=30)
        self.assertEqual(done.returncode, 1)
        self.assertIn("address already in use", done.stderr)
        self.assertIn("OLLMLX_HOST=", done.stderr)
        self.assertEqual(self.server.raw("GET", "/healthz")[0], 200)

    def test_row_51_a_flood_is_refused_with_a_time_and_the_rest_is_served(self):
        # It has the only slot until its client leaves.
        endless = {"model": "smol", "prompt": "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16", "raw": True,
                   "options": {"num_predict": 2000, "temperature": 0}}
        link = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=house.ANSWER_S)
        self.addCleanup(link.close)
        link.request("POST", "/api/generate", json.dumps(endless))
        stream = link.getresponse()
        self.assertEqual(stream.status, 200)
        self.assertTrue(stream.readline())
        answers = []
        threads = [threading.Thread(target=lambda: answers.append(self.generate())) for _ in range(8)]
        for thread in threads:
            thread.start()
        house.until("refused, all but the two that may wait", house.ANSWER_S, lambda: len(answers) >= 6)
        self.assertEqual([status for status, _, _ in answers], [503] * 6)
        stream.close()
        link.close()
        for thread in threads:
            thread.join()
        self.assertEqual(sorted(status for status, _, _ in answers), [200] * 2 + [503] * 6)
        for status, headers, _ in answers:
            self.assertEqual(status == 503, "Retry-After" in headers, headers)

    def test_row_53_a_head_that_is_too_large_is_refused(self):
        with connect(self.server) as link:
            link.sendall(b"GET /api/version HTTP/1.1\r\nHost: localhost\r\n")
            try:
                for _ in range(200):
                    link.sendall(b"X-Filler: " + b"x" * 1000 + b"\r\n")
            except (BrokenPipeError, ConnectionResetError):
                pass  # It was cut off, which may overtake the answer.
            heard = last_words(link)
            self.assertIsNotNone(heard, "it is closed")
            self.assertTrue(heard == b"" or b" 431 " in heard.split(b"\r\n")[0], heard)

    def test_row_58_ambiguous_requests_are_refused(self):
        for name, head in {
            "two lengths": b"Content-Length: 5\r\nContent-Length: 6",
            "a signed length": b"Content-Length: +5",
            "a length that is no number": b"Content-Length: 5x",
            "an encoding that is none": b"Transfer-Encoding: chunked, gzip",
            "a folded line": b"X-One: 1\r\n two",
            "a blank before the colon": b"Content-Length : 5",
        }.items():
            with self.subTest(name), connect(self.server) as link:
                link.sendall(b"POST /api/show HTTP/1.1\r\nHost: localhost\r\n" + head + b"\r\n\r\nhello")
                self.assertIn(b" 400 ", link.recv(4096).split(b"\r\n")[0] + b" ")
        with connect(self.server) as link:
            link.sendall(b"POST /api/show HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\nhello\r\n")
            self.assertNotIn(b" 200 ", link.recv(4096).split(b"\r\n")[0])
        self.assertEqual(self.server.raw("GET", "/healthz")[0], 200)


@unittest.skipUnless(sys.platform == "linux", "reads /proc and changes another process's limits")
class RowsOfLinux(unittest.TestCase):
    def setUp(self):
        self.server = house.Server(models=("smol",))
        self.addCleanup(self.server.stop)
        self.body = {"model": "smol", "prompt": "Hello", "stream": False, "options": {"num_predict": 5}}
        self.assertEqual(self.server.call("POST", "/api/generate", self.body)[0], 200)

    def crowd(self, count, word=b""):
        links = []
        for _ in range(count):
            links.append(connect(self.server))
            self.addCleanup(links[-1].close)
            links[-1].sendall(word)
        return links

    def test_row_39_52_a_crowd_that_takes_every_descriptor_and_says_nothing_is_shed(self):
        resource.prlimit(self.server.process.pid, resource.RLIMIT_NOFILE, (100, 100))
        # Byte by byte is as good as not at all: the whole head has its deadline.
        links = self.crowd(60, b"POST /api/generate HT") + self.crowd(60)
        self.assertEqual(self.server.call("POST", "/api/generate", self.body)[0], 200)
        for link in links[:60]:
            self.assertIsNotNone(last_words(link), "it is closed")
        self.assertIsNone(self.server.process.poll())

    def test_row_50_idle_connections_are_cheap_and_in_nobodys_way(self):
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        self.addCleanup(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        before = resident(self.server.process.pid)
        self.crowd(IDLE)
        self.assertEqual(self.server.call("POST", "/api/generate", self.body)[0], 200)
        each = (resident(self.server.process.pid) - before) / IDLE
        self.assertLessEqual(each, IDLE_BYTES, f"{each:.0f} bytes for an idle connection")


if __name__ == "__main__":
    unittest.main()
