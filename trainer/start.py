"""What a training begins with, where it does not begin with random numbers: somebody's weights, sorted, and a teacher."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trainer.calibration import calibrate, calibration_batches
from trainer.data.dataset import DataSet, Examples
from trainer.data.pretrained import missing_tokenizer, same_vocabulary, tokenizer_place, vocabulary_file, vocabulary_size
from trainer.data.sources import options_of
from trainer.data.tokens import TOKENIZER_FILE
from trainer.evaluate import scores_of
from trainer.family import DataSpec, Family
from trainer.folder import read_record
from trainer.gguf import gguf_tokenizer, is_gguf
from trainer.importance import AUTO, CRITERIA, sort_by_importance
from trainer.nested import NestedModel
from trainer.order import Orders
from trainer.submodel import TrainerError
from trainer.weights import AS_THEY_ARE, Weights, load_weights, read_weights

Say = Callable[[str], None]
NONE = "none"
CLASSES_SHOWN = 20  # in a message
ASKED = ("weights_sha256", "sort", "teacher_sha256")
"""Of what a run remembers: what a resumed one must have asked for too; places may have changed."""


@dataclass(frozen=True)
class Start:
    """`sortednet train --from WEIGHTS --teacher WEIGHTS --expect-quality X --sort CRITERION`."""

    weights: Path | None = None
    teacher: str | None = None  # a path, or "none"; None: the weights that it begins with
    sort: str = AUTO  # or one of CRITERIA, or "none"
    expect_quality: float | None = None  # that the full model must have before it is trained, on the validation split

    def __post_init__(self) -> None:
        if self.teacher == "":
            raise TrainerError("teacher = '': allowed are weights, or none")
        if self.sort not in (AUTO, *CRITERIA, NONE):
            raise TrainerError(f"sort = {self.sort!r}: allowed are {AUTO}, {', '.join(CRITERIA)}, {NONE}")
        if self.weights is None and self.sort != Start.sort:
            raise TrainerError(f"sort = {self.sort!r}: it is the order of the weights of --from, and there are none")
        if self.expect_quality is not None:
            if self.weights is None:
                raise TrainerError("expect_quality: it is the quality of the weights of --from, and there are none")
            if not 0 <= self.expect_quality <= 1:
                raise TrainerError(f"expect_quality = {self.expect_quality}: allowed are values from 0 to 1")

    @property
    def teacher_path(self) -> Path | None:
        if self.teacher is None:
            return self.weights
        return None if self.teacher == NONE else Path(self.teacher)

    @property
    def original(self) -> Path:
        """Whose answers are the targets of a task that takes them for such. Raises TrainerError where there is none."""
        if (found := self.weights or self.teacher_path) is None:
            raise TrainerError(
                "targets: the data have no real numbers; allowed are such, or weights (--from) whose answers are taken for them"
            )
        return found

    def record(self) -> dict[str, Any]:
        """What a run remembers, with hashes of the files; empty where nothing was asked for."""
        found: dict[str, Any] = {}
        if self.weights is not None:
            found |= {"weights": str(self.weights), "weights_sha256": hash_of(self.weights), "sort": self.sort}
        if (teacher := self.teacher_path) is not None:
            found |= {"teacher": str(teacher), "teacher_sha256": hash_of(teacher)}
        return found


def hash_of(weights: Path) -> str:
    """Of the files that hold the tensors."""
    digest = hashlib.sha256()
    files = [weights] if weights.is_file() else sorted(p for p in weights.glob("*") if p.suffix in (".safetensors", ".bin"))
    for file in files:
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()


def checkpoint_of(start: Start, settings: Mapping[str, Any]) -> Path | None:
    """The folder, or the GGUF file, that a training is about: of the weights, or the family's `--set checkpoint=FOLDER`."""
    named = settings.get("checkpoint")
    path = start.weights or (Path(named) if isinstance(named, str) else None)
    return path if path is not None and (path.is_dir() or is_gguf(path)) else None


def data_options_of(
    weights: Weights | None,
    source: str,
    given: Mapping[str, Any],
    checkpoint: Path | None = None,
    needed: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The options of the data source with what the weights' checkpoint says of pictures, and its tokenizer, where nobody says
    otherwise and the source has such an option. `needed`: what the task's targets need (`Task.data_options`).

    Raises TrainerError where a checkpoint of texts has no tokenizer and none is named: a vocabulary learnt from the texts would
    be another one, and padded with an id that the checkpoint's network may take for a word.
    """
    said = {**(weights.preprocessing if weights is not None else {}), **(needed or {})}
    if checkpoint is not None and (place := tokenizer_place(checkpoint)) is not None:
        said["tokenizer"] = str(place)
    lacking = checkpoint is not None and "tokenizer" not in given and _without_tokenizer(checkpoint)
    if not said and not lacking:
        return dict(given)
    allowed = options_of(source)
    if lacking and "tokenizer" in allowed:
        assert checkpoint is not None
        raise TrainerError(
            f"tokenizer: none for {checkpoint}, {missing_tokenizer(checkpoint)}; tokenizer=… names one elsewhere, "
            "tokenizer=learn makes one of the texts"
        )
    return {**{name: value for name, value in said.items() if name in allowed}, **given}


def _without_tokenizer(checkpoint: Path) -> bool:
    """Whether its weights are of a vocabulary that is not at hand."""
    return not is_gguf(checkpoint) and bool(vocabulary_size(checkpoint)) and vocabulary_file(checkpoint) is None


def check_tokenizer(checkpoint: Path | None, teacher: Path | None, data: DataSet) -> list[str]:
    """What is to be said of texts that are not read with the own tokenizer of the checkpoint, or of the teacher.

    Raises TrainerError where the one that reads them gives ids that there is no embedding for.
    """
    folders = [folder for folder in dict.fromkeys((checkpoint, teacher)) if folder is not None]
    return [note for folder in folders for note in _of_tokenizer(folder, data)]


def _of_tokenizer(checkpoint: Path, data: DataSet) -> list[str]:
    tokenizer = data.files.get(TOKENIZER_FILE)
    if tokenizer is None:
        return []
    rows = vocabulary_size(checkpoint)
    if rows and data.spec.vocabulary > rows:
        raise TrainerError(
            f"data {data.name!r}: the tokenizer's vocabulary has {data.spec.vocabulary} tokens, the embedding of {checkpoint} "
            f"{rows}: it belongs to another checkpoint; allowed are {rows} and fewer"
        )
    if _without_tokenizer(checkpoint):
        return [
            f"{checkpoint} has no {TOKENIZER_FILE} that the texts' could be compared with: is it of the vocabulary that the "
            "checkpoint's embeddings have learnt?"
        ]
    own = checkpoint if is_gguf(checkpoint) else vocabulary_file(checkpoint)
    if own is None or same_vocabulary(tokenizer, gguf_tokenizer(own).content if is_gguf(own) else own.read_bytes()):
        return []
    return [
        f"The texts are not read with {own}, the checkpoint's own: what its embeddings have learnt is of another vocabulary."
    ]


def data_spec(weights: Weights, spec: DataSpec) -> DataSpec:
    """With mean and deviation as the weights were trained with."""
    mean, std = weights.preprocessing.get("mean"), weights.preprocessing.get("std")
    if mean is None or std is None:
        return spec
    as_they_are = {"mean": mean, "std": std} == AS_THEY_ARE
    if len(spec.input_shape) != 3 and as_they_are:
        return spec
    if len(spec.input_shape) != 3:
        raise TrainerError(
            f"{weights.source}: is for pictures (it says their mean and deviation), the data have examples of shape "
            f"{spec.input_shape}; allowed are pictures (C, H, W)"
        )
    channels = spec.input_shape[0]
    if as_they_are:
        mean, std = channels * mean, channels * std
    if len(mean) != channels or len(std) != channels:
        raise TrainerError(
            f"{weights.source}: says a mean and deviation of {len(mean)} channels, the data have {channels}; "
            "give their number: --data-option channels=…"
        )
    return replace(spec, mean=tuple(map(float, mean)), std=tuple(map(float, std)))


def check_same_vocabulary(made: Path, data: DataSet) -> None:
    """Raises TrainerError for texts that are read with another vocabulary than those of the run or bundle in the folder `made`:
    one that is learnt from them gives other ids to the same words."""
    own, tokenizer = vocabulary_file(made), data.files.get(TOKENIZER_FILE)
    if own is not None and tokenizer is not None and not same_vocabulary(tokenizer, own.read_bytes()):
        raise TrainerError(
            f"data {data.name!r}: are read with another vocabulary than {own}, so that the same words are other ids; allowed "
            "are the texts and options of the training, or any texts where that one had a checkpoint's tokenizer"
        )


def check_same_classes(labels: Sequence[str], made: Path, data: DataSet, otherwise: str = "") -> None:
    """Raises TrainerError for data whose classes are not those, in their order, of the run or bundle in the folder `made`: its
    answers would be counted as those of other classes. `labels`: of the latter; none where nothing says so. `otherwise`: what
    else may be done."""
    if labels and data.labels and list(labels) != list(data.labels):
        own, given = (
            ", ".join(names[:CLASSES_SHOWN]) + (", …" if len(names) > CLASSES_SHOWN else "") for names in (labels, data.labels)
        )
        raise TrainerError(
            f"data {data.name!r}: its classes are {given}; allowed are those of {made}, in this order: {own}{otherwise}"
        )


def with_checkpoint(family: type[Family], start: Start, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with the folder of the weights as `checkpoint`, for a family that asks for one, where nobody gave it
    one or a configuration."""
    takes = "checkpoint" in inspect.signature(family.for_data).parameters
    said = any(name.partition(".")[0] in ("checkpoint", "config") for name in settings)
    if not takes or start.weights is None or {"checkpoint", "config"} & settings.keys():
        return dict(settings)
    if checkpoint_of(start, {}) is not None:
        return {"checkpoint": start.weights, **settings}
    if not said:
        raise TrainerError(
            f"weights = {str(start.weights)!r}: a file does not say which network it is of; allowed is the folder of a "
            "checkpoint, with its config.json, or --set checkpoint=FOLDER beside it"
        )
    return dict(settings)


def begin(nested: NestedModel, data: DataSet, weights: Weights, start: Start, say: Say) -> tuple[dict[str, Any], Orders]:
    """Puts the weights into the full model, measures it, and sorts its units. Returns what the run remembers of that, and in
    which order the units are.

    Raises TrainerError for weights of another network, a quality below the one expected, and a sorting that changed what the
    model answers.
    """
    task, largest = nested.family.task, nested.family.largest
    say(f"{weights.source}: {load_weights(nested, weights, data.spec.outputs, data.labels)}.")
    _calibrated(nested, data.train)
    nested.eval()  # without dropout, and with its statistics
    (score,) = scores_of(nested, [largest], data.validation).values()
    say(f"The full model before training: {task.metric} {score.quality:.4g} on the validation split.")
    if start.expect_quality is not None and score.quality < start.expect_quality:
        raise TrainerError(
            f"expect_quality = {start.expect_quality}: the weights reach {score.quality:.4g} on the validation split; look at "
            "what was begun anew, at the inputs' mean and deviation, and at the order of the classes"
        )
    found: dict[str, Any] = {"quality": round(score.quality, 6)}
    orders: Orders = {}
    if start.sort != NONE:
        sorting = sort_by_importance(nested, data.train, start.sort)
        groups, by = len(sorting.groups), sorting.criterion
        say(f"Sorted {groups} groups of units by {by}; the full model changed by {sorting.error:.0e}.")
        for name, why in sorting.fixed.items():
            say(f"Not sorted: {name}: {why}.")
        found |= {"sorted": groups, "sorted_by": by, "not_sorted": dict(sorting.fixed), "sorting_error": sorting.error}
        orders = sorting.orders
    return found, orders


def teacher_of(
    family: Family,
    data: DataSet,
    path: Path,
    run_of: Callable[[Path], NestedModel | None],
    begun: Path | None = None,
) -> NestedModel:
    """The model of a run, whatever its family, or weights in this family's full network, its answers in the order of the data's
    classes. `run_of`: the nested model of a run's folder, None for any other place. `begun`: the weights that the model begins
    with, of whose classes the user has been told. A teacher's mean and deviation of pictures are its own. Raises TrainerError
    for weights without a head for these data, or of other classes, for a run of other classes or in another order, and where
    the family has no mean and deviation that could be the teacher's."""
    nested = run_of(path)
    otherwise = "; or another teacher: --teacher none, or one with these classes"
    if nested is not None:
        if family.task.logits:
            check_same_classes(read_record(path).get("labels") or (), path, data, otherwise)
    else:
        weights = read_weights(path, "teacher")
        nested = NestedModel(family if path == begun else _seeing_as(family, weights, data.spec))
        loaded = load_weights(nested, weights, data.spec.outputs, data.labels)
        if loaded.anew:
            raise TrainerError(
                f"teacher = {str(path)!r}: it has no head for these data ({', '.join(loaded.anew)}), so that it cannot answer; "
                "train the full model on them first (--update full) and begin with that run, or say --teacher none"
            )
        if loaded.classes and not loaded.ordered and path != begun:
            check_same_classes(weights.labels, path, data, otherwise)
        _calibrated(nested, data.train)
    return nested.eval()


def _seeing_as(family: Family, weights: Weights, spec: DataSpec) -> Family:
    """The family with mean and deviation of pictures as the weights were trained with, where they say them."""
    said = data_spec(weights, spec)
    stated: dict[str, Any] = {"mean": list(said.mean), "std": list(said.std)}
    config = family.config()
    has = {name: list(config.get(name, getattr(spec, name))) for name in stated}
    if said is spec or has == stated:
        return family
    if not stated.keys() <= config.keys():
        raise TrainerError(
            f"teacher = {str(weights.source)!r}: is for pictures of mean {stated['mean']} and deviation {stated['std']}, the "
            f"model's have {has['mean']} and {has['std']}, and {type(family).__name__}.config() has neither to be set; allowed "
            "are a teacher of the same, or --teacher none"
        )
    return type(family).configured({**config, **stated}).with_grid(family.axes).with_task(family.task)


def _calibrated(nested: NestedModel, train: Examples) -> None:
    """Statistics of the full model, where it came without."""
    if nested.needs_calibration(nested.family.largest):
        calibrate(nested, calibration_batches(train), [nested.family.largest])
