#!/usr/bin/env python3
"""A GGUF file with the first layers of another one: the same engine, tokenizer and template, a fraction of the work. What
it says is gibberish, and always the same.

usage: cut_gguf.py FILE LAYERS DESTINATION
"""

import re
import sys

from gguf import GGUFReader, GGUFValueType, GGUFWriter


def main():
    source, layers, destination = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    reader = GGUFReader(source)
    family = reader.get_field("general.architecture").contents()
    writer = GGUFWriter(destination, family)
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        value = layers if field.name == f"{family}.block_count" else field.contents()
        kind, *of = field.types
        writer.add_key_value(field.name, value, kind, of[-1] if kind == GGUFValueType.ARRAY else None)
    for tensor in reader.tensors:
        layer = re.match(r"blk\.(\d+)\.", tensor.name)
        if layer is None or int(layer[1]) < layers:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
