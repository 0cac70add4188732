"""The official Python client of OpenAI (PyPI `openai`) against `/v1`."""

import math
import unittest

import openai

import house

ASK = [{"role": "user", "content": "Name three colours."}]


class OpenAiPython(unittest.TestCase):
    backend = "gguf"

    @classmethod
    def setUpClass(cls):
        cls.server = house.shared(cls.backend)
        cls.smol, cls.base, cls.embed = house.NAMES
        cls.client = openai.OpenAI(base_url=cls.server.url + "/v1", api_key="unused", timeout=house.ANSWER_S, max_retries=0)

    def test_chat_at_once(self):
        answer = self.client.chat.completions.create(model=self.smol, messages=ASK, max_tokens=16, temperature=0, seed=1)
        self.assertEqual(answer.object, "chat.completion")
        self.assertTrue(answer.choices[0].message.content.strip())
        self.assertIn(answer.choices[0].finish_reason, ("stop", "length"))
        self.assertEqual(answer.usage.total_tokens, answer.usage.prompt_tokens + answer.usage.completion_tokens)

    def test_chat_streamed_with_usage(self):
        stream = self.client.chat.completions.create(model=self.smol, messages=ASK, max_tokens=16, temperature=0, seed=1,
                                                     stream=True, stream_options={"include_usage": True})
        chunks = list(stream)
        self.assertEqual(len({chunk.id for chunk in chunks}), 1)
        self.assertEqual(chunks[0].choices[0].delta.role, "assistant")
        self.assertEqual(chunks[-1].choices, [])
        self.assertGreater(chunks[-1].usage.completion_tokens, 0)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        whole = self.client.chat.completions.create(model=self.smol, messages=ASK, max_tokens=16, temperature=0, seed=1)
        self.assertEqual(text, whole.choices[0].message.content)
        reasons = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices]
        self.assertEqual([reason for reason in reasons if reason], [reasons[-1]])

    def test_no_usage_where_nobody_asks(self):
        stream = self.client.chat.completions.create(model=self.smol, messages=ASK, max_tokens=4, stream=True)
        self.assertTrue(all(chunk.usage is None for chunk in stream))

    def test_log_probabilities(self):
        answer = self.client.chat.completions.create(model=self.smol, messages=ASK, max_tokens=4, temperature=0,
                                                     logprobs=True, top_logprobs=2)
        entries = answer.choices[0].logprobs.content
        self.assertEqual(len(entries), answer.usage.completion_tokens)
        for entry in entries:
            self.assertLessEqual(entry.logprob, 0)
            self.assertEqual(len(entry.top_logprobs), 2)
            self.assertGreaterEqual(entry.top_logprobs[0].logprob, entry.top_logprobs[1].logprob)

    def test_json_schema(self):
        schema = {"name": "person", "schema": {"type": "object", "properties": {"age": {"type": "integer"}},
                                               "required": ["age"], "additionalProperties": False}}
        answer = self.client.chat.completions.create(model=self.smol, messages=ASK, max_tokens=60, temperature=0,
                                                     response_format={"type": "json_schema", "json_schema": schema})
        self.assertTrue(answer.choices[0].message.content.lstrip().startswith("{"))

    def test_completions(self):
        answer = self.client.completions.create(model=self.base, prompt="The capital of France is", max_tokens=8, temperature=0)
        self.assertEqual(answer.object, "text_completion")
        self.assertTrue(answer.choices[0].text.strip())
        parts = list(self.client.completions.create(model=self.base, prompt="The capital of France is", max_tokens=8,
                                                    temperature=0, stream=True))
        self.assertEqual("".join(part.choices[0].text for part in parts if part.choices), answer.choices[0].text)

    def test_embeddings_in_both_encodings(self):
        floats = self.client.embeddings.create(model=self.embed, input=["a", "b"], encoding_format="float")
        packed = self.client.embeddings.create(model=self.embed, input=["a", "b"])
        self.assertEqual([item.index for item in floats.data], [0, 1])
        for one, other in zip(floats.data, packed.data):
            self.assertEqual(len(one.embedding), 384)
            self.assertAlmostEqual(math.sqrt(sum(x * x for x in one.embedding)), 1, places=3)
            for x, y in zip(one.embedding, other.embedding):
                self.assertAlmostEqual(x, y, places=5)

    def test_models(self):
        names = {model.id: model for model in self.client.models.list()}
        self.assertIn("smol:latest", names)
        self.assertEqual(names["smol:latest"].owned_by, "library")
        self.assertEqual(self.client.models.retrieve("smol").object, "model")

    def test_refusals_are_openai_s(self):
        with self.assertRaises(openai.NotFoundError) as caught:
            self.client.chat.completions.create(model="ghost", messages=ASK)
        self.assertIn("ghost", str(caught.exception))
        with self.assertRaises(openai.NotFoundError):
            self.client.models.retrieve("ghost")
        with self.assertRaises(openai.BadRequestError):
            self.client.chat.completions.create(model=self.smol, messages=[])
        with self.assertRaises(openai.BadRequestError):
            self.client.embeddings.create(model=self.embed, input="x", encoding_format="x")


class OpenAiPythonOnMlx(OpenAiPython):
    backend = "mlx"


if __name__ == "__main__":
    unittest.main()
