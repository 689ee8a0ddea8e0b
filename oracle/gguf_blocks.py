"""Blocks of GGUF's quantised types and what the `gguf` package makes of them.

    python oracle/gguf_blocks.py > model/tests/goldens/gguf_blocks.json

Every byte of a block is drawn at random but for its 16-bit scales, which are drawn as numbers, so that none is infinite.
"""
import importlib.metadata
import json

import numpy
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType as Type
from gguf.quants import dequantize

# Where a block's 16-bit scales lie.
SCALES = {
    Type.F16: [0], Type.BF16: [], Type.Q4_0: [0], Type.Q4_1: [0, 2], Type.Q5_0: [0], Type.Q5_1: [0, 2],
    Type.Q8_0: [0], Type.Q4_K: [0, 2], Type.Q5_K: [0, 2], Type.Q6_K: [208],
}
BLOCKS = 2

random = numpy.random.default_rng(7)
golden = {"versions": {name: importlib.metadata.version(name) for name in ("gguf", "numpy")}, "types": {}}
for kind, places in SCALES.items():
    elements, size = GGML_QUANT_SIZES[kind]
    blocks = random.integers(0, 256, (BLOCKS, size), dtype=numpy.uint8)
    if kind == Type.BF16:
        blocks = (random.standard_normal(BLOCKS).astype(numpy.float32).view(numpy.uint32) >> 16).astype(numpy.uint16)
        blocks = blocks.view(numpy.uint8).reshape(BLOCKS, 2)
    for place in places:
        scale = random.standard_normal((BLOCKS, 1)).astype(numpy.float16)
        blocks[:, place:place + 2] = scale.view(numpy.uint8)
    values = dequantize(blocks.reshape(1, -1), kind).astype("<f4").reshape(-1)
    assert values.size == BLOCKS * elements and numpy.isfinite(values).all()
    golden["types"][kind.name] = {"blocks": blocks.tobytes().hex(), "values": values.tobytes().hex()}
print(json.dumps(golden, indent=1))
