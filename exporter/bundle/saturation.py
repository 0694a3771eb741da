"""Whether this device's int8 kernels give wrong sums where weights use all 8 bits.

x86-64 without VNNI has no dot product of bytes: `vpmaddubsw` multiplies unsigned by signed bytes and adds two products in
16 bits, which saturate. ONNX Runtime uses it all the same, for speed. It is asked here, not the processor: what its kernels
do is what counts.
"""

from __future__ import annotations

from base64 import b64decode
from functools import cache
from zlib import decompress

import numpy as np
import onnxruntime as ort

_PROBE = """
eNrtU7tOw0AQzNircFpQOE4oDQgJl/4CBAghQ3WQIi3d2XISR7F5xCbIDcmf8Qn8Ay0fwdlOCiR3aTPSSjua1UyzI8Tlzx6fMT4YhlEqjDx5H78WJsuTMn5M
sti8VfqCETLmCuN2Pd3okxb9kDFijBUSj+6es3c+ZSSMqA6cer3h//NzxnStUmTPWxz7teNEdVOTp8XM6w5MPihmCi/+NwkpSLjClW6Ahf6izx122AL+g/0n
WX1Tqm+3NtuXCGA0rZbLq4aEmsjBdUMiTb/DixtfSCdAqdGxm02e2+3pxPZU9flYOEqyI2CHNhMecF0WVTGEPV5Xo+EBcUce/QHdb4ti
"""
"""A graph as an export has them, a convolution and a matrix product of uint8 with weights of 127; tests/exporter/test_int8.py
has its nodes. Bytes of its own, because a device has no `onnx` to make it with."""
_SHAPE = (1, 4, 4, 4)
_EXACT = {"conv": 36.0, "matmul": 4.0}  # of inputs of 255


@cache
def saturates() -> bool:
    """Of the CPU's kernels, with ONNX Runtime's default options."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(decompress(b64decode(_PROBE)), options, providers=["CPUExecutionProvider"])
    results = session.run(list(_EXACT), {"x": np.full(_SHAPE, 255, np.uint8)})
    return any(bool(np.any(np.abs(got / exact - 1) > 0.01)) for got, exact in zip(results, _EXACT.values(), strict=True))
