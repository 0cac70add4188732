"""GGUF files made to harm, and the socket that those who read them talk through (see `security.py`)."""

import contextlib
import os
import pathlib
import re
import shutil
import socket
import stat
import struct
import subprocess
import unittest

import forge
import house
from forge import ARR, BOOL, I32, LLAMA, MB, STR, TOKENS, U8, U32, gguf, nums, string, strs, tensors, tiny, tok
from security import STRACE, Checked, check, error_of, inspect

#: What an inspector may take for a header.
INSPECTOR_BYTES_MAX = 256 * MB
NOBODY = 65534
HELLO, STRANGERS = b"\x40" + bytes(8), 40


def nest(depth):
    """Arrays in arrays."""
    inner = struct.pack("<IQ", ARR, 1) * depth
    return ARR, 1, inner + struct.pack("<IQ", U8, 1) + b"\0"


def swapped(at, word):
    return TOKENS[:at] + [word] + TOKENS[at + 1:]


def plamo():
    """An architecture whose tokenizer llama.cpp reads in a way of its own."""
    pairs = [("general.architecture", STR, "plamo2"), ("tokenizer.ggml.model", STR, "plamo2")]
    pairs += [("plamo2." + key.split(".", 1)[1], kind, given) for key, kind, given in LLAMA[1:]]
    words = tok(swapped(9, "<0x-1>"))
    return gguf(pairs + [pair for pair in words if pair[0] != "tokenizer.ggml.model"], *tensors())


class Gguf(Checked):
    @check
    def test_s19_a_short_file_is_refused(self):
        whole = tiny()
        cases = (
            (b"", "empty"),
            (b"G", "1 byte"),
            (b"GGUF", "4 bytes"),
            (whole[:8], "8 bytes"),
            (whole[:23], "23 bytes"),
            (b"GGML" + whole[4:], "wrong magic"),
            (b"FUGG" + whole[4:], "magic turned round"),
            (whole[:4] + struct.pack(">I", 3) + whole[8:], "big-endian"),
            (whole[:4] + struct.pack("<I", 1) + whole[8:], "version 1"),
            (whole[:4] + struct.pack("<I", 99) + whole[8:], "version 99"),
            (whole[:500], "500 bytes"),
            (whole[:2000], "2000 bytes"),
        )
        for content, what in cases:
            if content[:4] == b"GGUF":
                self.refuses_gguf(content, what)
                continue
            body = {"model": "evil", "files": {"m.gguf": self.server.upload(content)}, "stream": False}
            status, text, _ = self.server.request("POST", "/api/create", body)
            self.expect(status == 400 and error_of(text), f"{what}: {status} {text[:80]}")
        pairs = LLAMA + tok(TOKENS[:40], [2, 3, 3] + [6] * 37)
        short = gguf(pairs, [("token_embd.weight", (32, 1), 0, 0)], bytes(128))
        taken, path = [], self.path("prefix.gguf")
        for length in range(len(short)):
            forge.write(path, short[:length])
            status, _, _, _ = inspect("gguf", path)
            if status != 2:
                taken.append((length, status))
        self.expect(not taken, f"prefixes that are not refused: {taken[:5]}")

    @check
    def test_s21_a_count_is_not_believed(self):
        count = string("llama.block_count")
        number, unknown = (count + struct.pack("<I", kind) for kind in (U32, 13))
        cases = [
            ("n_kv 2^62", tiny(n_kv=2**62)),
            ("n_kv 2^64-1", tiny(n_kv=2**64 - 1)),
            ("n_tensors 2^62", tiny(n_tensors=2**62)),
            ("key of 2^63", gguf([], n_kv=1) + struct.pack("<Q", 2**63)),
            ("text of 2^40", tiny(kv=[("x.y", STR, (2**40, b"abc"))])),
            ("array of 2^60 U32", tiny(kv=[("x.y", ARR, (U32, 2**60, b"abcd"))])),
            ("array of 2^60 STR", tiny(kv=[("x.y", ARR, (STR, 2**60, b"abcd"))])),
            ("array of 2^60 ARR", tiny(kv=[("x.y", ARR, (ARR, 2**60, b"abcd"))])),
            ("arrays 1000 deep", tiny(kv=[("x.y", ARR, nest(1000))])),
            ("arrays 200000 deep", tiny(kv=[("x.y", ARR, nest(200000))])),
            ("65 dimensions", tiny(tn=[("a", (1,) * 65, 0, 0)])),
            ("2^32-1 dimensions", gguf(LLAMA, n_tensors=1, pad=1) + string("a") + struct.pack("<I", 2**32 - 1)),
            ("same key twice", tiny().replace(count, string("llama.block_countx"), 1)),
            ("no architecture", tiny(drop=["general.architecture"])),
            ("tokens without scores", tiny(drop=["tokenizer.ggml.scores"])),
            ("merges missing", tiny(kv=[("tokenizer.ggml.model", STR, "gpt2")])),
            ("no tokens", tiny(drop=["tokenizer.ggml.tokens"])),
            ("empty tokens", tiny(kv=[("tokenizer.ggml.tokens", ARR, strs([]))])),
            ("value type 13", tiny().replace(number, unknown, 1)),
            ("duplicate", gguf(LLAMA + [("llama.block_count", U32, 2)] + tok())),
            ("architecture of 1 MB", tiny(kv=[("general.architecture", STR, "a" * MB)])),
            ("architecture ../..", tiny(kv=[("general.architecture", STR, "../../x")])),
        ]
        for what, content in cases:
            status, text, size, took = inspect("gguf", self.gguf(content))
            bounded = size < INSPECTOR_BYTES_MAX and took < 5 * house.PATIENCE
            told = f"inspector {status}, {size // MB} MB, {took:.1f} s {text[:80]}"
            self.expect(status == 2 and bounded, f"{what}: {told}")
            self.refuses_gguf(content, what)

    @check
    def test_s23_the_native_loader_is_not_trusted(self):
        own, _ = tensors()
        wider = [(name, (dims[0] + (name == "blk.0.attn_q.weight"), *dims[1:]), *rest) for name, dims, *rest in own]
        cases = [
            ("plamo2 with <0x-1>", plamo()),
            ("llama with <0x-1>", tiny(tokens=swapped(9, "<0x-1>"))),
            (
                "600 layers with arrays",
                tiny(
                    kv=[
                        ("llama.block_count", U32, 600),
                        ("llama.attention.head_count", ARR, nums(U32, [2] * 600)),
                        ("llama.feed_forward_length", ARR, nums(U32, [64] * 600)),
                    ]
                ),
            ),
            (
                "512 layers, array of 513",
                tiny(kv=[("llama.block_count", U32, 512), ("llama.attention.head_count", ARR, nums(U32, [2] * 513))]),
            ),
            ("token of 3 MB", tiny(tokens=TOKENS + ["x" * 3 * MB])),
            (
                "token of 2^31 bytes, lying",
                tiny(kv=[("tokenizer.ggml.tokens", ARR, (STR, 259, struct.pack("<Q", 2**31) + b"abc"))]),
            ),
            ("short token_type", tiny(types=[1, 3, 3])),
            ("token_type of texts", tiny(kv=[("tokenizer.ggml.token_type", ARR, strs(["1"] * 259))])),
            ("bos -1", tiny(kv=[("tokenizer.ggml.bos_token_id", I32, -1)])),
            ("bos 2^31", tiny(kv=[("tokenizer.ggml.bos_token_id", U32, 2**31)])),
            ("eos = size", tiny(kv=[("tokenizer.ggml.eos_token_id", U32, 259)])),
            ("unk -1", tiny(kv=[("tokenizer.ggml.unknown_token_id", I32, -1)])),
            ("pad 2^31", tiny(kv=[("tokenizer.ggml.padding_token_id", U32, 2**31)])),
            (
                "projector",
                gguf(
                    [("general.architecture", STR, "clip"), ("clip.has_vision_encoder", BOOL, True)],
                    [("v.patch_embd.weight", (8,), 0, 0)],
                    bytes(32),
                ),
            ),
            ("empty token text", tiny(tokens=swapped(9, ""))),
            ("types 255", tiny(types=[255] * 259)),
            ("scores NaN", tiny(scores=[float("nan")] * 259)),
            ("no tensors", tiny(tn=[], data=b"")),
            ("tensor of another shape", tiny(tn=wider)),
            ("adapter", tiny(kv=[("general.type", STR, "adapter"), ("adapter.type", STR, "lora")])),
            ("tensor missing", tiny(tn=own[:-1])),
            ("all types I8", tiny(tn=[(name, dims, 24, offset) for name, dims, _, offset in own])),
            (
                "merges of rubbish",
                tiny(
                    kv=[
                        ("tokenizer.ggml.model", STR, "gpt2"),
                        ("tokenizer.ggml.merges", ARR, strs(["", "a", "a b c", "\xff \xff", "x" * 100000])),
                    ]
                ),
            ),
            ("wpm", tiny(kv=[("tokenizer.ggml.model", STR, "bert")])),
            ("rwkv", tiny(kv=[("tokenizer.ggml.model", STR, "rwkv")])),
            (
                "ugm",
                tiny(
                    kv=[
                        ("tokenizer.ggml.model", STR, "t5"),
                        ("tokenizer.ggml.precompiled_charsmap", ARR, nums(U8, [255] * 64)),
                    ]
                ),
            ),
            (
                "pre unknown",
                tiny(
                    kv=[
                        ("tokenizer.ggml.model", STR, "gpt2"),
                        ("tokenizer.ggml.pre", STR, "nonsense"),
                        ("tokenizer.ggml.merges", ARR, strs(["a b"])),
                    ]
                ),
            ),
            ("rope factors", tiny(tn=own + [("rope_freqs.weight", (1000000,), 0, 0)])),
            ("sliding window 0", tiny(kv=[("llama.attention.sliding_window", U32, 0)])),
            ("experts used > there", tiny(kv=[("llama.expert_count", U32, 2), ("llama.expert_used_count", U32, 9)])),
        ]
        for what, content in cases:
            where = self.gguf(content)
            status, text, took = self.ask(where)
            died = self.server.deaths(where)
            self.expect(died <= 3, f"{what}: {died} processes died")
            if status != 200:
                error = error_of(text)
                self.expect("m.gguf" in error, f"{what}: the file is not named: {error[:100]}")
                self.expect(took < 8 * house.PATIENCE, f"{what}: took {took:.1f} s")
            if died:
                self.note(f"{what}: {died} worker(s) died, client got {status} {error_of(text)[-60:]}")
                self.ask(where)
                self.expect(self.server.deaths(where) - died <= 3, f"{what}: every request starts more processes")

    @check
    def test_s23_an_abort_of_the_engine_starts_no_debugger(self):
        if not STRACE:
            self.skipTest("no strace")
        traced = self.traced()
        # What the server asks the dynamic linker, it asks at its start.
        self.ask(self.gguf(tiny()), server=traced)
        seen = len(self.trace())
        self.ask(self.gguf(tiny(kv=[("llama.expert_count", U32, 2**32 - 1)])), server=traced)
        # A second model is answered when all that belonged to the first is over and written down.
        self.ask(self.gguf(tiny()), server=traced)
        started = re.findall(r'execve\("([^"]+)"', "\n".join(self.trace()[seen:]))
        strange = sorted({path for path in started if "ollmlx" not in path})
        self.expect(started and not strange, f"an abort in the engine starts other programs, found in PATH: {strange[-1:]}")


class Socket(Checked):
    @check
    def test_s25_nobody_else_gets_to_the_workers(self):
        for model in ("smol", "smolx"):
            self.ask(model)
        self.only_the_front_door_listens()
        where = self.socket()
        folder = os.path.dirname(where)
        modes = [stat.S_IMODE(os.stat(path).st_mode) for path in (where, folder)]
        self.expect(modes == [0o600, 0o700], f"modes {modes[0]:o} in {modes[1]:o}")
        if os.getuid() == 0:
            told = self.knock(b"x", uid=NOBODY)
            self.expect(told == b"denied", f"another user gets in: {told}")
            os.chmod(where, 0o777)
            os.chmod(folder, 0o777)
            self.expect_refused(self.knock(b"\x0d\0\0\0" + HELLO, uid=NOBODY), "another user, modes opened")
            os.chmod(where, 0o600)
            os.chmod(folder, 0o700)
        before = self.server.log().count("impostor")
        manifest = pathlib.Path(self.server.models) / "manifests/registry.ollama.ai/library/smol/latest"
        model = forge.sha256(manifest.read_bytes()).encode()
        for incarnation in (1, 2):
            self.expect_refused(self.knock(hello(b"\x09" * 32, model, incarnation)), "a wrong token")
        self.the_right_token_from_a_stranger()
        self.expect(self.server.log().count("impostor") > before, "the log says nothing of impostors")
        self.silent_strangers(where)

    def only_the_front_door_listens(self):
        if not shutil.which("ss"):
            return
        listing = subprocess.run(["ss", "-ltnpH"], capture_output=True, text=True, check=True).stdout
        pids = {self.server.pid, *(pid for pid, _ in self.server.children())}
        listeners = [line for line in listing.splitlines() if any(f"pid={pid}," in line for pid in pids)]
        is_door = len(listeners) == 1 and f"127.0.0.1:{self.server.port}" in listeners[0]
        self.expect(is_door, f"listeners: {listeners}")

    def socket(self):
        found = list((self.server.folder / "tmp").glob(f"ollmlx-{self.server.pid}-*/w.sock"))
        self.assertEqual(len(found), 1, found)
        return str(found[0])

    def knock(self, hello, uid=None):
        """What the server answers at the workers' socket; asked by a child, as another user."""
        where = self.socket()
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            said = b"refused"
            try:
                if uid:
                    os.chmod(self.work, 0o755)
                    os.chmod(self.server.folder, 0o755)
                    os.setgroups([])
                    os.setgid(uid)
                    os.setuid(uid)
                link = socket.socket(socket.AF_UNIX)
                link.settimeout(3)
                link.connect(where)
                link.sendall(hello)
                said = b"got:" + link.recv(100)
            except PermissionError:
                said = b"denied"
            except OSError as error:
                said = str(error).encode()
            os.write(writing, said)
            os._exit(0)
        os.close(writing)
        said = os.read(reading, 200)
        os.close(reading)
        os.waitpid(pid, 0)
        return said

    def expect_refused(self, told, who):
        refused = told in (b"got:", b"denied") or b"reset" in told or b"pipe" in told
        self.expect(refused, f"{who}: {told}")

    def the_right_token_from_a_stranger(self):
        for pid, name in self.server.children():
            environment = pathlib.Path(f"/proc/{pid}/environ").read_bytes()
            found = [re.search(rb"OLLMLX_%s=(\w+)" % name, environment) for name in (b"TOKEN", b"MODEL", b"INCARNATION")]
            if name.startswith("ollmlx-worker") and all(found):
                token, model, incarnation = (match[1] for match in found)
                told = self.knock(hello(bytes.fromhex(token.decode()), model, int(incarnation)))
                self.expect_refused(told, "the right token from a stranger")

    def silent_strangers(self, where):
        """They say nothing, or the start of a huge frame; who loads a model beside them doesn't wait for them."""
        with contextlib.ExitStack() as stack:
            for number in range(STRANGERS):
                link = stack.enter_context(socket.socket(socket.AF_UNIX))
                link.connect(where)
                link.setblocking(False)
                with contextlib.suppress(OSError):
                    link.send(b"" if number % 2 else struct.pack("<I", 90 * MB) + b"\x40" + b"x" * 65536)
            status, text, took = self.ask(self.gguf(tiny()))
            self.expect(status == 200, f"a load beside {STRANGERS} strangers: {status} {text[:100]}")
            self.note(f"beside {STRANGERS} silent strangers at the worker socket a load takes {took:.1f} s")


def hello(token, model, incarnation):
    body = b"\x00\x01\x01\x01b" + bytes([len(model)]) + model + bytes([incarnation]) + b"\x09" + token
    return struct.pack("<I", len(HELLO + body)) + HELLO + body


if __name__ == "__main__":
    unittest.main()
