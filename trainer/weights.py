"""Weights that somebody has trained: from a run, a file of tensors, or a folder of Hugging Face or timm, into a full model.

Nothing in them is run: a `.pth` is read as tensors alone (`torch.load(weights_only=True)`).
"""

from __future__ import annotations

import math
import pickle
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainer.checkpoint import load_tensors
from trainer.data.pretrained import class_names
from trainer.folder import RUN_FILE, check_unaltered, read_record
from trainer.gguf import SUFFIX, gguf_tensors, is_gguf
from trainer.nested import NestedModel, batchnorm_names
from trainer.parsing import json_object
from trainer.submodel import TrainerError
from trainer.task import own

FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
"""That a checkpoint's folder has one of, the first that is there."""

SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".bin")
INSIDE = ("state_dict", "model_state_dict", "model", "state_dict_ema", "model_ema", "net", "network", "weights")
"""Under which name scripts save a state dict beside other things, the first that is there."""

_HUB = re.compile(r"\w[\w.-]*/\w[\w.-]*|\w+(-[\w.]+)+")
"""How models are called there, `google/bert` or, the older ones, `bert-base-uncased`."""

AS_THEY_ARE: Mapping[str, list[float]] = {"mean": [0.0], "std": [1.0]}
"""Of pictures that are not normalised, however many channels they have."""

SHOWN = 6  # names that a message lists


@dataclass(frozen=True)
class Weights:
    """Tensors by name, and what is known of the inputs that they were trained with."""

    source: Path
    tensors: Mapping[str, Tensor]
    preprocessing: Mapping[str, Any] = field(default_factory=dict)  # size, mean, std, interpolation, crop; empty: not known
    labels: Sequence[str] = ()  # names of the classes that the head answers, in order; empty: not known
    of_run: bool = False  # whether these names are of the data that it was trained on; a checkpoint may call its own otherwise


@dataclass(frozen=True)
class Loaded:
    """What came of loading weights into a model."""

    parameters: int  # numbers that were taken
    prefix: str  # that their names have had before the model's
    anew: Sequence[str]  # parameters of the head that were missing or of other classes, and keep their initial values
    left_over: Sequence[str]  # tensors that the model has no place for
    converted: str  # half-precision type that they were stored in; empty: none
    classes: Sequence[str] = ()  # theirs, where the head was taken over and the data's are other names, or in another order
    ordered: bool = False  # whether the head has been put in the order of the data's classes

    def __str__(self) -> str:
        parts = [f"{self.parameters:,} parameters taken over"]
        if self.prefix:
            parts.append(f"their names without {self.prefix!r}")
        if self.converted:
            parts.append(f"{self.converted} made fp32")
        if self.anew:
            parts.append(f"begun anew, not there or of other classes: {_listed(self.anew)}")
        if self.classes:
            done = (
                "was put in the order of the data's"
                if self.ordered
                else "begins with what it has learnt of those, in this order"
            )
            parts.append(f"the weights' classes are {_listed(self.classes)}: the head {done}")
        if self.left_over:
            parts.append(f"left over: {_listed(self.left_over)}")
        return "; ".join(parts)


def read_weights(path: Path, given: str = "weights") -> Weights:
    """A run's folder, a checkpoint's folder of Hugging Face or timm, a `.safetensors`, a `.gguf`, or a state dict in a
    `.pth`, `.pt` or `.ckpt`. `given`: what the path is for, as errors call it.

    Raises TrainerError naming what is not there, cannot be read, would run code, or is no tensor of real numbers.
    """
    if path.is_dir():
        file = next((path / name for name in FILES if (path / name).is_file()), None)
        if file is None:
            raise TrainerError(
                f"{given} = {str(path)!r}: a folder without weights; allowed are folders with {' or '.join(FILES)}"
            )
        if of_run := (path / RUN_FILE).is_file():
            check_unaltered(path, record := read_record(path))
            labels = record.get("labels") or ()
        else:
            labels = class_names(json_object(path / "config.json"))
        tensors = _of_index(file) if file.suffix == ".json" else _of_file(file)
        return Weights(path, _checked(path, tensors), preprocessing_of(path), labels, of_run)
    if is_gguf(path):
        return Weights(path, _checked(path, gguf_tensors(path)))
    if path.suffix.lower() not in SUFFIXES:
        absent = "" if path.exists() else "there is no such file or folder; "
        fetched = f"; of the hub: hf download {path} --local-dir FOLDER" if absent and _HUB.fullmatch(str(path)) else ""
        allowed = f"allowed are a run, a folder with weights, or a file {', '.join((*SUFFIXES, SUFFIX))}"
        raise TrainerError(f"{given} = {str(path)!r}: {absent}{allowed}{fetched}")
    return Weights(path, _checked(path, _of_file(path)))


def load_weights(nested: NestedModel, weights: Weights, outputs: int = 0, labels: Sequence[str] = ()) -> Loaded:
    """Puts them into the full model; BatchNorm statistics among them become the full model's.

    `outputs`: numbers that the head gives, `labels`: of which classes. Where the weights answer the same ones in another order
    it is put in this order. Its parameters are begun anew where only their number of outputs is another, or where a run's
    classes are others; with what the family counts to it, where they are missing altogether. Raises TrainerError for weights of
    another network: naming parameters that are missing, or of another shape.
    """
    wanted = dict(nested.full.named_parameters())
    buffers = dict(nested.full.named_buffers())
    tensors = weights.tensors
    if not wanted.keys() <= tensors.keys():
        with own(f"{type(nested.family).__name__}.renamed"):
            tensors = nested.family.renamed(nested.full, tensors)
    prefix = _prefix(tensors, wanted)
    given = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    missing = [name for name in wanted if name not in given]
    other = [name for name, p in wanted.items() if name in given and given[name].shape != p.shape]
    answering = [name for name in wanted if _is_of_the_head(name, wanted, outputs)]
    head = [*answering, *(name for name in wanted if nested.family.of_the_head(name))]
    resized = [name for name in other if name in head and given[name].shape[1:] == wanted[name].shape[1:]]
    last = [name for name in answering if name.rpartition(".")[0] == answering[-1].rpartition(".")[0]]
    known = list(weights.labels)
    same = not known or not labels or known == list(labels)
    turned = not same and bool(nested.family.task.logits) and len(known) == outputs and sorted(known) == sorted(set(labels))
    renamed = last if weights.of_run and not same and not turned else []
    anew = list(dict.fromkeys([*resized, *renamed, *(name for name in missing if name in head)]))
    wrong = [name for name in [*missing, *other] if name not in anew]
    if wrong:
        name = wrong[0]
        seen = "missing" if name not in given else f"of shape {tuple(given[name].shape)}"
        more = f" ({len(wrong)} of {len(wanted)} are not there as they should be)" if len(wrong) > 1 else ""
        raise TrainerError(
            f"{weights.source}: is of another network: parameter {name!r} is {seen}, this model needs "
            f"{tuple(wanted[name].shape)}{more}; it has {_listed(list(weights.tensors))}"
        )
    running = [name for name in buffers if name.rpartition(".")[0] in batchnorm_names(nested.full)]
    for name in buffers.keys() & given.keys() - set(running):
        if not torch.equal(given[name].to(buffers[name]), buffers[name]):
            raise TrainerError(
                f"{weights.source}: the buffer {name!r} has other values than this model's, which follow from the family and "
                "the data (a mean of the pixels, say): build the family with those that the weights were trained with"
            )
    for name in wanted:
        if name not in anew and not given[name].is_floating_point():
            raise TrainerError(
                f"{weights.source}: {name!r} is of whole numbers ({given[name].dtype}), as quantised weights are; allowed are "
                "weights in fp32, bf16 or fp16"
            )
    kept = bool(outputs and nested.family.task.logits) and not same and not set(last) & set(anew)
    ordered = last if kept and turned else []
    places = [known.index(label) for label in labels] if ordered else []
    halves = sorted({str(given[n].dtype).removeprefix("torch.") for n in wanted if n not in anew} - {"float32", "float64"})
    with torch.no_grad():
        for name, parameter in wanted.items():
            if name not in anew:
                parameter.copy_(given[name][places] if name in ordered else given[name])
    if running and all(name in given for name in running):
        nested.calibration[nested.family.largest] = {name: given[name].to(buffers[name].dtype) for name in running}
    used = {prefix + name for name in [*wanted, *buffers]}
    left_over = [name for name in tensors if name not in used]
    taken = sum(p.numel() for name, p in wanted.items() if name not in anew)
    return Loaded(taken, prefix, anew, left_over, ", ".join(halves), known if kept else (), bool(ordered))


def preprocessing_of(folder: Path) -> dict[str, Any]:
    """How a checkpoint of timm (`config.json`: `pretrained_cfg`) or Hugging Face (`preprocessor_config.json`) wants pictures.

    Size (H, W), resize (shorter side), mean and std of each channel (`AS_THEY_ARE` where they are not normalised),
    interpolation, crop; what is not said is left out. A run of ours says so of its network (`mean`, `std`) and of its data.
    """
    if (folder / RUN_FILE).is_file():
        return _of_run(read_record(folder))
    of_timm, file = json_object(folder / "config.json").get("pretrained_cfg"), folder / "preprocessor_config.json"
    if isinstance(of_timm, Mapping):
        return _of_timm(f"{folder / 'config.json'}: pretrained_cfg.", of_timm)
    return _of_transformers(f"{file}: ", said) if (said := json_object(file)) else {}


def _of_timm(place: str, said: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {key: said[key] for key in ("interpolation",) if key in said}
    found |= {key: _numbers(f"{place}{key}", said[key], zero=key == "mean") for key in ("mean", "std") if key in said}
    if "input_size" in said:
        found["size"] = [int(side) for side in _numbers(f"{place}input_size", said["input_size"], count=3)[1:]]
        (share,) = _numbers(f"{place}crop_pct", said.get("crop_pct") or 1.0, count=1)
        found["resize"] = int(min(found["size"]) / share)
    found["crop"] = "none" if said.get("crop_mode") == "squash" else "center"
    return found


def _of_transformers(place: str, said: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if said.get("do_normalize", True):
        names = {"mean": "image_mean", "std": "image_std"}
        found |= {o: _numbers(f"{place}{its}", said[its], zero=o == "mean") for o, its in names.items() if its in said}
    else:
        found |= AS_THEY_ARE
    cropped = "crop_size" if said.get("do_center_crop") else "size"
    if sides := _sides(f"{place}{cropped}", said.get(cropped)):
        found["size"] = sides
    if said.get("do_center_crop") and (resized := _sides(f"{place}size", said.get("size"))):
        found["resize"] = min(resized)
    found["crop"] = "center" if said.get("do_center_crop") else "none"
    if (number := said.get("resample")) in (0, 2, 3):  # PIL.Image.Resampling
        found["interpolation"] = {0: "nearest", 2: "bilinear", 3: "bicubic"}[number]
    return found


def _of_run(record: Mapping[str, Any]) -> dict[str, Any]:
    config = record.get("config", {})
    found = {name: config[name] for name in ("mean", "std") if config.get(name)}
    said: Mapping[str, Any] = next(iter(record.get("preprocessing", {}).values()), {})
    if said.get("kind") == "image":
        found |= {name: said[name] for name in ("size", "resize", "crop", "interpolation") if said.get(name) is not None}
    return found


def _sides(place: str, size: Any) -> list[int]:
    """Height and width; none where it is not said."""
    if isinstance(size, Mapping):
        given = [size.get("height", size.get("shortest_edge")), size.get("width", size.get("shortest_edge"))]
    else:
        given = [] if size is None else [size, size]
    return [int(side) for side in _numbers(place, [s for s in given if s])] if any(given) else []


def _numbers(place: str, said: Any, *, count: int = 0, zero: bool = False) -> list[float]:
    """A number, or a list of them, as a list. `count`: how many there must be; 0: any number. `zero`: whether they may be 0 or
    below. Raises TrainerError, which begins with `place`, for anything else."""
    numbers = said if isinstance(said, list) else [said]
    finite = all(isinstance(n, Real) and not isinstance(n, bool) and math.isfinite(n) for n in numbers)
    if not finite or not numbers or (count and len(numbers) != count) or not (zero or min(numbers) > 0):
        many = f"{count} finite numbers" if count > 1 else "finite numbers"
        raise TrainerError(f"{place} = {said!r}: allowed are {many}{'' if zero else ' above 0'}")
    return numbers


def _of_index(index: Path) -> dict[str, Tensor]:
    """Of a checkpoint in several files. They lie beside the index, which says what is where."""
    files = json_object(index).get("weight_map")
    names = list(files.values()) if isinstance(files, Mapping) else []
    if not names or any(not isinstance(name, str) or Path(name).name != name for name in names):
        raise TrainerError(f"{index} is damaged: its weight_map names no files beside it")
    return {name: tensor for file in sorted(set(names)) for name, tensor in _of_file(index.parent / file).items()}


def _of_file(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        return load_tensors(path)[0]
    if not path.is_file():
        raise TrainerError(f"{path} does not exist")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch's, that something may go wrong: then it does
            found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise TrainerError(
            f"{path}: holds Python objects beside tensors, which only running its code could load; allowed is a state dict: "
            "torch.save(model.state_dict(), FILE)"
        ) from None
    except Exception as error:  # a damaged archive raises whatever torch's readers meet
        raise TrainerError(f"{path} is damaged: {' '.join(str(error).split())[:200] or type(error).__name__}") from None
    for name in INSIDE:
        if isinstance(found, Mapping) and isinstance(found.get(name), Mapping):
            found = found[name]
            break
    tensors = {str(n): t for n, t in found.items() if isinstance(t, Tensor)} if isinstance(found, Mapping) else {}
    if not tensors:
        raise TrainerError(f"{path}: holds a {type(found).__name__} without tensors; allowed is a state dict")
    return tensors


def _checked(source: Path, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    for name, tensor in tensors.items():
        if tensor.is_quantized or tensor.dtype in (torch.int8, torch.uint8) or "float8" in str(tensor.dtype):
            raise TrainerError(f"{source}: {name!r} is quantised ({tensor.dtype}); allowed are weights in fp32, bf16 or fp16")
        if tensor.is_complex():
            raise TrainerError(f"{source}: {name!r} is of complex numbers; allowed are real ones")
        if tensor.is_meta or tensor.layout != torch.strided:
            kind = "has a shape and no numbers (device meta)" if tensor.is_meta else f"is not dense ({tensor.layout})"
            raise TrainerError(f"{source}: {name!r} {kind}; allowed are dense tensors")
        single = tensor.float() if tensor.dtype == torch.float64 else tensor
        if tensor.is_floating_point() and not bool(single.isfinite().all()):
            raise TrainerError(f"{source}: {name!r} has a value that is no finite number in fp32")
    return tensors


def _prefix(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str:
    """What stands before the model's own names in most of the given ones, such as `module.`."""
    counts: dict[str, int] = {"": sum(name in given for name in wanted)}
    for name in given:
        for mine in wanted:
            if name.endswith("." + mine):
                before = name[: -len(mine)]
                counts[before] = counts.get(before, 0) + 1
    return max(counts, key=lambda prefix: (counts[prefix], -len(prefix)))


def _is_of_the_head(name: str, parameters: Mapping[str, Tensor], outputs: int) -> bool:
    """Whether a parameter is of a layer that gives the outputs: its first axis has one place for each."""
    layer = name.rpartition(".")[0]
    others = [p for n, p in parameters.items() if n.rpartition(".")[0] == layer]
    return bool(outputs) and all(p.ndim >= 1 and p.shape[0] == outputs for p in others)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
