"""`write_decoder`: the weights files of a decoder, one for each precision, and the graphs of its sizes over them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto

from exporter.decoder.graph import COS, SIN, DecoderGraph, Part
from exporter.decoder.matrices import HEAD, Blocks, Floats, IntegerRows, Matrices
from exporter.decoder.shape import DecoderShape
from exporter.decoder.store import Array, WeightsFile
from exporter.selftest import ExportError
from exporter.weights import WEIGHTS_FILE

PRECISIONS = ("fp32", "int8-rows", "int8", "int4")
"""float32; 7-bit weights and 8-bit activations with a factor for each row; 8 and 4 bits in blocks of 32 inputs."""

EXIT_TOKENS = 8192
"""Of the vocabulary, that an exit's head knows: pieces are numbered as they were learnt, the frequent ones first."""


@dataclass(frozen=True)
class DecoderFiles:
    """What was written of one size in one precision, below the folder."""

    id: str
    size: DecoderShape
    precision: str
    graph: Path
    weights: Path
    topology: str  # sha256 of the operators, without weights and sizes
    segments: Mapping[int, tuple[Path, Path]]  # layer → the graphs of what lies below it and from it on
    speculation: Speculation | None = None


@dataclass(frozen=True)
class Speculation:
    """Graphs whose rows do not depend on how many are computed with them: the whole one, and where there are exits the same in
    parts that follow one another, with the head of an exit."""

    graph: Path
    parts: Mapping[tuple[int, int], Path]  # its first layer, and that after its last
    head: Path | None
    head_tokens: int


def write_decoder(
    folder: Path,
    full: DecoderShape,
    tensors: Mapping[str, Any],
    rotary: tuple[Array, Array],
    sizes: Mapping[str, DecoderShape],
    *,
    precisions: Sequence[str] = ("fp32",),
    segments: Sequence[int] = (),
    head_bits: int | None = None,
    speculation: bool = False,
    exits: Sequence[int] = (),
    exit_tokens: int = EXIT_TOKENS,
) -> list[DecoderFiles]:
    """Writes into `folder` a weights file of each precision and a graph of each size (by id) in each.

    `tensors`: the full model's by the names that transformers gives them, torch's or numpy's. `rotary`: cosines and sines, each
    (context, rotated numbers / 2). `segments`: layers at which the graph is written in two parts as well, for the sizes that
    are deeper. `head_bits`: of the head and embedding where the weights are in blocks; default as many as the others.
    `speculation`: graphs that verify drafts too, of every precision but int4, whose kernels multiply one token differently from
    several; `exits`: layers at which these may be left, by a head over the first `exit_tokens` of the vocabulary.

    Raises ExportError for an unknown precision, and for a size that a precision does not cut at, before anything is written.
    """
    kinds = {precision: _matrices(precision, head_bits) for precision in precisions}
    for kind in kinds.values():
        for name, size in {"full": full, **sizes}.items():
            for what in ("hidden", "inner", "q_size"):
                kind.check(f"sub-model {name}: {what}", getattr(size, what))
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for precision, matrices in kinds.items():
        weights = folder / weights_name(precision)
        with weights.open("wb") as file:
            stored = WeightsFile(file, weights.name)
            _write_weights(stored, matrices, full, tensors, rotary)
        for name, size in sizes.items():
            writer, own = DecoderGraph(stored, matrices, full, size), identifier(name, precision)
            model = writer.model(Part(0, size.layers))
            graph = _save(model, folder / f"{own}.onnx")
            halves = {}
            for layer in segments:
                if 0 < layer < size.layers:
                    lower, upper = Part(0, layer, answers=False), Part(layer, size.layers, embeds=False)
                    halves[layer] = (
                        _save(writer.model(lower), folder / f"{own}.lower{layer}.onnx"),
                        _save(writer.model(upper), folder / f"{own}.upper{layer}.onnx"),
                    )
            padded = _speculation(writer, folder, own, exits, exit_tokens) if speculation and precision != "int4" else None
            written.append(DecoderFiles(own, size, precision, graph, weights, _digest(model), halves, padded))
    return written


def _speculation(writer: DecoderGraph, folder: Path, own: str, exits: Sequence[int], tokens: int) -> Speculation:
    layers, tokens = writer.size.layers, min(tokens, writer.size.vocabulary)
    whole = _save(writer.model(Part(0, layers, padded=True)), folder / f"{own}.padded.onnx")
    bounds = [0, *sorted({layer for layer in exits if 0 < layer < layers}), layers]
    if len(bounds) == 2:
        return Speculation(whole, {}, None, 0)
    parts = {}
    for first, last in pairwise(bounds):
        part = Part(first, last, embeds=first == 0, answers=last == layers, padded=True)
        parts[first, last] = _save(writer.model(part), folder / f"{own}.padded{first}-{last}.onnx")
    return Speculation(whole, parts, _save(writer.exit(tokens), folder / f"{own}.exit.onnx"), tokens)


def identifier(size: str, precision: str) -> str:
    """Of a size in a precision."""
    return size if precision == "fp32" else f"{size}-{precision}"


def weights_name(precision: str) -> str:
    """Of the file of a precision."""
    return WEIGHTS_FILE if precision == "fp32" else f"weights.{precision}.bin"


def _matrices(precision: str, head_bits: int | None) -> Matrices:
    if head_bits not in (None, 4, 8):
        raise ExportError(f"head_bits = {head_bits!r}: allowed are 4, 8")
    if precision == "fp32":
        return Floats()
    if precision == "int8-rows":
        return IntegerRows()
    if precision in ("int8", "int4"):
        bits = int(precision.removeprefix("int"))
        return Blocks(bits, max(bits, head_bits or bits))
    raise ExportError(f"precision {precision!r}: allowed are {', '.join(PRECISIONS)}")


def _write_weights(
    file: WeightsFile, matrices: Matrices, full: DecoderShape, tensors: Mapping[str, Any], rotary: tuple[Array, Array]
) -> None:
    def of(name: str) -> Array:
        if name not in tensors:
            raise ExportError(f"weights: tensor {name!r} is missing; a decoder of {full.layers} layers has it")
        return _array(tensors[name])

    matrices.write_embedding(file, of("model.embed_tokens.weight"), full.tied)
    if not full.tied:
        matrices.write(file, HEAD, of("lm_head.weight"))
    for name, array in zip((COS, SIN), rotary, strict=True):  # one more: of the row of zeros behind a text as long as can be
        file.add(name, np.concatenate([array, array[-1:]]).astype(np.float32))
    for layer in range(full.layers):
        theirs, ours = f"model.layers.{layer}", f"layers.{layer}"
        file.add(f"{ours}.attention_norm", of(f"{theirs}.input_layernorm.weight"))
        file.add(f"{ours}.mlp_norm", of(f"{theirs}.post_attention_layernorm.weight"))
        if full.qk_norm:
            for name in ("q_norm", "k_norm"):
                file.add(f"{ours}.{name}", of(f"{theirs}.self_attn.{name}.weight"))
        attention = [f"{theirs}.self_attn.{name}_proj" for name in "qkv"]
        products = {
            "qkv": attention,
            "o": [f"{theirs}.self_attn.o_proj"],
            **{name: [f"{theirs}.mlp.{name}_proj"] for name in ("gate", "up", "down")},
        }
        for name, parts in products.items():
            matrices.write(file, f"{ours}.{name}", np.concatenate([of(f"{part}.weight") for part in parts]))
            if f"{parts[0]}.bias" in tensors:
                file.add(f"{ours}.{name}.bias", np.concatenate([of(f"{part}.bias") for part in parts]))
    file.add("norm", of("model.norm.weight"))


def _array(tensor: Any) -> Array:
    """As float32."""
    if not isinstance(tensor, np.ndarray):
        tensor = tensor.detach().cpu().float().numpy()
    return np.asarray(tensor, dtype=np.float32)


def _save(model: ModelProto, path: Path) -> Path:
    path.write_bytes(model.SerializeToString(deterministic=True))
    return path


def _digest(model: ModelProto) -> str:
    operators = [f"{node.domain}:{node.op_type}" for node in model.graph.node]
    return hashlib.sha256("\n".join(operators).encode()).hexdigest()
