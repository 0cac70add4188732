#!/usr/bin/env python3
"""Copies a checkpoint and makes its 16-bit floats 32-bit ones: scales, biases, norms. Quantised weights stay as they are.

    mlx_float32.py FOLDER OUTPUT

For `ollmlx-stress compare-mlx`: on a CPU, mlx-lm is some thirty times faster with such a copy. Needs numpy.
"""

import json
import shutil
import struct
import sys
from pathlib import Path

import numpy as np


def wide(kind, data):
    if kind == "F16":
        return np.frombuffer(data, np.float16).astype(np.float32).tobytes()
    if kind == "BF16":
        return (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).tobytes()
    return data


def widen(source, target):
    with open(source, "rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
        body = file.read()
    pieces, offset = [], 0
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        pieces.append(wide(entry["dtype"], body[begin:end]))
        entry["dtype"] = {"F16": "F32", "BF16": "F32"}.get(entry["dtype"], entry["dtype"])
        entry["data_offsets"] = [offset, offset + len(pieces[-1])]
        offset += len(pieces[-1])
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(target, "wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        out.writelines(pieces)


def main():
    source, target = Path(sys.argv[1]), Path(sys.argv[2])
    target.mkdir(parents=True, exist_ok=True)
    for file in sorted(source.iterdir()):
        if file.suffix == ".safetensors":
            widen(file, target / file.name)
        elif file.is_file():
            shutil.copyfile(file, target / file.name)


if __name__ == "__main__":
    main()
