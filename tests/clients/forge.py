"""Model files made to harm: GGUF files and MLX checkpoints of our own, in which every number and text can be made to lie. By
default each is a whole small model that loads and talks. Standard library only.
"""

import hashlib
import json
import math
import pathlib
import shutil
import struct

MB = 1 << 20

# Types of values in a GGUF header.
U8, U32, I32, F32, BOOL, STR, ARR, U64, I64 = 0, 4, 5, 6, 7, 8, 9, 10, 11
LETTERS = {U8: "<B", U32: "<I", I32: "<i", F32: "<f", BOOL: "<?", U64: "<Q", I64: "<q"}


def string(text):
    text = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(text)) + text


def value(kind, given):
    """A text may be (length, bytes), an array is (type, count, bytes): both may lie."""
    if kind == STR:
        return struct.pack("<Q", given[0]) + given[1] if isinstance(given, tuple) else string(given)
    if kind == ARR:
        return struct.pack("<IQ", given[0], given[1]) + given[2]
    return struct.pack(LETTERS[kind], given)


def gguf(kv=(), tensors=(), data=b"", magic=b"GGUF", version=3, n_tensors=None, n_kv=None, pad=32):
    """`kv`: (key, type, value); `tensors`: (name, dimensions, type, offset); the counts may lie."""
    n_tensors = len(tensors) if n_tensors is None else n_tensors
    head = magic + struct.pack("<IQQ", version, n_tensors, len(kv) if n_kv is None else n_kv)
    for key, kind, given in kv:
        head += string(key) + struct.pack("<I", kind) + value(kind, given)
    for name, dims, kind, offset in tensors:
        head += string(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)
    return head + b"\0" * (-len(head) % pad) + data


def strs(texts):
    return STR, len(texts), b"".join(string(text) for text in texts)


def nums(kind, numbers):
    return kind, len(numbers), b"".join(value(kind, number) for number in numbers)


LLAMA = [
    ("general.architecture", STR, "llama"),
    ("llama.block_count", U32, 1),
    ("llama.context_length", U32, 512),
    ("llama.embedding_length", U32, 32),
    ("llama.feed_forward_length", U32, 64),
    ("llama.attention.head_count", U32, 2),
    ("llama.attention.layer_norm_rms_epsilon", F32, 1e-5),
]
TOKENS = ["<unk>", "<s>", "</s>"] + ["<0x%02X>" % i for i in range(256)]


def tok(tokens=TOKENS, types=None, scores=None):
    types = types or [2, 3, 3] + [6] * 256 + [1] * (len(tokens) - 259)
    scores = [0.0] * len(tokens) if scores is None else scores
    return [
        ("tokenizer.ggml.model", STR, "llama"),
        ("tokenizer.ggml.tokens", ARR, strs(tokens)),
        ("tokenizer.ggml.scores", ARR, nums(F32, scores)),
        ("tokenizer.ggml.token_type", ARR, nums(I32, types)),
        ("tokenizer.ggml.bos_token_id", U32, 1),
        ("tokenizer.ggml.eos_token_id", U32, 2),
    ]


def floats(count, seed):
    return struct.pack(f"<{count}f", *(((i * 7919 + seed) % 97 - 48) / 200 for i in range(count)))


def tensors(n=len(TOKENS), d=32, ff=64):
    """A whole llama of one layer."""
    names = [
        ("token_embd.weight", (d, n)),
        ("output_norm.weight", (d,)),
        ("blk.0.attn_norm.weight", (d,)),
        ("blk.0.attn_q.weight", (d, d)),
        ("blk.0.attn_k.weight", (d, d)),
        ("blk.0.attn_v.weight", (d, d)),
        ("blk.0.attn_output.weight", (d, d)),
        ("blk.0.ffn_norm.weight", (d,)),
        ("blk.0.ffn_gate.weight", (d, ff)),
        ("blk.0.ffn_up.weight", (d, ff)),
        ("blk.0.ffn_down.weight", (ff, d)),
    ]
    out, data = [], b""
    for name, dims in names:
        c = math.prod(dims)
        out.append((name, dims, 0, len(data)))
        blob = floats(c, len(data))
        data += blob + b"\0" * (-len(blob) % 32)
    return out, data


def tiny(template=None, kv=(), drop=(), tokens=TOKENS, types=None, scores=None, tn=None, data=None, **more):
    """A GGUF file that loads and talks; `kv` replaces keys, `drop` leaves some out."""
    own, numbers = tensors(len(tokens))
    named = {*drop, *(key for key, _, _ in kv)}
    pairs = [pair for pair in LLAMA + tok(tokens, types, scores) if pair[0] not in named] + list(kv)
    pairs += [("tokenizer.chat_template", STR, template)] if template is not None else []
    return gguf(pairs, own if tn is None else tn, numbers if data is None else data, **more)


def safetensors(header, data=b"", n=None):
    """`n`: the header's length, which may lie."""
    head = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(head) if n is None else n) + head + data


def byte_letters():
    """How byte-level vocabularies spell each byte."""
    out, nxt = [], 0x100
    for b in range(256):
        plain = 33 <= b <= 126 or 0xA1 <= b <= 0xAC or 0xAE <= b <= 0xFF
        out.append(chr(b) if plain else chr(nxt))
        nxt += not plain
    return out


def added(token, content, special=False):
    never = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": token, "content": content, "special": special} | never


def mlx_tokenizer(**over):
    """The bytes as tokens, and two ends; `over` replaces its parts."""
    usual = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [added(256, "<s>", special=True), added(257, "</s>", special=True)],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {c: i for i, c in enumerate(byte_letters())},
            "merges": [],
        },
    }
    return usual | over


CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 258,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 512,
    "rope_theta": 1e4,
    "tie_word_embeddings": True,
    "eos_token_id": 257,
    "bos_token_id": 256,
    "hidden_act": "silu",
}


def mlx_weights(v=258, d=32, ff=64):
    layer = "model.layers.0."
    names = [
        ("model.embed_tokens.weight", [v, d]),
        ("model.norm.weight", [d]),
        (layer + "input_layernorm.weight", [d]),
        (layer + "post_attention_layernorm.weight", [d]),
        (layer + "self_attn.q_proj.weight", [d, d]),
        (layer + "self_attn.k_proj.weight", [d, d]),
        (layer + "self_attn.v_proj.weight", [d, d]),
        (layer + "self_attn.o_proj.weight", [d, d]),
        (layer + "mlp.gate_proj.weight", [ff, d]),
        (layer + "mlp.up_proj.weight", [ff, d]),
        (layer + "mlp.down_proj.weight", [d, ff]),
    ]
    header, data = {}, b""
    for name, shape in names:
        c = math.prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [len(data), len(data) + 4 * c]}
        data += floats(c, len(data))
    return header, data


def json_bytes(content):
    return json.dumps(content).encode()


def write(path, content):
    """Bytes, or what is written as JSON."""
    path = pathlib.Path(path)
    path.write_bytes(content if isinstance(content, bytes) else json_bytes(content))
    return str(path)


def checkpoint(where, config=None, tokenizer=None, header=None, data=None, template=None, weights=True, n=None,
               raw_config=None, more=()):
    """An MLX checkpoint in a new folder; `more`: (name, content) of files beside."""
    where = pathlib.Path(where)
    where.mkdir(parents=True)
    write(where / "config.json", CONFIG | (config or {}) if raw_config is None else raw_config)
    write(where / "tokenizer.json", mlx_tokenizer() if tokenizer is None else tokenizer)
    says = {} if template is None else {"chat_template": template}
    write(where / "tokenizer_config.json", {"bos_token": "<s>", "eos_token": "</s>"} | says)
    if weights:
        own, numbers = mlx_weights()
        numbers = numbers if data is None else data
        write(where / "model.safetensors", safetensors(own if header is None else header, numbers, n))
    for name, content in more:
        write(where / name, content)
    return str(where)


def sha256(content):
    return hashlib.sha256(content).hexdigest()


# --- of real models ---

SIZES = {kind: struct.calcsize(letter) for kind, letter in LETTERS.items()}


def skipped(head, at, kind):
    """Where a value of a header ends."""
    if kind == STR:
        return at + 8 + struct.unpack_from("<Q", head, at)[0]
    if kind != ARR:
        return at + SIZES[kind]
    kind, count = struct.unpack_from("<IQ", head, at)
    at += 12
    if kind in SIZES:
        return at + count * SIZES[kind]
    for _ in range(count):
        at = skipped(head, at, kind)
    return at


def retemplated(source, where, template):
    """A real GGUF file with another chat template, at `where`."""
    whole = pathlib.Path(source).read_bytes()
    n_tensors, n_kv = struct.unpack_from("<QQ", whole, 8)
    at, pairs = 24, b""
    for _ in range(n_kv):
        begin, length = at, struct.unpack_from("<Q", whole, at)[0]
        key, at = whole[at + 8:at + 8 + length], at + 8 + length
        at = skipped(whole, at + 4, struct.unpack_from("<I", whole, at)[0])
        if key == b"tokenizer.chat_template":
            n_kv -= 1
        else:
            pairs += whole[begin:at]
    infos = at
    for _ in range(n_tensors):
        at = skipped(whole, at, STR)
        at += 4 + 8 * struct.unpack_from("<I", whole, at)[0] + 12
    own = string("tokenizer.chat_template") + struct.pack("<I", STR) + string(template)
    head = whole[:8] + struct.pack("<QQ", n_tensors, n_kv + 1) + pairs + own + whole[infos:at]
    data = at + -at % 32
    return write(where, head + b"\0" * (-len(head) % 32) + whole[data:])


def altered(source, where, template=None, tokenizer=None):
    """A real MLX checkpoint with another chat template, or other parts of its tokenizer."""
    where = pathlib.Path(where)
    shutil.copytree(source, where, copy_function=shutil.copyfile)
    for name, parts in (("tokenizer_config.json", template and {"chat_template": template}), ("tokenizer.json", tokenizer)):
        if parts:
            write(where / name, json.loads((where / name).read_bytes()) | parts)
    return str(where)
