"""From what a user asks for to a finished run (`sortednet train`): read and check, train, measure, write."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from device_profiles.host import MOST_THREADS
from trainer.accelerator import Accelerator, find_accelerator
from trainer.checkpoint import CHECKPOINT_FILE, load_parameters, replacing
from trainer.compatibility import check_fits
from trainer.data.dataset import DataSet
from trainer.data.sources import load_data
from trainer.data.splits import as_recorded
from trainer.distributed import joined
from trainer.evaluate import scores_of
from trainer.family import Family, find_family
from trainer.folder import (
    FILES_FOLDER,
    MODEL_FILE,
    RUN_FILE,
    check_epochs,
    check_folder,
    clear,
    epochs_of,
    hashes_of,
    read_record,
    write_record,
)
from trainer.nested import NestedModel
from trainer.options import FitOptions, with_usual
from trainer.order import Orders, in_order, read_orders, save_orders
from trainer.rebuild import check_rebuilds
from trainer.run import describe_run, load_run, save_run
from trainer.start import (
    ASKED,
    Start,
    begin,
    check_same_classes,
    check_same_vocabulary,
    check_tokenizer,
    checkpoint_of,
    data_options_of,
    data_spec,
    teacher_of,
    with_checkpoint,
)
from trainer.submodel import AxisValue, TrainerError
from trainer.targets import answered, needs_targets, save_targets, with_targets
from trainer.task import Score, Task, find_task, own
from trainer.teacher import teacher_for
from trainer.training import FREE_TO_CHANGE, FitResult, fit
from trainer.updates import make_rule
from trainer.weights import Weights, read_weights

Say = Callable[[str], None]


@dataclass(frozen=True)
class _Asked:
    """What a run is to be made of: read and checked, nothing is computed yet but the targets that the data lack."""

    family: Family
    data: DataSet
    weights: Weights | None
    targets: Mapping[str, Tensor] = field(default_factory=dict)  # that the original answered, by part of the data


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
    if not 0 <= threads <= MOST_THREADS:
        raise TrainerError(f"threads = {threads}: allowed are whole numbers from 0 (torch's default) to {MOST_THREADS}")
    if threads:
        torch.set_num_threads(threads)
    kind = find_family(family)  # first: its module may register an update rule or a source
    kind_of_task = find_task(task) if task is not None else None
    check_folder(folder, resume=resume)
    begun = read_record(folder) if resume else {}
    start = start or Start()
    pretrained = start.weights is not None or init is not None
    given = {**({"epochs": epochs_of(begun)} if resume else {}), **options}
    chosen = FitOptions.of(None, with_usual(kind.usual_options(pretrained), given))
    accelerator = find_accelerator(chosen.accelerator, chosen.precision)
    if start.weights is not None and init is not None:
        raise TrainerError("init: the weights of --from go into the same places; allowed is one of the two")
    asked = _read(family, kind, kind_of_task, data, data_options or {}, settings, start, say)
    asked.family.with_grid(grid)
    if task is not None or task_settings:
        of_task = kind_of_task or type(asked.family.task)
        with own(f"task {of_task.kind}"):
            asked.family.with_task(of_task.configured(task_settings or {}))
    asked.family.with_task(asked.family.task.with_labels(asked.data.labels))
    for folder_of in dict.fromkeys((checkpoint_of(start, settings), start.teacher_path)):
        if folder_of is not None and folder_of.is_dir():
            asked.family.check_checkpoint(folder_of)
    asked = _with_targets(asked, start, accelerator, show_progress, say)
    record = _record(asked, chosen, init, start)
    if resume:
        _refuse_other_run(begun, record)
        record["start"] = {**begun.get("start", {}), **record["start"]}  # with what was found then
        if schedule := check_epochs(folder, begun, chosen.epochs):
            say(schedule)
    torch.manual_seed(chosen.seed)  # the initial weights
    nested = NestedModel(asked.family)
    if init is not None:
        _initialise(nested, init, asked.data)
    check_fits(nested, asked.data.train, asked.data.validation, chosen)  # before anything is written
    check_rebuilds(nested, record)
    teacher = _teacher(asked, nested, start, chosen)
    goes_on = resume and (folder / CHECKPOINT_FILE).exists()
    orders: Orders = {}
    if asked.weights is not None and not goes_on:
        found, orders = begin(nested, asked.data, asked.weights, start, say)
        record["start"] |= found
    if teacher is not None and chosen.teacher_hidden:
        orders = read_orders(folder) if goes_on else orders
        teacher = in_order(teacher, nested, orders)
    with joined(accelerator.device) as ranks:
        ranks.wait()  # for every rank's look at the folder, before the first one writes into it
        if ranks.first:
            finished = resume and "results" in begun and (folder / MODEL_FILE).is_file()
            if not resume:
                clear(folder)
            write_record(folder, {**begun, "going_on_to": chosen.epochs} if finished else record)
            _write_beside(folder, asked, orders if chosen.teacher_hidden and not goes_on else None)
        result = fit(
            nested,
            asked.data.train,
            asked.data.validation,
            run=folder,
            resume=goes_on,
            augment=asked.data.augment,
            teacher=_full(teacher),
            show_progress=show_progress,
            options=chosen,
        )
    if result.kept < 1:
        say(f"Of the way {result.kept:.0%} are kept: the full model would have lost more than {chosen.may_lose:.2%}.")
    shown = show_progress and ranks.first
    results = _results(nested, asked.data, chosen, result, begun.get("results", {}), shown)
    if ranks.first:
        save_run(folder, nested)
        write_record(folder, {**record, "results": results, "sha256": hashes_of(folder)})
    return {"run": str(folder), "family": record["family"], **results}


def _read(
    name: str,
    kind: type[Family],
    kind_of_task: type[Task] | None,
    source: str,
    given: Mapping[str, Any],
    settings: Mapping[str, Any],
    start: Start,
    say: Say,
) -> _Asked:
    """Weights, data, and the family of that name for both. `given`: the options of the source."""
    weights = read_weights(start.weights) if start.weights is not None else None
    checkpoint = checkpoint_of(start, settings)
    wanted = kind_of_task or (find_task(kind.usual_task) if kind.usual_task else None)
    needed = wanted.data_options if wanted is not None else {}
    data = load_data(source, data_options_of(weights, source, given, checkpoint, needed))
    for note in (*data.notes, *check_tokenizer(checkpoint, start.teacher_path, data)):
        say(note)
    if weights is not None:
        data = replace(data, spec=data_spec(weights, data.spec))
    if data.spec.target_shape and getattr(wanted or type(kind.task), "class_per_target", False):
        data = replace(data, spec=replace(data.spec, classes=prod(data.spec.target_shape)))
    with own(f"family {name!r}"):
        family = kind.for_data(data.spec, **with_checkpoint(kind, start, settings))
    return _Asked(family, data, weights)


def _with_targets(asked: _Asked, start: Start, accelerator: Accelerator, show_progress: bool, say: Say) -> _Asked:
    """With what the original answers, where the task takes that for the targets that the data lack."""
    if not needs_targets(asked.family.task, asked.data):
        return asked
    say(f"Targets are what {start.original} answers.")
    original = teacher_of(asked.family, with_targets(asked.data, {}), start.original, _nested_of, start.weights)
    network = original.extract(original.family.largest).to(accelerator.device)
    data, targets = answered(asked.data, network, asked.family.task, show_progress)
    return replace(asked, data=data, targets=targets)


def _record(asked: _Asked, options: FitOptions, init: Path | None, start: Start) -> dict[str, Any]:
    """What the run remembers from its beginning."""
    data = asked.data
    record = describe_run(asked.family, data.record, asdict(options), init)
    return record | {"labels": list(data.labels), "preprocessing": dict(data.preprocessing), "start": start.record()}


def _initialise(nested: NestedModel, init: Path, data: DataSet) -> None:
    """Puts the weights into the model as they are. Raises TrainerError for others, and for a run's whose classes or words stand
    in other places."""
    weights = read_weights(init, "init")
    if weights.of_run:
        check_same_vocabulary(init, data)
        check_same_classes(weights.labels, init, data, "; or --from, which begins the head anew")
    load_parameters(nested, dict(weights.tensors), init)


def _teacher(asked: _Asked, nested: NestedModel, start: Start, options: FitOptions) -> NestedModel | None:
    """Who teaches. Raises TrainerError, before anything is written, for one that does not fit."""
    path = start.teacher_path
    found = None if path is None else teacher_of(asked.family, asked.data, path, _nested_of, start.weights)
    with torch.random.fork_rng(devices=[]):
        fits = teacher_for(nested, _full(found), options)
    if fits is not None and options.teacher_views and asked.data.augment is not None:
        count = len(asked.data.train)
        batch = min(options.batch_size, count)
        fits.check_views(asked.data.train, options.teacher_views * (count // batch) * batch)
    return found


def _write_beside(folder: Path, asked: _Asked, orders: Orders | None) -> None:
    """What a run has beside its record when it begins. `orders`: none where they are not needed, or are there."""
    for name, content in asked.data.files.items():
        with replacing(folder / FILES_FOLDER / name) as partial:
            partial.write_bytes(content)
    if asked.targets:
        save_targets(folder, asked.targets)
    if orders is not None:
        save_orders(folder, orders)


def _results(
    nested: NestedModel,
    data: DataSet,
    options: FitOptions,
    result: FitResult,
    before: Mapping[str, Any],
    show_progress: bool,
) -> dict[str, Any]:
    """What the training took, and what its sub-models are worth. `before`: the results of a run that was gone on with."""
    task = nested.family.task
    trained = make_rule(options.update, nested.submodels, options.samples_per_step).trained
    validation, test = (
        scores_of(nested, trained, part, options.workers, what if show_progress else "")
        for part, what in ((data.validation, "validating"), (data.test, "testing"))
    )
    results = {
        "largest": nested.family.largest.id,
        "steps": result.steps,
        "gradient_computations": result.gradient_computations,
        "teacher_passes": result.teacher_passes,
        "seconds": round(result.seconds, 2),
        "kept": result.kept,
        "loss": None if result.loss is None else round(result.loss, 6),
        "task": task.kind,
        "metric": task.metric,
        "validation_quality": {sub.id: round(score.quality, 6) for sub, score in validation.items()},
        "test": {sub.id: _rounded(score) for sub, score in test.items()},
    }
    if result.loss is None:  # nothing was left to train: what the training took and ended with stays
        results |= {name: value for name, value in before.items() if name in ("seconds", "loss", "teacher_passes")}
    if task.metric == "accuracy":
        results["validation_accuracy"] = results["validation_quality"]
    return results


def _full(nested: NestedModel | None) -> nn.Module | None:
    return None if nested is None else nested.extract(nested.family.largest)


def _nested_of(path: Path) -> NestedModel | None:
    """Of a run's folder; None for any other place."""
    return load_run(path).nested if (path / RUN_FILE).is_file() else None


def _rounded(score: Score) -> dict[str, Any]:
    """What a run keeps of a score: an export whose data are gone goes by it."""
    return {"quality": round(score.quality, 6), "metrics": {name: round(value, 6) for name, value in score.metrics.items()}}


def _refuse_other_run(begun: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    asked = {**asked, "data": as_recorded(asked["data"], begun["data"])}
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
