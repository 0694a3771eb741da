"""The bundles that are measured: of the nested runs that experiments leave, and of shapes with random weights."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.text.data import WORK
from benchmarks.text.experiment import FIXED, GRID, Alone, Experiment, Setting, setting
from exporter import export
from exporter.bundle import Bundle
from exporter.run import export_run
from exporter.template import OPSET
from exporter.torch_state import plain_attention
from trainer import DataSpec, NestedModel, SubModel
from trainer.checkpoint import CHECKPOINT_FILE, load_parameters, load_tensors, read_state
from trainer.families import Transformers
from trainer.family import Family, find_family
from trainer.folder import FILES_FOLDER, MODEL_FILE, write_record
from trainer.run import describe_run, load_run, save_run

VOCABULARY, CLASSES = 30522, 5  # of the shapes
_BERT = {"model_type": "bert", "vocab_size": VOCABULARY, "max_position_embeddings": 512}
SHAPES: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Sequence[int]]]] = {
    "minilm": (
        {**_BERT, "num_hidden_layers": 6, "hidden_size": 384, "num_attention_heads": 12, "intermediate_size": 1536},
        GRID,
    ),
    "bert-base": (
        {**_BERT, "num_hidden_layers": 12, "hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072},
        {
            "num_hidden_layers": (3, 6, 9, 12),
            "intermediate_size": (768, 1536, 2304, 3072),
            "num_attention_heads": (6, 9, 12),
        },
    ),
}
"""By name the configuration and the grid: 48 sub-models each."""
TOKENS = 64  # of the self-test's texts of a shape; graphs take any number


@dataclass(frozen=True)
class Made:
    """A bundle, and the model that it was exported from."""

    bundle: Bundle
    nested: NestedModel

    @property
    def vocabulary(self) -> int:
        assert isinstance(self.nested.family, Transformers)
        return int(self.nested.family.architecture.full.vocab_size)

    def sizes(self, count: int | None = None) -> dict[str, SubModel]:
        """The fp32 sub-models by id, the smallest first; or so many, evenly spaced, the smallest and the largest among them."""
        by_id = {sub.id: sub for sub in self.nested.submodels}
        entries = [entry for entry in self.bundle.manifest.submodels if entry.precision == "fp32"]
        names = [entry.id for entry in sorted(entries, key=lambda entry: entry.macs)]
        if count is not None:
            names = list(dict.fromkeys(names[round(i * (len(names) - 1) / (count - 1))] for i in range(count)))
        return {name: by_id[name] for name in names}


def of_task(task: str, work: Path = WORK) -> Made:
    """Of the first seed's nested run. Raises SystemExit where that run is not there or not finished."""
    folder = work / "runs" / Experiment(task, "ours", 0).name
    if not (folder / CHECKPOINT_FILE).exists():
        raise SystemExit(f"{folder} is missing: run the experiment {folder.name} first")
    if not _newer(folder / MODEL_FILE, folder / CHECKPOINT_FILE):
        make_exportable(folder, setting(task))
    path = work / "bundles" / task
    if not _newer(path / "manifest.json", folder / MODEL_FILE):
        export_run(folder, path, overwrite=True)
    return Made(Bundle(path), load_run(folder).nested)


def make_exportable(folder: Path, given: Setting) -> None:
    """Writes what `sortednet export` wants of a run beside the checkpoint of a training that `fit` alone was asked for.

    Raises SystemExit where that training has not come to its end.
    """
    state = read_state(folder / CHECKPOINT_FILE)
    done, epochs = state["step"] / state["steps_per_epoch"], state["options"]["epochs"]
    if done < epochs:
        raise SystemExit(f"{folder}: has {done:.1f} of {epochs} epochs; let the experiment {folder.name} come to its end")
    nested = NestedModel(given.family).eval()
    tensors, _ = load_tensors(folder / CHECKPOINT_FILE)
    kept = {name.removeprefix("model/"): tensor for name, tensor in tensors.items() if name.startswith("model/")}
    load_parameters(nested, kept, folder / CHECKPOINT_FILE)
    (folder / FILES_FOLDER).mkdir(exist_ok=True)
    for name, content in given.data.files.items():
        (folder / FILES_FOLDER / name).write_bytes(content)
    record = describe_run(given.family, given.data.record, state["options"])
    about = {"labels": list(given.data.labels), "preprocessing": dict(given.data.preprocessing)}
    write_record(folder, record | about)
    save_run(folder, nested)


def of_shape(name: str, work: Path = WORK) -> Made:
    """With random weights, which cost what trained ones do. Takes texts of any length up to 512."""
    torch.manual_seed(0)
    nested = NestedModel(family_of(name)).eval()
    path = work / "shapes" / name
    if not (path / "manifest.json").exists():
        export(nested, path)
    return Made(Bundle(path), nested)


def family_of(name: str) -> Family:
    config, grid = SHAPES[name]
    texts = {"input_ids": (TOKENS,), "attention_mask": (TOKENS,)}
    spec = DataSpec((TOKENS,), CLASSES, vocabulary=VOCABULARY, inputs=texts)
    return find_family("bert").for_data(spec, config=dict(config), fixed=list(FIXED)).with_grid(grid)


def exported_alone(nested: NestedModel, sub: SubModel, folder: Path) -> Path:
    """The graph of that size exported by itself, as if there were no others; its weights are its own."""
    alone = NestedModel(Alone(nested.family, sub)).eval()
    with torch.no_grad():
        for (_, own), (_, theirs) in zip(alone.full.named_parameters(), nested.extract(sub).named_parameters(), strict=True):
            own.copy_(theirs)
    bundle = export(alone, folder, overwrite=True, show_progress=False)
    return bundle.graph_path(bundle.manifest.submodels[0].id)


def exported_by_torch(nested: NestedModel, sub: SubModel, path: Path) -> Path:
    """What torch.onnx.export writes of that size, with parameters and all of its own optimizations."""
    inputs = nested.family.example_inputs(2)
    names = list(inputs)
    axes = {name: {0: "batch", 1: "sequence"} for name in names} | {"logits": {0: "batch"}}
    given = {"input_names": names, "output_names": ["logits"], "dynamic_axes": axes, "opset_version": OPSET}
    with warnings.catch_warnings(), plain_attention(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(_Positional(nested, sub), tuple(inputs.values()), str(path), dynamo=False, **given)  # type: ignore[arg-type]
    return path


class _Positional(torch.nn.Module):
    """A sub-model that takes its inputs in their order and gives logits alone."""

    def __init__(self, nested: NestedModel, sub: SubModel) -> None:
        super().__init__()
        self.nested, self.names = (nested,), nested.input_names  # in a tuple: no module of this one
        self.module = nested.extract(sub).eval()

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        (nested,) = self.nested
        return nested.applied(self.module, dict(zip(self.names, tensors, strict=True)))["logits"]


def _newer(path: Path, than: Path) -> bool:
    return path.exists() and path.stat().st_mtime >= than.stat().st_mtime
