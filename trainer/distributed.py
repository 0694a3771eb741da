"""Training on several processes (`torchrun -m sortednet train …`): every rank samples the same sub-models, takes its
share of each batch, and the gradients are reduced once per update.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn

from trainer.accelerator import local_ranks
from trainer.submodel import TrainerError

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together; rank 0 of 1 without any others."""

    rank: int = 0
    count: int = 1
    device: torch.device = CPU
    """Where what is reduced must lie: nccl reduces on GPUs only."""

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes files and shows progress."""
        return self.rank == 0

    def share(self, indices: Tensor) -> Tensor:
        """This rank's part of a batch."""
        return indices[self.rank :: self.count]

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replaces every gradient by its mean over the ranks, in one reduction."""
        gradients = [p.grad for p in parameters if p.grad is not None] if self.count > 1 else []
        if not gradients:
            return
        together = torch.cat([g.flatten() for g in gradients])
        distributed.all_reduce(together)
        together /= self.count
        begin = 0
        for gradient in gradients:
            gradient.copy_(together[begin : begin + gradient.numel()].view_as(gradient))
            begin += gradient.numel()

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank: all of them must stop at the same step."""
        if self.count == 1:
            return flag
        seen = torch.tensor(int(flag), device=self.device)
        distributed.all_reduce(seen)
        return bool(seen)

    def same_start(self, parameters: Iterable[nn.Parameter]) -> None:
        """Gives every rank the parameters of rank 0. They must lie on the device."""
        for parameter in parameters if self.count > 1 else ():
            distributed.broadcast(parameter.data, src=0)

    def wait(self) -> None:
        """Until all ranks are here, for example until rank 0 has written a file that the others read."""
        self.any(False)


def current_ranks(device: torch.device = CPU) -> Ranks:
    """The ranks of the process group, when there is one.

    Raises TrainerError when that group cannot reduce what lies on the device.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return Ranks(device=device)
    if distributed.get_backend() == "nccl" and device.type != "cuda":
        raise TrainerError(
            f"accelerator = {device.type!r}: the process group is of nccl, which reduces on GPUs; allowed is cuda"
        )
    return Ranks(distributed.get_rank(), distributed.get_world_size(), device)


def backend_for(device: torch.device) -> str:
    """nccl where every rank of this machine has a GPU of its own; gloo on CPUs, and where ranks share one: nccl does not."""
    alone = device.type == "cuda" and local_ranks() <= torch.cuda.device_count()
    return "nccl" if alone and distributed.is_nccl_available() else "gloo"


@contextmanager
def joined(device: torch.device = CPU) -> Iterator[Ranks]:
    """Joins the process group that torchrun has prepared, if it has, to train on this device."""
    if device.type == "cuda":
        torch.cuda.set_device(device)  # a module that says "cuda" means this rank's
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or distributed.is_initialized():
        yield current_ranks(device)
        return
    backend = backend_for(device)
    distributed.init_process_group(backend, device_id=device if backend == "nccl" else None)
    try:
        yield current_ranks(device)
    finally:
        distributed.destroy_process_group()
