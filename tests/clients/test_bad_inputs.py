"""Hostile and broken input: each is refused with the right status, and the next good request is answered."""

import json
import os
import pathlib
import struct
import unittest

import house

MEBIBYTE = 1024 * 1024
GOOD = {"model": "smol", "prompt": "hi", "stream": False, "options": {"num_predict": 2, "temperature": 0}}


def string(text):
    return struct.pack("<Q", len(text)) + text


class BadInputs(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = house.shared()

    def tearDown(self):
        status, answer = self.server.call("POST", "/api/generate", GOOD)
        self.assertEqual(status, 200, answer)
        self.assertTrue(answer["done"])
        self.assertIsNone(self.server.process.poll())

    def refuses(self, statuses, method, path, body):
        status, text = self.server.raw(method, path, body if isinstance(body, (str, bytes)) else json.dumps(body))
        self.assertIn(status, statuses, text[:300])
        if status >= 400:
            error = json.loads(text)["error"]
            self.assertTrue(error)
            return error
        return None

    def test_row_54_broken_json(self):
        for body in ("{", '{"model"', '{"model":"smol",}', "[1", "nul", '"' * 3, "{" * 100_000, "[" * 100_000):
            for path in ("/api/generate", "/api/chat", "/api/embed", "/api/show", "/v1/chat/completions", "/v1/messages"):
                with self.subTest(body=body[:20], path=path):
                    self.refuses({400}, "POST", path, body)

    def test_no_body(self):
        for path in ("generate", "chat", "embed", "embeddings", "show", "create", "copy", "pull", "push"):
            with self.subTest(path=path):
                self.assertEqual(self.refuses({400}, "POST", f"/api/{path}", ""), "missing request body")
        self.assertEqual(self.refuses({400}, "DELETE", "/api/delete", ""), "missing request body")

    def test_wrong_types(self):
        for body in ({"model": 1}, {"model": "smol", "prompt": 1}, {"model": "smol", "prompt": "x", "stream": "x"},
                     {"model": "smol", "prompt": "x", "options": []}, {"model": "smol", "prompt": "x", "images": "x"},
                     {"model": "smol", "prompt": "x", "keep_alive": True}, {"model": "smol", "prompt": "x", "keep_alive": "10"},
                     {"model": "smol", "prompt": "x", "think": "banana"}, {"model": "smol", "prompt": "x", "think": 1},
                     {"model": "smol", "prompt": "x", "context": "x"}, {"model": "smol", "prompt": "x", "top_logprobs": 21}):
            with self.subTest(body=body):
                self.refuses({400}, "POST", "/api/generate", body)
        for body in ({"model": "smol", "messages": "x"}, {"model": "smol", "messages": [1]},
                     {"model": "smol", "messages": [{"role": "user", "content": 1}]}):
            with self.subTest(body=body):
                self.refuses({400}, "POST", "/api/chat", body)
        for given in (1, [1], {}, [["x"]]):
            with self.subTest(input=given):
                self.assertEqual(self.refuses({400}, "POST", "/api/embed", {"model": "embed", "input": given}), "invalid input type")

    def test_models_that_are_not_there(self):
        self.assertEqual(self.refuses({404}, "POST", "/api/generate", {"model": ""}), "model '' not found")
        self.assertEqual(self.refuses({400}, "POST", "/api/chat", {"model": ""}), "model is required")
        self.assertEqual(self.refuses({400}, "POST", "/api/chat", {}), "model is required")
        self.assertEqual(self.refuses({404}, "POST", "/api/generate", {"model": "ghost", "prompt": "x"}), "model 'ghost' not found")
        self.assertEqual(self.refuses({404}, "POST", "/api/show", {"model": "ghost"}), "model 'ghost:latest' not found")
        self.assertEqual(self.refuses({404}, "POST", "/api/embed", {"model": "ghost", "input": "x"}),
                         'model "ghost" not found, try pulling it first')

    def test_names_do_not_climb(self):
        for name in ("../../etc/passwd", "a/../b", "..", "a/b/c/d/e", "-x", "foo:", "x" * 1000, "a\x00b", "a b", "%2e%2e/x"):
            with self.subTest(name=name):
                self.refuses({400, 404}, "POST", "/api/generate", {"model": name, "prompt": "x"})
                self.refuses({400, 404}, "POST", "/api/show", {"model": name})
                self.refuses({400}, "POST", "/api/copy", {"source": "smol", "destination": name})
                self.refuses({400, 404}, "DELETE", "/api/delete", {"model": name})
                self.refuses({400}, "POST", "/api/create", {"model": name, "from": "smol", "stream": False})
        for key in ("../evil.gguf", "/etc/evil.gguf", "a/../../evil.gguf"):
            body = {"model": "x", "files": {key: "sha256:" + "0" * 64}, "stream": False}
            self.refuses({400}, "POST", "/api/create", body)
        for digest in ("sha256:../../x", "sha256-" + "0" * 63, "md5:" + "0" * 64, "..%2f..%2fx"):
            status, _ = self.server.raw("POST", f"/api/blobs/{digest}", b"x")
            self.assertIn(status, (400, 404))

    def test_row_53_a_body_over_the_limit(self):
        body = b'{"model":"smol","prompt":"' + b"x" * (65 * MEBIBYTE) + b'"}'
        status, _ = self.server.raw("POST", "/api/generate", body)
        self.assertEqual(status, 413)

    def test_a_prompt_over_the_context(self):
        prompt = "word " * 200_000
        body = GOOD | {"prompt": prompt, "truncate": False, "shift": False}
        self.refuses({400}, "POST", "/api/generate", body)
        status, answer = self.server.call("POST", "/api/generate", GOOD | {"prompt": prompt})
        self.assertEqual(status, 200, answer)
        self.assertLessEqual(answer.get("prompt_eval_count", 0), 4096)
        self.refuses({400}, "POST", "/api/embed", {"model": "embed", "input": prompt, "truncate": False})
        status, answer = self.server.call("POST", "/api/embed", {"model": "embed", "input": prompt})
        self.assertEqual((status, len(answer["embeddings"])), (200, 1))

    def test_text_that_is_not_utf_8(self):
        for raw in (b'{"model":"smol","prompt":"\xff\xfe","stream":false,"options":{"num_predict":1}}',
                    b'{"model":"smol","prompt":"\xed\xa0\x80","stream":false,"options":{"num_predict":1}}',
                    b'{"model":"smol","prompt":"\\ud800","stream":false,"options":{"num_predict":1}}',
                    b"\xff\xfe\x00\x01"):
            with self.subTest(raw=raw):
                self.refuses({200, 400}, "POST", "/api/generate", raw)

    def test_row_56_absurd_options(self):
        self.assertEqual(self.refuses({500}, "POST", "/api/generate", GOOD | {"options": {"num_ctx": "x"}}),
                         'option "num_ctx" must be of type integer')
        self.assertEqual(self.server.call("POST", "/api/generate", GOOD | {"options": {"bogus": 1, "num_predict": 1}})[0], 200)
        for options in ({"top_k": -5}, {"top_p": 7}, {"temperature": 1e30}, {"temperature": -1}, {"repeat_last_n": 10**9},
                        {"repeat_penalty": 0}, {"num_keep": -1}, {"num_keep": 10**9}, {"seed": -1}, {"seed": 2**62},
                        {"min_p": 2}, {"typical_p": 0}, {"stop": ["x"] * 1000}, {"stop": [""]}, {"stop": "x" * 100_000},
                        {"num_batch": 0}, {"num_thread": 0}):
            with self.subTest(options=str(options)[:60]):
                body = GOOD | {"options": {"num_predict": 2} | options}
                self.refuses({200, 400, 500}, "POST", "/api/generate", body)
        for window in (0, -1, 1, 10**9, 2**40):
            with self.subTest(num_ctx=window):
                self.refuses({200, 400, 500, 503}, "POST", "/api/generate", GOOD | {"options": {"num_predict": 1, "num_ctx": window}})

    def test_absurd_formats(self):
        self.refuses({500}, "POST", "/api/generate", GOOD | {"format": "xml"})
        deep = {"type": "object"}
        for _ in range(60):
            deep = {"type": "object", "properties": {"x": deep}}
        for schema in ({"type": "banana"}, {"$ref": "#/nowhere"}, {"pattern": "(((("}, deep):
            with self.subTest(schema=str(schema)[:40]):
                self.refuses({200, 400, 500}, "POST", "/api/generate", GOOD | {"format": schema})

    def bad_files(self):
        real = pathlib.Path(house.FILES["gguf"]["smol"])
        with open(real, "rb") as source:
            head = source.read(2 * MEBIBYTE)
        magic = b"GGUF" + struct.pack("<I", 3)
        return {
            "empty": b"",
            "four": b"GGUF",
            "text": b"This is not a model.\n" * 100,
            "truncated": head,
            "header": head[:1000],
            "tensors": magic + struct.pack("<QQ", 1 << 60, 0),
            "pairs": magic + struct.pack("<QQ", 0, 1 << 60),
            "string": magic + struct.pack("<QQ", 0, 1) + struct.pack("<Q", 1 << 62) + b"x" * 64,
            "array": magic + struct.pack("<QQ", 0, 1) + string(b"general.architecture") + struct.pack("<IIQ", 9, 8, 1 << 60),
            "version": b"GGUF" + struct.pack("<I", 99) + head[8:4096],
            "lying": magic + struct.pack("<QQ", 1, 1) + string(b"general.architecture") + struct.pack("<I", 8)
            + string(b"llama") + string(b"token_embd.weight") + struct.pack("<IQQIQ", 2, 1 << 40, 1 << 40, 0, 0) + b"\0" * 64,
        }

    def test_broken_model_files(self):
        for name, content in self.bad_files().items():
            with self.subTest(name=name):
                path = self.server.folder / f"bad-{name}.gguf"
                path.write_bytes(content)
                self.refuses({400, 404, 500}, "POST", "/api/generate", GOOD | {"model": str(path)})
                modelfile = self.server.folder / "Modelfile.bad"
                modelfile.write_text(f"FROM {path}\n")
                done = self.server.cli("create", f"bad-{name}", "-f", str(modelfile))
                if done.returncode == 0:
                    # The header may be sound although the weights are cut off; then the load fails.
                    self.refuses({400, 500}, "POST", "/api/generate", GOOD | {"model": f"bad-{name}"})
                    self.server.cli("rm", f"bad-{name}")
                else:
                    self.assertTrue(done.stderr.splitlines()[-1].startswith("Error: "), done.stderr)
                os.unlink(path)
                self.assertEqual(self.server.call("GET", "/api/tags")[0], 200)

    def test_a_blob_must_be_what_it_says(self):
        digest = "sha256:" + "0" * 64
        status, _ = self.server.raw("POST", f"/api/blobs/{digest}", b"not zeros")
        self.assertEqual(status, 400)
        status, _ = self.server.raw("HEAD", f"/api/blobs/{digest}")
        self.assertEqual(status, 404)

    def test_row_57_strangers_from_the_web(self):
        status, text = self.server.raw("GET", "/api/tags", headers={"Origin": "http://evil.example"})
        self.assertEqual((status, text), (403, b""))
        status, text = self.server.raw("GET", "/api/tags", headers={"Host": "evil.example"})
        self.assertEqual((status, text), (403, b""))

    def test_unknown_paths_and_verbs(self):
        self.assertEqual(self.server.raw("GET", "/nowhere"), (404, b"404 page not found"))
        self.assertEqual(self.server.raw("GET", "/api/chat"), (405, b"405 method not allowed"))


if __name__ == "__main__":
    unittest.main()
