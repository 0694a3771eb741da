"""`fit`: trains all sub-models of a nested model together, resumable at every step.

Everything random in a step (order of the data, augmentation, sampled sub-models, dropout) is derived from the seed and
the step's number, never from a running generator. A checkpoint is therefore the parameters, the optimizer's state and
one number, and a resumed run ends with the same weights, to the bit, as an uninterrupted one.
"""

from __future__ import annotations

import json
import math
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from numbers import Integral, Real
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Generator, Tensor, nn

from trainer.augment import Augmentation
from trainer.calibration import calibrate
from trainer.checkpoint import CHECKPOINT_FILE, load_checkpoint, save_checkpoint, writing
from trainer.data import Examples, Samples, as_examples, check_labels
from trainer.distributed import current_ranks
from trainer.evaluate import accuracies_of
from trainer.layout import laid_out, suits_channels_last
from trainer.nested import NestedModel
from trainer.submodel import SubModel, TrainerError
from trainer.updates import RULES, UpdateRule, make_rule

LOG_FILE = "log.jsonl"
CHECKPOINT_SECONDS = 300.0
CALIBRATION_EXAMPLES = 2048
CALIBRATION_BATCH = 256


class TrainingInterrupted(Exception):
    """Training was stopped by a signal after writing a checkpoint; `--resume` goes on from there."""

    exit_code = 1


@dataclass(frozen=True)
class FitOptions:
    """How to train; every field is recorded with the run.

    The defaults are what won in benchmarks/training. SortedNet as published: samples_per_step 2, edges 0.
    """

    update: str = "sorted"  # sorted | sum | sandwich | full
    samples_per_step: int = 1  # sub-models drawn per step (sorted; sandwich adds the largest and the smallest)
    edges: float = 0.2  # share of draws that are the smallest or the largest (sorted)
    epochs: int = 10
    batch_size: int = 128
    lr: float = 0.0  # peak learning rate; 0 means the optimizer's usual one: 0.2 for sgd, 0.002 for adamw
    optimizer: str = "sgd"  # sgd | adamw
    momentum: float = 0.9  # sgd, Nesterov
    weight_decay: float = 5e-4  # not on biases and normalisation
    warmup: float = 0.05  # share of all steps with a rising rate; then a cosine down to 0
    clip_norm: float = 1.0  # of the whole gradient; 0 means no clipping
    label_smoothing: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, minimum in (("samples_per_step", 1), ("epochs", 1), ("batch_size", 2), ("seed", 0)):
            _at_least(name, getattr(self, name), minimum, Integral)
        if self.seed >= 2**63:
            raise TrainerError(f"seed = {self.seed}: allowed are whole numbers below 2**63")
        for name in (
            "lr",
            "momentum",
            "weight_decay",
            "warmup",
            "clip_norm",
            "label_smoothing",
            "edges",
        ):
            _at_least(name, getattr(self, name), 0)
        if not self.edges <= 1:
            raise TrainerError(f"edges = {self.edges}: allowed are values from 0 to 1")
        for name in ("momentum", "warmup", "label_smoothing"):
            if getattr(self, name) >= 1:
                raise TrainerError(f"{name} = {getattr(self, name)}: allowed are values below 1")
        if self.optimizer not in ("sgd", "adamw"):
            raise TrainerError(f"optimizer = {self.optimizer!r}: allowed are sgd, adamw")
        if self.update not in RULES:
            raise TrainerError(f"update = {self.update!r}: allowed are {', '.join(RULES)}")

    @property
    def peak_lr(self) -> float:
        return self.lr or {"sgd": 0.2, "adamw": 2e-3}[self.optimizer]


@dataclass(frozen=True)
class FitResult:
    """What a training cost and what its last epoch looked like."""

    steps: int
    gradient_computations: int  # forward and backward passes of one sub-model over one batch
    seconds: float
    loss: float | None  # mean over the last epoch; None when a resumed run had no step left
    validation: Mapping[str, float]  # accuracy of the smallest and the largest sub-model


def fit(
    nested: NestedModel,
    train_data: Examples | torch.utils.data.Dataset[Any] | tuple[Tensor, Tensor],
    validation_data: Examples | torch.utils.data.Dataset[Any] | tuple[Tensor, Tensor] | None = None,
    *,
    run: str | Path | None = None,
    resume: bool = False,
    augment: Augmentation | None = None,
    show_progress: bool = True,
    **options: Any,
) -> FitResult:
    """Trains in place with the update rule of SortedNet (arXiv 2309.00255, section 3), then calibrates BatchNorm.

    Under torchrun every rank calls this with the same arguments; the batch is shared out, gradients are averaged.
    `options` are the fields of `FitOptions`. With `run`, a folder, it writes a JSON-lines log and checkpoints there and
    can resume. Raises TrainerError for wrong options, data that are not what the model takes, labels outside the classes
    and a folder that cannot be written to; TrainingInterrupted after SIGINT or SIGTERM.
    """
    unknown = set(options) - {f.name for f in fields(FitOptions)}
    if unknown:
        raise TrainerError(
            f"unknown option {sorted(unknown)[0]!r}; allowed are {', '.join(f.name for f in fields(FitOptions))}"
        )
    chosen = FitOptions(**options)
    examples = as_examples(train_data)
    validation = as_examples(validation_data) if validation_data is not None else None
    training = _Training(nested, examples, validation, chosen, augment, Path(run) if run else None)
    if resume:
        training.restore()
    else:
        training.begin()
    with _stop_flag() as stopped:
        result = training.run(stopped, show_progress)
    nested.eval()
    calibrate(nested, calibration_batches(examples))
    return result


def calibration_batches(examples: Examples) -> list[tuple[Tensor, ...]]:
    """Inputs for BatchNorm calibration: training examples, evenly spaced over the split, not augmented.

    In batches of nearly equal size, because every batch counts the same.
    """
    count = min(len(examples), CALIBRATION_EXAMPLES)
    indices = torch.linspace(0, len(examples) - 1, count).long()
    return [examples.batch(part)[0] for part in indices.tensor_split(-(-count // CALIBRATION_BATCH))]


class _Training:
    def __init__(
        self,
        nested: NestedModel,
        examples: Examples,
        validation: Examples | None,
        options: FitOptions,
        augment: Augmentation | None,
        run: Path | None,
    ) -> None:
        self.classes = check_fits(nested, examples, validation)
        self.nested, self.examples, self.validation = nested, examples, validation
        self.options, self.augment, self.folder = options, augment, run
        self.parameters = list(nested.full.parameters())
        self.device = self.parameters[0].device
        # For all devices at once, seen or not, `torch.manual_seed` takes most of a millisecond.
        self._seed = torch.default_generator.manual_seed if self.device.type == "cpu" else torch.manual_seed
        self.channels_last = suits_channels_last(nested)
        self.ranks = current_ranks()
        self.rule: UpdateRule = make_rule(options.update, nested.submodels, options.samples_per_step, options.edges)
        self.batch_size = min(options.batch_size, len(examples))
        if self.batch_size < 2 * self.ranks.count:
            raise TrainerError(
                f"batch_size = {self.batch_size}: allowed are {2 * self.ranks.count} and more on {self.ranks.count} ranks"
            )
        self.steps_per_epoch = len(examples) // self.batch_size
        self.total_steps = self.steps_per_epoch * options.epochs
        self.optimizer = make_optimizer(nested.full, options)
        self.step = 0
        self.gradient_computations = 0
        self._order: tuple[int, Tensor] = (-1, torch.empty(0))
        nested.calibration.clear()
        nested.train()
        self.ranks.same_start(self.parameters)
        if run:
            with writing(run):
                run.mkdir(parents=True, exist_ok=True)

    def begin(self) -> None:
        """Removes what an earlier training has left in the run's folder."""
        if self.folder and self.ranks.first:
            for name in (LOG_FILE, CHECKPOINT_FILE):
                (self.folder / name).unlink(missing_ok=True)

    def restore(self) -> None:
        """Goes on from the run's last checkpoint. Raises TrainerError when there is none or its options differ."""
        if self.folder is None:
            raise TrainerError("resume: needs the folder of the run to go on with")
        saved = load_checkpoint(self.folder, self.nested, self.optimizer)
        differing = [name for name, value in asdict(self.options).items() if saved["options"].get(name) != value]
        if differing:
            name = differing[0]
            raise TrainerError(
                f"resume: {name} = {getattr(self.options, name)!r}, but the run was begun with {saved['options'].get(name)!r}"
            )
        self.step, self.gradient_computations = saved["step"], saved["gradient_computations"]
        if self.ranks.first:
            _drop_log_after(self.folder / LOG_FILE, self.step)

    def run(self, stopped: threading.Event, show_progress: bool) -> FitResult:
        begun = saved_at = time.monotonic()
        losses: list[float] = []
        validation: dict[str, float] = {}
        with _progress(show_progress and self.ranks.first) as progress:
            task = progress.add_task("training", total=self.total_steps, completed=self.step, loss="")
            while self.step < self.total_steps:
                losses.append(self._one_step())
                self.step += 1
                epoch_ends = self.step % self.steps_per_epoch == 0
                progress.update(task, completed=self.step, loss=f"loss {losses[-1]:.3f}")
                if epoch_ends:
                    validation = self._validate()
                    self._log(losses, validation, time.monotonic() - begun)
                    losses = losses if self.step == self.total_steps else []
                stopping = self.ranks.any(stopped.is_set())
                if epoch_ends or stopping or time.monotonic() - saved_at > CHECKPOINT_SECONDS:
                    saved_at = time.monotonic()
                    self._save()
                if stopping and self.step < self.total_steps:
                    raise TrainingInterrupted(
                        f"stopped after step {self.step} of {self.total_steps}; the same command with --resume goes on"
                    )
        loss = sum(losses) / len(losses) if losses else None
        return FitResult(self.step, self.gradient_computations, time.monotonic() - begun, loss, validation)

    def _one_step(self) -> float:
        seed = self.options.seed
        epoch, place = divmod(self.step, self.steps_per_epoch)
        if self._order[0] != epoch:
            self._order = (epoch, torch.randperm(len(self.examples), generator=_generator(seed, "order", epoch)))
        picked = self._order[1][place * self.batch_size : (place + 1) * self.batch_size]
        inputs, labels = self.examples.batch(self.ranks.share(picked))
        check_labels(labels, self.classes, f"training data, step {self.step}")
        if self.augment:
            inputs = self.augment(inputs, _generator(seed + self.ranks.rank, "augment", self.step))
        inputs, labels = laid_out(inputs, self.device, self.channels_last), labels.to(self.device)
        self._seed(_mixed(seed + self.ranks.rank, "dropout", self.step))
        submodels = self.rule.sample(self.step, seed)
        loss = self._gradients(submodels, inputs, labels)
        self.ranks.average_gradients(self.parameters)
        if self.options.clip_norm:
            torch.nn.utils.clip_grad_norm_(self.parameters, self.options.clip_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = _learning_rate(self.options, self.step, self.total_steps)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss

    def _gradients(self, submodels: Sequence[SubModel], inputs: tuple[Tensor, ...], labels: Tensor) -> float:
        """Accumulates the mean gradient of the step's sub-models; returns their mean loss."""
        earlier: dict[SubModel, Tensor] = {}
        total = torch.zeros((), device=self.device)

        def loss_of(logits: Tensor) -> Tensor:
            return self.rule.loss(logits, labels, earlier, self.options.label_smoothing) / len(submodels)

        for sub in submodels:
            loss, earlier[sub] = self.nested.accumulate_gradients(sub, inputs, loss_of)
            total += loss
        self.gradient_computations += len(submodels)
        value = float(total)
        if not math.isfinite(value):
            raise TrainerError(
                f"loss = {value} at step {self.step}: the training diverged; try a lower lr than {self.options.peak_lr}"
            )
        return value

    def _validate(self) -> dict[str, float]:
        """Accuracy of the smallest and the largest on the validation split, with statistics calibrated for the moment."""
        if self.validation is None:
            return {}
        self.nested.eval()
        corners = [self.rule.smallest, self.rule.largest]
        calibrate(self.nested, calibration_batches(self.examples)[:2], corners)
        accuracies = accuracies_of(self.nested, corners, self.validation)
        self.nested.calibration.clear()
        self.nested.train()
        return {sub.id: accuracy for sub, accuracy in accuracies.items()}

    def _log(self, losses: Sequence[float], validation: Mapping[str, float], seconds: float) -> None:
        if self.folder is None or not self.ranks.first:
            return
        line = {
            "step": self.step,
            "epoch": self.step // self.steps_per_epoch,
            "loss": round(sum(losses) / len(losses), 6),
            "lr": _learning_rate(self.options, self.step - 1, self.total_steps),
            "gradient_computations": self.gradient_computations,
            "seconds": round(seconds, 2),
            "validation_accuracy": {name: round(value, 6) for name, value in validation.items()},
        }
        with writing(self.folder), (self.folder / LOG_FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def _save(self) -> None:
        if self.folder and self.ranks.first:
            state = {"step": self.step, "gradient_computations": self.gradient_computations, "options": asdict(self.options)}
            save_checkpoint(self.folder, self.nested, self.optimizer, state)


@torch.no_grad()
def check_fits(nested: NestedModel, train: Examples, validation: Examples | None) -> int:
    """How many classes the model tells apart. Raises TrainerError when the data are not what the model takes."""
    if len(train) < 2:
        raise TrainerError(f"training data: {len(train)} examples; allowed are 2 and more")
    nested.eval()
    device = next(nested.full.parameters()).device
    inputs, _ = train.batch(torch.arange(2))
    wanted = nested.family.example_inputs(2)
    if len(inputs) != len(wanted):
        raise TrainerError(f"training data: {len(inputs)} inputs per example; the model takes {', '.join(wanted)}")
    for (name, example), found in zip(wanted.items(), inputs, strict=True):
        free = (nested.family.dynamic_axes or {}).get(name, {})
        sizes = [None if axis in free else size for axis, size in enumerate(example.shape)]
        if len(sizes) != found.ndim or any(s not in (None, f) for s, f in zip(sizes[1:], found.shape[1:], strict=True)):
            raise TrainerError(
                f"training data: input {name!r} has examples of shape {tuple(found.shape[1:])}; "
                f"the model takes {tuple(example.shape[1:])}"
            )
    try:
        classes = int(nested(laid_out(inputs, device, False), nested.family.smallest).shape[1])
    except Exception as error:  # whatever the family's own code raises
        raise TrainerError(f"training data: the model does not take them: {error}") from error
    for name, split in (("training", train), ("validation", validation)):
        if isinstance(split, Samples):  # of another kind of data the labels are seen batch by batch
            check_labels(split.labels, classes, f"{name} data")
    return classes


def make_optimizer(module: nn.Module, options: FitOptions) -> torch.optim.Optimizer:
    """Weight decay for matrices and kernels only."""
    decayed = [p for p in module.parameters() if p.ndim > 1]
    others = [p for p in module.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": options.weight_decay}, {"params": others, "weight_decay": 0.0}]
    if options.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=options.peak_lr, fused=True)
    momentum = options.momentum
    optimizer = torch.optim.SGD(groups, lr=options.peak_lr, momentum=momentum, nesterov=momentum > 0, fused=True)
    for parameter in module.parameters() if momentum else ():
        # A block that is sampled late gets its buffer late; the fused kernel wants all of them from the first step.
        optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def _learning_rate(options: FitOptions, step: int, total: int) -> float:
    """Linear warm-up, then a cosine down to zero (Loshchilov & Hutter 2017, arXiv 1608.03983, section 3)."""
    warmup = max(1, int(options.warmup * total))
    if step < warmup:
        return options.peak_lr * (step + 1) / warmup
    return options.peak_lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def _mixed(seed: int, purpose: str, number: int) -> int:
    return Random(f"{seed}/{purpose}/{number}").getrandbits(63)


def _generator(seed: int, purpose: str, number: int) -> Generator:
    return Generator().manual_seed(_mixed(seed, purpose, number))


def _at_least(name: str, value: float, minimum: float, kind: type = Real) -> None:
    if isinstance(value, bool) or not isinstance(value, kind) or not math.isfinite(value) or value < minimum:
        raise TrainerError(f"{name} = {value!r}: allowed are {'whole ' if kind is Integral else ''}numbers from {minimum}")


def _drop_log_after(path: Path, step: int) -> None:
    """Keeps the lines up to that step; a line that a kill has left half-written is none."""
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(f"{line}\n")
        except json.JSONDecodeError:
            continue
    path.write_text("".join(kept), encoding="utf-8")


def _progress(show: bool) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[loss]}"))
    return Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), disable=not show)


@contextmanager
def _stop_flag() -> Iterator[threading.Event]:
    """Set by the first SIGINT or SIGTERM; the training then stops between two steps. A second one stops at once."""
    stopped = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return
    previous = {}

    def handle(number: int, frame: FrameType | None) -> None:
        if stopped.is_set():
            raise KeyboardInterrupt
        stopped.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        previous[number] = signal.signal(number, handle)
    try:
        yield stopped
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
