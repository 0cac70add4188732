"""Nothing about one request stalls its companions: while a hostile request is answered or refused, a stream on the same model
and one on another model go on. Measured for every kind, on both backends; a line for each tells what was seen.

Calm is the longest gap of several spans in which only the companions run. A gap may be three times that, and may always be
`FLOOR_S`: a text that halts for that long still reads as one that flows, and a machine of two cores that serves three models
takes a part of it for itself now and then. A longer gap is looked for once more: what the machine did, it won't do again.
"""

import contextlib
import itertools
import os
import pathlib
import shutil
import socket
import tempfile
import threading
import time
import unittest
from typing import Any, Callable, NamedTuple

import forge
import hostile
import house
from companions import Companion
from forge import MB
from security import error_of

FLOOR_S = 0.2
FACTOR = 3
#: The longest that the machine itself is believed to hold a stream up.
HICCUP_S = 1.0
CALM_SPANS, CALM_SPAN_S = 3, 1.0
#: Tokens that a stream has left when a request is made.
LEFT = 500
#: A request of an ordinary kind is answered or refused within this. Prompts fill the window first, and large bodies are read.
SOON_S, PROMPT_S, LARGE_S = 5, 30, 40
#: One of each way in which a file's template may be slow or large; `test_security_prompts.py` renders all of them.
FILES_TEMPLATES = ("three loops", "doubling", "join", "nested lists", "format", "center", "tojson", "indent tojson", "upper",
                   "namespace in itself", "90000 deep", "deep")
#: Of each family the first and every so many further ones are watched; all of them take half an hour.
EVERY = int(os.environ.get("OLLMLX_TEST_EVERY", 12))
#: Part of the names of the only kinds to watch, for whoever mends one.
ONLY = os.environ.get("OLLMLX_TEST_KIND", "")
ONE = {"stream": False, "options": {"num_predict": 1, "temperature": 0}}


class Kind(NamedTuple):
    """A hostile request."""

    name: str
    path: str
    #: The body for a model.
    body: Callable[[str], Any]
    #: Seconds until it is answered or refused.
    bound: float = SOON_S
    model: str = "smol"
    headers: dict = {}

    def made(self):
        """Its bytes. Made before anybody is watched: this process is busy with it."""
        body = self.body(self.model)
        return body if isinstance(body, bytes) else forge.json_bytes(body)

    def send(self, server, body):
        """(status, text); 0 where nobody answered in time."""
        try:
            status, text = server.raw("POST", self.path, body, self.headers, seconds=self.bound * house.PATIENCE)
            return status, text.decode(errors="replace")
        except OSError as error:
            return 0, repr(error)


def some(kinds):
    """Those of a family that are watched."""
    return itertools.islice(kinds, 0, None, EVERY)


def chat(content, **more):
    return lambda model: {"model": model, "messages": [{"role": "user", "content": content}]} | ONE | more


def generate(prompt, **more):
    return lambda model: {"model": model, "prompt": prompt} | ONE | more


def embed(given):
    return lambda model: {"model": model, "input": given}


def schemas():
    options = {"num_predict": 8, "temperature": 0}
    for name, schema in hostile.SCHEMAS.items():
        yield Kind(f"schema: {name}", "/api/chat", chat("Say something.", format=schema, options=options))


def prompts():
    for name in hostile.TEXTS:
        yield Kind(f"4 MB of {name}", "/api/chat", chat(hostile.text(name, 4 * MB)), PROMPT_S)
    letters = hostile.text("one letter", 16 * MB)
    said = [{"role": "user", "content": letters}]
    tool = [{"role": "user", "content": "q"}, {"role": "tool", "content": letters, "tool_name": "f"}]
    yield Kind("60 MB of one letter", "/api/chat", chat(hostile.text("one letter", 60 * MB)), LARGE_S)
    yield Kind("16 MB, raw", "/api/generate", generate(letters, raw=True), PROMPT_S)
    yield Kind("16 MB, system", "/api/generate", generate("x", system=letters), PROMPT_S)
    yield Kind("16 MB, suffix", "/api/generate", generate("x", suffix=letters), PROMPT_S)
    yield Kind("16 MB, tool result", "/api/chat", lambda model: {"model": model, "messages": tool} | ONE, PROMPT_S)
    openai = {"max_tokens": 1}
    yield Kind("16 MB, v1 completions", "/v1/completions", lambda it: {"model": it, "prompt": letters} | openai, PROMPT_S)
    yield Kind("16 MB, v1 chat", "/v1/chat/completions", lambda it: {"model": it, "messages": said} | openai, PROMPT_S)
    yield Kind("16 MB, v1 messages", "/v1/messages", lambda it: {"model": it, "messages": said} | openai, PROMPT_S)
    for name in ("one letter", "one long word", "emoji"):
        yield Kind(f"embed 16 MB of {name}", "/api/embed", embed(hostile.text(name, 16 * MB)), PROMPT_S, "embed")
    yield Kind("embed 50 long inputs", "/api/embed", embed([hostile.text("one long word", 80_000)] * 50), LARGE_S, "embed")
    turns = [{"role": "user" if i % 2 == 0 else "assistant", "content": "x"} for i in range(200_000)]
    yield Kind("200,000 turns", "/api/chat", lambda it: {"model": it, "messages": turns} | ONE, PROMPT_S)


def go_templates():
    for name, template in hostile.GO.items():
        yield Kind(f"Go template: {name}", "/api/generate", generate("hello", template=template))


def others():
    nested = {"type": "string"}
    for _ in range(50):
        nested = {"type": "object", "properties": {"x": nested}}
    function = {"name": "f" * 64, "description": "d" * 200, "parameters": nested}
    tools = [{"type": "function", "function": function}] * 2000
    yield Kind("2000 tools", "/api/chat", chat("x", tools=tools), PROMPT_S)
    yield Kind("64 long stops", "/api/generate", generate("x", options={"stop": ["x" * 1024] * 64, "num_predict": 64}), PROMPT_S)
    yield Kind("10^5 stops", "/api/generate", generate("x", options={"stop": ["ab"] * 10**5, "num_predict": 64}))
    logprobs = generate("x", logprobs=True, top_logprobs=20, options={"num_predict": 64})
    yield Kind("logprobs of 20", "/api/generate", logprobs, PROMPT_S)
    yield Kind("num_batch 10^9", "/api/generate", generate("x", options={"num_batch": 10**9, "num_predict": 1}))
    start = b'{"model":"smol","prompt":"x","stream":false,"options":{"num_predict":1},"ignored":'
    for name, piece in (("objects", b'{"":0},'), ("lists", b"[],"), ("texts", b'"\\u0041",')):
        body = start + b"[" + piece * (60 * MB // len(piece)) + b"0]}"
        yield Kind(f"60 MB of ignored {name}", "/api/generate", lambda _, body=body: body, LARGE_S)
    keys = start + b"{" + b",".join(b'"%d":1' % i for i in range(3 * 10**6)) + b"}}"
    yield Kind("3 million ignored keys", "/api/generate", lambda _: keys, LARGE_S)
    yield Kind("10^6 brackets", "/api/generate", lambda _: b"[" * 10**6)
    # Its model is loaded anew for it, once nobody works with it; it says how long it waits for that.
    wide, patient = generate("x", options={"num_ctx": 10**9, "num_predict": 1}), {"X-Ollmlx-Timeout": "3"}
    yield Kind("num_ctx 10^9", "/api/generate", wide, headers=patient)


class HeldBodies(NamedTuple):
    """Strangers who keep back the last byte of large bodies, and somebody who asks beside them."""

    name: str = "5 bodies of 20 MB held"
    bound: float = LARGE_S

    def made(self):
        head = f"POST /api/generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: {20 * MB}\r\n\r\n"
        return head.encode() + b" " * (20 * MB - 1)

    def send(self, server, body):
        with contextlib.ExitStack() as stack:
            for _ in range(5):
                link = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), house.SOON_S))
                with contextlib.suppress(OSError):
                    link.sendall(body)
            asked = Kind(self.name, "/api/generate", generate("x"), self.bound)
            return asked.send(server, asked.made())


class Seen(NamedTuple):
    """What became of it. Times in seconds."""

    kind: str
    calm: float
    gap: float
    other_calm: float
    other_gap: float
    took: float
    outcome: str
    faults: list
    #: Whether these are short gaps and nothing else.
    only_gaps: bool


def allowed(calm):
    return max(FACTOR * calm, FLOOR_S) * house.PATIENCE


def patience(calm):
    """Seconds after which a companion's silence is one, whatever comes later."""
    return max(1.0, 2 * allowed(max(calm)))


class Companions(unittest.TestCase):
    backend = "gguf"

    @classmethod
    def setUpClass(cls):
        cls.seen, cls.folder = [], pathlib.Path(tempfile.mkdtemp(prefix="ollmlx-hostile-"))
        cls.begin()

    @classmethod
    def begin(cls):
        """A server, and its calm companions."""
        settings = {"OLLMLX_CONTEXT_LENGTH": "1024", "OLLMLX_NUM_PARALLEL": "4", "OLLMLX_MAX_LOADED_MODELS": "6",
                    "OLLMLX_KEEP_ALIVE": "1h"}
        cls.server = house.Server(models=("smol", "embed"), backend=cls.backend, **settings)
        cls.server.create("other", f"FROM {house.FILES[cls.backend]['smol']}\nPARAMETER num_keep 4\n")
        cls.server.call("POST", "/api/embed", {"model": "embed", "input": "x"})
        cls.other = Companion(cls.server, "other")

    @classmethod
    def finish(cls):
        cls.other.stop()
        cls.server.stop()

    @classmethod
    def tearDownClass(cls):
        cls.finish()
        shutil.rmtree(cls.folder, ignore_errors=True)
        faults = sum(bool(seen.faults) for seen in cls.seen)
        print(f"{len(cls.seen)} kinds on {cls.backend}, {faults} with a fault", flush=True)

    def test_requests(self):
        families = (schemas(), prompts(), go_templates(), others(), [HeldBodies()])
        self.watch_all(itertools.chain.from_iterable(some(family) for family in families), "smol")

    def test_templates_of_files(self):
        source = house.FILES[self.backend]["smol"]
        make = forge.retemplated if self.backend == "gguf" else forge.altered
        for name in some(FILES_TEMPLATES):
            model = make(source, self.path(), hostile.JINJA[name])
            self.watch_all([Kind(f"file's template: {name}", "/api/chat", chat("hello"), SOON_S, model)], model)
            self.forget(model)

    def path(self):
        """Of a model that was not there before."""
        self.folder.mkdir(exist_ok=True)
        count = len(self.seen)
        return self.folder / (f"{count}.gguf" if self.backend == "gguf" else f"{count}")

    def watch_all(self, kinds, model):
        """Each of them beside a companion on this model and one on another."""
        companion = Companion(self.server, model)
        try:
            calm = self.calm(companion)
            for kind in (kind for kind in kinds if ONLY in kind.name):
                with self.subTest(kind.name):
                    seen = self.watch(kind, companion, calm)
                    if seen.faults and seen.only_gaps:
                        # On a new server, which has nothing of it in its caches.
                        companion = self.anew(companion, model)
                        calm = self.calm(companion)
                        seen = self.watch(kind, companion, calm)
                    self.seen.append(seen)
                    print("\n" + row(self.backend, seen), end="", flush=True)
                    if seen.faults:
                        # Whatever still runs would be blamed on the next one.
                        companion = self.anew(companion, model)
                    self.assertEqual(seen.faults, [])
        finally:
            companion.stop()

    def anew(self, companion, model):
        companion.stop()
        self.finish()
        self.begin()
        return Companion(self.server, model)

    def calm(self, companion):
        """The longest gap of each companion, of several spans."""
        longest = [0.0, 0.0]
        for _ in range(CALM_SPANS):
            since = time.monotonic()
            threading.Event().wait(CALM_SPAN_S)
            gaps = [each.longest_gap(since, time.monotonic()) for each in (companion, self.other)]
            longest = [max(pair) for pair in zip(longest, gaps)]
        return longest

    def watch(self, kind, companion, calm):
        pair = (companion, self.other)
        for each in pair:
            each.fresh(LEFT)
            each.faults.clear()
        pids, body = self.pids(), kind.made()
        since = time.monotonic()
        status, text = kind.send(self.server, body)
        until = time.monotonic()
        took = until - since
        # Each goes on, or its silence counts.
        with contextlib.suppress(AssertionError):
            house.until("tokens", patience(calm), lambda: all(each.times[-1] > until for each in pair), every_s=0.005)
        gaps = [each.longest_gap(since, until) for each in pair]
        told = [f"{each.model}: a gap of {gap * 1000:.0f} ms, calm {usual * 1000:.0f}"
                for each, gap, usual in zip(pair, gaps, calm) if gap > allowed(usual)]
        faults = [f"{each.model}: {fault}" for each in pair for fault in each.faults]
        if took > kind.bound * house.PATIENCE or not status:
            faults.append(f"neither answered nor refused within {kind.bound} s")
        if status >= 400 and not error_of(text):
            faults.append(f"{status} without a word")
        if self.server.status() is not None:
            faults.append(f"the server ended with {self.server.status()}")
        else:
            now = self.pids()
            gone = [name for name, pid in pids.items() if now.get(name) != pid]
            faults += [f"the worker of {name} was {pids[name]}, is {now.get(name)}" for name in gone]
        outcome = f"{status} {error_of(text)[:60]}".strip() if status else "no answer"
        return Seen(kind.name, calm[0], gaps[0], calm[1], gaps[1], took, outcome, told + faults,
                    not faults and max(gaps) < HICCUP_S)

    def pids(self):
        """{model: pid} of all that are loaded."""
        return {entry["name"]: entry["pid"] for entry in self.server.call("GET", "/api/ps")[1]["models"]}

    def forget(self, model):
        self.server.call("POST", "/api/generate", {"model": model, "keep_alive": 0})
        path = pathlib.Path(model)
        shutil.rmtree(path) if path.is_dir() else path.unlink()


class CompanionsOnMlx(Companions):
    backend = "mlx"

    def test_tokenizers_of_files(self):
        """Those of GGUF files have no patterns and normalisers of their own."""
        source = house.FILES["mlx"]["smol"]
        for name, parts in some(self.tokenizers()):
            model = forge.altered(source, self.path(), tokenizer=parts)
            kind = Kind(f"file's tokenizer: {name}", "/api/generate", generate("a" * 30_000, raw=True), PROMPT_S, model)
            honest = Kind(name, "/api/generate", generate("1", raw=True), LARGE_S, model)
            status, _ = honest.send(self.server, honest.made())
            # One that is refused before anybody can be its companion is watched by those of others.
            self.watch_all([kind], model if status == 200 else "smol")
            self.forget(model)

    @staticmethod
    def tokenizers():
        """Parts to put into an honest one."""
        for pattern in hostile.PATTERNS:
            yield pattern or "empty pattern", {"pre_tokenizer": hostile.split(pattern)}
        for name, normaliser in hostile.normalisers().items():
            yield name, {"normalizer": normaliser}
        for name, tokens in hostile.added_tokens().items():
            yield name, {"added_tokens": tokens}


def row(backend, seen):
    """A line of the table; times in milliseconds, and in seconds what the request took."""
    gaps = f"gap {seen.gap * 1000:6.0f}, calm {seen.calm * 1000:4.0f}, {seen.gap / max(seen.calm, 1e-4):6.1f} times"
    others = f"other {seen.other_gap * 1000:6.0f}, {seen.other_gap / max(seen.other_calm, 1e-4):6.1f} times"
    verdict = "FAULT " if seen.faults else ""
    return f"{backend:<4} {seen.kind[:44]:<44} {gaps}; {others}; took {seen.took:5.1f}; {verdict}{seen.outcome}"


if __name__ == "__main__":
    unittest.main()
