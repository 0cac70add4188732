"""MLX checkpoints by name: from the Hugging Face cache, and from a folder through `create`. The cache is laid out as
`hf download` leaves it. The checkpoint is the folder OLLMLX_MODEL_SMOL_MLX; without it, or without a worker for MLX,
there is nothing to test.
"""

import json
import os
import pathlib
import shutil
import subprocess
import unittest

import house

FOLDER = os.environ.get("OLLMLX_MODEL_SMOL_MLX")
REVISION = "0123456789abcdef0123456789abcdef01234567"


def cache_repository(hub, repository, files):
    """Blobs, and a snapshot of links to them. `files`: {name: path or bytes}"""
    home = hub / ("models--" + repository.replace("/", "--"))
    snapshot = home / "snapshots" / REVISION
    for folder in (home / "blobs", home / "refs", snapshot):
        folder.mkdir(parents=True, exist_ok=True)
    (home / "refs" / "main").write_text(REVISION)
    for number, (name, content) in enumerate(sorted(files.items())):
        blob = home / "blobs" / f"blob{number}"
        if isinstance(content, bytes):
            blob.write_bytes(content)
        else:
            shutil.copyfile(content, blob)
        (snapshot / name).symlink_to(pathlib.Path("../../blobs") / blob.name)
    return home


@unittest.skipUnless(FOLDER and (house.BIN / "ollmlx-worker-mlx").exists(), "no MLX checkpoint or no MLX worker")
class MlxNames(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = house.Server(models=())
        cls.hub = cls.server.folder / ".cache" / "huggingface" / "hub"
        cls.files = {path.name: path for path in pathlib.Path(FOLDER).iterdir() if path.is_file()}
        cls.home = cache_repository(cls.hub, "org/tiny-4bit", cls.files)

    @classmethod
    def tearDownClass(cls):
        cls.server.stop()

    def ok(self, *words, **more):
        done = self.server.cli(*words, **more)
        self.assertEqual(done.returncode, 0, done.stderr)
        return done

    def show(self, name):
        return self.server.call("POST", "/api/show", {"model": name})

    def create(self, name, modelfile):
        path = self.server.folder / "Modelfile"
        path.write_text(modelfile)
        return self.ok("create", name, "-f", str(path))

    def broken(self, repository, files, text, advice=""):
        """It is there and not served: why, and never as if it were absent."""
        cache_repository(self.hub, repository, files)
        status, answer = self.show(repository)
        self.assertNotIn(status, (200, 404), answer)
        self.assertIn(text, answer["error"])
        self.assertIn(advice, answer["error"])
        self.assertNotIn("not found", answer["error"])
        done = self.server.cli("run", repository, "hi")
        self.assertEqual(done.returncode, 1)
        self.assertIn(text, done.stderr)

    def test_run_by_the_name_of_the_cache(self):
        # Nothing tells this model when to stop; its first words are enough.
        command = [house.OLLMLX, "run", "org/tiny-4bit", "hello"]
        with subprocess.Popen(command, env=self.server.env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as running:
            first = os.read(running.stdout.fileno(), 64)
            running.kill()
        self.assertTrue(first.strip())
        for name in ("hf.co/org/tiny-4bit", "huggingface.co/org/tiny-4bit:main", f"org/tiny-4bit:{REVISION}"):
            status, shown = self.show(name)
            self.assertEqual((status, shown["backend"], shown["details"]["format"]), (200, "mlx", "safetensors"), name)
        _, loaded = self.server.call("GET", "/api/ps")
        row = next(row for row in loaded["models"] if row["name"].startswith("org/tiny-4bit"))
        self.assertEqual((row["backend"], row["details"]["format"]), ("mlx", "safetensors"))
        self.assertRegex(self.ok("ps", "-v").stdout, r"(?m)^org/tiny-4bit:\S+ +mlx ")
        text = self.ok("show", "org/tiny-4bit").stdout
        self.assertRegex(text, r"(?m)^    format +safetensors +$")
        self.assertRegex(text, r"(?m)^    backend +mlx +$")
        self.ok("stop", "org/tiny-4bit")
        body = {"model": "org/tiny-4bit", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
        self.assertEqual(self.server.call("POST", "/v1/chat/completions", body)[0], 200)

    def test_the_cache_is_only_read(self):
        done = self.server.cli("rm", "org/tiny-4bit")
        self.assertEqual(done.returncode, 1)
        self.assertIn("only read", done.stderr)
        self.assertTrue((self.home / "refs" / "main").exists())

    def test_absent_says_how_to_get_it(self):
        for path, body in (("/api/generate", {"prompt": "x"}), ("/api/chat", {"messages": []}),
                           ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]})):
            status, answer = self.server.call("POST", path, {"model": "org/absent"} | body)
            text = json.dumps(answer)
            self.assertEqual(status, 404)
            self.assertIn("model 'org/absent' not found", text)
            self.assertIn("hf download org/absent", text)
        done = self.server.cli("run", "org/absent", "hi")
        self.assertEqual(done.returncode, 1)
        self.assertIn("hf download org/absent", done.stderr)
        self.assertEqual(self.server.call("POST", "/api/generate", {"model": "absent"}),
                         (404, {"error": "model 'absent' not found"}))

    def test_broken_repositories_say_what_is_wrong(self):
        config = {"config.json": self.files["config.json"]}
        self.broken("org/no-config", {"model.safetensors": b"x"}, "config.json is missing")
        self.broken("org/pickles", config | {"pytorch_model.bin": b"x"}, "pickled weights (pytorch_model.bin)")
        self.broken("org/nothing", config, "no weights", "hf download org/nothing")
        self.broken("org/shards", config | {"model-00001-of-00002.safetensors": b"x"},
                    "the shard model-00002-of-00002.safetensors is missing", "hf download org/shards")
        index = json.dumps({"weight_map": {"a": "model.safetensors", "b": "other.safetensors"}}).encode()
        self.broken("org/index", self.files | {"model.safetensors.index.json": index}, "the shard other.safetensors is missing")
        other = json.loads(self.files["config.json"].read_text()) | {"model_type": "mamba9"}
        self.broken("org/mamba", self.files | {"config.json": json.dumps(other).encode()}, "mamba9")
        home = cache_repository(self.hub, "org/partial", self.files)
        (home / "blobs" / "blob0.incomplete").write_bytes(b"")
        (home / "snapshots" / REVISION / "model.safetensors").unlink()
        self.broken("org/partial", {}, "its download is not complete", "hf download org/partial")

    def test_a_link_out_of_the_repository_is_refused(self):
        home = cache_repository(self.hub, "org/evil", self.files)
        link = home / "snapshots" / REVISION / "tokenizer.json"
        link.unlink()
        link.symlink_to("/etc/passwd")
        self.assertIn("leaves the repository", self.show("org/evil")[1]["error"])

    def test_create_from_a_folder(self):
        folder = self.server.folder / "mlx"
        shutil.copytree(FOLDER, folder)
        self.create("mine", f"FROM {folder}\nSYSTEM You are brief.\nPARAMETER num_predict 8\nPARAMETER temperature 0\n")
        shutil.rmtree(folder)
        self.assertTrue(self.ok("run", "mine", "hello").stdout.strip())
        _, shown = self.show("mine")
        self.assertEqual((shown["backend"], shown["details"]["format"], shown["system"]),
                         ("mlx", "safetensors", "You are brief."))
        modelfile = self.ok("show", "mine", "--modelfile").stdout
        self.assertIn("FROM mine:latest\n", modelfile)
        self.assertIn("SYSTEM You are brief.\n", modelfile)
        self.assertRegex(self.ok("list", "-v").stdout, r"(?m)^mine:latest .* mlx +safetensors +$")
        self.ok("cp", "mine", "twin")
        self.create("child", modelfile.replace("brief", "long"))
        self.ok("rm", "mine")
        self.assertTrue(self.ok("run", "child", "hello").stdout.strip())
        self.ok("rm", "twin")
        self.ok("rm", "child")
        self.assertEqual(list((self.server.folder / "models" / "blobs").iterdir()), [])
        self.assertEqual(list((self.server.folder / "state" / "views").iterdir()), [])

    def test_create_from_the_cache_streams_its_progress(self):
        _, text = self.server.raw("POST", "/api/create", json.dumps({"model": "ours", "from": "org/tiny-4bit"}))
        lines = [json.loads(line) for line in text.splitlines()]
        copied = [line for line in lines if line["status"] == "copying file model.safetensors"]
        self.assertTrue(copied and all(line["completed"] <= line["total"] for line in copied), lines)
        self.assertEqual(lines[-1], {"status": "success"})
        body = {"model": "ours", "prompt": "hello", "stream": False, "options": {"num_predict": 4}}
        self.assertEqual(self.server.call("POST", "/api/generate", body)[0], 200)
        self.ok("rm", "ours")


if __name__ == "__main__":
    unittest.main()
