"""`export_decoder`: the bundle of a nested language model, whose graphs decode token by token with a cache."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from exporter.bundle import MODELS_FOLDER, SELFTEST_FILE, Bundle
from exporter.bundle.atomic import built_beside
from exporter.bundle.decoding import (
    AFTER_NEXT,
    AFTER_PROMPT,
    NEXT,
    PROMPT,
    padded_outputs,
    rows_problem,
    selftest_outputs,
    spaced,
)
from exporter.bundle.manifest import FORMAT_VERSION, Manifest
from exporter.bundle.session import SessionOptions, open_session, rms_error
from exporter.decoder.check import example_texts, problem_of
from exporter.decoder.quality import QUALITY_TOKENS, HeldOut
from exporter.decoder.rotary import rotary_caches
from exporter.decoder.shape import DecoderShape, shape_of
from exporter.decoder.write import (
    EXIT_TOKENS,
    PRECISIONS,
    DecoderFiles,
    Speculation,
    identifier,
    weights_name,
    write_decoder,
)
from exporter.document import check_files, network_fields, score_fields, write_files, write_manifest
from exporter.place import check_target, keep_what_fits, source_of
from exporter.progress import exporting
from exporter.selftest import ExportError
from exporter.torch_state import plain_attention
from trainer.data.dataset import Data, as_examples
from trainer.macs import LayerShape
from trainer.nested import NestedModel
from trainer.submodel import SubModel
from trainer.task import Score

SELFTEST_TOLERANCE, QUANTIZED_TOLERANCE = 2e-3, 0.05
"""Of logits on another processor. Quantized: rounding takes the next integer where floats differ in the last digit; what is as
near to fp32 as it was here passes too (`exporter.bundle.verify`)."""


@dataclass(frozen=True)
class DecodingOptions:
    """What an export of a language model may be asked for. Raises ExportError naming the field and what is allowed."""

    segments: tuple[int, ...] = ()  # layers at which each deeper graph is written in two parts as well
    head_bits: int | None = None  # of the head and the embedding where weights are in blocks of 4 bits; None: 4
    quality_tokens: int = QUALITY_TOKENS  # of the test split, that each graph's quality is measured on; 0: all
    speculation: bool = False  # also graphs that verify several guessed tokens in one call; not of int4
    exits: tuple[int, ...] = ()  # layers after which these guess themselves
    exit_tokens: int = EXIT_TOKENS  # the first so many of the vocabulary, which an exit's head knows

    def __post_init__(self) -> None:
        for name in ("segments", "exits"):
            if any(type(layer) is not int or layer < 1 for layer in getattr(self, name)):
                raise ExportError(f"{name} = {getattr(self, name)!r}: allowed are numbers of layers, from 1")
        if self.exits and not self.speculation:
            raise ExportError(f"exits = {self.exits!r}: allowed with speculation")
        if type(self.exit_tokens) is not int or self.exit_tokens < 1 or (not self.exits and self.exit_tokens != EXIT_TOKENS):
            raise ExportError(f"exit_tokens = {self.exit_tokens!r}: allowed are whole numbers from 1, with exits")
        if self.head_bits not in (None, 4, 8):
            raise ExportError(f"head_bits = {self.head_bits!r}: allowed are 4, 8")
        if type(self.quality_tokens) is not int or self.quality_tokens < 0:
            raise ExportError(f"quality_tokens = {self.quality_tokens!r}: allowed are whole numbers from 0, which means all")

    def check(self, precisions: Sequence[str], layers: int) -> None:
        """Raises ExportError for what no graph of these precisions, the deepest of so many layers, would have."""
        for name in ("segments", "exits"):
            if none := [layer for layer in getattr(self, name) if layer >= layers]:
                raise ExportError(f"{name} = {none[0]}: allowed are layers below {layers}, which the deepest size has")
        if self.head_bits is not None and "int4" not in precisions:
            raise ExportError(f"head_bits = {self.head_bits}: allowed with precision int4")
        if self.speculation and set(precisions) == {"int4"}:
            others = ", ".join(name for name in PRECISIONS if name != "int4")
            raise ExportError(
                f"speculation = True: with precision int4 guesses cannot be verified exactly; allowed beside it are {others}"
            )


def layers_of(text: str, name: str = "segments") -> tuple[int, ...]:
    """`4,8` → the layers. Raises ExportError."""
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise ExportError(f"{name} = {text!r}: allowed are numbers of layers, LAYER,LAYER,…")
    return tuple(int(part) for part in text.split(","))


def is_decoder(nested: NestedModel) -> bool:
    """Whether it is a language model whose graphs decode."""
    return getattr(nested.family, "head", "") == "causal"


def export_decoder(
    nested: NestedModel,
    out: str | Path,
    *,
    test_data: Data | None = None,
    scores: Mapping[SubModel, Score] | None = None,
    precisions: Sequence[str] = ("fp32",),
    options: DecodingOptions | None = None,
    submodels: Sequence[SubModel] | None = None,
    training: Mapping[str, Any] | None = None,
    files: Mapping[str, bytes] | None = None,
    preprocessing: Mapping[str, Mapping[str, Any]] | None = None,
    overwrite: bool = False,
    show_progress: bool = True,
) -> Bundle:
    """Writes the bundle `out` of a family whose head is `causal`, and returns it, opened.

    `precisions`: one file of weights each, see `write_decoder`; each fp32 graph is compared with torch. The other arguments are
    those of `exporter.export`.

    Raises ExportError for an architecture, a size or a precision that is not written, for a graph that differs from torch by
    more than 1e-3 of the largest logit, or when what stands at `out` would be lost; BundleError when it cannot be written.
    """
    check_files(files or {})
    precisions, options = list(dict.fromkeys(precisions)), options or DecodingOptions()
    chosen = list(dict.fromkeys(nested.submodels if submodels is None else submodels))
    sizes = {sub.id: _shape(nested, sub) for sub in chosen}
    options.check(precisions, max(size.layers for size in sizes.values()))
    ids = [identifier(name, precision) for precision in precisions for name in sizes]
    needed = sum(p.numel() * p.element_size() for p in nested.full.parameters())
    target, standing = check_target(out, source_of(nested, training or {}), ids, needed=needed, overwrite=overwrite)
    held_out = HeldOut(as_examples(test_data), nested.family.task, options.quality_tokens) if test_data is not None else None
    was_training, device = nested.training, next(nested.full.parameters()).device
    nested.eval()
    nested.full.cpu()
    try:
        with plain_attention(), torch.no_grad(), built_beside(target, overwrite=overwrite) as folder:
            writer = _Writer(nested, folder, dict(zip(sizes, chosen, strict=True)), sizes, held_out, dict(scores or {}))
            document = writer.write(precisions, options, show_progress)
            write_files(folder, files or {})
            manifest = _manifest(nested, folder, document, training or {}, preprocessing or {})
            Bundle(folder, verify=False)
            keep_what_fits(standing, target, folder, manifest, overwrite=overwrite)
    finally:
        nested.full.to(device)
        nested.train(was_training)
    return Bundle(out)


def _shape(nested: NestedModel, sub: SubModel) -> DecoderShape:
    found = nested.family.architecture  # type: ignore[attr-defined]  # of families whose head is `causal`
    return shape_of(found.config(sub), found.head_dim)


class _Writer:
    def __init__(
        self,
        nested: NestedModel,
        folder: Path,
        submodels: Mapping[str, SubModel],
        sizes: Mapping[str, DecoderShape],
        held_out: HeldOut | None,
        known: Mapping[SubModel, Score],
    ) -> None:
        self.nested, self.folder, self.submodels, self.sizes = nested, folder, submodels, sizes
        self.held_out, self.known = held_out, known
        self.full = _shape(nested, nested.family.largest)
        self.texts = example_texts(self.full.vocabulary, self.full.context)
        self.inputs = {PROMPT: self.texts[:, :-1], NEXT: self.texts[:, -1:]}
        self.layers: dict[LayerShape, int] = {}

    def write(self, precisions: Sequence[str], options: DecodingOptions, show_progress: bool) -> dict[str, Any]:
        """What the manifest says of the graphs."""
        modules = dict(self.nested.full.named_modules())
        rotary = next(module for name, module in modules.items() if name.endswith("rotary_emb"))
        written = write_decoder(
            self.folder / MODELS_FOLDER,
            self.full,
            self._tensors(),
            rotary_caches(rotary, self.full.context),
            self.sizes,
            precisions=precisions,
            segments=options.segments,
            head_bits=options.head_bits,
            speculation=options.speculation,
            exits=options.exits,
            exit_tokens=options.exit_tokens,
        )
        answers: dict[str, dict[str, NDArray[Any]]] = {}
        entries = {}
        with exporting(show_progress) as bar:
            task = bar.add_task("exporting", total=len(written))
            for one in sorted(written, key=lambda one: (PRECISIONS.index(one.precision), -_macs(one))):  # the full one first
                entries[one.id] = self._proved(one, answers)
                bar.advance(task)
        arrays = {f"input/{name}": array for name, array in self.inputs.items()}
        for name, outputs in answers.items():
            arrays |= {f"output/{name}/{output}": array for output, array in outputs.items()}
        np.savez_compressed(self.folder / SELFTEST_FILE, **arrays)  # type: ignore[arg-type]
        paths = {precision: f"{MODELS_FOLDER}/{weights_name(precision)}" for precision in precisions}
        full = self.full
        return {
            "submodels": [entries[one.id] for one in written],
            "layers": [shape._asdict() for shape in self.layers],
            "weights": paths[precisions[0]],
            "precision_weights": paths,
            "decoder": {
                **{name: getattr(full, name) for name in ("layers", "kv_heads", "head_size", "context", "vocabulary")},
                "head_bits": (options.head_bits or 4) if "int4" in precisions else None,
                "quality_tokens": self.held_out.tokens if self.held_out else 0,
                "graph": {one.id: {"layers": one.size.layers, "kv_heads": one.size.kv_heads} for one in written},
            },
            "quality_from": "graph" if self.held_out is not None or not self.known else "torch",
        }

    def _proved(self, one: DecoderFiles, answers: dict[str, dict[str, NDArray[Any]]]) -> dict[str, Any]:
        """The entry of a graph that answers as torch does, or of a quantized one; `answers` grows by its self-test's."""
        size_id = one.id if one.precision == "fp32" else one.id.removesuffix(f"-{one.precision}")
        sub = self.submodels[size_id]
        expected = None
        if one.precision == "fp32" or size_id not in answers:
            expected = self._torch(sub)
            answers[size_id] = {AFTER_PROMPT: spaced(expected[:, -2]), AFTER_NEXT: spaced(expected[:, -1])}
        try:
            session = open_session(one.graph, SessionOptions(spinning=False))
            problem = problem_of(session, self.texts, expected) if one.precision == "fp32" and expected is not None else ""
            found = selftest_outputs(session, self.inputs)
            speculation = None if one.speculation is None else self._verifies(one.speculation, found)
        except Exception as refused:  # ONNX Runtime has one exception type per status code
            raise ExportError(f"sub-model {one.id}: the graph does not run: {refused}") from None
        error = rms_error(found, answers[size_id])
        if problem or not np.isfinite(error):
            raise ExportError(f"sub-model {one.id}: {problem or 'the graph answers with what is no number'}")
        if one.precision != "fp32":
            answers[one.id] = found
        is_full = sub == self.nested.family.largest
        score = self.held_out.score(session, full=is_full) if self.held_out is not None else self.known.get(sub)
        more = {"int8_error": None if one.precision == "fp32" else error, **score_fields(score)}
        return {**self._entry(one, sub), **more, **({} if speculation is None else {"speculation": speculation})}

    def _verifies(self, files: Speculation, expected: dict[str, NDArray[Any]]) -> dict[str, Any]:
        """The entry of graphs that verify drafts. Raises ExportError where they are not the model."""
        problem = ""
        for graphs in ([files.graph], list(files.parts.values())):
            if graphs:
                sessions = [open_session(path, SessionOptions(spinning=False)) for path in graphs]
                error = rms_error(padded_outputs(sessions, self.inputs), expected)
                if not error <= QUANTIZED_TOLERANCE:
                    raise ExportError(f"{graphs[0].name}: differs from the graph without padding by {error:.1e} (RMS)")
                problem = problem or rows_problem(sessions, self.full.vocabulary, self.full.context)
        parts = [{"first": first, "last": last, "graph": self._path(path)} for (first, last), path in files.parts.items()]
        head = None if files.head is None else self._path(files.head)
        own = {"graph": self._path(files.graph), "parts": parts, "problem": problem}
        return own if head is None else {**own, "head": head, "head_tokens": files.head_tokens}

    def _torch(self, sub: SubModel) -> NDArray[Any]:
        """Logits (2, T, V) of the texts."""
        ids = torch.from_numpy(self.texts)
        given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        outputs = self.nested.outputs({name: given[name] for name in self.nested.input_names}, sub)
        logits: NDArray[Any] = outputs["logits"].float().numpy()
        return logits

    def _tensors(self) -> dict[str, torch.Tensor]:
        """The full model's by the names of transformers, whatever it is wrapped in."""
        found = dict(self.nested.full.named_parameters(remove_duplicate=False))
        name = next(name for name in found if name.endswith("model.embed_tokens.weight"))
        before = name.removesuffix("model.embed_tokens.weight")
        return {name.removeprefix(before): tensor for name, tensor in found.items()}

    def _entry(self, one: DecoderFiles, sub: SubModel) -> dict[str, Any]:
        counted = _layers(one)
        return {
            "id": one.id,
            "axes": {name: list(v) if isinstance(v, tuple) else v for name, v in sub.axes.items()},
            "params": sum(p.numel() for p in self.nested.skeleton(sub).parameters()),
            "macs": _macs(one),
            "graph": self._path(one.graph),
            "topology": one.topology,
            "precision": one.precision,
            "layers": [(self.layers.setdefault(shape, len(self.layers)), count) for shape, count in counted.items()],
            "segments": [
                {"layer": layer, "lower": self._path(lower), "upper": self._path(upper)}
                for layer, (lower, upper) in one.segments.items()
            ],
        }

    def _path(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()


def _macs(one: DecoderFiles) -> int:
    """Multiply-accumulates of one token."""
    return sum(inputs * outputs * count for (inputs, outputs), count in one.size.products.items())


def _layers(one: DecoderFiles) -> dict[LayerShape, int]:
    """The products of one token, without attention's own, which grow with the context."""
    found: dict[LayerShape, int] = {}
    kind = "mm" if one.precision == "fp32" else f"mm, {one.precision}"
    for (inputs, outputs), count in one.size.products.items():
        shape = LayerShape(kind, inputs * outputs, inputs * outputs, inputs + outputs, inputs, outputs)
        found[shape] = found.get(shape, 0) + count
    return found


def _manifest(
    nested: NestedModel,
    folder: Path,
    document: dict[str, Any],
    training: Mapping[str, Any],
    preprocessing: Mapping[str, Mapping[str, Any]],
) -> Manifest:
    config = nested.family.architecture.full  # type: ignore[attr-defined]
    vocabulary = document["decoder"]["vocabulary"]
    document["decoder"] |= _special_tokens(config, preprocessing.get("input_ids", {}), vocabulary)
    fields = network_fields(nested, {}, ())
    return write_manifest(
        folder,
        {
            "format_version": FORMAT_VERSION,
            **fields,
            "inputs": [{"name": "input_ids", "dtype": "int64", "shape": ["batch", "tokens"]}],
            "outputs": [{"name": "logits", "dtype": "float32", "shape": ["batch", "rows", vocabulary]}],
            "selftest": {"file": SELFTEST_FILE, "tolerance": SELFTEST_TOLERANCE, "int8_tolerance": QUANTIZED_TOLERANCE},
            "training": dict(training),
            "preprocessing": {name: dict(values) for name, values in preprocessing.items() if name == "input_ids"},
            **document,
        },
    )


def _special_tokens(config: Any, of_data: Mapping[str, Any], vocabulary: int) -> dict[str, Any]:
    """What begins, ends and fills up a text: as the tokenizer's files say, else as the configuration does."""
    found = {}
    for name in ("bos", "eos", "pad"):
        said = of_data.get("eos_ids" if name == "eos" else f"{name}_id")
        value = said if said not in (None, []) else getattr(config, f"{name}_token_id", None)
        tokens = [int(token) for token in (value if isinstance(value, (list, tuple)) else [value]) if token is not None]
        tokens = [token for token in tokens if 0 <= token < vocabulary]  # -1: none, in some configurations
        found[name] = tokens if name == "eos" else next(iter(tokens), None)
    return found
