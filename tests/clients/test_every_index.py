"""Real workers of both backends die at a token of an answer, and the client hears what it would have heard. Every token and
every format are proven with a toy model (tests/it/every_index.rs); this is a sample of them with real ones.

One server serves all deaths of a backend: each has a rule of its own in OLLMLX_FAULT, with a word that only its prompt has,
and strikes in the process that follows the death before it.
"""

import json
import os
import unittest

import house

#: How many tokens, each the place of a death (some seconds for each). Without it a sample.
EVERY = int(os.environ.get("OLLMLX_TEST_EVERY_INDEX", "0"))
TOKENS = EVERY or 24
PLACES = tuple(range(1, EVERY + 1)) or (1, 2, 3, 4, 5, 6, 8, 10, 12, 14, 16, 18, 20, 22, 23, 24)
KINDS = ("crash", "half", "abort", "exit=7", "garbage")
SCHEMA = {"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
          "required": ["name", "age"]}
OPENAI = {"stream_options": {"include_usage": True}}
FORMATS = (
    ("/api/generate", {}),
    ("/v1/chat/completions", OPENAI),
    ("/api/chat", {"format": SCHEMA}),
    ("/v1/chat/completions", OPENAI | {"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}}),
    ("/api/generate", {"logprobs": True, "top_logprobs": 2}),
    ("/v1/chat/completions", OPENAI | {"logprobs": True, "top_logprobs": 2}),
    ("/api/chat", {"stop": ["e of", "and the", ". "]}),
    ("/v1/messages", {}),
)


def question(number):
    """The request of a place: every format comes twice, with another kind of death each time."""
    path, more = FORMATS[number % len(FORMATS)]
    text = f"Tell me about the café of ship w{number:02}. 🚢"
    body = {"model": "smol", "stream": True, "messages": [{"role": "user", "content": text}]}
    if path == "/api/generate":
        body["prompt"] = body.pop("messages")[0]["content"]
    if path.startswith("/api/"):
        body["options"] = {"temperature": 0, "num_predict": TOKENS, "stop": more.get("stop", [])}
        more = {key: value for key, value in more.items() if key != "stop"}
    else:
        body |= {"temperature": 0, "max_tokens": TOKENS}
    return path, body | more


def told(server, path, body):
    """What the client has in hand at the end: texts and log probabilities joined, and the ends as they came."""
    status, answer = server.raw("POST", path, json.dumps(body))
    assert status == 200, answer
    text, logprobs, ends = "", [], []
    for line in answer.decode().splitlines():
        line = line.removeprefix("data: ")
        if not line or line.startswith(("event: ", ":")):
            continue
        if line == "[DONE]":
            ends.append(line)
            continue
        event = json.loads(line)
        assert not ends or "content_block" not in event.get("type", ""), answer
        choice = (event.get("choices") or [{}])[0]
        delta = choice.get("delta") or event.get("delta") or event.get("message") or {}
        text += event.get("response", "") + (delta.get("content") or delta.get("text") or "")
        logprobs += event.get("logprobs") or (choice.get("logprobs") or {}).get("content") or []
        is_end = event.get("done") or choice.get("finish_reason") or event.get("choices") == [] or "error" in event
        if is_end or event.get("type") in ("message_delta", "message_stop"):
            ends.append({key: value for key, value in event.items()
                         if not key.endswith("_duration") and not key.startswith("created") and key != "id"})
    return text, logprobs, ends


class EveryIndex(unittest.TestCase):
    backend, every = "gguf", 1

    def server(self, **settings):
        server = house.Server(models=("smol",), backend=self.backend, **settings)
        self.addCleanup(server.stop)
        return server

    def test_a_death_at_any_token_of_any_format_changes_nothing(self):
        numbers = range(0, len(PLACES), self.every)
        questions = [question(number) for number in numbers]
        calm_server = self.server()
        calm = [told(calm_server, *asked) for asked in questions]
        calm_server.stop()
        places = [PLACES[number] for number in numbers]
        rules = [f"{KINDS[number % len(KINDS)]}@{place};text=w{number:02};times=XX"
                 for number, place in zip(numbers, places)]
        # An answer that ends before the place of its death has none, and is followed by the same process.
        deaths, armed = 0, []
        for rule, place, answer in zip(rules, places, calm):
            deaths += self.tokens(answer) >= place
            armed.append(rule.replace("XX", str(max(deaths, 1))))
        self.assertGreaterEqual(deaths, len(places) * (1 if EVERY else 3) // 4, "many of the answers are long enough")
        server = self.server(OLLMLX_FAULT=",".join(armed))
        for asked, expected, rule in zip(questions, calm, armed):
            with self.subTest(rule=rule, path=asked[0]):
                text, logprobs, ends = told(server, *asked)
                self.assertEqual((text, ends), expected[::2])
                # What a fresh process computes as a whole prompt, another has in part from the request before.
                self.assertEqual(len(logprobs), len(expected[1]))
                for one, other in zip(logprobs, expected[1]):
                    self.assertEqual(one["token"], other["token"])
                    self.assertAlmostEqual(one["logprob"], other["logprob"], delta=0.01)
        self.assertEqual(json.loads(server.cli("why", "smol", "--json").stdout)["death_count"], deaths)

    def tokens(self, answer):
        found = [end.get("eval_count") or (end.get("usage") or {}).get("completion_tokens")
                 or (end.get("usage") or {}).get("output_tokens") or 0 for end in answer[2] if isinstance(end, dict)]
        return max(found)


class EveryIndexOnMlx(EveryIndex):
    # A process of this backend takes longer to start.
    backend, every = "mlx", 3


if __name__ == "__main__":
    unittest.main()
