#!/usr/bin/env python3
"""Writes what mlx-lm answers to a few prompts, greedily, for tests/clients/test_mlx.py to compare our server with.

    mlx_golden.py FOLDER OUTPUT.json [COUNT]      # COUNT tokens an answer, 64 where nothing is said

Needs `mlx[cpu]` and `mlx-lm`, both 0.32.2. Weights stay as they are; scales, biases and norms become 32-bit floats, as
our worker computes on a CPU (stock half precision decodes 0.3 tokens/s there). `least_margin` is the least difference
between the best two logits on the way: below about 0.001 two correct programs may part.
"""

import hashlib
import json
import sys
import time
from pathlib import Path

import mlx.core as mx
from mlx.utils import tree_map
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load

UNFINISHED = "\ufffd"  # What stands for a character whose last bytes were not to come.
RAW = [
    "The capital of France is",
    "Once upon a time, in a small village by the sea,",
    "def fibonacci(n):\n    ",
    "The three states of matter are solid, liquid and",
    "1, 2, 3, 4, 5, 6,",
]
CHATS = [
    [{"role": "user", "content": "Name three colours."}],
    [{"role": "user", "content": "Why is the sky blue?"}],
    [{"role": "system", "content": "You are a pirate."}, {"role": "user", "content": "Tell me of your ship."}],
    [{"role": "user", "content": "Übersetze „Guten Morgen“ ins Englische. 😀"}],
    [{"role": "user", "content": "My name is Ada."}, {"role": "assistant", "content": "Hello Ada!"},
     {"role": "user", "content": "Write a poem about my name."}],
]


def answer(model, tokenizer, tokens, count):
    ends = set(tokenizer.eos_token_ids)
    cache = make_prompt_cache(model)
    logits = model(mx.array([tokens]), cache=cache)[0, -1]
    found, least = [], float("inf")
    while len(found) < count:
        best = mx.sort(logits)[-2:]
        least = min(least, (best[1] - best[0]).item())
        token = mx.argmax(logits).item()
        if token in ends:
            break
        found.append(token)
        logits = model(mx.array([[token]]), cache=cache)[0, -1]
    ended = len(found) < count
    return {"prompt_tokens": len(tokens), "tokens": len(found), "done_reason": "stop" if ended else "length",
            "text": tokenizer.decode(found).rstrip(UNFINISHED), "least_margin": round(least, 5)}


def main():
    folder, output = Path(sys.argv[1]), Path(sys.argv[2])
    count = int(sys.argv[3]) if len(sys.argv) > 3 else 64
    model, tokenizer = load(str(folder))
    wide = {mx.float16: mx.float32, mx.bfloat16: mx.float32}
    model.update(tree_map(lambda array: array.astype(wide.get(array.dtype, array.dtype)), model.parameters()))
    cases = [({"prompt": prompt}, tokenizer.encode(prompt)) for prompt in RAW]
    if tokenizer.chat_template:
        cases += [({"messages": chat}, tokenizer.apply_chat_template(chat, add_generation_prompt=True)) for chat in CHATS]
    begin, answers = time.monotonic(), []
    for ask, tokens in cases:
        answers.append(ask | answer(model, tokenizer, list(tokens), count))
        print(answers[-1], file=sys.stderr)
    total = sum(one["tokens"] for one in answers)
    print(f"{total / (time.monotonic() - begin):.1f} tokens/s", file=sys.stderr)
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    whole = {"model_sha256": digest, "num_predict": count, "answers": answers}
    output.write_text(json.dumps(whole, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
