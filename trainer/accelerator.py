"""Where a training computes, and in which precision.

On the CPU a resumed run is equal to the bit, in either precision and with any number of workers. On a GPU it goes on from the
same parameters, optimizer state, scale of the losses, data order, augmentation and sampled sub-models, but kernels that add in
an order of their own (atomics in some backward passes) make two runs differ in the last bits, resumed or not; `deterministic`
takes only kernels whose order is fixed, and a resumed run is equal to the bit there too. Calibration and scores are computed on
the same device, always in fp32. fp32 is what torch makes of it: cuDNN's convolutions take TF32 unless
`torch.backends.cudnn.allow_tf32` is False.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trainer.submodel import TrainerError

ACCELERATORS = ("auto", "cpu", "cuda", "mps")
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Accelerator:
    """A device and a precision that are here."""

    device: torch.device
    precision: str = "fp32"  # fp32 | bf16 | fp16: of the forward and backward pass; parameters and optimizer stay fp32

    def autocast(self) -> AbstractContextManager[Any]:
        """Automatic mixed precision, for one forward pass."""
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, PRECISIONS[self.precision])

    def scaler(self) -> torch.amp.GradScaler:
        """Scales losses so that small gradients survive half precision (Micikevicius et al. 2018, arXiv 1710.03740, section
        3.2); does nothing in the other precisions, whose exponents are those of fp32."""
        return torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")

    @property
    def pins_memory(self) -> bool:
        """Whether batches are copied from page-locked memory, beside the computation."""
        return self.device.type == "cuda"


def find_accelerator(name: str = "auto", precision: str = "fp32") -> Accelerator:
    """The device by name; `auto` is the first GPU (under torchrun each rank's own), else Apple's, else the CPU.

    Raises TrainerError for a name that is not known, a device that is not here, or a precision that it does not have.
    """
    if name not in ACCELERATORS:
        raise TrainerError(f"accelerator = {name!r}: allowed are {', '.join(ACCELERATORS)}")
    if precision not in PRECISIONS:
        raise TrainerError(f"precision = {precision!r}: allowed are {', '.join(PRECISIONS)}")
    here = available()
    kind = here[0] if name == "auto" else name
    if kind not in here:
        raise TrainerError(f"accelerator = {name!r}: torch {torch.__version__} finds none; allowed here are {', '.join(here)}")
    if kind == "cpu" and precision == "fp16":
        raise TrainerError("precision = 'fp16': allowed on cuda and mps; on the cpu fp32 and bf16")
    if kind == "cuda" and precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise TrainerError(f"precision = 'bf16': {torch.cuda.get_device_name()} does not have it; allowed are fp32 and fp16")
    device = torch.device("cuda", local_rank() % torch.cuda.device_count()) if kind == "cuda" else torch.device(kind)
    return Accelerator(device, precision)


@contextmanager
def deterministic(asked: bool) -> Iterator[None]:
    """Within, if asked: only kernels that give the same bits for the same inputs. torch names an operator that has none."""
    if not asked:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else cuBLAS shares work out as it comes
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def available() -> list[str]:
    """The kinds of device that torch finds here, the fastest first. Not Apple's for several ranks: nothing reduces there."""
    found = ["cuda"] if torch.cuda.is_available() else []
    found += ["mps"] if torch.backends.mps.is_available() and int(os.environ.get("WORLD_SIZE", "1")) < 2 else []
    return [*found, "cpu"]


def local_rank() -> int:
    """Which of the machine's processes this is under torchrun; 0 without."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def local_ranks() -> int:
    """How many processes torchrun has started on this machine; 1 without."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def single_precision(outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Outputs of a pass in half precision as a loss, a teacher's pupil and a scorer take them."""
    return {name: o.float() if o.dtype in (torch.float16, torch.bfloat16) else o for name, o in outputs.items()}
