"""The official Python client (PyPI `ollama`)."""

import json
import math
import unittest

import ollama

import house

GREEDY = {"temperature": 0, "seed": 1, "num_predict": 24}
ASK = [{"role": "user", "content": "Name three colours."}]


class OllamaPython(unittest.TestCase):
    backend = "gguf"
    format, family, quantization, least_size = "gguf", "llama", "Q4_1", 90_000_000

    @classmethod
    def setUpClass(cls):
        cls.server = house.shared(cls.backend)
        cls.client = ollama.Client(host=cls.server.url, timeout=house.ANSWER_S)
        cls.smol, cls.base, cls.embed = house.NAMES

    def listed(self, name):
        """As lists call it."""
        return f"{name}:latest"

    def full_name(self, name):
        return f"registry.ollama.ai/library/{name}:latest"

    def test_list_names_every_model_with_its_facts(self):
        models = {model.model: model for model in self.client.list().models}
        self.assertLessEqual({"smol:latest", "base:latest", "embed:latest", "short:latest"}, models.keys())
        smol = models["smol:latest"]
        self.assertEqual(len(smol.digest), 64)
        self.assertGreater(smol.size, self.least_size)
        self.assertEqual((smol.details.format, smol.details.family), (self.format, self.family))
        self.assertIsNotNone(smol.modified_at.tzinfo)

    def test_show_tells_capabilities_and_metadata(self):
        shown = self.client.show(self.smol)
        self.assertIn("completion", shown.capabilities)
        self.assertNotIn("embedding", shown.capabilities)
        self.assertEqual(shown.modelinfo["general.architecture"], "llama")
        self.assertEqual(shown.details.quantization_level, self.quantization)
        self.assertIn("embedding", self.client.show(self.embed).capabilities)
        self.assertIn("num_predict", self.client.show("short").parameters)

    def test_generate_streamed_is_generate_at_once(self):
        whole = self.client.generate(self.smol, "Name three colours.", options=GREEDY)
        parts = list(self.client.generate(self.smol, "Name three colours.", options=GREEDY, stream=True))
        self.assertEqual("".join(part.response for part in parts), whole.response)
        self.assertTrue(whole.response.strip())
        self.assertEqual([part.done for part in parts], [False] * (len(parts) - 1) + [True])
        last = parts[-1]
        self.assertIn(last.done_reason, ("stop", "length"))
        self.assertGreater(last.eval_count, 0)
        self.assertGreaterEqual(last.total_duration, last.load_duration or 0)
        self.assertTrue(whole.context)

    def test_generate_continues_a_context(self):
        first = self.client.generate(self.smol, "My name is Ada.", options=GREEDY)
        second = self.client.generate(self.smol, "What is my name?", context=first.context, options=GREEDY)
        self.assertGreater(len(second.context), len(first.context))

    def test_chat_streamed_is_chat_at_once(self):
        whole = self.client.chat(self.smol, ASK, options=GREEDY)
        parts = list(self.client.chat(self.smol, ASK, options=GREEDY, stream=True))
        self.assertEqual("".join(part.message.content for part in parts), whole.message.content)
        self.assertEqual(whole.message.role, "assistant")
        self.assertGreater(whole.prompt_eval_count, 0)

    def test_one_token_ends_by_length(self):
        answer = self.client.generate(self.smol, "Count to one hundred.", options=GREEDY | {"num_predict": 1})
        self.assertEqual((answer.done_reason, answer.eval_count), ("length", 1))

    def test_a_stop_string_is_not_part_of_the_answer(self):
        whole = self.client.generate(self.smol, "Count: 1, 2, 3, 4,", raw=True, options=GREEDY)
        stop = whole.response.strip().split()[1]
        cut = self.client.generate(self.smol, "Count: 1, 2, 3, 4,", raw=True, options=GREEDY | {"stop": [stop]})
        self.assertNotIn(stop, cut.response)
        self.assertTrue(whole.response.startswith(cut.response))
        self.assertEqual(cut.done_reason, "stop")
        self.assertIsNone(cut.context)

    def test_a_seed_repeats_an_answer(self):
        options = {"temperature": 1.0, "seed": 7, "num_predict": 16}
        first = self.client.generate(self.smol, "Tell me a story.", options=options)
        second = self.client.generate(self.smol, "Tell me a story.", options=options)
        self.assertEqual(first.response, second.response)

    def test_a_schema_shapes_the_answer(self):
        schema = {"type": "object", "properties": {"age": {"type": "integer"}, "name": {"type": "string", "maxLength": 20}},
                  "required": ["age", "name"], "additionalProperties": False}
        ask = [{"role": "user", "content": "Ada is 36 years old. Answer as JSON."}]
        answer = self.client.chat(self.smol, ask, format=schema, options=GREEDY | {"num_predict": 200})
        value = json.loads(answer.message.content)
        self.assertEqual(set(value), {"age", "name"})
        self.assertIsInstance(value["age"], int)

    def test_json_mode_gives_an_object(self):
        ask = [{"role": "user", "content": "Give me a JSON object with one key."}]
        answer = self.client.chat(self.smol, ask, format="json", options=GREEDY | {"num_predict": 200})
        if answer.done_reason == "stop":
            self.assertIsInstance(json.loads(answer.message.content), dict)

    def test_log_probabilities_come_with_their_tokens(self):
        answer = self.client.generate(self.smol, "Hello", logprobs=True, top_logprobs=3, options=GREEDY)
        self.assertEqual(len(answer.logprobs), answer.eval_count)
        for entry in answer.logprobs:
            self.assertLessEqual(entry.logprob, 0)
            self.assertLessEqual(len(entry.top_logprobs), 3)

    def test_tools_are_refused_where_the_model_has_none(self):
        tool = {"type": "function", "function": {"name": "f", "description": "", "parameters": {"type": "object", "properties": {}}}}
        with self.assertRaises(ollama.ResponseError) as caught:
            self.client.chat(self.smol, ASK, tools=[tool])
        self.assertEqual(caught.exception.status_code, 400)
        self.assertEqual(caught.exception.error, self.full_name("smol") + " does not support tools")

    def test_thinking_is_refused_where_the_model_has_none(self):
        with self.assertRaises(ollama.ResponseError) as caught:
            self.client.chat(self.smol, ASK, think=True)
        self.assertEqual((caught.exception.status_code, caught.exception.error), (400, f'"{self.smol}" does not support thinking'))
        self.assertTrue(self.client.chat(self.smol, ASK, think=False, options=GREEDY).message.content)

    def test_unknown_models_are_404(self):
        for ask in (lambda: self.client.generate("ghost", "x"), lambda: self.client.chat("ghost", ASK),
                    lambda: self.client.show("ghost"), lambda: self.client.embed("ghost", "x")):
            with self.assertRaises(ollama.ResponseError) as caught:
                ask()
            self.assertEqual(caught.exception.status_code, 404)
            self.assertIn("ghost", caught.exception.error)

    def test_embeddings_have_length_one_and_know_their_kin(self):
        answer = self.client.embed(self.embed, ["a cat", "a kitten", "stock market"])
        cat, kitten, market = answer.embeddings
        self.assertEqual(len(cat), 384)
        for vector in answer.embeddings:
            self.assertAlmostEqual(math.sqrt(sum(x * x for x in vector)), 1, places=3)
        near = sum(a * b for a, b in zip(cat, kitten))
        far = sum(a * b for a, b in zip(cat, market))
        self.assertGreater(near, far + 0.2)
        self.assertEqual(len(self.client.embed(self.embed, "x", dimensions=64).embeddings[0]), 64)
        self.assertEqual(self.client.embed(self.embed, []).embeddings, [])
        self.assertEqual(len(self.client.embeddings(self.embed, "x").embedding), 384)

    def test_ps_shows_what_is_loaded_until_it_is_told_to_go(self):
        self.client.generate(self.base, "The sky is", options={"num_predict": 1}, keep_alive="10m")
        row = {model.model: model for model in self.client.ps().models}[self.listed("base")]
        self.assertGreater(row.size, 0)
        self.assertEqual(row.context_length, 4096)
        answer = self.client.generate(self.base, "", keep_alive=0)
        self.assertEqual(answer.done_reason, "unload")
        listed = lambda: [model.model for model in self.client.ps().models]
        house.until("unloaded", house.SOON_S, lambda: self.listed("base") not in listed())

    def test_an_empty_prompt_loads(self):
        answer = self.client.generate(self.smol, "")
        self.assertEqual((answer.done, answer.done_reason, answer.response), (True, "load", ""))

    def test_models_are_created_copied_and_deleted(self):
        self.assertEqual(self.client.create("pirate", from_="smol", system="You are a pirate.").status, "success")
        self.assertIn("You are a pirate.", self.client.show("pirate").modelfile)
        self.assertEqual(self.client.copy("pirate", "buccaneer").status, "success")
        self.assertEqual(self.client.delete("pirate").status, "success")
        names = {model.model for model in self.client.list().models}
        self.assertIn("buccaneer:latest", names)
        self.assertNotIn("pirate:latest", names)
        self.client.delete("buccaneer")
        self.assertTrue(self.client.generate(self.smol, "hi", options=GREEDY).response)


class OllamaPythonOnMlx(OllamaPython):
    backend = "mlx"
    format, family, quantization, least_size = "safetensors", "llama", "int4", 70_000_000


if __name__ == "__main__":
    unittest.main()
