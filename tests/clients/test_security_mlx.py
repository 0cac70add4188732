"""MLX checkpoints made to harm (see `security.py`)."""

import os
import shutil
import unittest

import forge
import hostile
import house
from forge import MB, safetensors
from security import HICCUP_S, Bystander, Checked, Peak, check, error_of, inspect

TWICE = b'"t":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'


class Mlx(Checked):
    def inspects(self, where, what, codes, most):
        status, text, size, took = inspect("mlx", where)
        bounded = size < most and took < 5 * house.PATIENCE
        self.expect(status in codes and bounded, f"{what}: inspector {status}, {size // MB} MB, {took:.1f} s {text[:80]}")

    @check
    def test_s27_a_header_is_bounded(self):
        empty = b'"t%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
        many = b"{" + b",".join(empty % number for number in range(10**6)) + b"}"
        cases = [
            ("n 2^62", {}, 2**62),
            ("n over file", {}, 4096),
            ("200 MB header", b"{" + b" " * (200 * MB) + b"}", None),
            ("not JSON", b"abc", None),
            ("not an object", b"[]", None),
            ("100000 deep", b'{"a":' * 100000, None),
            ("100000 deep list", b'{"a":' + b"[" * 100000, None),
            ("same name twice", b"{" + TWICE + b"," + TWICE + b"}", None),
            ("metadata of numbers", {"__metadata__": {"a": 1}}, None),
            ("metadata a list", {"__metadata__": []}, None),
            ("10^6 tensors", many, None),
            ("empty", b"", None),
            ("NULs", b"\0" * 100, None),
        ]
        for what, header, n in cases:
            where = self.checkpoint(header=header, data=b"\0" * 4, n=n)
            self.refuses_folder(where, what, ["model.safetensors"])
            self.inspects(where, what, (2,), 512 * MB)
            shutil.rmtree(where)
        short = self.checkpoint()
        for length in (0, 1, 7, 8, 9):
            forge.write(os.path.join(short, "model.safetensors"), safetensors({})[:length])
            self.refuses_folder(short, f"{length} bytes")

    @check
    def test_s29_numbers_of_a_config(self):
        bads = {
            "num_hidden_layers": [1431655766, 0, -1, 1e308, "12", None, [], 2**63, 1.5, True],
            "hidden_size": [0, -32, 2**31, "32", 33],
            "num_attention_heads": [0, -1, 2**32, 3],
            "vocab_size": [2**40, 0, -1, "x"],
            "head_dim": [0, -1, 2**31],
            "num_key_value_heads": [0, -1, 2**31, 3, 4],
            "intermediate_size": [0, -1, 2**40],
            "max_position_embeddings": [0, -1, 2**63, "x"],
            "rms_norm_eps": ["x", -1, "1e999"],
            "rope_theta": [0, -1, "x"],
            "model_type": [7, "", "../../x", None, "x" * 100000],
            "quantization": [
                {"bits": 0, "group_size": 64},
                {"bits": 64, "group_size": 64},
                {"bits": "4", "group_size": 64},
                {"bits": 4, "group_size": 0},
                {"bits": 4, "group_size": -1},
                {"bits": 4, "group_size": 2**40},
                7,
                [],
                {"bits": 4},
                {"mode": "zzz", "bits": 4, "group_size": 64},
            ],
            "rope_scaling": [
                7,
                {"type": "zzz"},
                {"type": "linear", "factor": 0},
                {"type": "linear", "factor": -1},
                {"rope_type": "llama3", "factor": "x"},
            ],
            "tie_word_embeddings": ["x", 7],
            "eos_token_id": [2**40, -1, "x", [2**40], 258, 9999],
        }
        taken = []
        for key, values in bads.items():
            for value in values:
                where, what = self.checkpoint(config={key: value}), f"{key} = {str(value)[:40]}"
                self.inspects(where, what, (0, 2), 256 * MB)
                status, text, took = self.ask(where)
                self.expect(took < 8 * house.PATIENCE, f"{what}: {took:.1f} s")
                if status == 200:
                    taken.append(what)
                    continue
                error, died = error_of(text), self.server.deaths(where)
                if not any(word in error for word in (key, "bits", "group_size", "mode", "rope")):
                    self.note(f"{what}: key not named: {error[-70:]}")
                self.expect(died <= 3, f"{what}: {died} deaths")
                if died:
                    self.note(f"{what}: worker died {died}x: {error[-60:]}")
        self.note("accepted: " + "; ".join(taken))

    @check
    def test_s29_a_config_that_is_none(self):
        cases = {
            "100 MB": b'{"a":"' + b"x" * (100 * MB) + b'"}', "10^5 deep": b'{"a":' * 100000 + b"1" + b"}" * 100000,
            "not JSON": b"{", "list": b"[]", "NaN": b'{"num_hidden_layers":NaN}', "empty": b"",
        }
        for what, text in cases.items():
            where = self.checkpoint(raw_config=text)
            self.refuses_folder(where, f"config of {what}", ["config.json"])
            self.inspects(where, f"config of {what}", (2,), 256 * MB)
            shutil.rmtree(where)

    @check
    def test_s31_a_tokenizer_is_code(self):
        calm, usual = self.calm_median(), None
        options = {"num_predict": 2, "num_ctx": 40000, "temperature": 0}
        for what, tokenizer in hostile.tokenizers():
            where = self.checkpoint(config={"max_position_embeddings": 40000}, tokenizer=tokenizer)
            bystander, peak = Bystander(self.server, self.calm, rest=0, tokens=16), Peak(self.server)
            bystander.start()
            status, text, took = self.ask(where, "a" * 30000, timeout=90, options=options, raw=True)
            bystander.stop()
            grew = peak.stop()
            usual = usual or took  # Of the plain one: what 30,000 tokens cost here, whoever cuts them.
            told = f"{what}: {status} {error_of(text)[-60:]} in {took:.1f} s"
            self.expect(took < 2 * usual + 5, f"{told}, plain {usual:.1f} s")
            self.expect(grew < 1000 * MB, f"{told}, the worker grew by {grew // MB} MB")
            pace = f"a bystander's token takes {bystander.median() * 1000:.0f} ms, calm {calm * 1000:.0f}"
            self.expect(bystander.median() < 3 * calm + HICCUP_S, f"{told}, {pace}")
            self.expect(self.server.deaths(where) <= 3, f"{told}, {self.server.deaths(where)} deaths")
            self.unload(where)
            shutil.rmtree(where)


if __name__ == "__main__":
    unittest.main()
