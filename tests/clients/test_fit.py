"""What fits: `ollmlx fit`, limits, models that are kept for ever, and what is given up for one that doesn't fit."""

import concurrent.futures
import json
import pathlib
import unittest

import house
from test_faults import Streamer

ASK = {"prompt": "Say hello.", "stream": False, "options": {"num_predict": 4, "temperature": 0}}


class Fit(unittest.TestCase):
    backend = "gguf"

    @classmethod
    def setUpClass(cls):
        cls.server = house.shared(cls.backend)

    def fit(self, *words, server=None, status=0, env=None):
        done = (server or self.server).cli("fit", *words, "--json", env=env)
        self.assertEqual(done.returncode, status, done.stderr)
        return json.loads(done.stdout)

    def started(self, **settings):
        server = house.Server(models=("smol", "base"), backend=self.backend, **settings)
        self.addCleanup(server.stop)
        return server

    def limited(self, bytes_max, **settings):
        return self.started(OLLMLX_MEMORY_LIMIT=str(bytes_max), **settings)

    def starts(self, server):
        return server.log().count("worker said hello")

    def test_what_fit_says_is_what_a_load_is_given(self):
        told = self.fit("smol", "--slots", "4")
        self.assertEqual((told["model"], told["backend"], told["slots"]), ("smol:latest", self.backend, 4))
        self.server.call("POST", "/api/generate", ASK | {"model": "smol"})
        _, loaded = self.server.call("GET", "/api/ps")
        model = next(model for model in loaded["models"] if model["name"] == "smol:latest")
        memory = model["memory"]
        needs = told["needs"]
        self.assertEqual([needs[part] for part in ("weights", "caches", "compute")],
                         [memory["estimated"][part] for part in ("weights", "caches", "compute")])
        self.assertEqual(model["context_length"], told["context_length"])
        self.assertGreater(memory["measured"], 30e6)
        self.assertGreaterEqual(memory["budget"], memory["estimated"]["total"])
        self.assertGreaterEqual(model["size"], memory["budget"])
        self.assertEqual(self.fit("smol")["verdict"], "loaded")

    def test_more_context_and_slots_need_more_and_packed_caches_less(self):
        total = lambda *words: self.fit("smol", *words)["needs"]["total"]
        small = total("--ctx", "512", "--slots", "1")
        self.assertLess(small, total("--ctx", "4096", "--slots", "1"))
        self.assertLess(small, total("--ctx", "512", "--slots", "8"))
        self.assertLess(total("--kv-type", "q4_0"), total("--kv-type", "f16"))

    def test_two_that_can_only_be_had_one_after_the_other_are_both_answered(self):
        needs = [self.fit("smol", "--slots", "1", "--ctx", context)["needs"]["total"] for context in ("2048", "8192")]
        server = self.started(OLLMLX_MEMORY_SHRINK="context", OLLMLX_CONTEXT_LENGTH="8192", OLLMLX_MAX_LOADED_MODELS="1")
        busy = Streamer(server, ASK | {"model": "base", "stream": True, "options": {"num_predict": 200, "temperature": 0}})
        self.assertTrue(busy.started.wait(house.ANSWER_S))
        ask = lambda options: server.call("POST", "/api/generate", ASK | {"model": "smol", "options": ASK["options"] | options})
        with concurrent.futures.ThreadPoolExecutor() as pool:
            modest = pool.submit(ask, {"ollmlx_memory_limit": str(sum(needs) // 2)})
            waits = lambda: b"ollmlx_queue_length 1" in server.raw("GET", "/metrics")[1]
            house.until("the first waits", house.SOON_S, lambda: waits() or modest.done())
            whole = pool.submit(ask, {"num_ctx": 8192})
            answers = [modest.result(), whole.result()]
        self.assertEqual([status for status, _ in answers], [200, 200], answers)

    def test_paths_and_strangers(self):
        self.assertTrue(self.fit(house.FILES[self.backend]["smol"])["fits"])
        done = self.server.cli("fit", "ghost")
        self.assertEqual((done.returncode, done.stdout, done.stderr), (2, "", "Error: model 'ghost' not found\n"))
        done = self.server.cli("fit", "smol", "--kv-type", "f17")
        self.assertEqual(done.returncode, 2)
        self.assertIn("f16, q8_0 or q4_0", done.stderr)
        for words in (["smol", "--slots", "0"], ["smol", "--bogus"], []):
            self.assertEqual(self.server.cli("fit", *words).returncode, 2, words)
        done = self.server.cli("fit", "hf.co/owner/name-GGUF:Q4_K_M")
        self.assertEqual((done.returncode, done.stdout), (2, ""))
        self.assertIn("can't pull models yet; a local file can be given by its path, to download it: hf download owner/name-GGUF",
                      done.stderr)
        self.assertEqual(self.server.call("POST", "/api/ollmlx/fit", {"model": "smol", "num_ctx": 0})[0], 400)
        self.assertEqual(self.server.call("POST", "/api/ollmlx/fit", {})[0], 400)

    def test_without_a_server(self):
        env = self.server.env | {"OLLAMA_HOST": f"127.0.0.1:{house.free_port()}"}
        told = self.fit("smol", env=env)
        self.assertEqual((told["offline"], told["verdict"], told["held"]), (True, "now", []))
        self.assertEqual(told["needs"]["weights"], self.fit("smol")["needs"]["weights"])
        done = self.server.cli("fit", "nosuch", env=env)
        self.assertEqual((done.returncode, done.stderr), (2, "Error: model 'nosuch' not found\n"))
        done = self.server.cli("fit", "smol", env=env | {"OLLMLX_MEMORY_LIMIT": "10MB", "OLLMLX_MEMORY_SHRINK": "none"})
        self.assertEqual(done.returncode, 1)
        self.assertIn("nothing, as no server runs", done.stdout)
        self.assertIn("never fits", done.stderr)

    def test_a_fresh_server_knows_its_limit(self):
        server = self.limited(20_000_000_000)
        told = self.fit("smol", server=server)
        self.assertEqual((told["verdict"], told["limit"]), ("now", 20_000_000_000))
        self.assertEqual(server.call("GET", "/api/ps")[1]["memory"]["limit"], 20_000_000_000)
        self.assertIn("0 B of the limit of 20 GB set aside, memory ladder: calm", server.cli("ps", "-v").stdout)
        self.assertIn(b"ollmlx_memory_limit_bytes 20000000000\n", server.raw("GET", "/metrics")[1])
        text = server.cli("fit", "smol").stdout
        self.assertIn("limit     20 GB, that of all models together\n", text)
        self.assertIn("held      nothing, by other models\n", text)

    def test_what_is_asked_for_and_not_to_be_had_is_said(self):
        trained = self.fit("smol")["trained_context_length"]
        text = self.server.cli("fit", "smol", "--ctx", str(4 * trained), "--slots", "65").stdout
        self.assertIn(f"{4 * trained} tokens were asked for: {trained} is all that it was trained for\n", text)
        self.assertIn("65 slots were asked for: 64 is the most\n", text)

    def test_limits_that_are_none_are_refused_with_what_may_be_meant(self):
        refused = (("0.8", "the share 80%"), (".9", "the share 90%"), ("80", "80GB, or the share 80%"), ("2048", "2048MB"))
        for limit, meant in refused:
            done = self.server.cli("serve", "--memory-limit", limit)
            self.assertEqual(done.returncode, 78)
            self.assertIn(f"must be at least 1MB, not \"{limit}\"; did you mean {meant}?", done.stderr)
        for line in ("ollmlx_memory_limit 0", "ollmlx_memory_limit 50%", "ollmlx_priority 99999"):
            path = pathlib.Path(self.server.folder) / "none.modelfile"
            path.write_text(f"FROM smol\nPARAMETER {line}\n")
            done = self.server.cli("create", "none", "-f", str(path))
            self.assertEqual(done.returncode, 1)
            self.assertRegex(done.stderr, "must be (a number of bytes from 1MB on|a whole number from -1000 to 1000)")
        for parameters in ({"ollmlx_memory_limit": 0}, {"ollmlx_priority": 99999}):
            status, answer = self.server.call("POST", "/api/create", {"model": "none", "from": "smol", "stream": False,
                                              "parameters": parameters})
            self.assertEqual(status, 400, answer)

    def test_a_request_may_not_want_less_than_its_loaded_model_takes(self):
        self.assertEqual(self.server.call("POST", "/api/generate", ASK | {"model": "smol"})[0], 200)
        for limit, expected in (("10MB", 500), ("100GB", 200), (0, 400)):
            asked = ASK | {"model": "smol", "options": ASK["options"] | {"ollmlx_memory_limit": limit}}
            status, answer = self.server.call("POST", "/api/generate", asked)
            self.assertEqual(status, expected, answer)
            if expected == 500:
                self.assertRegex(answer["error"], r"takes more memory \(\S+ [MG]B\) than the limit that this request has for it allows \(10 MB\)")

    def test_what_can_never_fit_starts_nothing(self):
        server = self.limited(20_000_000, OLLMLX_MEMORY_SHRINK="context")
        told = self.fit("smol", server=server, status=1)
        self.assertEqual((told["verdict"], told["largest"]["context_length_at_one_slot"]), ("never", None))
        status, answer = server.call("POST", "/api/generate", ASK | {"model": "smol"})
        self.assertEqual(status, 500)
        self.assertRegex(answer["error"], r"^model requires more memory \(\S+ [MG]B\) than the limit allows \(20 MB\)")
        self.assertEqual((self.starts(server), server.workers()), (0, []))

    def test_slots_are_given_up_and_the_window_too_where_that_is_allowed(self):
        need = lambda slots, ctx: self.fit("smol", "--slots", str(slots), "--ctx", str(ctx))["needs"]["total"]
        server = self.limited((need(3, 4096) + 3 * need(4, 4096)) // 4)
        self.assertEqual(self.fit("smol", server=server)["made_smaller"]["slots"], 3)
        status, answer = server.call("POST", "/api/generate", ASK | {"model": "smol"})
        self.assertEqual(status, 200, answer)
        model = server.call("GET", "/api/ps")[1]["models"][0]
        self.assertEqual((model["slots"], model["context_length"], model["memory"]["made_smaller"]), (3, 4096, True))
        told = self.fit("smol", server=server)
        self.assertEqual((told["verdict"], told["made_smaller"], told["loaded"]["slots"]), ("loaded", None, 3))
        self.assertIn("is loaded, with 3 slots of 4096 tokens", server.cli("fit", "smol").stdout)
        server = self.limited((need(1, 2048) + need(1, 4096)) // 2, OLLMLX_MEMORY_SHRINK="context")
        for _ in range(2):
            status, answer = server.call("POST", "/api/generate", ASK | {"model": "smol"})
            self.assertEqual(status, 200, answer)
        model = server.call("GET", "/api/ps")[1]["models"][0]
        self.assertEqual(model["slots"], 1)
        self.assertIn(model["context_length"], range(2048, 4096))
        self.assertEqual(self.starts(server), 1)
        large = ASK | {"model": "smol", "options": {"num_ctx": 4096}}
        status, answer = server.call("POST", "/api/generate", large)
        self.assertEqual(status, 500, "a window that was asked for is not made smaller")

    def test_models_kept_for_ever_stay_and_are_named(self):
        both = [self.fit(name)["needs"]["total"] for name in ("smol", "base")]
        server = self.limited(sum(both) - min(both) // 2, OLLMLX_MEMORY_SHRINK="none")
        status, _ = server.call("POST", "/api/generate", {"model": "smol", "keep_alive": -1})
        self.assertEqual(status, 200)
        told = self.fit("base", server=server, status=1)
        self.assertEqual((told["verdict"], told["held"][0]["pinned"]), ("pinned", True))
        status, answer = server.call("POST", "/api/generate", ASK | {"model": "base"})
        self.assertEqual(status, 500)
        self.assertRegex(answer["error"], r"kept for ever: smol:latest \(\S+ [MG]B\)")
        self.assertEqual(self.starts(server), 1)
        server.call("POST", "/api/generate", {"model": "smol", "keep_alive": "5m"})
        self.assertEqual(self.fit("base", server=server)["verdict"], "after_eviction")
        self.assertEqual(server.call("POST", "/api/generate", ASK | {"model": "base"})[0], 200)

    def test_a_model_has_limit_and_priority_of_its_own(self):
        server = self.started(OLLMLX_MEMORY_SHRINK="none")
        server.create("tight", "FROM smol\nPARAMETER ollmlx_memory_limit 10MB\nPARAMETER ollmlx_priority 7\n")
        self.assertIn('ollmlx_memory_limit            "10MB"', server.call("POST", "/api/show", {"model": "tight"})[1]["parameters"])
        self.assertEqual(self.fit("tight", server=server, status=1)["model_limit"], 10_000_000)
        for options in ({}, {"ollmlx_memory_limit": "10GB"}, {"ollmlx_memory_limit": "1MB"}):
            status, answer = server.call("POST", "/api/generate", {"model": "tight", "prompt": "x", "options": options})
            self.assertEqual((status, "its own limit" in answer["error"]), (500, True), answer)
        status, answer = server.call("POST", "/api/generate", {"model": "smol", "prompt": "x", "stream": False,
                                     "options": {"ollmlx_memory_limit": "1MB"}})
        self.assertEqual(status, 500)
        status, answer = server.call("POST", "/api/generate", ASK | {"model": "smol", "options": {"ollmlx_memory_limit": []}})
        self.assertEqual(answer["error"], 'option "ollmlx_memory_limit" must be of type bytes')
        self.assertEqual(self.starts(server), 0)
        server.create("dear", "FROM smol\nPARAMETER ollmlx_priority 7\n")
        server.call("POST", "/api/generate", ASK | {"model": "dear"})
        self.assertEqual(server.call("GET", "/api/ps")[1]["models"][0]["priority"], 7)

    def test_the_settings_file_rules_single_models(self):
        folder = pathlib.Path(self.server.folder) / "ruled"
        folder.mkdir(exist_ok=True)
        (folder / "config").write_text("memory_limit.smol = 10MB\npriority.base:latest = -3\nmemory_limit.x = lots\n")
        server = self.started(OLLMLX_STATE_DIR=str(folder), OLLMLX_MEMORY_SHRINK="none")
        self.assertEqual(self.fit("smol", server=server, status=1)["model_limit"], 10_000_000)
        server.call("POST", "/api/generate", ASK | {"model": "base"})
        self.assertEqual(server.call("GET", "/api/ps")[1]["models"][0]["priority"], -3)
        self.assertIn('memory_limit of "x" from file was ignored', server.log())

    def test_what_was_learned_outlives_the_server_and_rubbish_is_ignored(self):
        folder = pathlib.Path(self.server.folder) / "taught"
        folder.mkdir(exist_ok=True)
        file = folder / "learned.json"
        file.write_bytes(b"\xff{rubbish")
        server = self.started(OLLMLX_STATE_DIR=str(folder))
        self.assertIn("is ignored", server.log())
        server.call("POST", "/api/generate", ASK | {"model": "smol"})
        server.call("POST", "/api/generate", {"model": "smol", "keep_alive": 0})
        kept = house.until("kept", house.SOON_S, lambda: file.read_bytes()[:1] == b"{" and json.loads(file.read_text())["models"])
        self.assertEqual(kept[0]["context_tokens"], 4096)
        kept[0]["measured_bytes"] = kept[0]["estimated_bytes"] * 3 // 2
        server.stop()
        file.write_text(json.dumps({"version": 1, "models": kept}))
        again = self.started(OLLMLX_STATE_DIR=str(folder))
        needs = self.fit("smol", server=again)["needs"]
        self.assertEqual(needs["total"], kept[0]["measured_bytes"])
        self.assertEqual(needs["learned"], needs["total"] - sum(needs[part] for part in ("weights", "caches", "compute")))


class FitMlx(Fit):
    backend = "mlx"


if __name__ == "__main__":
    unittest.main()
