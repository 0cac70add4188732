"""Makes MLX checkpoints of the test models from their GGUF files, and checks our engine against mlx-lm.

    python mlx_checkpoints.py smollm2 MODEL.gguf OUTPUT      # needs gguf2mlx
    python mlx_checkpoints.py gemma3 MODEL.gguf OUTPUT       # needs gguf, gguf2mlx
    python mlx_checkpoints.py golden FOLDER PROMPT [COUNT]   # tokens and speed of mlx-lm, floats as 32 bits

All need `mlx[cpu]` and `mlx-lm` 0.32.2. `golden` prints what `cargo run --example run FOLDER text PROMPT COUNT` prints.
"""
import json
import subprocess
import sys
import time
from pathlib import Path


def smollm2(source, target):
    subprocess.run([Path(sys.executable).parent / "gguf2mlx", "--offline", "-i", source, "-o", target, "--quantize",
                    "--q-bits", "4", "--q-group-size", "64"], check=True)


NAMES = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm",
    "attn_norm": "input_layernorm", "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm", "post_ffw_norm": "post_feedforward_layernorm",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}


def hugging_face_name(name):
    if name == "token_embd.weight":
        return "model.embed_tokens.weight"
    if name == "output_norm.weight":
        return "model.norm.weight"
    _, layer, part, _ = name.split(".")
    return f"model.layers.{layer}.{NAMES[part]}.weight"


def gemma3(source, target):
    """gguf2mlx refuses this architecture; llama.cpp stores its norms with one added."""
    import gguf
    import mlx.core as mx
    import numpy as np
    reader = gguf.GGUFReader(source)
    target = Path(target)
    target.mkdir(parents=True, exist_ok=True)
    def field(name, default=None):
        found = reader.fields.get("gemma3." + name)
        return found.contents() if found else default
    weights = {}
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        values = values.reshape([int(n) for n in reversed(tensor.shape)])
        name = hugging_face_name(tensor.name)
        if values.ndim == 1:
            weights[name] = mx.array(values - 1.0).astype(mx.bfloat16)
            continue
        path = name.removesuffix(".weight")
        weights[name], scales, biases = mx.quantize(mx.array(values).astype(mx.bfloat16), group_size=64, bits=4)
        weights[path + ".scales"], weights[path + ".biases"] = scales, biases
    mx.save_safetensors(str(target / "model.safetensors"), weights, metadata={"format": "mlx"})
    config = dict(
        model_type="gemma3_text", hidden_size=field("embedding_length"), num_hidden_layers=field("block_count"),
        intermediate_size=field("feed_forward_length"), num_attention_heads=field("attention.head_count"),
        num_key_value_heads=field("attention.head_count_kv"), head_dim=field("attention.key_length"),
        rms_norm_eps=1e-6, vocab_size=int(weights["model.embed_tokens.weight"].shape[0]),
        max_position_embeddings=field("context_length"), rope_theta=field("rope.freq_base", 1e6),
        rope_local_base_freq=10000.0, sliding_window=field("attention.sliding_window", 512), sliding_window_pattern=6,
        query_pre_attn_scalar=256, tie_word_embeddings=True, bos_token_id=2, eos_token_id=[1, 106],
        quantization=dict(group_size=64, bits=4))
    (target / "config.json").write_text(json.dumps(config, indent=1))
    from gguf2mlx.gguf2mlx import extract_tokenizer
    extract_tokenizer(reader, target)


def golden(folder, prompt, count=64):
    import mlx.core as mx
    from mlx.utils import tree_map
    from mlx_lm.models.cache import make_prompt_cache
    from mlx_lm.utils import load
    model, tokenizer = load(folder)
    model.update(tree_map(lambda a: a.astype(mx.float32) if a.dtype in (mx.float16, mx.bfloat16) else a,
                          model.parameters()))
    tokens = tokenizer.encode(prompt)
    print("prompt tokens", tokens)
    cache = make_prompt_cache(model)
    logits = model(mx.array([tokens]), cache=cache)[0, -1]
    out, started = [], time.time()
    for _ in range(int(count)):
        out.append(mx.argmax(logits).item())
        logits = model(mx.array([[out[-1]]]), cache=cache)[0, -1]
    print("tokens", out)
    print(tokenizer.decode(out))
    print(f"{int(count) / (time.time() - started):.1f} tokens/s", file=sys.stderr)


if __name__ == "__main__":
    {"smollm2": smollm2, "gemma3": gemma3, "golden": golden}[sys.argv[1]](*sys.argv[2:])
