"""What whoever runs the server sees of it: metrics, probes, `why`, `logs`, `restart`."""

import json
import re
import subprocess
import unittest

import house

SHORT = {"model": "smol", "prompt": "Tell me a story.", "stream": False, "options": {"num_predict": 12, "temperature": 0}}
NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
SAMPLE = re.compile(rf'({NAME})(\{{({NAME}="(\\.|[^"\\])*",?)+\}})? (NaN|[+-]?Inf|[-+0-9.eE]+)')


def exposition(text):
    """{family: (type, {sample: value})}; raises where the text breaks the format 0.0.4."""
    families, current, seen = {}, None, set()
    assert text.endswith("\n")
    for line in text.splitlines():
        if line.startswith("# HELP "):
            name = line.split(" ", 3)[2]
            assert name not in families, f"{name} twice"
            current, families[name] = name, [None, {}]
        elif line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            assert name == current and kind in ("counter", "gauge", "histogram"), line
            families[name][0] = kind
        else:
            match = SAMPLE.fullmatch(line)
            assert match, line
            name = match[1]
            suffixes = ("_bucket", "_sum", "_count") if families[current][0] == "histogram" else ("",)
            assert name in [current + suffix for suffix in suffixes], line
            key = line.rsplit(" ", 1)[0]
            assert key not in seen, f"{key} twice"
            seen.add(key)
            families[current][1][key] = float(match[5])
    for name, (kind, samples) in families.items():
        assert kind, f"{name} has no type"
        assert kind != "counter" or name.endswith("_total"), name
        if kind == "histogram":
            buckets = [value for key, value in samples.items() if "_bucket" in key]
            assert buckets == sorted(buckets) and buckets[-1] == samples[f"{name}_count"], name
    return families


class Operating(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = house.Server(models=("smol",), OLLMLX_FAULT="crash@5;times=1")
        cls.addClassCleanup(cls.server.stop)
        status, cls.answer = cls.server.call("POST", "/api/generate", SHORT)
        assert status == 200, cls.answer

    def test_metrics_are_what_prometheus_reads(self):
        self.server.raw("GET", "/made/up/by/a/stranger")
        status, text = self.server.raw("GET", "/metrics")
        self.assertEqual(status, 200)
        found = exposition(text.decode())
        value = lambda family, key: found[family][1][key]
        route = 'ollmlx_http_requests_total{route="/api/generate",dialect="ollama",status="200"}'
        self.assertGreaterEqual(value("ollmlx_http_requests_total", route), 1)
        self.assertNotIn("made/up", text.decode())
        death = 'ollmlx_worker_deaths_total{model="smol:latest",cause="SIGSEGV"}'
        self.assertEqual(value("ollmlx_worker_deaths_total", death), 1)
        restart = 'ollmlx_worker_restarts_total{cause="SIGSEGV"}'
        self.assertEqual(value("ollmlx_worker_restarts_total", restart), 1)
        self.assertEqual(value("ollmlx_requests_resumed_total", "ollmlx_requests_resumed_total"), 1)
        self.assertEqual(value("ollmlx_incidents_total", "ollmlx_incidents_total"), 0, "it died alone")
        self.assertEqual(value("ollmlx_queue_length", "ollmlx_queue_length"), 0)
        self.assertGreaterEqual(value("ollmlx_inter_token_seconds", "ollmlx_inter_token_seconds_count"), 11)
        memory = 'ollmlx_worker_memory_bytes{model="smol:latest"}'
        self.assertGreater(value("ollmlx_worker_memory_bytes", memory), 50e6)
        of = lambda kind: value(f"ollmlx_worker_memory_{kind}_bytes", f'ollmlx_worker_memory_{kind}_bytes{{model="smol:latest"}}')
        self.assertGreaterEqual(of("budget"), of("estimated"))
        self.assertGreater(of("measured"), 30e6)

    def test_probes_answer(self):
        self.assertEqual(self.server.raw("GET", "/healthz"), (200, b"ok\n"))
        self.assertEqual(self.server.raw("GET", "/readyz"), (200, b"ready\n"))
        self.assertEqual(self.server.raw("HEAD", "/readyz")[0], 200)

    def test_probes_need_no_key_and_metrics_do(self):
        server = house.Server(models=(), OLLMLX_API_KEY="secret")
        self.addCleanup(server.stop)
        self.assertEqual(server.raw("GET", "/healthz")[0], 200)
        self.assertEqual(server.raw("GET", "/metrics")[0], 401)

    def test_other_sites_learn_nothing(self):
        for path in ("/metrics", "/api/ollmlx/why", "/api/ollmlx/restart"):
            method = "GET" if path == "/metrics" else "POST"
            status, _ = self.server.raw(method, path, "{}", {"Origin": "https://evil.example"})
            self.assertEqual(status, 403, path)

    def test_why_tells_the_story(self):
        done = self.server.cli("why", "smol")
        self.assertEqual(done.returncode, 0, done.stderr)
        for part in ("killed by SIGSEGV", "fault injected: crash", "its requests:", "resumed", "next attempt"):
            self.assertIn(part, done.stdout)
        self.assertLessEqual(len(done.stdout.splitlines()), 10)
        told = json.loads(self.server.cli("why", "smol", "--json").stdout)
        self.assertEqual(told["deaths"][0]["class"], "SIGSEGV")
        self.assertNotIn("story", done.stdout, "no prompt is told")
        self.assertIn("not found", self.server.cli("why", "nobody").stderr)

    def test_logs_show_what_was_printed_and_follow_what_is(self):
        self.assertIn("fault injected: crash", self.server.cli("logs", "smol").stdout)
        reader = subprocess.Popen([house.OLLMLX, "logs", "smol", "-f", "--json"], env=self.server.env, text=True,
                                  stdout=subprocess.PIPE)
        self.addCleanup(reader.stdout.close)
        self.addCleanup(reader.wait)
        self.addCleanup(reader.kill)
        first = json.loads(reader.stdout.readline())
        self.assertEqual(set(first), {"at", "incarnation", "line"})

    def test_restart_gives_a_new_process(self):
        self.server.call("POST", "/api/generate", SHORT)
        (before,) = self.server.workers()
        self.assertEqual(self.server.cli("restart", "smol").returncode, 0)
        house.until("without the old process", house.SOON_S, lambda: before not in house.processes())
        status, answer = self.server.call("POST", "/api/generate", SHORT)
        self.assertEqual((status, answer["response"]), (200, self.answer["response"]))


if __name__ == "__main__":
    unittest.main()
