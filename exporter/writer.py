"""`export`: writes a bundle from a trained nested model and proves every graph against torch.

One template per topology, one graph per sub-model rewritten from it (see `exporter.graph`). Every graph is opened in
ONNX Runtime as a device will open it, compared with its torch sub-model, and its accuracy is measured there.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from exporter.bundle import MODELS_FOLDER, SELFTEST_FILE, Bundle
from exporter.bundle.atomic import built_beside
from exporter.bundle.manifest import FORMAT_VERSION, INT8_SUFFIX, Int8Range, Manifest
from exporter.bundle.session import SessionOptions, open_session
from exporter.decoder.export import export_decoder, is_decoder
from exporter.document import check_files, network_fields, score_fields, write_files, write_manifest
from exporter.graph import Template
from exporter.int8 import INT8_SELFTEST_TOLERANCE, Int8, int8_entries, int8_wanted
from exporter.place import check_target, keep_what_fits, source_of
from exporter.progress import exporting
from exporter.scoring import score_of
from exporter.selftest import (
    INT8_SELFTEST_EXAMPLES,
    ExportError,
    Others,
    Outputs,
    other_inputs,
    problem_of,
    selftest_inputs,
    torch_outputs,
)
from exporter.template import export_template
from exporter.torch_state import one_torch_thread, plain_attention
from exporter.weights import INT8_WEIGHTS_FILE, WEIGHTS_FILE, StoredTensor, write_weights
from trainer.data.dataset import Data, Examples, as_examples
from trainer.macs import LayerShape, MacCounter
from trainer.nested import NestedModel
from trainer.submodel import SubModel, TrainerError
from trainer.task import Score, own

PARITY = 1e-4
"""How far a graph may be off its torch sub-model, relative to the largest output."""
SELFTEST_TOLERANCE = 1e-3
"""Looser than PARITY: another CPU sums in another order."""


__all__ = ["ExportError", "export"]


def export(
    nested: NestedModel,
    out: str | Path,
    *,
    test_data: Data | None = None,
    scores: Mapping[SubModel, Score] | None = None,
    int8_calibration: Data | None = None,
    int8_range: Int8Range = "reduced",
    submodels: Sequence[SubModel] | None = None,
    training: Mapping[str, Any] | None = None,
    files: Mapping[str, bytes] | None = None,
    labels: Sequence[str] = (),
    preprocessing: Mapping[str, Mapping[str, Any]] | None = None,
    overwrite: bool = False,
    show_progress: bool = True,
) -> Bundle:
    """Writes the bundle `out` and returns it, opened; of a language model in fp32 (`exporter.decoder.export` has more).

    `test_data`: the task's score of every graph is measured on it with ONNX Runtime. `scores`: what was measured in torch
    instead, where the data are not at hand; with neither the qualities are unknown.
    `int8_calibration`: training data; with them every sub-model is written in int8 as well, as `ID-int8`, the ranges of its
    activations taken from them; `int8_range`: their weights have 7 bits, or with `full` 8 (`exporter.quantize` says when that
    goes wrong). `submodels`: which ones, default all of the grid. `training`: the record of the run, kept
    in the manifest. `files`: what else a device needs (a tokenizer), by file name; `labels`: the classes' names, in order;
    `preprocessing`: how a file becomes an input, by input. A bundle of the same run that stood there
    is replaced; its profiles and cascades stay as far as they are of sub-models that the new one has too. With `overwrite` so
    is one of another run, and what does not fit goes.

    Raises ExportError when a sub-model is uncalibrated, when a graph differs from torch by more than 1e-4 (with its
    name and the figure), an int8 graph from fp32 by more than half, for full-range weights where they saturate, or when what
    stands there would be lost; BundleError when the bundle cannot be written; TrainerError for test targets that are not the
    task's.
    """
    if is_decoder(nested):
        if int8_calibration is not None or int8_range != "reduced":
            raise ExportError("int8: a language model needs no training data for it: export_decoder(…, precisions=…)")
        given: dict[str, Any] = {"test_data": test_data, "scores": scores, "submodels": submodels, "training": training}
        given |= {"files": files, "preprocessing": preprocessing, "overwrite": overwrite, "show_progress": show_progress}
        return export_decoder(nested, out, **given)
    check_files(files or {})
    chosen = list(dict.fromkeys(nested.submodels if submodels is None else submodels))
    uncalibrated = next((sub for sub in chosen if nested.needs_calibration(sub)), None)
    if uncalibrated:
        raise ExportError(
            f"sub-model {uncalibrated.id}: its BatchNorm statistics are not calibrated; call trainer.calibrate first"
        )
    examples = as_examples(test_data) if test_data is not None else None
    int8 = int8_wanted(nested, as_examples(int8_calibration) if int8_calibration is not None else None, int8_range)
    ids = [f"{sub.id}{suffix}" for sub in chosen for suffix in ("", INT8_SUFFIX)[: 1 if int8 is None else 2]]
    needed = sum(p.numel() * p.element_size() for p in nested.full.parameters())
    source = source_of(nested, training or {})
    target, standing = check_target(out, source, ids, needed=needed, overwrite=overwrite)
    was_training, device = nested.training, next(nested.full.parameters()).device
    nested.eval()
    nested.full.cpu()  # what graphs are compared with: a GPU may round to 10 bits on the way (TF32)
    try:
        with plain_attention(), built_beside(target, overwrite=overwrite) as folder:
            writer = _Writer(nested, folder, examples, dict(scores or {}), int8)
            about = {"training": dict(training or {}), "preprocessing": _of_inputs(nested, preprocessing or {})}
            manifest = writer.write(chosen, about, tuple(labels), files or {}, show_progress)
            Bundle(folder, verify=False)  # one that could not be opened must not take a good one's place
            keep_what_fits(standing, target, folder, manifest, overwrite=overwrite)
    finally:
        nested.full.to(device)
        nested.train(was_training)
    return Bundle(out)


@dataclass(frozen=True)
class _Draft:
    """A graph on disk, and what its torch sub-model answers to the self-test inputs."""

    sub: SubModel
    path: Path
    topology: str
    expected: Outputs
    others: Sequence[tuple[Others, Outputs]]  # and to other inputs
    macs: int
    layers: Mapping[LayerShape, int]


@dataclass(frozen=True)
class _Examined:
    """What ONNX Runtime makes of a draft: its problem in words, or none and its score."""

    problem: str
    score: Score | None


class _Writer:
    def __init__(
        self,
        nested: NestedModel,
        folder: Path,
        examples: Examples | None,
        known: Mapping[SubModel, Score],
        int8: Int8 | None,
    ) -> None:
        self.nested, self.folder, self.examples, self.known, self.int8 = nested, folder, examples, known, int8
        self.models = folder / MODELS_FOLDER
        if int8 is None:
            self.inputs = selftest_inputs(nested, examples)
        else:  # real ones, which int8 can be judged by
            self.inputs = selftest_inputs(
                nested, examples if examples is not None else int8.calibration, INT8_SELFTEST_EXAMPLES
            )
        self.batch = len(next(iter(self.inputs.values())))
        self.others = other_inputs(nested, self.inputs)
        self.templates: dict[frozenset[str], Template] = {}
        self.exact = False  # whether a query of an attention may have no key
        self.layout: dict[str, StoredTensor] = {}
        self.layers: dict[LayerShape, int] = {}  # all that were seen, numbered

    def write(
        self,
        submodels: Sequence[SubModel],
        about: Mapping[str, Any],
        labels: tuple[str, ...],
        files: Mapping[str, bytes],
        progress: bool,
    ) -> Manifest:
        self.models.mkdir()
        with (self.models / WEIGHTS_FILE).open("wb") as file:
            self.layout = write_weights(self.nested, file)
        entries, arrays = [], {f"input/{name}": array for name, array in self.inputs.items()}
        # ONNX Runtime examines finished drafts on the other cores while torch, on one, computes what the next must
        # answer. With more threads than cores torch's wait for each other: 48 s instead of 7 on a busy machine.
        workers = max(1, (os.cpu_count() or 1) - 1)
        with one_torch_thread(), ThreadPoolExecutor(workers) as pool, exporting(progress) as bar:
            task = bar.add_task("exporting", total=len(submodels))
            try:
                for draft, examined in self._in_order(submodels, pool):
                    draft, score = self._proved(draft, examined)
                    arrays.update({f"output/{draft.sub.id}/{name}": array for name, array in draft.expected.items()})
                    entries.append(self._entry(draft, score))
                    bar.advance(task)
            except BaseException:  # Ctrl-C too: nobody waits for what is not begun yet
                pool.shutdown(cancel_futures=True)
                raise
            if self.int8 is not None:
                task = bar.add_task("quantizing", total=len(submodels))
                for entry, outputs in self._int8_entries(dict(zip(submodels, entries, strict=True)), arrays, self.int8):
                    arrays.update({f"output/{entry['id']}/{name}": array for name, array in outputs.items()})
                    entries.append(entry)
                    bar.advance(task)
        np.savez_compressed(self.folder / SELFTEST_FILE, **arrays)  # type: ignore[arg-type]
        write_files(self.folder, files)
        first = {name: arrays[f"output/{entries[0]['id']}/{name}"] for name in self.nested.family.task.outputs}
        document = {
            "format_version": FORMAT_VERSION,
            **network_fields(self.nested, first, labels),
            "quality_from": "graph" if self.examples is not None or not self.known else "torch",
            "submodels": entries,
            "layers": [shape._asdict() for shape in self.layers],
            "weights": f"{MODELS_FOLDER}/{WEIGHTS_FILE}",
            "int8_weights": f"{MODELS_FOLDER}/{INT8_WEIGHTS_FILE}" if self.int8 else None,
            "int8_range": self.int8.weights if self.int8 else None,
            "selftest": {
                "file": SELFTEST_FILE,
                "tolerance": SELFTEST_TOLERANCE,
                "int8_tolerance": INT8_SELFTEST_TOLERANCE,
            },
            **about,
        }
        return write_manifest(self.folder, document)

    def _int8_entries(
        self, entries: Mapping[SubModel, dict[str, Any]], arrays: Outputs, int8: Int8
    ) -> Iterator[tuple[dict[str, Any], Outputs]]:
        """Of each sub-model's int8 graph: its entry, and what it answers here to the self-test's inputs."""
        names = list(self.nested.family.task.outputs)

        def answers(identifier: str) -> Outputs:
            return {name: arrays[f"output/{identifier}/{name}"] for name in names}

        return int8_entries(self.nested, self.models, entries, answers, int8, self.inputs, self.layers, self._score)

    def _in_order(self, submodels: Sequence[SubModel], pool: ThreadPoolExecutor) -> Iterator[tuple[_Draft, _Examined]]:
        """Each draft with what the examination found, as soon as it and all before it are examined."""
        waiting: deque[tuple[_Draft, Future[_Examined]]] = deque()
        for sub in submodels:
            draft = self._draft(sub)
            waiting.append((draft, pool.submit(self._examine, draft)))
            while waiting and waiting[0][1].done():
                draft, future = waiting.popleft()
                yield draft, future.result()
        for draft, future in waiting:
            yield draft, future.result()

    def _draft(self, sub: SubModel) -> _Draft:
        topology = frozenset(self.nested.segments(sub))
        if topology not in self.templates:
            self.templates[topology] = self._template(sub, self.exact)
        template = self.templates[topology]
        counter = MacCounter()
        expected = torch_outputs(self.nested, sub, self.inputs, counter)
        layers = {_of_one_example(shape, self.batch): count for shape, count in counter.layers.items()}
        macs = counter.macs // self.batch
        path = self._write_graph(sub, template)
        others = [(other, torch_outputs(self.nested, sub, other.inputs)) for other in self.others]
        return _Draft(sub, path, template.digest, expected, others, macs, layers)

    def _proved(self, draft: _Draft, found: _Examined) -> tuple[_Draft, Score | None]:
        """The draft of a graph that is equal to its torch sub-model, and its score; raises ExportError when it is not.

        A graph rewritten from the topology's template is wrong where the family's code turns a width into a constant
        (a reshape to a fixed number of heads, a scale by the square root of the width). Then the sub-model is traced by
        itself, which is slower and right; its weights are shared all the same. So is one whose attention has queries without
        a key, from then on exactly.
        """
        template: Template | None = None
        for exact in dict.fromkeys((self.exact, True)):
            if found.problem and (template is None or template.assumes_keys):
                template = self._template(draft.sub, exact)
                self._write_graph(draft.sub, template)
                draft = replace(draft, topology=template.digest)
                found = self._examine(draft)
                if exact and not self.exact and not found.problem:
                    self.exact = True
                    self.templates.clear()
        if found.problem:
            told = f"; what torch made constant: {'; '.join(template.warnings)}" if template and template.warnings else ""
            raise ExportError(f"sub-model {draft.sub.id}: {found.problem}{told}")
        return draft, found.score if self.examples is not None else self.known.get(draft.sub)

    def _template(self, sub: SubModel, exact: bool) -> Template:
        with own(f"sub-model {sub.id}: torch cannot write it as ONNX"):
            traced = export_template(self.nested, sub, exact)
        return Template(traced, self.nested, self.layout)

    def _write_graph(self, sub: SubModel, template: Template) -> Path:
        path = self.models / f"{sub.id}.onnx"
        path.write_bytes(template.graph_of(sub).SerializeToString(deterministic=True))
        return path

    def _examine(self, draft: _Draft) -> _Examined:
        """Opens the graph as a device will, compares it with torch, measures its score."""
        try:
            # Spinning threads of ONNX Runtime would take the cores from torch (4 times slower on 2 cores).
            session = open_session(draft.path, SessionOptions(threads=1, spinning=False))
            problem = problem_of(session, self.inputs, draft.expected, PARITY)
            for other, expected in draft.others:
                problem = problem or problem_of(session, other.inputs, expected, PARITY, other.what)
            if problem:
                return _Examined(problem, None)
            return _Examined("", self._score(session))
        except TrainerError:
            raise
        except Exception as refused:  # ONNX Runtime has one exception type per status code
            return _Examined(f"the graph does not run: {refused}", None)

    def _entry(self, draft: _Draft, score: Score | None) -> dict[str, Any]:
        sub, skeleton = draft.sub, self.nested.skeleton(draft.sub)
        return {
            "id": sub.id,
            "axes": {name: list(v) if isinstance(v, tuple) else v for name, v in sub.axes.items()},
            "params": sum(p.numel() for p in skeleton.parameters()),
            "macs": draft.macs,
            **score_fields(score),
            "graph": f"{MODELS_FOLDER}/{sub.id}.onnx",
            "topology": draft.topology,
            "precision": "fp32",
            "layers": [(self.layers.setdefault(shape, len(self.layers)), n) for shape, n in draft.layers.items()],
        }

    def _score(self, session: ort.InferenceSession) -> Score | None:
        if self.examples is None:
            return None
        return score_of(session, self.nested.family.task, self.examples, self.nested.input_names)


def _of_inputs(nested: NestedModel, preprocessing: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """By the inputs' names; data that have a single input need not know how a family calls it."""
    names = nested.input_names
    if len(names) == len(preprocessing) == 1:
        return {names[0]: dict(next(iter(preprocessing.values())))}
    unknown = [name for name in preprocessing if name not in names]
    if unknown:
        raise ExportError(f"preprocessing: {unknown[0]!r} is no input; allowed are {', '.join(names)}")
    return {name: dict(values) for name, values in preprocessing.items()}


def _of_one_example(shape: LayerShape, batch: int) -> LayerShape:
    return shape._replace(macs=shape.macs // batch, activations=shape.activations // batch)
