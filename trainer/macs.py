"""Counts multiply-accumulates of a forward pass with torch's own formulas."""

from __future__ import annotations

from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


class MacCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Within this context `macs` grows by every convolution and matrix product that runs.

    `torch.utils.flop_counter.FlopCounterMode` sums the same formulas but also tracks modules, which made a pass through
    a small MobileNetV2 take 33 ms instead of 14.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.macs = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.macs += formula(*args, **(kwargs or {}), out_val=result) // 2
        return result
