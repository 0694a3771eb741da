"""A run: the folder that `sortednet train` writes and `sortednet export` reads. It can be reopened from what it carries.

run.json                   family and its configuration, data set and split, options, first weights, the folder that relative
                           paths are from, version, results
checkpoint.safetensors     parameters, optimizer state and step, while and after training
log.jsonl                  one line per epoch
model.safetensors          the trained parameters            (written at the end)
calibration.safetensors    BatchNorm statistics per sub-model (written at the end)
targets.safetensors        what the original model answered   (where the data have no targets)
begin.safetensors          what it began with                 (where some of the way may be taken back)
order.safetensors          in which order its units were put  (where a teacher's must be alike)
files/                     what a device needs to prepare inputs (a tokenizer)
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainer.accelerator import find_accelerator
from trainer.checkpoint import CHECKPOINT_FILE, load_parameters, load_tensors, replacing, save_tensors
from trainer.compatibility import check_fits
from trainer.data.sources import load_data
from trainer.distributed import joined
from trainer.evaluate import scores_of
from trainer.family import Family, family_name, find_family
from trainer.folder import (
    CALIBRATION_FILE,
    FILES_FOLDER,
    MODEL_FILE,
    RUN_FILE,
    check_epochs,
    check_folder,
    check_unaltered,
    clear,
    epochs_of,
    hashes_of,
    read_record,
    write_record,
)
from trainer.nested import NestedModel
from trainer.options import FitOptions, with_usual
from trainer.order import Orders, in_order, read_orders, save_orders
from trainer.rebuild import check_rebuilds, family_of
from trainer.start import (
    ASKED,
    Start,
    begin,
    check_tokenizer,
    checkpoint_of,
    data_options_of,
    data_spec,
    teacher_of,
    with_checkpoint,
)
from trainer.submodel import AxisValue, TrainerError
from trainer.targets import answered, needs_targets, save_targets, with_targets
from trainer.task import Score, Task, find_task, own, task_name
from trainer.teacher import teacher_for
from trainer.training import FREE_TO_CHANGE, fit
from trainer.updates import make_rule
from trainer.weights import read_weights


@dataclass(frozen=True)
class Run:
    """A finished run, reopened: the calibrated nested model in eval mode and what `run.json` says."""

    nested: NestedModel
    record: Mapping[str, Any]
    files: Mapping[str, bytes] = field(default_factory=dict)  # what a device needs to prepare inputs, by file name


def describe_run(
    family: Family, data: Mapping[str, Any], options: Mapping[str, Any], init: Path | None = None
) -> dict[str, Any]:
    """What `run.json` holds from the beginning. Raises TrainerError for what JSON cannot hold, naming its origin."""
    name = type(family).__name__
    with own(f"{name}.config"):
        config = family.config()
    grid = {axis: [list(v) if isinstance(v, tuple) else v for v in values] for axis, values in family.axes.items()}
    return {
        "family": family_name(family),
        "config": _as_json(config, f"{name}.config()"),
        "grid": grid,
        "task": describe_task(family.task),
        "data": dict(data),
        "options": dict(options),
        "init": str(init) if init else None,
        "folder": str(Path.cwd()),
        "torch": torch.__version__,
    }


def describe_task(task: Task) -> dict[str, Any]:
    """As a run and a bundle carry it."""
    with own(f"{type(task).__name__}.config"):
        config = task.config()
    return {"name": task_name(task), "config": _as_json(config, f"{type(task).__name__}.config()")}


def _as_json(value: Any, what: str) -> Any:
    """As it will be when it has been written and read again: tuples are lists then, keys are strings."""
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise TrainerError(f"{what}: {error}; allowed are JSON values") from None


def save_run(folder: Path, nested: NestedModel) -> None:
    """Writes the calibration and the trained parameters beside the record; the latter last: they mark a finished run."""
    statistics = {f"{sub.id}/{name}": t for sub, named in nested.calibration.items() for name, t in named.items()}
    save_tensors(statistics, folder / CALIBRATION_FILE)
    save_tensors({name: p.detach() for name, p in nested.full.named_parameters()}, folder / MODEL_FILE)


def load_run(folder: Path) -> Run:
    """Raises TrainerError when the run is unfinished, damaged, altered or of an unknown family."""
    record = read_record(folder)
    if not (folder / MODEL_FILE).is_file():
        raise TrainerError(f"run {str(folder)!r} is not finished: go on with `sortednet train --resume`")
    check_unaltered(folder, record)
    nested = NestedModel(family_of(record))
    load_parameters(nested, load_tensors(folder / MODEL_FILE)[0], folder / MODEL_FILE)
    statistics, _ = load_tensors(folder / CALIBRATION_FILE)
    by_id = {sub.id: sub for sub in nested.submodels}
    for key, tensor in statistics.items():
        identifier, _, name = key.partition("/")
        if identifier in by_id:
            nested.calibration.setdefault(by_id[identifier], {})[name] = tensor
    files = {path.name: path.read_bytes() for path in sorted((folder / FILES_FOLDER).glob("*")) if path.is_file()}
    return Run(nested.eval(), record, files)


def train_run(
    family: str,
    data: str,
    folder: Path,
    *,
    grid: Mapping[str, Sequence[AxisValue]],
    settings: Mapping[str, Any],
    options: Mapping[str, Any],
    task: str | None = None,
    task_settings: Mapping[str, Any] | None = None,
    data_options: Mapping[str, Any] | None = None,
    init: Path | None = None,
    start: Start | None = None,
    threads: int = 0,
    resume: bool = False,
    show_progress: bool = True,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Trains into a run folder (`sortednet train`) and returns the run's results.

    A run that ended before its first checkpoint is replaced. A resumed run, finished or not, goes on to the epochs of
    `options`, in all, or without these to those that it was to have; `say` is told what becomes of the learning rate where they
    are others. Until a finished run has them, it stays as it was and can be exported.

    `start`: begin with somebody's weights and a teacher. What their checkpoint says of pictures, and its tokenizer, go for the
    data, where `data_options` say nothing else. `say` is told what the user should know of the data.

    Raises TrainerError for wrong input, for a folder that already holds a run (unless it is resumed), for one that holds
    something else or cannot be written to, and when a resumed run was begun with something else or has more epochs already.
    """
    if threads < 0:
        raise TrainerError(f"threads = {threads}: allowed are 0 (torch's default) and more")
    if threads:
        torch.set_num_threads(threads)
    kind_of_family = find_family(family)  # first: its module may register an update rule or a source
    kind_of_task = find_task(task) if task is not None else None
    check_folder(folder, resume=resume)
    begun = read_record(folder) if resume else {}
    start = start or Start()
    given = {**({"epochs": epochs_of(begun)} if resume else {}), **options}
    pretrained = start.weights is not None or init is not None
    chosen_options = FitOptions.of(None, with_usual(kind_of_family.usual_options(pretrained), given))
    accelerator = find_accelerator(chosen_options.accelerator, chosen_options.precision)
    if start.weights is not None and init is not None:
        raise TrainerError("init: the weights of --from go into the same places; allowed is one of the two")
    weights = read_weights(start.weights) if start.weights is not None else None
    checkpoint = checkpoint_of(start, settings)
    wanted_task = kind_of_task or (find_task(kind_of_family.usual_task) if kind_of_family.usual_task else None)
    needed = wanted_task.data_options if wanted_task is not None else {}
    loaded = load_data(data, data_options_of(weights, data, data_options or {}, checkpoint, needed))
    for note in (*loaded.notes, *check_tokenizer(checkpoint, start.teacher_path, loaded)):
        say(note)
    if weights is not None:
        loaded = replace(loaded, spec=data_spec(weights, loaded.spec))
    with own(f"family {family!r}"):
        chosen = kind_of_family.for_data(loaded.spec, **with_checkpoint(kind_of_family, start, settings))
    chosen.with_grid(grid)
    if task is not None or task_settings:
        kind = kind_of_task or type(chosen.task)
        with own(f"task {kind.kind}"):
            chosen.with_task(kind.configured(task_settings or {}))
    chosen.with_task(chosen.task.with_labels(loaded.labels))
    vectors: Mapping[str, Tensor] = {}
    if needs_targets(chosen.task, loaded):
        say(f"Targets are what {start.original} answers.")
        original = teacher_of(chosen, with_targets(loaded, {}), start.original, _nested_of)
        network = original.extract(original.family.largest).to(accelerator.device)
        loaded, vectors = answered(loaded, network, chosen.task, show_progress)
    record = describe_run(chosen, loaded.record, asdict(chosen_options), init)
    record |= {"labels": list(loaded.labels), "preprocessing": dict(loaded.preprocessing), "start": start.record()}
    if resume:
        _refuse_other_run(begun, record)
        record["start"] = {**begun.get("start", {}), **record["start"]}  # with what was found then
        if schedule := check_epochs(folder, begun, chosen_options.epochs):
            say(schedule)
    torch.manual_seed(chosen_options.seed)  # the initial weights
    nested = NestedModel(chosen)
    if init is not None:
        load_parameters(nested, dict(read_weights(init, "init").tensors), init)
    check_fits(nested, loaded.train, loaded.validation, chosen_options)  # before anything is written
    check_rebuilds(nested, record)
    taught_by = None
    if (path := start.teacher_path) is not None:
        taught_by = teacher_of(chosen, loaded, path, _nested_of)
    with torch.random.fork_rng(devices=[]):  # refuses what does not fit now, where nothing is written
        fits = teacher_for(nested, _full(taught_by), chosen_options)
    if fits is not None and chosen_options.teacher_views and loaded.augment is not None:
        batch = min(chosen_options.batch_size, len(loaded.train))
        fits.check_views(loaded.train, chosen_options.teacher_views * (len(loaded.train) // batch) * batch)
    goes_on = resume and (folder / CHECKPOINT_FILE).exists()
    orders: Orders = {}
    if weights is not None and not goes_on:
        found, orders = begin(nested, loaded, weights, start, say)
        record["start"] |= found
    if taught_by is not None and chosen_options.teacher_hidden:
        orders = read_orders(folder) if goes_on else orders
        taught_by = in_order(taught_by, nested, orders)
    with joined(accelerator.device) as ranks:
        ranks.wait()  # for every rank's look at the folder, before the first one writes into it
        if ranks.first:
            finished = resume and "results" in begun and (folder / MODEL_FILE).is_file()
            if not resume:
                clear(folder)
            write_record(folder, {**begun, "going_on_to": chosen_options.epochs} if finished else record)
            for name, content in loaded.files.items():
                with replacing(folder / FILES_FOLDER / name) as partial:
                    partial.write_bytes(content)
            if vectors:
                save_targets(folder, vectors)
            if chosen_options.teacher_hidden and not goes_on:
                save_orders(folder, orders)
        result = fit(
            nested,
            loaded.train,
            loaded.validation,
            run=folder,
            resume=goes_on,
            augment=loaded.augment,
            teacher=_full(taught_by),
            show_progress=show_progress,
            options=chosen_options,
        )
    if result.kept < 1:
        say(f"Of the way {result.kept:.0%} are kept: the full model would have lost more than {chosen_options.may_lose:.2%}.")
    trained = make_rule(chosen_options.update, nested.submodels, chosen_options.samples_per_step).trained
    validation, test = (
        scores_of(nested, trained, part, chosen_options.workers, what if show_progress and ranks.first else "")
        for part, what in ((loaded.validation, "validating"), (loaded.test, "testing"))
    )
    results = {
        "largest": chosen.largest.id,
        "steps": result.steps,
        "gradient_computations": result.gradient_computations,
        "teacher_passes": result.teacher_passes,
        "seconds": round(result.seconds, 2),
        "kept": result.kept,
        "loss": None if result.loss is None else round(result.loss, 6),
        "task": chosen.task.kind,
        "metric": chosen.task.metric,
        "validation_quality": {sub.id: round(score.quality, 6) for sub, score in validation.items()},
        "test": {sub.id: _rounded(score) for sub, score in test.items()},
    }
    if result.loss is None:  # nothing was left to train: what the training took and ended with stays
        results |= {
            name: value for name, value in begun.get("results", {}).items() if name in ("seconds", "loss", "teacher_passes")
        }
    if chosen.task.metric == "accuracy":
        results["validation_accuracy"] = results["validation_quality"]
    if ranks.first:
        save_run(folder, nested)
        write_record(folder, {**record, "results": results, "sha256": hashes_of(folder)})
    return {"run": str(folder), "family": record["family"], **results}


def _full(nested: NestedModel | None) -> nn.Module | None:
    return None if nested is None else nested.extract(nested.family.largest)


def _nested_of(path: Path) -> NestedModel | None:
    """Of a run's folder; None for any other place."""
    return load_run(path).nested if (path / RUN_FILE).is_file() else None


def _rounded(score: Score) -> dict[str, Any]:
    """What a run keeps of a score: an export whose data are gone goes by it."""
    return {"quality": round(score.quality, 6), "metrics": {name: round(value, 6) for name, value in score.metrics.items()}}


def _refuse_other_run(begun: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    begun, asked = _comparable(begun), _comparable(asked)
    for name in ("family", "config", "grid", "task", "data", "options", "init", "start"):
        if begun.get(name) != asked[name]:
            differing, had = asked[name], begun.get(name)
            if isinstance(asked[name], Mapping) and isinstance(had, Mapping):
                differing = {k: v for k, v in asked[name].items() if had.get(k) != v}
                had = {k: had.get(k) for k in differing}
            raise TrainerError(f"resume: {name} = {differing}, but the run was begun with {had}; allowed are the same options")


def _comparable(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record with what earlier versions did not write, and without what a resumed run may have otherwise."""
    options = {**asdict(FitOptions()), **record["options"]}
    kept = {name: value for name, value in options.items() if name not in FREE_TO_CHANGE}
    data = dict(record["data"])
    if "content_sha256" in data:  # they are known by that: the path from another folder is another
        del data["name"]
        data["options"] = {name: value for name, value in data.get("options", {}).items() if name != "tokenizer"}
    began = {name: value for name, value in record.get("start", {}).items() if name in ASKED}
    return {"task": {"name": "classification", "config": {}}, **record, "options": kept, "data": data, "start": began}
