"""The command line: what scripts cut apart, byte for byte, and what goes to which stream."""

import json
import re
import subprocess
import unittest

import house

DOWN = "Error: could not connect to ollmlx server, run 'ollmlx serve' to start it\n"


def layout(header, rows):
    """The table as it should be: four spaces after each cell, one after the last header."""
    widths = [max(map(len, column)) for column in zip(header, *rows)]
    lines = ["    ".join(cell.ljust(width) for cell, width in zip(header, widths)) + " "]
    lines += ["".join(cell.ljust(width) + "    " for cell, width in zip(row, widths)) for row in rows]
    return "\n".join(lines) + "\n"


def human_bytes(count):
    for factor, unit in ((10**9, "GB"), (10**6, "MB"), (10**3, "KB")):
        if count >= factor:
            value = count / factor
            return f"{count // factor} {unit}" if value >= 10 or count % factor == 0 else f"{value:.1f} {unit}"
    return f"{count} B"


class CommandLine(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = house.shared()

    def ok(self, *words, **more):
        done = self.server.cli(*words, **more)
        self.assertEqual(done.returncode, 0, done.stderr)
        return done

    def refused(self, text, *words, **more):
        done = self.server.cli(*words, **more)
        self.assertEqual((done.returncode, done.stderr, done.stdout), (1, f"Error: {text}\n", ""))

    def test_list_is_byte_for_byte(self):
        _, tags = self.server.call("GET", "/api/tags")
        text = self.ok("list").stdout
        ages = [line.rstrip().split("    ")[-1].strip() for line in text.splitlines()[1:]]
        for age in ages:
            self.assertRegex(age, r"^(Less than a second|1 second|About a minute|\d+ (seconds|minutes)) ago$")
        rows = [[model["name"], model["digest"][:12], human_bytes(model["size"]), age]
                for model, age in zip(tags["models"], ages, strict=True)]
        self.assertEqual(text, layout(["NAME", "ID", "SIZE", "MODIFIED"], rows))
        self.assertEqual(self.ok("ls", "SMOL").stdout.count("\n"), 2)
        self.assertEqual(self.ok("list", "nothing").stdout, "NAME    ID    SIZE    MODIFIED \n")
        self.assertEqual(json.loads(self.ok("list", "--json").stdout)["models"][0]["name"], tags["models"][0]["name"])

    def test_ps_is_byte_for_byte(self):
        self.server.call("POST", "/api/generate", {"model": "smol", "keep_alive": "30m", "stream": False})
        _, loaded = self.server.call("GET", "/api/ps")
        text = self.ok("ps", "smol").stdout
        model = next(model for model in loaded["models"] if model["name"] == "smol:latest")
        until, budget, measured = (cell.strip() for cell in text.splitlines()[1].rstrip().rsplit("    ", 3)[1:])
        self.assertRegex(until, r"^\d+ minutes from now$")
        self.assertEqual(budget, human_bytes(model["memory"]["budget"]))
        self.assertRegex(measured, r"^\d+ MB$")
        processor = "100% CPU" if model["size_vram"] == 0 else "100% GPU"
        row = ["smol:latest", model["digest"][:12], human_bytes(model["size"]), processor, str(model["context_length"]), until,
               budget, measured]
        header = ["NAME", "ID", "SIZE", "PROCESSOR", "CONTEXT", "UNTIL", "BUDGET", "MEASURED"]
        self.assertEqual(text, layout(header, [row]))

    def test_ps_verbose_shows_the_process(self):
        self.ok("run", "short", "hi")
        text = self.ok("ps", "-v").stdout
        self.assertRegex(text, r"^NAME +BACKEND +STATE +PID +SLOTS +QUEUED +DEVICE +RESTARTS +LAST DEATH +MEMORY +RESTS UNTIL \n")
        self.assertRegex(text, r"(?m)^short:latest +gguf +(idle|busy) +\d+ +")
        self.assertRegex(text, r"(?m)^NAME +WEIGHTS +CACHES +COMPUTE +LEARNED +BUDGET +REPORTED +SAMPLED +OF BUDGET +OWN LIMIT +PRIORITY +SMALLER $")
        self.assertRegex(text, r"(?m)^short:latest +\d+ MB +\d+ MB +\d+ MB +.* \d+% +none +0 +no +$")
        self.assertRegex(text, r"\n\S+ [MG]B of the limit of \S+ [MG]B set aside, \S+ [MG]B measured, memory ladder: calm\n"
                               r"worker sandbox: .+\n$")

    def test_show_has_its_sections(self):
        text = self.ok("show", "short").stdout
        self.assertTrue(text.startswith("  Model\n    architecture        llama     "), text)
        self.assertRegex(text, r"(?m)^    quantization        Q4_1 +$")
        self.assertIn("  Capabilities\n    completion    \n", text)
        self.assertRegex(text, r"(?m)^    num_predict    24    $")
        self.assertIn("  System\n    You are brief.    \n", text)
        self.assertEqual(self.ok("show", "short", "--system").stdout, "You are brief.")
        self.assertIn("FROM ", self.ok("show", "short", "--modelfile").stdout)
        self.refused("only one of '--license', '--modelfile', '--parameters', '--system', or '--template' can be specified",
                     "show", "short", "--system", "--license")

    def test_run_puts_piped_text_first_and_ends_with_a_blank_line(self):
        done = self.ok("run", "short", "Summarise:", stdin="The cat sat on the mat.\n")
        self.assertTrue(done.stdout.endswith("\n\n"), done.stdout)
        self.assertFalse(done.stdout.endswith("\n\n\n\n"))
        self.assertTrue(done.stdout.strip())
        self.assertEqual(done.stderr, "")
        body = {"model": "short", "prompt": "The cat sat on the mat.\n Summarise:", "stream": False}
        _, answer = self.server.call("POST", "/api/generate", body)
        self.assertEqual(done.stdout, answer["response"] + "\n\n")
        self.assertNotIn("\x1b", done.stdout)

    def test_run_takes_a_path(self):
        # A path has no parameters, and what is drawn freely may go on for as long as the window is.
        done = self.ok("run", house.FILES["gguf"]["smol"], "--verbose", "--format", '{"enum":["hello","goodbye"]}', "Say hello.")
        self.assertIn(json.loads(done.stdout), ("hello", "goodbye"))
        self.refused("./ghost.gguf: no such file or directory", "run", "./ghost.gguf", "hi")

    def test_verbose_timings_go_to_standard_error(self):
        done = self.ok("run", "short", "--verbose", "Say hello to a friend of mine.")
        labels = [line.split(":")[0] for line in done.stderr.splitlines()]
        every = ["total duration", "load duration", "prompt eval count", "prompt eval duration", "prompt eval rate",
                 "eval count", "eval duration", "eval rate"]
        self.assertEqual(labels, [label for label in every if label in labels])
        self.assertLessEqual({"total duration", "eval count", "eval rate"}, set(labels))
        self.assertRegex(done.stderr, r"(?m)^eval count:           \d+ token\(s\)$")
        self.assertRegex(done.stderr, r"(?m)^eval rate:            \d+\.\d\d tokens/s$")
        self.assertNotIn("eval rate", done.stdout)

    def test_run_with_an_embedding_model_prints_one_array(self):
        vector = json.loads(self.ok("run", "embed", "some text").stdout)
        self.assertEqual(len(vector), 384)
        self.refused('embedding models require input text. Usage: ollmlx run embed "your text here"', "run", "embed")

    def test_run_with_a_format(self):
        done = self.ok("run", "smol", "--format", '{"type":"object","properties":{"n":{"type":"integer","maximum":9}},"required":["n"],"additionalProperties":false}', "A number, please.")
        self.assertIsInstance(json.loads(done.stdout)["n"], int)

    def test_wrong_flags_are_one_line(self):
        self.refused('invalid value for --think: "x" (must be true, false, high, medium, low, or max)', "run", "smol", "--think=x", "hi")
        self.refused('time: missing unit in duration "10"', "run", "smol", "--keepalive", "10", "hi")
        self.refused('unknown command "bogus" for "ollmlx"', "bogus")
        self.refused("unknown flag: --bogus", "ps", "--bogus")
        self.refused("accepts 1 arg(s), received 0", "show")
        self.refused("accepts 2 arg(s), received 1", "cp", "a")
        self.refused("requires at least 1 arg(s), only received 0", "run")

    def test_run_of_an_unknown_name_says_how_to_get_it(self):
        done = self.server.cli("run", "ghost", "hi")
        self.assertEqual((done.returncode, done.stdout), (1, ""))
        self.assertIn("ollmlx create ghost -f Modelfile", done.stderr)

    def test_copy_and_remove(self):
        self.assertEqual(self.ok("cp", "smol", "twin").stdout, "copied 'smol' to 'twin'\n")
        self.assertEqual(self.ok("rm", "twin").stdout, "deleted 'twin'\n")
        self.refused("model 'twin' not found", "rm", "twin")

    def test_stop(self):
        self.refused('couldn\'t find model "ghost" to stop', "stop", "ghost")
        for _ in range(2):
            done = self.ok("stop", "base")
            self.assertEqual((done.stdout, done.stderr), ("", ""))

    def test_create_without_its_modelfile(self):
        self.refused("specified Modelfile wasn't found", "create", "x", "-f", "/nonexistent/Modelfile")

    def test_version(self):
        self.assertTrue(self.ok("--version").stdout.startswith("ollmlx version is "))

    def test_server_down(self):
        env = self.server.env | {"OLLAMA_HOST": f"127.0.0.1:{house.free_port()}"}
        for words in (["list"], ["ps"], ["run", "smol", "hi"], ["stop", "smol"], ["show", "smol"]):
            done = self.server.cli(*words, env=env)
            self.assertEqual((done.returncode, done.stdout, done.stderr), (1, "", DOWN), words)
        done = self.server.cli("-v", env=env)
        self.assertEqual(done.returncode, 0)
        self.assertIn("Warning: could not connect", done.stdout)

    def test_a_second_server_says_who_has_the_port(self):
        done = self.server.cli("serve", seconds=30)
        self.assertEqual(done.returncode, 1)
        self.assertIn(f"Error: listen tcp {self.server.host}: bind: address already in use\n", done.stderr)

    def test_config_names_origins(self):
        settings = json.loads(self.ok("config", "--json").stdout)
        self.assertEqual(settings["host"], settings["host"] | {"value": self.server.host, "origin": "OLLAMA environment"})
        self.assertEqual(settings["max_queue"]["origin"], "default")

    def test_the_log_tells_the_address(self):
        self.assertTrue(re.search(rf"Listening on {re.escape(self.server.host)} \(version \S+\)", self.server.log()))

    def test_a_reader_that_hangs_up_is_no_error(self):
        shell = f"'{house.OLLMLX}' list | head -n 1"
        done = subprocess.run(["sh", "-c", shell], env=self.server.env, capture_output=True, text=True, timeout=30)
        self.assertEqual((done.returncode, done.stderr), (0, ""))


if __name__ == "__main__":
    unittest.main()
