#!/usr/bin/env python3
"""Converts all-MiniLM-L6-v2 (a BERT in safetensors) to a GGUF file that llama.cpp loads.

    minilm_gguf.py FOLDER OUTPUT.gguf

FOLDER holds config.json, tokenizer.json and model.safetensors. Needs the packages gguf, numpy and safetensors.
Matrices are stored as 16-bit floats, everything else as 32-bit floats.
"""

import json
import os
import sys

import gguf
import numpy as np
from safetensors.numpy import load_file

LAYER_NAMES = {
    "attention.self.query": "attn_q",
    "attention.self.key": "attn_k",
    "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output",
    "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up",
    "output.dense": "ffn_down",
    "output.LayerNorm": "layer_output_norm",
}
TOP_NAMES = {
    "embeddings.word_embeddings.weight": "token_embd.weight",
    "embeddings.position_embeddings.weight": "position_embd.weight",
    "embeddings.token_type_embeddings.weight": "token_types.weight",
    "embeddings.LayerNorm.weight": "token_embd_norm.weight",
    "embeddings.LayerNorm.bias": "token_embd_norm.bias",
}


def tensor_name(name):
    """llama.cpp's name for a Hugging Face tensor, or None for one that embeddings don't need."""
    if name in TOP_NAMES:
        return TOP_NAMES[name]
    if not name.startswith("encoder.layer."):
        return None
    layer, rest = name.removeprefix("encoder.layer.").split(".", 1)
    stem, kind = rest.rsplit(".", 1)
    return f"blk.{layer}.{LAYER_NAMES[stem]}.{kind}"


def tokens(tokenizer):
    """Spellings and types by id. llama.cpp marks the start of a word, WordPiece its continuation."""
    vocab = sorted(tokenizer["model"]["vocab"].items(), key=lambda item: item[1])
    special = {token["content"] for token in tokenizer["added_tokens"] if token["special"]}
    spellings, kinds = [], []
    for index, (token, number) in enumerate(vocab):
        if index != number:
            raise SystemExit(f"vocabulary has a gap at {index}")
        if token in special:
            spellings.append(token)
            kinds.append(gguf.TokenType.UNKNOWN if token == "[UNK]" else gguf.TokenType.CONTROL)
        else:
            spellings.append(token[2:] if token.startswith("##") else "\u2581" + token)
            kinds.append(gguf.TokenType.NORMAL)
    return spellings, kinds


def main():
    folder, output = sys.argv[1:]
    with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
        config = json.load(file)
    with open(os.path.join(folder, "tokenizer.json"), encoding="utf-8") as file:
        tokenizer = json.load(file)
    tensors = load_file(os.path.join(folder, "model.safetensors"))
    partial = output + ".partial"
    writer = gguf.GGUFWriter(partial, "bert")
    writer.add_name("all-MiniLM-L6-v2")
    writer.add_license("apache-2.0")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_layer_norm_eps(config["layer_norm_eps"])
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType.MEAN)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    spellings, kinds = tokens(tokenizer)
    vocab = tokenizer["model"]["vocab"]
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(spellings)
    writer.add_token_types(kinds)
    writer.add_token_type_count(config["type_vocab_size"])
    writer.add_bos_token_id(vocab["[CLS]"])
    writer.add_eos_token_id(vocab["[SEP]"])
    writer.add_unk_token_id(vocab["[UNK]"])
    writer.add_sep_token_id(vocab["[SEP]"])
    writer.add_pad_token_id(vocab["[PAD]"])
    writer.add_mask_token_id(vocab["[MASK]"])
    for name in sorted(tensors):
        ours = tensor_name(name)
        if ours is None:
            continue
        tensor = tensors[name]
        keep_wide = tensor.ndim == 1 or ours in ("position_embd.weight", "token_types.weight")
        writer.add_tensor(ours, tensor.astype(np.float32 if keep_wide else np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    os.replace(partial, output)


if __name__ == "__main__":
    main()
