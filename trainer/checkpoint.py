"""Checkpoints of a training: one safetensors file whose header holds the step and the options. No pickle."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from device_profiles import atomic
from trainer.nested import NestedModel
from trainer.submodel import TrainerError

CHECKPOINT_FILE = "checkpoint.safetensors"


def save_checkpoint(folder: Path, nested: NestedModel, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Replaces the run's checkpoint in one step: a kill leaves the old one or the new one."""
    tensors = {f"model/{name}": p.detach() for name, p in nested.full.named_parameters()}
    for name, parameter in nested.full.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer/{name}/{key}"] = torch.as_tensor(value)
    save_tensors(tensors, folder / CHECKPOINT_FILE, {"state": json.dumps(state)})


def load_checkpoint(folder: Path, nested: NestedModel, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Puts parameters and optimizer state back; returns what was saved as `state`. Raises TrainerError."""
    tensors, header = load_tensors(folder / CHECKPOINT_FILE)
    parameters = dict(nested.full.named_parameters())
    load_parameters(nested, {n.removeprefix("model/"): t for n, t in tensors.items() if n.startswith("model/")}, folder)
    for name, tensor in tensors.items():
        if name.startswith("optimizer/"):
            parameter_name, _, key = name.removeprefix("optimizer/").rpartition("/")
            parameter = parameters[parameter_name]
            optimizer.state[parameter][key] = tensor.to(parameter.device)  # numbers too: fused kernels read them there
    state: dict[str, Any] = json.loads(header["state"])
    return state


def read_state(path: Path) -> dict[str, Any]:
    """What was saved as `state`, without the tensors. Raises TrainerError when the file is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            state: dict[str, Any] = json.loads((file.metadata() or {})["state"])
    except (SafetensorError, OSError, KeyError, json.JSONDecodeError) as error:
        raise TrainerError(f"{path} is damaged: {error}") from None
    return state


def load_parameters(nested: NestedModel, tensors: dict[str, Tensor], source: Path) -> None:
    """Copies the full model's parameters. Raises TrainerError naming the first that is missing or of another shape."""
    with torch.no_grad():
        for name, parameter in nested.full.named_parameters():
            found = tensors.get(name)
            if found is None or found.shape != parameter.shape:
                seen = "missing" if found is None else f"of shape {tuple(found.shape)}"
                raise TrainerError(f"{source}: parameter {name!r} is {seen}; this model needs {tuple(parameter.shape)}")
            parameter.copy_(found)


def save_tensors(tensors: dict[str, Tensor], path: Path, header: dict[str, str] | None = None) -> None:
    """Replaces the file in one step. Raises TrainerError when it cannot be written."""
    with replacing(path) as partial:
        save_file({name: t.cpu().contiguous() for name, t in tensors.items()}, partial, header)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """As `device_profiles.atomic.replacing`; raises TrainerError when the system does not let it be written."""
    with writing(path), atomic.replacing(path) as partial:
        yield partial


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns what the system says of a place that cannot be written to into a TrainerError naming it."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        why = getattr(error, "strerror", None) or error
        raise TrainerError(f"out = {str(path)!r}: cannot be written: {why}") from None


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and header. Raises TrainerError when the file is missing or damaged."""
    if not path.is_file():
        raise TrainerError(f"{path} does not exist")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise TrainerError(f"{path} is damaged: {error}") from None
