"""The trained parameters as differences from the original, few bits each, in files small enough to be carried; and back again.

Of a matrix each row has a scale of its own, vectors are kept as they are. A file holds a piece of one archive.
"""

from __future__ import annotations

import io
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.llm import training_model as models
from benchmarks.llm.data import WORK, gguf
from benchmarks.llm.training_nested import Plan
from trainer import NestedModel
from trainer.data.sources import load_data
from trainer.folder import FILES_FOLDER, hashes_of, write_record
from trainer.options import FitOptions
from trainer.order import Orders
from trainer.run import describe_run, save_run

PIECE = int(14.9 * 2**20)
"""Bytes of a file."""


def packed(trained: Mapping[str, Tensor], begin: Mapping[str, Tensor], known: Orders, about: Any, bits: int) -> bytes:
    """One archive."""
    arrays: dict[str, Any] = {"about": np.frombuffer(json.dumps({"bits": bits, **about}).encode(), dtype=np.uint8)}
    for name, order in known.items():
        arrays[f"order/{name}"] = np.asarray(order, dtype=np.int16)
    most = 2 ** (bits - 1) - 1
    for name, tensor in trained.items():
        change = tensor.detach().cpu().float() - begin[name].cpu().float()
        if change.ndim < 2:
            arrays[f"exact/{name}"] = change.numpy()
            continue
        scale = (change.abs().amax(dim=1) / most).clamp_min(1e-30)
        whole = (change / scale[:, None]).round().to(torch.int8).numpy()
        coder = zlib.compressobj(1, zlib.DEFLATED, zlib.MAX_WBITS, 9, zlib.Z_HUFFMAN_ONLY)
        arrays[f"change/{name}"] = np.frombuffer(coder.compress(whole.tobytes()) + coder.flush(), dtype=np.uint8)
        arrays[f"scale/{name}"] = scale.numpy()
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


def changes(archive: bytes, shapes: Mapping[str, Sequence[int]]) -> tuple[dict[str, Tensor], Orders, dict[str, Any]]:
    """What is to be added to the sorted original, in which order its units are, and what was said of the training."""
    found, known, about = {}, {}, {}
    with np.load(io.BytesIO(archive), allow_pickle=False) as file:
        for key in file.files:
            kind, _, name = key.partition("/")
            if kind == "about":
                about = json.loads(file[key].tobytes())
            elif kind == "order":
                known[name] = file[key].astype(np.int64)
            elif kind == "exact":
                found[name] = torch.from_numpy(file[key])
            elif kind == "change":
                whole = np.frombuffer(zlib.decompress(file[key].tobytes()), dtype=np.int8).reshape(shapes[name])
                found[name] = torch.from_numpy(whole.astype(np.float32) * file[f"scale/{name}"][:, None])
    return found, known, about


def write_pieces(archive: bytes, folder: Path) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("change.*"):
        old.unlink()
    paths = []
    for number, begin in enumerate(range(0, len(archive), PIECE)):
        paths.append(folder / f"change.{number:02d}")
        paths[-1].write_bytes(archive[begin : begin + PIECE])
    return paths


def read_pieces(folder: Path) -> bytes:
    paths = sorted(folder.glob("change.*"))
    if not paths or [path.name for path in paths] != [f"change.{number:02d}" for number in range(len(paths))]:
        raise SystemExit(f"{folder}: has {[path.name for path in paths]}; wanted are change.00, change.01 …, all of them")
    return b"".join(path.read_bytes() for path in paths)


def put_back(nested: NestedModel, archive: bytes) -> dict[str, Any]:
    """Makes of the original, whose units are as they were, the trained model, in place; returns what was said of it."""
    shapes = {name: tuple(p.shape) for name, p in nested.full.named_parameters()}
    added, known, about = changes(archive, shapes)
    models.put_in_order(nested, known)
    with torch.no_grad():
        for name, parameter in nested.full.named_parameters():
            parameter.add_(added[name].to(parameter.device))
    return about


def write_run(archive: bytes, folder: Path, length: int) -> dict[str, Any]:
    """A finished run's folder, as `sortednet train` would have left it."""
    nested = models.original(length)
    about = put_back(nested, archive)
    told, plan = about["result"], about["plan"]
    options = {name: str(WORK.absolute() / f"{name}.jsonl") for name in ("validation", "test")}
    data = load_data(
        f"jsonl:{WORK.absolute() / 'train.jsonl'}",
        {**options, "tokenizer": str(gguf()), "max_tokens": length, "next_token": True},
    )
    plan = Plan(**{**plan, "shares": tuple(map(tuple, plan["shares"]))})
    record = describe_run(nested.family, data.record, asdict(FitOptions(**plan.fit_options())))
    record |= {
        "labels": [], "preprocessing": dict(data.preprocessing),
        "start": {"weights": str(gguf()), "teacher": str(gguf()), "sort": "auto"},
    }  # fmt: skip
    (folder / FILES_FOLDER).mkdir(parents=True, exist_ok=True)
    for name, content in data.files.items():
        (folder / FILES_FOLDER / name).write_bytes(content)
    save_run(folder, nested)
    results = {
        "largest": nested.family.largest.id, "task": nested.family.task.kind, "metric": nested.family.task.metric,
        "steps": told.get("steps"), "tokens": told.get("tokens"), "seconds": told.get("seconds"), "device": told.get("device"),
        "test": {}, "validation_quality": {},
    }  # fmt: skip
    write_record(folder, {**record, "results": results, "sha256": hashes_of(folder)})
    return results
