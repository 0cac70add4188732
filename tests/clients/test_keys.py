"""Several keys on a real server: what each may do, whose caches it shares, and what is said of them."""

import http.client
import os
import pathlib
import tempfile
import unittest

import house

ADMIN, ANNA, BERT = "admin-key-0123456789", "anna-key-0123456789", "bert-key-0123456789"
# Some thousand tokens that nobody else asks for.
LONG = " ".join(f"item {number} costs {number * 7 % 101} coins," for number in range(160))


def bearer(key):
    return {"Authorization": f"Bearer {key}"} if key else {}


class Keys(unittest.TestCase):
    backend = "gguf"

    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(cls.folder.cleanup)
        cls.file = pathlib.Path(cls.folder.name) / "keys"
        cls.file.write_text(f"anna use {ANNA}\nbert use {BERT}\n")
        cls.file.chmod(0o600)
        cls.server = house.Server(models=("smol",), backend=cls.backend, OLLMLX_API_KEY=ADMIN,
                                  OLLMLX_API_KEYS_FILE=str(cls.file), OLLMLX_CONTEXT_LENGTH="4096")
        cls.addClassCleanup(cls.server.stop)

    def ask(self, key, method, path, body=None):
        return self.server.call(method, path, body, headers=bearer(key))

    def run_long(self, key, prompt):
        body = {"model": "smol", "prompt": prompt, "stream": False, "options": {"num_predict": 1, "temperature": 0}}
        status, answer = self.ask(key, "POST", "/api/generate", body)
        self.assertEqual(status, 200, answer)
        return answer["prompt_eval_duration"] / 1e6

    def test_prompts_are_cached_for_the_key_that_asked_and_for_no_other(self):
        self.run_long(ANNA, "Say hello.")
        first = self.run_long(ANNA, LONG)
        again = self.run_long(ANNA, LONG)
        other = self.run_long(BERT, LONG)
        other_again = self.run_long(BERT, LONG)
        told = f"first {first:.0f} ms, again {again:.0f} ms, another key {other:.0f} ms, again {other_again:.0f} ms"
        print(told)
        self.assertLess(again, first / 4, told)
        self.assertLess(other_again, first / 4, told)
        self.assertGreater(other, first / 2, told)

    def test_a_key_without_the_right_is_told_so(self):
        for method, path in (("POST", "/api/copy"), ("POST", "/api/ollmlx/why"), ("GET", "/api/ollmlx/record")):
            body = {"source": "smol", "destination": "x", "model": "smol"} if method == "POST" else None
            status, answer = self.ask(ANNA, method, path, body)
            self.assertEqual((status, answer), (403, {"error": 'forbidden: the key "anna" may use models and not manage them'}))
        for path in (house.FILES[self.backend]["smol"], "/nonexistent"):
            status, answer = self.ask(ANNA, "POST", "/api/generate", {"model": path, "prompt": "x"})
            self.assertEqual(status, 403)
            self.assertNotIn(path, answer["error"])

    def test_a_model_that_another_key_keeps_is_neither_ended_nor_taken_over(self):
        keep = lambda key, how_long, prompt="x": self.ask(key, "POST", "/api/generate", {
            "model": "smol", "prompt": prompt, "stream": False, "keep_alive": how_long, "options": {"num_predict": 1}})[0]
        for anna_s, bert_s in (("2h", None), ("2h", "2h"), (-1, -1), ("3h", "1m")):
            self.assertEqual(self.ask(ADMIN, "POST", "/api/generate", {"model": "smol", "keep_alive": 0})[0], 200)
            house.until("it is gone", house.SOON_S, lambda: not self.ask(ADMIN, "GET", "/api/ps")[1]["models"])
            self.assertEqual([keep(ANNA, anna_s), keep(BERT, bert_s)], [200, 200])
            until = self.ask(ADMIN, "GET", "/api/ps")[1]["models"][0]["expires_at"]
            self.assertEqual([keep(BERT, 0, ""), keep(BERT, "1s")], [403, 200])
            self.assertGreaterEqual(self.ask(ADMIN, "GET", "/api/ps")[1]["models"][0]["expires_at"], until)
        self.assertEqual(keep(ANNA, 0, ""), 200)

    def test_a_page_hears_that_its_key_is_wrong(self):
        page = {"Origin": "http://localhost:3000"}
        link = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=house.SOON_S)
        self.addCleanup(link.close)
        link.request("GET", "/api/tags", headers=page | bearer("wrong"))
        answer = link.getresponse()
        self.assertEqual((answer.status, answer.headers["Access-Control-Allow-Origin"]), (401, page["Origin"]))

    def test_keys_are_named_and_never_shown(self):
        self.run_long(ANNA, "Say hello.")
        shown = self.server.cli("ps", "-v")
        self.assertIn("anna", shown.stdout)
        self.assertRegex(self.server.log(), r'key=anna')
        told = [self.server.log(), shown.stdout, self.server.cli("config").stdout]
        for path in ("/api/ps", "/metrics", "/api/ollmlx/server", "/api/ollmlx/record"):
            told.append(self.server.raw("GET", path, headers=bearer(ADMIN))[1].decode())
        for key in (ADMIN, ANNA, BERT):
            self.assertFalse([text for text in told if key in text])
        for pid in self.server.workers():
            environ = pathlib.Path(f"/proc/{pid}/environ")
            if environ.exists():
                self.assertNotIn(ADMIN.encode(), environ.read_bytes())


class KeysMlx(Keys):
    backend = "mlx"


class Exposure(unittest.TestCase):
    def test_a_keys_file_that_others_can_read_keeps_the_server_from_starting(self):
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "keys"
            path.write_text("anna use a\n")
            path.chmod(0o644)
            port = house.free_port()
            env = os.environ | {"OLLMLX_API_KEYS_FILE": str(path), "OLLMLX_HOST": f"127.0.0.1:{port}",
                                "OLLMLX_STATE_DIR": folder + "/state", "OLLMLX_MODELS": folder + "/models"}
            done = house.subprocess.run([house.OLLMLX, "serve"], env=env, capture_output=True, text=True, timeout=60)
            self.assertEqual(done.returncode, 78, done.stderr)
            self.assertIn(f"chmod 600 {path}", done.stderr)

    def test_a_public_address_without_a_key_is_told_and_not_refused(self):
        for keys, warned in (({}, True), ({"OLLMLX_API_KEY": ADMIN}, False)):
            port = house.free_port()
            server = house.Server(models=(), OLLMLX_HOST=f"0.0.0.0:{port}", **keys)
            try:
                server.port = port
                status, _ = server.raw("GET", "/api/tags", headers={"Host": f"ollama:{port}"} | bearer(keys and ADMIN))
                self.assertEqual(status, 200, "names of a container's network")
                # Whoever is answered can read it.
                self.assertEqual("no key is set" in server.log(), warned)
                self.assertEqual("warning: whoever reaches" in server.cli("ps", "-v").stdout, warned)
            finally:
                server.stop()


if __name__ == "__main__":
    unittest.main()
