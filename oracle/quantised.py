"""A matrix in 8 and 4 bits as others keep it: GGUF's Q8_0 by the `gguf` package, NF4 by bitsandbytes.

    python oracle/quantised.py > engine/tests/goldens/quantised.json

Needs bitsandbytes, which oracle/requirements.txt has not: an environment of its own.
"""
import importlib.metadata
import json

import numpy
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from gguf.constants import GGMLQuantizationType
from gguf.quants import dequantize, quantize

ROWS, COLUMNS = 33, 192

weights = torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(0)) * 0.02
weights[5, 64:128] = 0.0  # a block of nothing but zeros
nf4 = dequantize_4bit(*quantize_4bit(weights, quant_type="nf4", blocksize=64))
q8_0 = dequantize(quantize(weights.numpy(), GGMLQuantizationType.Q8_0), GGMLQuantizationType.Q8_0)


def packed(values):
    return numpy.asarray(values, dtype="<f4").tobytes().hex()


print(json.dumps({
    "versions": {name: importlib.metadata.version(name) for name in ("bitsandbytes", "torch", "gguf", "numpy")},
    "shape": [ROWS, COLUMNS], "weights": packed(weights), "8bit": packed(q8_0), "4bit": packed(nf4),
}, indent=1))
