"""`export`: writes a bundle from a trained nested model and proves every graph against torch.

One template per topology, one graph per sub-model rewritten from it (see `exporter.graph`). Every graph is opened in
ONNX Runtime as a device will open it, compared with its torch sub-model, and its accuracy is measured there.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from device_profiles import ProfileError, read_profile
from exporter.bundle import MANIFEST_FILE, MODELS_FOLDER, PROFILES_FOLDER, SELFTEST_FILE, Bundle, BundleError
from exporter.bundle.atomic import built_beside
from exporter.bundle.manifest import FORMAT_VERSION, Manifest, sealed
from exporter.bundle.session import SessionOptions, open_session, relative_error, run_session
from exporter.graph import Template
from exporter.template import dynamic_axes, export_template
from exporter.weights import INT8_WEIGHTS_FILE, WEIGHTS_FILE, StoredTensor, write_weights
from trainer.data import Examples, as_examples, batches_of, check_labels
from trainer.family import family_name
from trainer.macs import LayerShape, MacCounter
from trainer.nested import NestedModel
from trainer.submodel import SubModel, TrainerError

PARITY = 1e-4
"""How far a graph may be off its torch sub-model, relative to the largest output."""
SELFTEST_EXAMPLES = 2
SELFTEST_TOLERANCE = 1e-3
"""Looser than PARITY: another CPU sums in another order."""
ACCURACY_BATCH = 256
INT8_EXAMPLES, INT8_BATCH = 512, 64  # of training data, for the ranges of activations

Outputs = dict[str, NDArray[Any]]


class ExportError(BundleError):
    """An export that was refused or stopped; nothing is left behind."""


def export(
    nested: NestedModel,
    out: str | Path,
    *,
    test_data: Examples | torch.utils.data.Dataset[Any] | tuple[Tensor, Tensor] | None = None,
    int8_calibration: Examples | torch.utils.data.Dataset[Any] | tuple[Tensor, Tensor] | None = None,
    submodels: Sequence[SubModel] | None = None,
    training: Mapping[str, Any] | None = None,
    files: Mapping[str, bytes] | None = None,
    show_progress: bool = True,
) -> Bundle:
    """Writes the bundle `out` and returns it, opened.

    `test_data`: accuracy of every graph is measured on it with ONNX Runtime; without it the accuracies are unknown.
    `int8_calibration`: training data; with them every sub-model is written in int8 as well, as `ID-int8`, the ranges of its
    activations taken from them. `submodels`: which ones, default all of the grid. `training`: the record of the run, kept
    in the manifest. `files`: what else a device needs (a tokenizer), by file name. Profiles of a bundle that stood there
    are kept when it held the same networks.

    Raises ExportError when a sub-model is uncalibrated, when a graph differs from torch by more than 1e-4 (with its
    name and the figure), or when the bundle cannot be written; TrainerError for a test label outside the classes.
    """
    chosen = list(dict.fromkeys(nested.submodels if submodels is None else submodels))
    uncalibrated = next((sub for sub in chosen if nested.needs_calibration(sub)), None)
    if uncalibrated:
        raise ExportError(
            f"sub-model {uncalibrated.id}: its BatchNorm statistics are not calibrated; call trainer.calibrate first"
        )
    examples = as_examples(test_data) if test_data is not None else None
    calibration = as_examples(int8_calibration) if int8_calibration is not None else None
    was_training = nested.training
    nested.eval()
    try:
        with built_beside(Path(out)) as folder:
            writer = _Writer(nested, folder, examples)
            manifest = writer.write(chosen, dict(training or {}), files or {}, show_progress, calibration)
            _keep_profiles(Path(out) / PROFILES_FOLDER, folder / PROFILES_FOLDER, manifest.fingerprint)
            Bundle(folder, verify=False)  # one that could not be opened must not take a good one's place
    finally:
        nested.train(was_training)
    return Bundle(out)


@dataclass(frozen=True)
class _Draft:
    """A graph on disk, and what its torch sub-model answers to the self-test inputs."""

    sub: SubModel
    path: Path
    topology: str
    expected: Outputs
    macs: int
    layers: Mapping[LayerShape, int]


@dataclass(frozen=True)
class _Examined:
    """What ONNX Runtime makes of a draft: its problem in words, or none and its accuracy."""

    problem: str
    accuracy: float | None


class _Writer:
    def __init__(self, nested: NestedModel, folder: Path, examples: Examples | None) -> None:
        self.nested, self.folder, self.examples = nested, folder, examples
        self.models = folder / MODELS_FOLDER
        self.inputs = self._selftest_inputs()
        self.templates: dict[frozenset[str], Template] = {}
        self.layout: dict[str, StoredTensor] = {}
        self.layers: dict[LayerShape, int] = {}  # all that were seen, numbered

    def write(
        self,
        submodels: Sequence[SubModel],
        training: dict[str, Any],
        files: Mapping[str, bytes],
        progress: bool,
        calibration: Examples | None,
    ) -> Manifest:
        self.models.mkdir()
        with (self.models / WEIGHTS_FILE).open("wb") as file:
            self.layout = write_weights(self.nested, file)
        entries, arrays = [], {f"input/{name}": array for name, array in self.inputs.items()}
        # ONNX Runtime examines finished drafts on the other cores while torch, on one, computes what the next must
        # answer. With more threads than cores torch's wait for each other: 48 s instead of 7 on a busy machine.
        workers = max(1, (os.cpu_count() or 1) - 1)
        with _one_torch_thread(), ThreadPoolExecutor(workers) as pool, _progress(progress) as bar:
            task = bar.add_task("exporting", total=len(submodels))
            try:
                for draft, examined in self._in_order(submodels, pool):
                    draft, accuracy = self._proved(draft, examined)
                    arrays.update({f"output/{draft.sub.id}/{name}": array for name, array in draft.expected.items()})
                    entries.append(self._entry(draft, accuracy))
                    bar.advance(task)
            except BaseException:  # Ctrl-C too: nobody waits for what is not begun yet
                pool.shutdown(cancel_futures=True)
                raise
            if calibration is not None:
                task = bar.add_task("quantizing", total=len(submodels))
                for entry, outputs in self._int8_entries(entries, submodels, calibration):
                    arrays.update({f"output/{entry['id']}/{name}": array for name, array in outputs.items()})
                    entries.append(entry)
                    bar.advance(task)
        np.savez_compressed(self.folder / SELFTEST_FILE, **arrays)  # type: ignore[arg-type]
        for name, content in files.items():
            if PurePath(name).name != name or (self.folder / name).exists() or name == MANIFEST_FILE:
                raise ExportError(f"files: {name!r}; allowed are plain file names that the bundle does not use itself")
            (self.folder / name).write_bytes(content)
        return self._write_manifest(entries, arrays, training)

    def _int8_entries(
        self, entries: Sequence[dict[str, Any]], submodels: Sequence[SubModel], calibration: Examples
    ) -> Iterator[tuple[dict[str, Any], Outputs]]:
        """Of each sub-model's int8 graph: its entry, and what it answers here to the self-test's inputs."""
        from exporter.quantize import Quantizer

        batches = [batch for batch, _ in batches_of(calibration, INT8_BATCH, _spread(len(calibration), INT8_EXAMPLES))]
        feeds = [dict(zip(self.inputs, (t.numpy() for t in batch), strict=True)) for batch in batches]
        graphs = {sub: self.folder / entry["graph"] for sub, entry in zip(submodels, entries, strict=True)}
        with (self.models / INT8_WEIGHTS_FILE).open("wb") as file:
            quantizer = Quantizer(self.nested, graphs, feeds, file)
        for entry, sub in zip(list(entries), submodels, strict=True):
            name = f"{entry['id']}-int8"
            path = self.models / f"{name}.onnx"
            quantizer.write(sub, path)
            session = open_session(path, SessionOptions(threads=1, spinning=False))
            layers = [(self.layers.setdefault(shape, len(self.layers)), n) for shape, n in self._int8_layers(entry)]
            own = {"id": name, "graph": f"{MODELS_FOLDER}/{name}.onnx", "precision": "int8", "layers": layers}
            yield {**entry, **own, "accuracy": self._accuracy(session)}, run_session(session, self.inputs)

    def _int8_layers(self, entry: Mapping[str, Any]) -> list[tuple[LayerShape, int]]:
        shapes = list(self.layers)
        return [(shapes[index]._replace(kind=f"{shapes[index].kind}, int8"), count) for index, count in entry["layers"]]

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
            self.templates[topology] = self._template(sub)
        template = self.templates[topology]
        expected, counter = self._torch_outputs(sub)
        layers = {_of_one_example(shape): count for shape, count in counter.layers.items()}
        macs = counter.macs // SELFTEST_EXAMPLES
        return _Draft(sub, self._write_graph(sub, template), template.digest, expected, macs, layers)

    def _proved(self, draft: _Draft, found: _Examined) -> tuple[_Draft, float | None]:
        """The draft of a graph that is equal to its torch sub-model, and its accuracy; raises ExportError when it is not.

        A graph rewritten from the topology's template is wrong where the family's code turns a width into a constant
        (a reshape to a fixed number of heads, a scale by the square root of the width). Then the sub-model is traced by
        itself, which is slower and right; its weights are shared all the same.
        """
        if found.problem:
            template = self._template(draft.sub)
            self._write_graph(draft.sub, template)
            draft = replace(draft, topology=template.digest)
            found = self._examine(draft)
        if found.problem:
            raise ExportError(f"sub-model {draft.sub.id}: {found.problem}")
        return draft, found.accuracy

    def _template(self, sub: SubModel) -> Template:
        return Template(export_template(self.nested, sub), self.nested, self.layout)

    def _write_graph(self, sub: SubModel, template: Template) -> Path:
        path = self.models / f"{sub.id}.onnx"
        path.write_bytes(template.graph_of(sub).SerializeToString(deterministic=True))
        return path

    @torch.no_grad()
    def _torch_outputs(self, sub: SubModel) -> tuple[Outputs, MacCounter]:
        """What torch answers to the self-test inputs, and the multiply-accumulates of that."""
        device = next(self.nested.full.parameters()).device
        inputs = [torch.from_numpy(array).to(device) for array in self.inputs.values()]
        parameters = self.nested.view(sub)
        with MacCounter() as counter:
            logits = self.nested.call(sub, inputs, parameters)
        return {self.nested.family.output_name: logits.cpu().numpy()}, counter

    def _examine(self, draft: _Draft) -> _Examined:
        """Opens the graph as a device will, compares it with torch, measures its accuracy."""
        try:
            # Spinning threads of ONNX Runtime would take the cores from torch (4 times slower on 2 cores).
            session = open_session(draft.path, SessionOptions(threads=1, spinning=False))
            error = relative_error(run_session(session, self.inputs), draft.expected)
            if not error <= PARITY:
                problem = f"the graph differs from torch by {error:.2e} relative to the largest output; allowed is {PARITY:.0e}"
                return _Examined(problem, None)
            return _Examined("", self._accuracy(session))
        except TrainerError:
            raise
        except Exception as refused:  # ONNX Runtime has one exception type per status code
            return _Examined(f"the graph does not run: {refused}", None)

    def _selftest_inputs(self) -> Outputs:
        names = list(self.nested.family.example_inputs(1))
        if self.examples is None:
            tensors = list(self.nested.family.example_inputs(SELFTEST_EXAMPLES).values())
        else:
            if len(self.examples) < SELFTEST_EXAMPLES:
                raise ExportError(f"test data: {len(self.examples)} examples; allowed are {SELFTEST_EXAMPLES} and more")
            tensors = list(self.examples.batch(torch.arange(SELFTEST_EXAMPLES))[0])
        if len(tensors) != len(names):
            raise ExportError(
                f"test data: {len(tensors)} inputs per example; the family takes {len(names)}: {', '.join(names)}"
            )
        return {name: tensor.cpu().numpy() for name, tensor in zip(names, tensors, strict=True)}

    def _entry(self, draft: _Draft, accuracy: float | None) -> dict[str, Any]:
        sub, skeleton = draft.sub, self.nested.skeleton(draft.sub)
        return {
            "id": sub.id,
            "axes": {name: list(v) if isinstance(v, tuple) else v for name, v in sub.axes.items()},
            "params": sum(p.numel() for p in skeleton.parameters()),
            "macs": draft.macs,
            "accuracy": accuracy,
            "graph": f"{MODELS_FOLDER}/{sub.id}.onnx",
            "topology": draft.topology,
            "precision": "fp32",
            "layers": [(self.layers.setdefault(shape, len(self.layers)), n) for shape, n in draft.layers.items()],
        }

    def _accuracy(self, session: ort.InferenceSession) -> float | None:
        if self.examples is None:
            return None
        output = self.nested.family.output_name
        right = 0
        for tensors, labels in batches_of(self.examples, ACCURACY_BATCH):
            feed = dict(zip(self.inputs, (t.numpy() for t in tensors), strict=True))
            logits = session.run([output], feed)[0]
            check_labels(labels, logits.shape[1], "test data")
            right += int((logits.argmax(axis=1) == labels.numpy()).sum())
        return right / len(self.examples)

    def _write_manifest(self, entries: list[dict[str, Any]], arrays: Outputs, training: dict[str, Any]) -> Manifest:
        family = self.nested.family
        inputs = family.example_inputs(1)
        axes = dynamic_axes(self.nested, inputs)
        written = sorted(path for path in self.folder.rglob("*") if path.is_file())
        document = {
            "format_version": FORMAT_VERSION,
            "family": family_name(family),
            "axes": {name: [list(v) if isinstance(v, tuple) else v for v in values] for name, values in family.axes.items()},
            "inputs": [_tensor_spec(name, t.numpy(), axes.get(name, {})) for name, t in inputs.items()],
            "outputs": [
                _tensor_spec(
                    family.output_name, arrays[f"output/{entries[0]['id']}/{family.output_name}"], axes[family.output_name]
                )
            ],
            "submodels": entries,
            "layers": [shape._asdict() for shape in self.layers],
            "weights": f"{MODELS_FOLDER}/{WEIGHTS_FILE}",
            "int8_weights": f"{MODELS_FOLDER}/{INT8_WEIGHTS_FILE}" if (self.models / INT8_WEIGHTS_FILE).exists() else None,
            "selftest": {"file": SELFTEST_FILE, "tolerance": SELFTEST_TOLERANCE},
            "files": {path.relative_to(self.folder).as_posix(): _file_entry(path) for path in written},
            "training": training,
            "created_with": {module.__name__: str(module.__version__) for module in (torch, onnx, ort)},
        }
        text = json.dumps(sealed(json.loads(json.dumps(document))), indent=1)
        (self.folder / MANIFEST_FILE).write_text(text + "\n", encoding="utf-8")
        return Manifest.model_validate_json(text)


def _spread(count: int, wanted: int) -> Tensor:
    """So many indices at most, evenly spaced."""
    return torch.linspace(0, count - 1, min(count, wanted)).long()


def _of_one_example(shape: LayerShape) -> LayerShape:
    return shape._replace(macs=shape.macs // SELFTEST_EXAMPLES, activations=shape.activations // SELFTEST_EXAMPLES)


def _keep_profiles(old: Path, new: Path, fingerprint: str) -> None:
    """Copies the profiles of the same networks; one that is damaged or of others is left behind."""
    for path in sorted(old.glob("*.json")):
        try:
            kept = read_profile(path).bundle == fingerprint
        except ProfileError:
            continue
        if kept:
            new.mkdir(exist_ok=True)
            shutil.copyfile(path, new / path.name)


@contextmanager
def _one_torch_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _progress(show: bool) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), disable=not show)


def _tensor_spec(name: str, array: NDArray[Any], free: Mapping[int, str]) -> dict[str, Any]:
    shape: list[int | str] = [free.get(axis, size) for axis, size in enumerate(array.shape)]
    return {"name": name, "dtype": array.dtype.name, "shape": shape}


def _file_entry(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"sha256": hashlib.file_digest(file, "sha256").hexdigest(), "bytes": path.stat().st_size}
