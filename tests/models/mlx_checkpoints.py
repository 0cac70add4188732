#!/usr/bin/env python3
"""Makes an MLX checkpoint, 4 bits in groups of 64, of a GGUF file: the test models for the MLX backend.

    mlx_checkpoints.py MODEL.gguf FOLDER

It knows the architectures of the test models, llama and gemma3. Needs the packages gguf and numpy, and no MLX: every
step is defined to the bit, so that a file gives the same checkpoint on every machine (`golden/` counts on that).
"""

import json
import os
import shutil
import struct
import sys
from pathlib import Path

import gguf
import numpy as np

GROUP, BITS = 64, 4
LEVELS = (1 << BITS) - 1
ROWS = 8192  # As many rows of a matrix are floats at a time.
NAMES = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm",
    "attn_norm": "input_layernorm", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}
NORMS = {
    "llama": {"ffn_norm": "post_attention_layernorm"},
    "gemma3": {"post_attention_norm": "post_attention_layernorm", "ffn_norm": "pre_feedforward_layernorm",
               "post_ffw_norm": "post_feedforward_layernorm"},
}


def hugging_face_name(name, architecture):
    """Without `.weight`."""
    if name == "token_embd.weight":
        return "model.embed_tokens"
    if name == "output_norm.weight":
        return "model.norm"
    _, layer, part, _ = name.split(".")
    return f"model.layers.{layer}.{(NAMES | NORMS[architecture])[part]}"


class Half:
    """16-bit floats in the two kinds, as bits."""

    def __init__(self, kind):
        self.kind = kind

    def bits(self, values):
        if self.kind == "F16":
            return values.astype(np.float16).view(np.uint16)
        bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def quantized(rows, half):
    """MLX's affine quantisation: value = scale * level + bias, where one end of a group and zero are exact."""
    groups = rows.reshape(rows.shape[0], -1, GROUP).astype(np.float32)
    low, high = groups.min(axis=-1), groups.max(axis=-1)
    from_low = np.abs(low) > np.abs(high)
    scale = np.maximum((high - low) / np.float32(LEVELS), np.float32(1e-7))
    scale = np.where(from_low, scale, -scale)
    edge = np.where(from_low, low, high)
    steps = np.rint(edge / scale)
    exact = steps != 0
    scale = np.where(exact, edge / np.where(exact, steps, 1), scale).astype(np.float32)
    bias = np.where(exact, edge, 0).astype(np.float32)
    levels = np.clip(np.rint((groups - bias[..., None]) / scale[..., None]), 0, LEVELS).astype(np.uint32)
    levels = levels.reshape(rows.shape[0], -1, 32 // BITS)
    packed = np.zeros(levels.shape[:2], np.uint32)
    for place in range(32 // BITS):
        packed |= levels[..., place] << np.uint32(BITS * place)
    return packed, half.bits(scale), half.bits(bias)


def split_halves(rows, heads):
    """llama.cpp interleaves the two halves of each head's rotated pairs; Hugging Face keeps them apart."""
    width = rows.shape[0] // heads
    return rows.reshape(heads, width // 2, 2, -1).swapaxes(1, 2).reshape(rows.shape)


def tensors(reader, architecture, half, heads):
    """{name: (type, array)} of the checkpoint. `heads` by the part whose rows are to be put in order."""
    found = {}
    for tensor in reader.tensors:
        name = hugging_face_name(tensor.name, architecture)
        shape = [int(size) for size in reversed(tensor.shape)]
        if len(shape) == 1:
            values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
            # llama.cpp stores Gemma's norms with one added.
            found[name + ".weight"] = (half.kind, half.bits(values - 1 if architecture == "gemma3" else values))
            continue
        pieces = []
        for start in range(0, shape[0], ROWS):
            rows = gguf.quants.dequantize(tensor.data[start:start + ROWS], tensor.tensor_type).reshape(-1, shape[1])
            part = tensor.name.split(".")[2] if tensor.name.startswith("blk.") else ""
            pieces.append(quantized(split_halves(rows, heads[part]) if part in heads else rows, half))
        kinds = ("U32", half.kind, half.kind)
        for end, kind, arrays in zip(("weight", "scales", "biases"), kinds, zip(*pieces)):
            found[f"{name}.{end}"] = (kind, np.concatenate(arrays))
    return found


def save_safetensors(path, found):
    header, offset = {"__metadata__": {"format": "mlx"}}, 0
    for name in sorted(found):
        kind, array = found[name]
        header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": [offset, offset + array.nbytes]}
        offset += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for name in sorted(found):
            out.write(found[name][1].tobytes())


def merges_of_scores(pieces, scores, kinds):
    """A SentencePiece vocabulary joins the pair that makes the best piece: as a list, pairs by their piece's score."""
    known = {piece: number for number, piece in enumerate(pieces)}
    found = []
    for number, piece in enumerate(pieces):
        if kinds[number] in (gguf.TokenType.CONTROL, gguf.TokenType.BYTE, gguf.TokenType.UNUSED):
            continue
        for cut in range(1, len(piece)):
            left, right = known.get(piece[:cut]), known.get(piece[cut:])
            if left is not None and right is not None:
                found.append((-scores[number], number, -cut, piece[:cut], piece[cut:]))
    found.sort()
    return [[left, right] for *_, left, right in found]


def tokenizer(field, architecture):
    pieces, kinds = field("tokenizer.ggml.tokens"), field("tokenizer.ggml.token_type")
    added = [
        {"id": number, "content": piece, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
         "special": kinds[number] == gguf.TokenType.CONTROL}
        for number, piece in enumerate(pieces)
        if kinds[number] in (gguf.TokenType.CONTROL, gguf.TokenType.USER_DEFINED)
    ]
    model = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
             "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
             "vocab": {piece: number for number, piece in enumerate(pieces)}}
    whole = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
             "pre_tokenizer": None, "post_processor": None, "decoder": None, "model": model}
    if architecture == "llama":
        if field("tokenizer.ggml.pre") != "smollm":
            raise SystemExit(f"how {field('tokenizer.ggml.pre')} cuts text into words is not known here")
        model["merges"] = [merge.split(" ") for merge in field("tokenizer.ggml.merges")]
        bytes_of = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
        digits = {"type": "Digits", "individual_digits": True}
        whole |= {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [digits, bytes_of]}, "decoder": bytes_of}
        return whole
    model |= {"merges": merges_of_scores(pieces, field("tokenizer.ggml.scores"), kinds), "unk_token": "<unk>",
              "fuse_unk": True, "byte_fallback": True}
    start = pieces[field("tokenizer.ggml.bos_token_id")]
    once = [{"SpecialToken": {"id": start, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    twice = [{"SpecialToken": {"id": start, "type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}}]
    special = {start: {"id": start, "ids": [field("tokenizer.ggml.bos_token_id")], "tokens": [start]}}
    space = "\u2581"
    whole["normalizer"] = {"type": "Replace", "pattern": {"String": " "}, "content": space}
    whole["post_processor"] = {"type": "TemplateProcessing", "single": once, "pair": once + twice, "special_tokens": special}
    back = {"type": "Replace", "pattern": {"String": space}, "content": " "}
    whole["decoder"] = {"type": "Sequence", "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}]}
    return whole


def tokenizer_config(field):
    pieces = field("tokenizer.ggml.tokens")
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False,
              "bos_token": pieces[field("tokenizer.ggml.bos_token_id")],
              "eos_token": pieces[field("tokenizer.ggml.eos_token_id")]}
    template = field("tokenizer.chat_template")
    return config | ({"chat_template": template} if template else {})


def config(field, architecture, half):
    def of(name, default=None):
        return field(f"{architecture}.{name}", default)

    heads = of("attention.head_count")
    common = {
        "hidden_size": of("embedding_length"), "num_hidden_layers": of("block_count"),
        "intermediate_size": of("feed_forward_length"), "num_attention_heads": heads,
        "num_key_value_heads": of("attention.head_count_kv", heads), "vocab_size": len(field("tokenizer.ggml.tokens")),
        "rms_norm_eps": float(f"{of('attention.layer_norm_rms_epsilon'):.6g}"), "tie_word_embeddings": True,
        "head_dim": of("attention.key_length", of("embedding_length") // heads),
        "max_position_embeddings": of("context_length"), "rope_theta": of("rope.freq_base", 10000.0),
        "bos_token_id": field("tokenizer.ggml.bos_token_id"), "eos_token_id": field("tokenizer.ggml.eos_token_id"),
        "torch_dtype": {"F16": "float16", "BF16": "bfloat16"}[half.kind],
        "quantization": {"group_size": GROUP, "bits": BITS},
    }
    if architecture == "llama":
        return common | {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu"}
    return common | {
        "architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "query_pre_attn_scalar": common["head_dim"],
        "rope_local_base_freq": 10000.0, "sliding_window": of("attention.sliding_window"), "sliding_window_pattern": 6,
    }


def main():
    source, target = Path(sys.argv[1]), Path(sys.argv[2])
    reader = gguf.GGUFReader(source)

    def field(name, default=None):
        found = reader.fields.get(name)
        return default if found is None else found.contents()

    architecture = field("general.architecture")
    if architecture not in NORMS:
        raise SystemExit(f"architecture {architecture} is not known here")
    half = Half("BF16" if architecture == "gemma3" else "F16")
    whole = config(field, architecture, half)
    heads = {}
    if architecture == "llama":
        heads = {"attn_q": whole["num_attention_heads"], "attn_k": whole["num_key_value_heads"]}
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_safetensors(partial / "model.safetensors", tensors(reader, architecture, half, heads))
    for name, value in (("config.json", whole), ("tokenizer.json", tokenizer(field, architecture)),
                        ("tokenizer_config.json", tokenizer_config(field))):
        (partial / name).write_text(json.dumps(value, ensure_ascii=False, indent=1), encoding="utf-8")
    os.replace(partial, target)


if __name__ == "__main__":
    main()
