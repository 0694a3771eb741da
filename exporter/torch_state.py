"""What an export changes in torch for its time, and puts back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def plain_attention() -> Iterator[None]:
    """Within this context torch's attention layers compute with the operators that they are written in, not in one piece that
    has no ONNX operator and whose products nobody counts (the fast path, taken in eval mode without gradients)."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """With more of them than cores torch's wait for each other: 48 s instead of 7 on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def silent() -> Iterator[None]:
    """torch prints the whole graph to stdout, where JSON may be expected, before it raises that it cannot write it."""
    internal: Any = torch._C
    log = internal._jit_onnx_log
    internal._jit_onnx_log = lambda *_: None
    try:
        yield
    finally:
        internal._jit_onnx_log = log
