"""Attacks over the network: strangers from the web, keys, bombs, and what leaves this machine (see `security.py`)."""

import gzip
import os
import pathlib
import re
import shutil
import subprocess
import unittest

import forge
import house
from forge import MB, tiny
from security import STRACE, Checked, Listener, Registry, check, error_of, raw

#: Every route, and other ways to spell some of them.
ROUTES = {
    "GET": [
        "/", "/api/version", "/api/status", "/api/tags", "/api/ps", "/metrics", "/v1/models", "/v1/models/smol",
        "/api/ollmlx/server", "/nothing", "//api/tags", "/api/tags/", "/api/tags?x", "/healthz/../api/tags",
        "/healthz/api/tags", "/healthz;/api/tags", "/./api/tags", "/api/%74ags", "/%2e%2e/api/tags",
    ],
    "HEAD": ["/", "/api/tags", "/api/blobs/sha256:" + "0" * 64],
    "POST": [
        "/api/show", "/api/copy", "/api/create", "/api/pull", "/api/push", "/api/me", "/api/generate", "/api/chat",
        "/api/embed", "/api/embeddings", "/v1/chat/completions", "/v1/completions", "/v1/embeddings",
        "/v1/messages", "/v1/responses", "/api/ollmlx/why", "/api/ollmlx/fit", "/api/ollmlx/logs",
        "/api/ollmlx/restart", "/api/blobs/sha256:" + "0" * 64,
    ],
    "DELETE": ["/api/delete"],
    "PUT": ["/api/tags"],
    "TRACE": ["/api/tags"],
    "CONNECT": ["/api/tags"],
}
KEY = "sekret-key-0123456789"
BLOB = "/api/blobs/sha256:" + "0" * 64


def message(text="x"):
    return {"role": "user", "content": text}


class Network(Checked):
    def keyed(self):
        """A server with a key."""
        return self.other("keyed", OLLMLX_API_KEY=KEY)

    @check
    def test_s09_a_stranger_from_the_web_has_no_effect(self):
        self.server.request("POST", "/api/copy", {"source": "smol", "destination": "victim"})
        origins = [
            "null",
            "https://evil.example",
            "http://localhost.evil.example",
            "http://127.0.0.1.evil.example",
            "http://localhost:1@evil.example",
            "http://evil.example:80",
            "chrome-extension://abc",
            "moz-extension://abc",
            "http://[::1].evil.example",
            "http://localhost%00.evil",
            "",
            "http://localhost:80,http://evil.example",
            "HTTP://EVIL.EXAMPLE",
            "http://0.0.0.0.evil.example",
        ]
        asked = {"model": "smol", "prompt": "origin", "stream": False, "options": {"num_predict": 1}}
        requests = (
            ("POST", "/api/delete", {"model": "victim"}), ("DELETE", "/api/delete", {"model": "victim"}),
            ("POST", "/api/pull", {"model": "x", "stream": False}), ("POST", "/api/generate", asked),
            ("POST", "/api/copy", {"source": "smol", "destination": "csrf"}), ("GET", "/api/tags", None),
            ("POST", "/v1/chat/completions", {"model": "smol", "messages": []}),
            ("POST", "/api/create", {"model": "csrf", "from": "smol"}),
        )
        for origin in origins:
            simple = {"Origin": origin, "Content-Type": "text/plain"}
            for method, route, body in requests:
                status, _, headers = self.server.request(method, route, body, simple)
                self.expect(status == 403, f"{method} {route} from Origin {origin!r}: {status}")
                self.expect(not allowed(headers), f"{origin!r} is let read")
            preflight = {"Origin": origin, "Access-Control-Request-Method": "POST"}
            _, _, headers = self.server.request("OPTIONS", "/api/tags", None, preflight)
            self.expect(not allowed(headers), f"preflight of {origin!r}")
        tags = self.server.request("GET", "/api/tags")[1]
        self.expect("victim" in tags and "csrf" not in tags, "a refused request had an effect")
        for origin in ("http://localhost:3000", f"http://127.0.0.1:{self.server.port}", "app://x"):
            status, _, headers = self.server.request("GET", "/api/tags", None, {"Origin": origin})
            given = allowed(headers)
            fine = given.get("access-control-allow-origin") != "*" and "access-control-allow-credentials" not in given
            self.expect(status == 200 and fine, f"{origin}: {status} {headers}")
        self.server.request("DELETE", "/api/delete", {"model": "victim"})

    @check
    def test_s11_one_rule_for_keys(self):
        keyed = self.keyed()
        rules = [
            ({"Authorization": f"Bearer {KEY}"}, True),
            ({"Authorization": f"bearer {KEY}"}, True),
            ({"Authorization": f"BEARER {KEY}"}, True),
            ({"x-api-key": KEY}, True),
            ({}, False),
            ({"Authorization": KEY}, False),
            ({"Authorization": "Bearer wrong", "x-api-key": KEY}, False),
            ({"Authorization": f"Bearer {KEY}", "x-api-key": "wrong"}, False),
            ({"Authorization": f"Bearer {KEY} "}, None),
            ({"Authorization": f"Bearer  {KEY}"}, False),
            ({"Authorization": f"Bearer {KEY}x"}, False),
            ({"Authorization": f"Bearer {KEY[:-1]}"}, False),
            ({"Authorization": "Bearer "}, False),
            ({"x-api-key": ""}, False),
            ({"Authorization": f"Basic {KEY}"}, False),
            ({"X-Forwarded-For": "127.0.0.1"}, False),
            ({"Cookie": f"key={KEY}"}, False),
            ({"Authorization": f"Bearer {KEY}", "x-api-key": KEY}, True),
        ]
        bodies = [
            ("GET", "/api/tags", None), ("GET", "/v1/models", None), ("GET", "/metrics", None), ("HEAD", BLOB, None),
            ("POST", "/v1/messages", {"model": "none", "max_tokens": 1, "messages": [message()]}),
            ("POST", "/v1/chat/completions", {"model": "none", "messages": [message()]}),
        ]
        for headers, right in rules:
            answers = {keyed.request(*call, headers)[0] != 401 for call in bodies}
            self.expect(len(answers) == 1, f"{headers}: not one rule for all routes")
            told = "let in" if True in answers else "refused"
            self.expect(right is None or answers == {right}, f"{headers}: {told}")
        for query in (f"/api/tags?key={KEY}", f"/api/tags?api_key={KEY}", f"/api/tags?x-api-key={KEY}"):
            self.expect(keyed.request("GET", query)[0] == 401, f"{query} lets in")
        lines = ("GET /api/tags HTTP/1.1", "Host: localhost", "Authorization: Bearer wrong", f"Authorization: Bearer {KEY}",
                 "Connection: close", "", "")
        status, _ = raw(keyed.port, "\r\n".join(lines).encode())
        self.expect(status in (400, 401), f"two Authorization headers: {status}")

    @check
    def test_s11_the_key_is_shown_to_nobody(self):
        keyed = self.keyed()
        for route in ("/metrics", "/api/ollmlx/server", "/api/ps"):
            self.expect(KEY not in keyed.request("GET", route, None, {"x-api-key": KEY})[1], f"{route} shows the key")
        self.expect(KEY not in keyed.cli("config").stdout, "ollmlx config prints the key in clear")
        model = self.gguf(tiny())
        body = {"model": model, "prompt": "x", "stream": False, "options": {"num_predict": 1}}
        self.expect(keyed.request("POST", "/api/generate", body, {"x-api-key": KEY})[0] == 200, "no answer with the key")
        self.expect(len(keyed.children()) == 1, "no worker to look at")
        for pid, name in keyed.children():
            environment = pathlib.Path(f"/proc/{pid}/environ").read_bytes()
            self.expect(KEY.encode() not in environment, f"{name} has the key in its environment")
        self.expect(KEY not in keyed.log(), "the key is in the log")

    @check
    def test_s11_what_the_server_starts_is_given_no_secret(self):
        """An inspector is a short-lived process: only a trace shows what it was given."""
        if not STRACE:
            self.skipTest("no strace")
        log = self.work / "env.txt"
        secrets = {"OLLMLX_API_KEY": KEY, "HF_TOKEN": "hf_secret", "OPENAI_API_KEY": "sk-secret"}
        server = self.own(**secrets)
        command = [STRACE, "-f", "-qq", "-v", "-s", "200", "-e", "trace=execve", "-o", str(log), "-p", str(server.pid)]
        tracer = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            status = pathlib.Path(f"/proc/{server.pid}/status")
            house.until("traced", house.SOON_S, lambda: f"TracerPid:\t{tracer.pid}\n" in status.read_text())
            body = {"model": self.gguf(tiny()), "prompt": "x", "stream": False, "options": {"num_predict": 1}}
            server.request("POST", "/api/generate", body, {"x-api-key": KEY})
        finally:
            tracer.terminate()
            tracer.wait()
        started = [line for line in log.read_text(errors="replace").splitlines() if "ollmlx-worker" in line]
        self.expect(len(started) >= 2, f"an inspector and a worker: {len(started)} starts")
        for line in started:
            what = "inspector" if '"inspect"' in line else "worker"
            given = [name for name, secret in secrets.items() if secret in line]
            self.expect(not given, f"the {what} is given {given} in its environment")

    @check
    def test_s12_no_spelling_of_a_route_goes_round_the_key(self):
        keyed = self.keyed()
        names = keyed.request("GET", "/api/tags", None, {"x-api-key": KEY})[1]
        for method, routes in ROUTES.items():
            for route in routes:
                status, text, _ = keyed.request(method, route, b"{}" if method in ("POST", "PUT", "DELETE") else None)
                self.expect(status in (400, 401), f"{method} {route}: {status} {text[:80]}")
                self.expect(names not in text, f"{method} {route} lists the models")

    @check
    def test_s13_a_token_goes_to_no_other_host(self):
        if not self.registry_part():
            return
        other = Listener()
        token = f"{other.port}/token"
        for realm in (f"http://127.0.0.1:{token}", f"http://u:p@127.0.0.1:{token}", f"HTTP://LOCALHOST:{token}", ""):
            registry = Registry()
            challenge = {"WWW-Authenticate": f'Bearer realm="{realm}",service="x",scope="y"'}
            registry.table["/v2/ns/m/manifests/t"] = (401, challenge, b"")
            status, text, _ = registry.pull(self.server)
            self.expect(error_of(text), f"realm {realm}: {status} {text[:80]}")
        self.expect(not other.seen, f"a token was asked for elsewhere: {other.seen}")

    @check
    def test_s15_what_is_packed_is_bounded(self):
        bomb = gzip.compress(b"\0" * (64 * MB), 9)
        bodies = {encoding: bomb for encoding in ("gzip", "deflate", "br", "gzip, gzip", "GZIP", "x-gzip")}
        before = self.server.resident()
        for encoding, body in {**bodies, "zstd": b"\x28\xb5\x2f\xfd" + bomb}.items():
            for route in ("/v1/chat/completions", "/v1/messages", "/api/generate", "/api/create"):
                status, text, _ = self.server.request("POST", route, body, {"Content-Encoding": encoding})
                self.expect(status in (400, 413, 415), f"{encoding} on {route}: {status} {text[:80]}")
        blob, packed = "/api/blobs/sha256:" + forge.sha256(b"\0" * 100), gzip.compress(b"\0" * 100)
        status, _, _ = self.server.request("POST", blob, packed, {"Content-Encoding": "gzip"})
        self.expect(status in (400, 415), f"packed blob: {status}")
        grown = self.server.resident() - before
        self.expect(grown < 20 * MB, f"grew by {grown // MB} MB")
        self.registry_part()

    @check
    def test_s17_nothing_is_connected_to_outside(self):
        if not STRACE:
            self.skipTest("no strace")
        traced = self.traced()
        traced.create("t", f"FROM {self.gguf(tiny())}\n")
        self.ask("t", server=traced)
        traced.cli("run", "t", "hi")
        outside = []
        for line in self.trace():
            found = re.search(r"connect\(\d+, \{sa_family=(AF_INET6?), (.*?)\}", line)
            if found and not re.search(r'"127\.|"::1"|"::ffff:127\.', found[2]):
                outside.append(line[:160])
        self.expect(not outside, f"connections to elsewhere: {outside[:3]}")

    @check
    def test_s17_no_stranger_s_program_is_executed(self):
        programs, canary = self.work / "programs", self.work / "pwned-by-upgrade"
        programs.mkdir()
        for name in ("ollmlx", "ollmlx-worker-gguf"):
            shutil.copy2(house.BIN / name, programs)
        script = f"#!/bin/sh\ntouch {canary}\nexit 1\n".encode()
        server = self.own(program=programs / "ollmlx")
        kinds = [("writable by everybody", 0o777, None), ("writable by its group", 0o775, None)]
        kinds += [("of another user", 0o755, 65534)] if os.getuid() == 0 else []
        for what, mode, owner in kinds:
            new = forge.write(programs / "new", script)
            os.chmod(new, mode)
            if owner:
                os.chown(new, owner, owner)
            os.rename(new, programs / "ollmlx")
            self.expect(server.cli("upgrade").returncode != 0, f"upgrade to a program {what} is said to have worked")
            self.expect(not canary.exists(), f"upgrade executes a program {what}")
            canary.unlink(missing_ok=True)

    @check
    def test_s17_neither_path_nor_the_current_folder_is_searched(self):
        trap, canary = self.work / "trap", self.work / "pwned-by-path"
        trap.mkdir()
        for name in ("ollmlx", "ollmlx-worker-gguf", "ollmlx-worker-mlx", "ps"):
            forge.write(trap / name, f"#!/bin/sh\ntouch {canary}\nexit 1\n".encode())
            os.chmod(trap / name, 0o755)
        server = self.own(PATH=f"{trap}:{os.environ.get('PATH', '')}")
        self.ask(self.gguf(tiny()), server=server)
        self.expect(not canary.exists(), "PATH is searched for programs")


def allowed(headers):
    """What a reply lets a web page do."""
    return {key.lower(): value for key, value in headers.items() if key.lower().startswith("access-control-allow")}


if __name__ == "__main__":
    unittest.main()
