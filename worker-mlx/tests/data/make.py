"""Makes the tiny random checkpoints of this folder, with golden logits of mlx-lm (needs `mlx[cpu]` and `mlx-lm` 0.32.2).

    python make.py [NAME…]

Weights are stored as bfloat16 and computed as 32-bit floats, on both sides.
"""
import importlib
import json
import math
import sys
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_map
from mlx_lm.models.cache import make_prompt_cache

# mlx-lm 0.32.2 passes an argument that MLX 0.32.2 does not know; it is None for affine weights.
gather_qmm = mx.gather_qmm
mx.gather_qmm = lambda *args, global_scale=None, **rest: gather_qmm(*args, **rest)

HERE = Path(__file__).parent
VOCAB = 288
COMMON = dict(
    hidden_size=64, num_hidden_layers=3, intermediate_size=96, num_attention_heads=4, num_key_value_heads=2,
    head_dim=16, rms_norm_eps=1e-5, vocab_size=VOCAB, max_position_embeddings=512, eos_token_id=257, bos_token_id=256,
)
FAMILIES = {
    "llama": dict(model_type="llama", rope_theta=10000.0, tie_word_embeddings=False, rope_scaling=dict(
        rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32)),
    "llama-4bit": dict(model_type="llama", rope_theta=10000.0, tie_word_embeddings=True),
    "llama-sliding": dict(model_type="llama", rope_theta=10000.0, tie_word_embeddings=True, sliding_window=8,
                          layer_types=["sliding_attention", "full_attention", "sliding_attention"]),
    "gemma3": dict(model_type="gemma3_text", rope_theta=1e6, rope_local_base_freq=1e4, sliding_window=8,
                   sliding_window_pattern=3, query_pre_attn_scalar=16, rope_scaling=dict(rope_type="linear", factor=4.0)),
    "gemma2": dict(model_type="gemma2", rope_theta=1e4, query_pre_attn_scalar=24, attn_logit_softcapping=5.0,
                   final_logit_softcapping=3.0, tie_word_embeddings=True, sliding_window=4096),
    "qwen2": dict(model_type="qwen2", rope_theta=1e6, tie_word_embeddings=True),
    "qwen3": dict(model_type="qwen3", rope_theta=1e6, tie_word_embeddings=True, rope_scaling=dict(
        rope_type="yarn", factor=4.0, original_max_position_embeddings=64)),
    "qwen3_moe": dict(model_type="qwen3_moe", rope_theta=1e6, tie_word_embeddings=False, num_experts=8,
                      num_experts_per_tok=2, decoder_sparse_step=1, mlp_only_layers=[1], moe_intermediate_size=32,
                      norm_topk_prob=True),
    "phi3": dict(model_type="phi3", rope_theta=1e4, tie_word_embeddings=False, partial_rotary_factor=1.0,
                 original_max_position_embeddings=64, rope_scaling=dict(
                     type="longrope", short_factor=[1.0] * 8, long_factor=[1.0 + i / 4 for i in range(8)],
                     original_max_position_embeddings=64)),
    "qwen3_moe-4bit": dict(model_type="qwen3_moe", rope_theta=1e6, tie_word_embeddings=False, num_experts=4,
                           num_experts_per_tok=2, decoder_sparse_step=1, mlp_only_layers=[], moe_intermediate_size=32,
                           norm_topk_prob=True),
    "llama-mixed": dict(model_type="llama", rope_theta=10000.0, tie_word_embeddings=False),
    "llama-mxfp4": dict(model_type="llama", rope_theta=10000.0, tie_word_embeddings=True),
    "llama-mxfp8": dict(model_type="llama", rope_theta=10000.0, tie_word_embeddings=True),
    "llama-nvfp4": dict(model_type="llama", rope_theta=10000.0, tie_word_embeddings=False),
    "qwen3_moe-mxfp4": dict(model_type="qwen3_moe", rope_theta=1e6, tie_word_embeddings=False, num_experts=4,
                            num_experts_per_tok=2, decoder_sparse_step=1, mlp_only_layers=[], moe_intermediate_size=32,
                            norm_topk_prob=True),
}
GROUPS = {"mxfp4": (32, 4), "mxfp8": (32, 8), "nvfp4": (16, 4)}


def tokenizer():
    """A byte-level vocabulary without merges, and a few added tokens."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters, extra = {}, 0
    for byte in range(256):
        if byte in plain:
            letters[byte] = chr(byte)
        else:
            letters[byte] = chr(256 + extra)
            extra += 1
    added = [("<|bos|>", True), ("<|im_end|>", True), ("<|im_start|>", True), ("<think>", False)]
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [dict(id=256 + i, content=text, single_word=False, lstrip=False, rstrip=False, normalized=False,
                              special=special) for i, (text, special) in enumerate(added)],
        "normalizer": None,
        "pre_tokenizer": dict(type="ByteLevel", add_prefix_space=False, trim_offsets=True, use_regex=True),
        "post_processor": None,
        "decoder": dict(type="ByteLevel", add_prefix_space=True, trim_offsets=True, use_regex=True),
        "model": dict(type="BPE", dropout=None, unk_token=None, continuing_subword_prefix=None, end_of_word_suffix=None,
                      fuse_unk=False, byte_fallback=False, vocab={letters[b]: b for b in range(256)}, merges=[]),
    }


def write_tokenizer(folder):
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer(), ensure_ascii=False))
    (folder / "tokenizer_config.json").write_text(json.dumps(dict(
        bos_token="<|bos|>", eos_token="<|im_end|>", add_bos_token=True, chat_template="{{ messages[0].content }}")))


def randomise(model):
    def change(path, array):
        if array.ndim == 1:
            return array + 0.2 * mx.random.normal(array.shape)
        return array * 1.5
    flat = [(path, change(path, array).astype(mx.bfloat16)) for path, array in tree_flatten(model.parameters())]
    model.load_weights(flat)


def run(model, prompt, lengths, count):
    rows = []
    for length in lengths:
        logits = model(mx.array([prompt[:length]]), cache=make_prompt_cache(model))[0, -1]
        rows.append([round(float(value), 6) for value in logits.tolist()])
    cache = make_prompt_cache(model)
    logits = model(mx.array([prompt]), cache=cache)[0, -1]
    greedy = []
    for _ in range(count):
        token = mx.argmax(logits).item()
        greedy.append(token)
        logits = model(mx.array([[token]]), cache=cache)[0, -1]
    return rows, greedy


def decoder(name, family, seed):
    mx.random.seed(seed)
    folder = HERE / name
    folder.mkdir(exist_ok=True)
    config = {**COMMON, **family}
    module = importlib.import_module("mlx_lm.models." + config["model_type"])
    model = module.Model(module.ModelArgs.from_dict(config))
    randomise(model)
    if name.endswith("4bit"):
        # As mlx-lm's converter does: some layers, routers among them, get more bits than the rest.
        finer = [p for p, m in model.named_modules() if p.endswith(("layers.1.mlp.down_proj", "mlp.gate"))]
        wide = dict(group_size=32, bits=8)
        config["quantization"] = dict(group_size=32, bits=4, **{path: wide for path in finer})
        nn.quantize(model, 32, 4, class_predicate=lambda path, m: hasattr(m, "to_quantized")
                    and (wide if path in finer else True))
    if name.endswith("-mixed"):
        # Every width that the affine mode has, by layer.
        bits = {"layers.0": 2, "layers.1": 3, "layers.2": 5, "lm_head": 6, "embed_tokens": 8}
        own = {path: dict(group_size=32, bits=next(n for part, n in bits.items() if part in path))
               for path, m in model.named_modules() if hasattr(m, "to_quantized")}
        config["quantization"] = dict(group_size=64, bits=4, **own)
        nn.quantize(model, 64, 4, class_predicate=lambda path, m: own.get(path, False))
    if (mode := name.rsplit("-")[-1]) in GROUPS:
        group_size, bits = GROUPS[mode]
        config["quantization"] = dict(group_size=group_size, bits=bits, mode=mode)
        nn.quantize(model, group_size, bits, mode=mode)
    weights = dict(tree_flatten(model.parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    write_tokenizer(folder)
    model.update(tree_map(lambda a: a.astype(mx.float32) if a.dtype == mx.bfloat16 else a, model.parameters()))
    prompt = [int(value) for value in np.random.default_rng(seed).integers(0, 256, 40)]
    lengths = [1, 7, 40]
    rows, greedy = run(model, prompt, lengths, 24)
    (folder / "golden.json").write_text(json.dumps(dict(prompt=prompt, lengths=lengths, logits=rows, greedy=greedy)))
    print(name, "greedy", greedy)


def bert(seed):
    """BERT has no model in mlx-lm; the reference is written out here, in NumPy."""
    rng = np.random.default_rng(seed)
    folder = HERE / "bert"
    folder.mkdir(exist_ok=True)
    hidden, layers, heads, inner, context = 32, 2, 4, 64, 64
    config = dict(model_type="bert", hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads,
                  intermediate_size=inner, vocab_size=VOCAB, max_position_embeddings=context, type_vocab_size=2,
                  layer_norm_eps=1e-12, hidden_act="gelu")
    w = {}
    def make(name, *shape, base=0.0, scale=0.3):
        w[name] = (base + scale * rng.standard_normal(shape)).astype(np.float32)
    make("embeddings.word_embeddings.weight", VOCAB, hidden)
    make("embeddings.position_embeddings.weight", context, hidden)
    make("embeddings.token_type_embeddings.weight", 2, hidden)
    def norm(name):
        make(name + ".weight", hidden, base=1.0)
        make(name + ".bias", hidden)
    norm("embeddings.LayerNorm")
    for i in range(layers):
        p = f"encoder.layer.{i}."
        for part in ("query", "key", "value"):
            make(p + f"attention.self.{part}.weight", hidden, hidden)
            make(p + f"attention.self.{part}.bias", hidden)
        make(p + "attention.output.dense.weight", hidden, hidden)
        make(p + "attention.output.dense.bias", hidden)
        norm(p + "attention.output.LayerNorm")
        make(p + "intermediate.dense.weight", inner, hidden)
        make(p + "intermediate.dense.bias", inner)
        make(p + "output.dense.weight", hidden, inner)
        make(p + "output.dense.bias", hidden)
        norm(p + "output.LayerNorm")
    mx.save_safetensors(str(folder / "model.safetensors"), {k: mx.array(v) for k, v in w.items()})
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    write_tokenizer(folder)
    erf = np.vectorize(math.erf)
    def ln(x, name):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-12)
        return x * w[name + ".weight"] + w[name + ".bias"]
    def lin(x, name):
        return x @ w[name + ".weight"].T + w[name + ".bias"]
    def embed(tokens):
        n = len(tokens)
        h = w["embeddings.word_embeddings.weight"][tokens] + w["embeddings.position_embeddings.weight"][:n]
        h = ln(h + w["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
        for i in range(layers):
            p = f"encoder.layer.{i}."
            q, k, v = (lin(h, p + f"attention.self.{x}").reshape(n, heads, -1).transpose(1, 0, 2)
                       for x in ("query", "key", "value"))
            s = q @ k.transpose(0, 2, 1) / math.sqrt(hidden // heads)
            s = np.exp(s - s.max(-1, keepdims=True))
            a = (s / s.sum(-1, keepdims=True)) @ v
            h = ln(h + lin(a.transpose(1, 0, 2).reshape(n, hidden), p + "attention.output.dense"), p + "attention.output.LayerNorm")
            f = lin(h, p + "intermediate.dense")
            f = f * 0.5 * (1 + erf(f / math.sqrt(2)))
            h = ln(h + lin(f, p + "output.dense"), p + "output.LayerNorm")
        return h.mean(0)
    inputs = [[5, 9, 200, 17], [1], [int(x) for x in rng.integers(0, 256, 33)]]
    (folder / "golden.json").write_text(json.dumps(dict(
        inputs=inputs, vectors=[[round(float(x), 6) for x in embed(t)] for t in inputs])))


for seed, (name, family) in enumerate(FAMILIES.items()):
    if not sys.argv[1:] or name in sys.argv[1:]:
        decoder(name, family, seed + 1)
if not sys.argv[1:] or "bert" in sys.argv[1:]:
    bert(99)
