"""Streams that notice when they are kept waiting: what a companion of a hostile request sees of it."""

import http.client
import json
import socket
import threading
import time

import house

#: Tokens of one stream; fewer than the window, so that it never slides, and enough for the longest request that is watched.
TOKENS = 800
#: A greedy answer to this never ends by itself.
COUNTING = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10,"


class Companion(threading.Thread):
    """One greedy stream of a model after the other, without a pause between them. A gap is the time between two tokens, also
    of two streams: whoever waits for the first token waits as well."""

    def __init__(self, server, model):
        super().__init__(daemon=True, name=f"companion on {model}")
        self.server, self.model = server, model
        self.socket, self.streams, self.count = None, 0, 0
        self.times, self.faults, self.end = [], [], threading.Event()
        self.is_cut = False
        self.start()
        house.until(f"a stream of {model}", house.ANSWER_S, lambda: self.count > 2 or self.faults)

    def run(self):
        while not self.end.is_set():
            try:
                self.stream()
            except (OSError, http.client.HTTPException) as error:
                if not self.is_cut:
                    self.faults.append(repr(error))
                    self.end.wait(0.1)
            self.is_cut = False

    def stream(self):
        """One answer to its end."""
        link = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=house.ANSWER_S)
        link.connect()
        self.socket, self.count = link.sock, 0
        options = {"temperature": 0, "num_predict": TOKENS, "stop": ["\0"]}
        body = {"model": self.model, "prompt": COUNTING, "raw": True, "options": options}
        link.request("POST", "/api/generate", json.dumps(body))
        answer = link.getresponse()
        if answer.status != 200:
            self.faults.append(f"{answer.status} {answer.read()[:200]}")
            self.end.wait(0.1)
            return
        self.streams += 1
        while line := answer.readline():
            self.times.append(time.monotonic())
            self.count += 1
            if b'"error"' in line:
                self.faults.append(line.decode(errors="replace")[:200])

    def cut(self):
        """Leaves the present stream."""
        self.is_cut = True
        try:
            self.socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # It has just ended by itself.

    def fresh(self, left):
        """Begins anew where the stream has fewer tokens left than this."""
        if TOKENS - self.count < left:
            begun = self.streams
            self.cut()
            house.until(f"another stream of {self.model}", house.ANSWER_S, lambda: self.streams > begun and self.count > 2)

    def longest_gap(self, since, until):
        """Seconds, of the gaps that touch this span of time."""
        times = [*self.times, time.monotonic()]
        return max(later - sooner for sooner, later in zip(times, times[1:]) if later >= since and sooner <= until)

    def stop(self):
        self.end.set()
        self.cut()
        self.join(house.SOON_S)
