"""The server behind nginx, as SECURITY.md says: its own block of configuration, with other names and ports. A client speaks
TLS with a certificate that it knows."""

import http.client
import json
import os
import pathlib
import re
import shutil
import ssl
import subprocess
import tempfile
import time
import unittest

import house

PAGE = pathlib.Path(__file__).resolve().parents[2] / "SECURITY.md"
NAME = "models.example.org"
KEY = "a key for the proxy"
#: The step that never returns comes so late, and is given up so much later.
TOKENS, HANG_S = 8, 10


class Proxy(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        nginx = shutil.which("nginx", path=os.environ["PATH"] + ":/usr/sbin:/usr/local/sbin")
        assert nginx and shutil.which("openssl"), "nginx and openssl are needed: ./dev installs them"
        cls.folder = pathlib.Path(tempfile.mkdtemp(prefix="ollmlx-proxy-"))
        cls.addClassCleanup(shutil.rmtree, cls.folder, ignore_errors=True)
        cls.server = house.Server(models=(), OLLMLX_HANG_TIMEOUT=f"{HANG_S}s", OLLMLX_FAULT=f"hang@{TOKENS};times=1")
        cls.addClassCleanup(cls.server.stop)
        cls.server.create("smol", f"FROM {house.FILES['gguf']['smol']}\n")
        cls.guarded = house.Server(models=(), OLLMLX_API_KEY=KEY, OLLMLX_MODELS=str(cls.server.folder / "models"))
        cls.addClassCleanup(cls.guarded.stop)
        subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={NAME}",
                        "-addext", f"subjectAltName=DNS:{NAME}", "-keyout", cls.folder / "key", "-out", cls.folder / "crt"],
                       check=True, capture_output=True)
        cls.port, cls.guarded_port = house.free_port(), house.free_port()
        blocks = re.findall(r"```nginx\n(.*?)```", PAGE.read_text(), re.S)
        assert len(blocks) == 1
        sites = "".join(cls.site(blocks[0], port, server)
                        for port, server in ((cls.port, cls.server), (cls.guarded_port, cls.guarded)))
        temporary = "".join(f"{kind}_temp_path {cls.folder}/{kind};\n"
                            for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
        (cls.folder / "nginx.conf").write_text(f"""daemon off; worker_processes 1; pid {cls.folder}/pid;
error_log {cls.folder}/error.log; events {{}} http {{ access_log off; {temporary} {sites} }}""")
        cls.nginx = subprocess.Popen([nginx, "-p", str(cls.folder), "-c", "nginx.conf"], stderr=subprocess.PIPE)
        cls.addClassCleanup(cls.end)
        house.until("nginx answers", house.START_S, lambda: cls.ask("GET", "/")[0] == 200)

    @classmethod
    def site(cls, block, port, server):
        for old, new in (("/etc/ssl/models.example.org.crt", f"{cls.folder}/crt"),
                         ("/etc/ssl/models.example.org.key", f"{cls.folder}/key"),
                         ("listen 443 ssl", f"listen 127.0.0.1:{port} ssl"),
                         ("http://127.0.0.1:11434", server.url)):
            assert old in block, old
            block = block.replace(old, new)
        return block

    @classmethod
    def end(cls):
        cls.nginx.terminate()
        cls.nginx.wait(30)
        cls.nginx.stderr.close()

    @classmethod
    def link(cls, port, name=NAME):
        context = ssl.create_default_context(cafile=str(cls.folder / "crt"))
        context.check_hostname = False
        link = http.client.HTTPSConnection("127.0.0.1", port, timeout=house.ANSWER_S, context=context)
        link.connect()
        return link

    @classmethod
    def ask(cls, method, path, body=None, host=NAME, key=None, port=None):
        """(status, bytes); (0, …) where the connection ends without an answer."""
        headers = {"Host": host} | ({"Authorization": f"Bearer {key}"} if key else {})
        link = None
        try:
            link = cls.link(port or cls.port)
            link.request(method, path, None if body is None else json.dumps(body), headers)
            answer = link.getresponse()
            return answer.status, answer.read()
        except (OSError, http.client.HTTPException) as error:
            return 0, repr(error).encode()
        finally:
            if link:
                link.close()

    def test_names_that_are_not_ours_get_no_answer(self):
        self.assertEqual(self.ask("GET", "/api/version")[0], 200)
        for host in ("evil.example", "127.0.0.1", f"{NAME}.evil.example", "localhost"):
            self.assertEqual(self.ask("GET", "/api/version", host=host)[0], 0, host)

    def test_keys_pass_and_pages_of_the_house_do_not(self):
        tags = lambda key: self.ask("GET", "/api/tags", key=key, port=self.guarded_port)
        self.assertEqual(tags(None)[0], 401)
        self.assertEqual(tags("another")[0], 401)
        status, text = tags(KEY)
        self.assertEqual((status, [model["name"] for model in json.loads(text)["models"]]), (200, ["smol:latest"]))
        for path in ("/metrics", "/api/ollmlx/server"):
            self.assertEqual(self.ask("GET", path, key=KEY, port=self.guarded_port)[0], 403, path)

    def test_a_stream_passes_word_by_word(self):
        link = self.link(self.port)
        self.addCleanup(link.close)
        body = {"model": "smol", "prompt": "Count to ten.", "options": {"num_predict": 3 * TOKENS, "temperature": 0}}
        link.request("POST", "/api/generate", json.dumps(body), {"Host": NAME})
        answer = link.getresponse()
        first = json.loads(answer.readline())
        came = time.monotonic()
        self.assertFalse(first["done"])
        # The worker hangs behind these: had anybody collected the answer, its first word would have come after that.
        lines = [json.loads(line) for line in answer]
        self.assertGreater(time.monotonic() - came, HANG_S / 2)
        self.assertTrue(lines[-1]["done"])
        self.assertEqual(lines[-1]["eval_count"], 3 * TOKENS)

    def test_a_long_body_passes(self):
        body = {"model": "smol", "prompt": "x" * (8 << 20), "stream": False, "options": {"num_predict": 1}}
        # To the server without a fault: the long prompt would meet it before the stream does.
        status, text = self.ask("POST", "/api/generate", body, key=KEY, port=self.guarded_port)
        self.assertIn(status, (200, 400), text[:200])


if __name__ == "__main__":
    unittest.main()
