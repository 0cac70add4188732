"""Attacks by paths, names, digests and links (see `security.py`)."""

import http.client
import json
import os
import pathlib
import re
import shutil
import time
import unittest
import urllib.parse

import forge
from forge import MB, mlx_weights, safetensors, tiny
from security import Checked, Registry, check, error_of

REVISION = "0123456789" * 4
BAD_DIGESTS = [
    "sha256:../../../../tmp/pwn",
    "sha256-..%2f..%2fpwn",
    "sha256:" + "a" * 63,
    "sha256:" + "a" * 65,
    "sha256:" + "A" * 64,
    "sha256:",
    "",
    "sha512:" + "a" * 64,
    "sha256:" + "a" * 63 + "/",
    "sha256:" + "a" * 64 + "%00",
    "sha256:" + "a" * 64 + "%0a",
    "..",
    "sha256:%2e%2e%2fpwn",
]
DOCKER = "application/vnd.docker"
OLLAMA = "application/vnd.ollama.image"


def config_of(digest="sha256:" + "0" * 64):
    return {"mediaType": f"{DOCKER}.container.image.v1+json", "digest": digest, "size": 2}


def layer(digest="sha256:" + "1" * 64, kind="model"):
    return {"mediaType": f"{OLLAMA}.{kind}", "digest": digest, "size": 2 if kind == "model" else 5}


def manifest_of(layers, config=None):
    kind = f"{DOCKER}.distribution.manifest.v2+json"
    made = {"schemaVersion": 2, "mediaType": kind, "config": config or config_of(), "layers": layers}
    return json.dumps(made).encode()


def head_of(path):
    with open(path, "rb") as file:
        return file.read(100)


class Paths(Checked):
    @check
    def test_s01_a_digest_is_never_a_path(self):
        for bad in BAD_DIGESTS:
            for shown in {bad, urllib.parse.quote(bad, safe=""), urllib.parse.quote(bad, safe=":")}:
                for method, body in (("HEAD", None), ("POST", b"pwned")):
                    status, _, _ = self.server.request(method, "/api/blobs/" + shown, body)
                    fine = (400, 404, 307) if "/" in shown or shown in ("", "..") else (400,)
                    self.expect(status in fine, f"{method} /api/blobs/{shown[:40]}: {status}")
            plain = urllib.parse.unquote(bad)
            body = {"model": "evil", "files": {"m.gguf": plain}, "stream": False}
            status, text, _ = self.server.request("POST", "/api/create", body)
            self.expect(status == 400, f"create with the digest {plain[:30]!r}: {status} {text[:80]}")
            self.server.manifest("evil", manifest_of([layer(plain)]))
            for route in ("/api/show", "/api/generate"):
                status, text, _ = self.server.request("POST", route, {"model": "evil"})
                refused = 400 <= status <= 500 and error_of(text)
                self.expect(refused, f"manifest with {plain[:30]!r}: {status} {text[:80]}")
            self.server.request("DELETE", "/api/delete", {"model": "evil"})
        if self.registry_part():
            self.pull_with_bad_digests()

    def pull_with_bad_digests(self):
        for bad in map(urllib.parse.unquote, BAD_DIGESTS):
            for where, lies in (("layer", manifest_of([layer(bad)])), ("config", manifest_of([layer()], config_of(bad)))):
                registry = Registry()
                registry.table["/v2/ns/m/manifests/t"] = (200, {}, lies)
                status, text, _ = registry.pull(self.server)
                asked = [seen for seen in registry.seen if "/blobs/" in seen[1]]
                refused = error_of(text) and not asked
                self.expect(refused, f"pull with a {where} {bad[:30]!r}: {status} {text[:80]}, asked for {asked}")

    @check
    def test_s03_nothing_outside_the_store_is_deleted(self):
        for folder in (self.server.folder, self.work):
            (folder / "canary").mkdir(exist_ok=True)
            forge.write(folder / "canary" / "keep", b"keep me")
        yesterday = time.time() - 90_000
        os.utime(self.work / "canary" / "keep", (yesterday, yesterday))
        self.watch_canaries()
        before = self.canaries()
        small = self.server.upload(tiny())
        config = self.server.upload(b'{"model_format":"gguf"}')
        digests = ["sha256:../../../canary/keep", "sha256:../../canary/keep", "sha256-../../../../canary/keep",
                   f"{self.work}/canary/keep", "sha256:" + "../" * 12 + f"{self.work}/canary/keep".strip("/")]
        steps = {"create": ("POST", {"model": "victim", "files": {"m.gguf": small}, "stream": False}),
                 "copy": ("POST", {"source": "smol", "destination": "victim"}), "delete": ("DELETE", {"model": "victim"})}
        for digest in digests:
            for lies in (manifest_of([layer(digest)], config_of(config)), manifest_of([layer(small)], config_of(digest))):
                for step, (method, body) in steps.items():
                    self.server.manifest("victim", lies)
                    self.server.request(method, f"/api/{step}", body)
                    self.expect(self.canaries() == before, f"{step} over {digest[:40]}: a canary is gone")
        self.server.request("DELETE", "/api/delete", {"model": "victim"})
        other = self.own()
        other.manifest("victim", manifest_of([layer(digests[0])], config_of(digests[1])))
        other.leave()
        other.again()
        self.expect(self.canaries() == before, "restart: a canary is gone")
        other.leave()
        shutil.rmtree(os.path.join(other.models, "manifests"))
        foreign = pathlib.Path(other.state) / "views" / "admin"
        foreign.mkdir(parents=True, exist_ok=True)
        forge.write(foreign / "page.html", b"somebody's")
        try:
            other.again()
        except AssertionError:
            pass  # It may refuse to start.
        self.expect((foreign / "page.html").exists(), "the start removes what lies in STATE/views and is not its own")
        self.registry_part()

    @check
    def test_s05_no_error_tells_what_exists(self):
        secret = self.write("x.gguf", b"root:secret-content")
        mute = self.write("y.gguf", b"GGU")
        os.chmod(mute, 0)
        pairs = [
            ("/etc/passwd", "/nonexistent"),
            (secret, secret[:-6] + "n.gguf"),
            ("/etc", "/nonexist"),
            ("/root", "/r00t"),
            (os.path.dirname(secret), os.path.dirname(secret) + "0"),
            (mute, mute[:-6] + "z.gguf"),
            ("../../../etc/passwd", "../../../etc/passwdx"),
            ("/etc/../etc/passwd", "/etc/../etc/nopasswd"),
            ("/proc/self/environ", "/proc/self/environx"),
            ("file:///etc/passwd", "file:///etc/passwdx"),
            ("/dev/zero", "/dev/zerox"),
        ]
        bodies = [
            ("POST", "/api/create", lambda p: {"model": "evil", "from": p, "stream": False}),
            ("POST", "/api/show", lambda p: {"model": p}),
            ("POST", "/api/push", lambda p: {"model": p, "stream": False}),
            ("POST", "/api/generate", lambda p: {"model": p, "prompt": "x", "stream": False}),
            ("DELETE", "/api/delete", lambda p: {"model": p}),
            ("POST", "/api/copy", lambda p: {"source": p, "destination": "evil"}),
            ("POST", "/api/ollmlx/fit", lambda p: {"model": p}),
            ("POST", "/api/ollmlx/logs", lambda p: {"model": p}),
            ("POST", "/v1/chat/completions", lambda p: {"model": p, "messages": [{"role": "user", "content": "x"}]}),
        ]

        def strip(answer, path):
            return re.sub(r'req_\w+|"id":"[^"]*"', "", answer[1].replace(json.dumps(path)[1:-1], "P"))

        for method, route, body in bodies:
            for there, absent in pairs:
                a = self.server.request(method, route, body(there))
                b = self.server.request(method, route, body(absent))
                same = a[0] == b[0] and strip(a, there) == strip(b, absent)
                told = f"{a[0]} {a[1][:80]} / {b[0]} {b[1][:80]}"
                self.expect(same, f"{route} tells {there} from {absent}: {told}")
                self.expect("secret-content" not in a[1] and "root:x" not in a[1], f"{route} shows content")

    @check
    def test_s07_links_lead_nowhere_else(self):
        self.blobs_that_are_links()
        self.a_manifest_that_is_a_link()
        self.stores_behind_links()
        other = self.own()
        self.a_link_put_in_place_during_a_create(other)
        self.a_lock_that_is_a_link(other)

    def blobs_that_are_links(self):
        shadow = self.write("shadow", b"GGUF root:$6$secret-of-shadow")
        digest = "sha256:" + "ab" * 32
        link = os.path.join(self.server.models, "blobs", digest.replace(":", "-"))
        config = config_of(self.server.upload(b'{"model_format":"gguf"}'))
        calls = (("POST", "/api/show", {"model": "evil"}), ("POST", "/api/generate", {"model": "evil", "prompt": "x"}),
                 ("HEAD", "/api/blobs/" + digest, None))
        for target in (shadow, "/etc/shadow", "/dev/zero", "../../" + os.path.basename(shadow)):
            os.symlink(target, link)
            for layers in ([layer(digest)], [layer(), layer(digest, "license")], [layer(digest, "template")]):
                self.server.manifest("evil", manifest_of(layers, config))
                for call in calls:
                    status, text, _ = self.server.request(*call)
                    hidden = status >= 400 and "secret" not in text and "root:" not in text
                    self.expect(hidden, f"blob that is a link to {target}: {call[1]} {status} {text[:100]}")
            body = {"model": "evil2", "files": {"m.gguf": digest}, "stream": False}
            status, text, _ = self.server.request("POST", "/api/create", body)
            self.expect(status >= 400, f"create from a blob that is a link: {status}")
            self.server.request("DELETE", "/api/delete", {"model": "evil"})
            if os.path.lexists(link):
                os.remove(link)
        self.expect(os.path.exists(shadow), "the target of the link is gone")

    def a_manifest_that_is_a_link(self):
        library = pathlib.Path(self.server.models) / "manifests/registry.ollama.ai/library"
        outside = self.write("outside-manifest", (library / "smol" / "latest").read_bytes())
        (library / "linked").mkdir()
        os.symlink(outside, library / "linked" / "latest")
        tags = self.server.request("GET", "/api/tags")[1]
        self.expect('"linked' not in tags, "a manifest that is a link out of the tree is listed")
        status, _, _ = self.server.request("POST", "/api/show", {"model": "linked"})
        self.expect(status == 404, "a manifest that is a link out of the tree is shown")
        shutil.rmtree(library / "linked")

    def stores_behind_links(self):
        disk = self.work / "otherdisk"
        for name in ("manifests", "store"):
            (disk / name).mkdir(parents=True)
        (self.work / "linkedstore").symlink_to(disk / "store")
        (disk / "store" / "manifests").symlink_to(disk / "manifests")
        other = self.own(OLLMLX_MODELS=str(self.work / "linkedstore"))
        other.create("t", f"FROM {self.gguf(tiny())}\n")
        status, text, _ = self.ask("t", server=other)
        self.expect(status == 200, f"a store behind links: {status} {text[:100]}")
        hub = other.folder / "hub" / "models--a--b"
        snapshot = hub / "snapshots" / REVISION
        for folder in (snapshot, hub / "blobs", hub / "refs"):
            folder.mkdir(parents=True)
        forge.write(hub / "refs" / "main", REVISION.encode())
        for path in pathlib.Path(self.checkpoint()).iterdir():
            shutil.copy(path, hub / "blobs" / path.name)
            (snapshot / path.name).symlink_to("../../blobs/" + path.name)
        status, text, _ = self.ask("a/b", server=other)
        self.expect(status == 200, f"links inside the Hugging Face cache: {status} {text[:100]}")
        (snapshot / "evil.json").symlink_to("/etc/passwd")
        status, text, _ = self.ask("a/b", server=other)
        hidden = status >= 400 and "root:" not in text
        self.expect(hidden, f"a link out of the Hugging Face cache: {status} {text[:100]}")

    def a_link_put_in_place_during_a_create(self, other):
        """It takes a file's place while an earlier one is copied."""
        secret = self.write("secret", b"SECRET-OF-THE-SERVER")
        race, size = pathlib.Path(self.checkpoint(weights=False, more=[("chat_template.jinja", b"harmless")])), 300 * MB
        forge.write(race / "a.safetensors", safetensors(*mlx_weights()))
        head = safetensors({"pad": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}})
        forge.write(race / "aa.safetensors", head)
        os.truncate(race / "aa.safetensors", len(head) + size)
        link = http.client.HTTPConnection("127.0.0.1", other.port, timeout=60)
        link.request("POST", "/api/create", json.dumps({"model": "race", "from": str(race)}))
        answer, swapped = link.getresponse(), False
        while line := answer.readline():
            if b"aa.safetensors" in line and not swapped:
                swapped = True
                (race / "chat_template.jinja").unlink()
                (race / "chat_template.jinja").symlink_to(secret)
        link.close()
        self.expect(swapped, "the create did not tell of the file that it copies")
        shown = other.request("POST", "/api/show", {"model": "race"})[1]
        self.expect("SECRET-OF" not in shown, "a link put in place meanwhile is followed: /api/show prints its target")
        blobs = (pathlib.Path(other.models) / "blobs").iterdir()
        self.expect(not any(b"SECRET-OF" in head_of(blob) for blob in blobs), "its content lies in a blob")

    def a_lock_that_is_a_link(self, other):
        other.leave()
        told = b"somebody's file, longer than what a lock says of its holder, so that a cut shows"
        victim, lock = self.write("victim", told), pathlib.Path(other.state) / "serve.lock"
        lock.unlink()
        lock.symlink_to(victim)
        try:
            other.again()
        except AssertionError:
            pass  # It may refuse to start.
        intact = pathlib.Path(victim).read_bytes() == told
        self.expect(intact, "STATE/serve.lock is followed as a link and its target overwritten")


if __name__ == "__main__":
    unittest.main()
