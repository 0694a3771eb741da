"""`fit`: trains all sub-models of a nested model together, resumable at every step.

Everything random in a step (order of the data, what reading and augmenting them draws, sampled sub-models, dropout) is
derived from the seed and the step's number, never from a running generator. A checkpoint is therefore the parameters, the
optimizer's state and one number, and on a CPU a resumed run ends with the same weights, to the bit, as an uninterrupted one.
What holds on a GPU says `trainer.accelerator`.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor, nn

from trainer.accelerator import Accelerator, deterministic, find_accelerator
from trainer.calibration import calibrate, calibration_batches
from trainer.checkpoint import CHECKPOINT_FILE, load_checkpoint, load_tensors, save_checkpoint, save_tensors, writing
from trainer.compatibility import check_fits
from trainer.data.augment import Augmentation
from trainer.data.dataset import Batch, Data, Examples, Samples, as_examples, as_inputs
from trainer.data.lengths import order_of_epoch
from trainer.data.loading import Asked, held, read
from trainer.distributed import current_ranks
from trainer.evaluate import scores_of
from trainer.hold import BEGIN_FILE, taken_back
from trainer.interruption import TrainingInterrupted, drop_log_after, progress_bar, stop_flag
from trainer.nested import NestedModel
from trainer.options import FitOptions
from trainer.schedule import learning_rate, make_optimizer
from trainer.speed.layout import laid_out, suits_channels_last
from trainer.step import Gradients
from trainer.submodel import SubModel, TrainerError
from trainer.task import Outputs
from trainer.teacher import teacher_for
from trainer.updates import UpdateRule, make_rule

LOG_FILE = "log.jsonl"
CHECKPOINT_SECONDS = 300.0
Watch = Callable[[int, float], int | None]
"""What is told of every step, its number and loss; may return how many there are to be in all."""

FREE_TO_CHANGE = ("accelerator", "workers", "epochs")
"""Options that a resumed run may have otherwise. With more epochs, in all, the learning rate is from there on that of a
training of so many: it jumps from where the shorter schedule left it, from 0 after a finished run, up to the longer one."""


@dataclass(frozen=True)
class FitResult:
    """What a training cost and what its last epoch looked like."""

    steps: int
    gradient_computations: int  # forward and backward passes of one sub-model over one batch
    teacher_passes: int  # forward passes of the teacher over one batch; each costs a third of the above
    seconds: float
    loss: float | None  # mean over the last epoch; None when a resumed run had no step left
    validation: Mapping[str, float]  # quality of the smallest and the largest sub-model
    kept: float = 1.0  # part of the way that was not taken back (`may_lose`)


def fit(
    nested: NestedModel,
    train_data: Data,
    validation_data: Data | None = None,
    *,
    run: str | Path | None = None,
    resume: bool = False,
    augment: Augmentation | None = None,
    teacher: nn.Module | None = None,
    show_progress: bool = True,
    watch: Watch | None = None,
    options: FitOptions | None = None,
    **fields_of_options: Any,
) -> FitResult:
    """Trains in place with the update rule of SortedNet (arXiv 2309.00255, section 3), then calibrates BatchNorm.

    With a `teacher`, any module that takes the model's inputs and gives its outputs, the sub-models learn from what it answers
    for the same augmented examples, and from the targets as much as `teacher_share` leaves; it stays as it is.

    `watch` is called after every step with its number and loss, to measure or to log; it leaves parameters and mode as they
    are. Where it returns a number the training has so many steps in all, at most those that it had: the learning rate falls to
    0 by then, so that a training can keep to a time. Under torchrun it must say the same on every rank.

    Under torchrun every rank calls this with the same arguments; the batch is shared out, gradients are averaged. The fields
    of `FitOptions` may be given as keywords instead. The model moves to the accelerator and stays there. With `run`, a
    folder, it writes a JSON-lines log and checkpoints there and can resume, up to other epochs than before too (see
    `FREE_TO_CHANGE`). Raises TrainerError for wrong options, data that
    are not what the model takes or targets that are not the task's, a loss that is no number, and a folder that cannot be
    written to; TrainingInterrupted after SIGINT or SIGTERM.
    """
    chosen = FitOptions.of(options, fields_of_options)
    examples = held(as_examples(train_data), chosen.workers)
    validation = held(as_examples(validation_data), chosen.workers) if validation_data is not None else None
    training = _Training(nested, examples, validation, chosen, augment, Path(run) if run else None, teacher)
    if resume:
        training.restore()
    else:
        training.begin()
    with deterministic(chosen.deterministic):
        with stop_flag() as stopped:
            result = training.run(stopped, show_progress, watch)
        nested.eval()
        result = replace(result, kept=training.take_back())
        shown = show_progress and training.ranks.first
        calibrate(nested, calibration_batches(examples, workers=chosen.workers), show_progress=shown)
    return result


class _Training:
    def __init__(
        self,
        nested: NestedModel,
        examples: Examples,
        validation: Examples | None,
        options: FitOptions,
        augment: Augmentation | None,
        run: Path | None,
        teacher: nn.Module | None = None,
    ) -> None:
        self.task = check_fits(nested, examples, validation, options)
        self.nested, self.examples, self.validation = nested, examples, validation
        self.options, self.augment, self.folder = options, augment, run
        self.accelerator: Accelerator = find_accelerator(options.accelerator, options.precision)
        self.device = self.accelerator.device
        nested.full.to(self.device)
        self.parameters = list(nested.full.parameters())
        self.teacher = teacher_for(nested, teacher, options)
        self.places: Iterator[Tensor] | None = None  # of the answers that the teacher remembers, those of each step
        self.scaler = self.accelerator.scaler()
        # For all devices at once, seen or not, `torch.manual_seed` takes most of a millisecond.
        self._seed = torch.default_generator.manual_seed if self.device.type == "cpu" else torch.manual_seed
        # What makes the layout unsafe was found out for fp32 alone.
        self.channels_last = options.precision == "fp32" and suits_channels_last(nested)
        self.ranks = current_ranks(self.device)
        self.rule: UpdateRule = make_rule(options.update, nested.submodels, options.samples_per_step, options.edges)
        self.batch_size = min(options.batch_size, len(examples))
        if self.batch_size < 2 * self.ranks.count:
            raise TrainerError(
                f"batch_size = {self.batch_size}: allowed are {2 * self.ranks.count} and more on {self.ranks.count} ranks"
            )
        self.steps_per_epoch = len(examples) // self.batch_size
        self.total_steps = self.steps_per_epoch * options.epochs
        self.optimizer = make_optimizer(nested.full, options)
        self.gradients = Gradients(nested, self.task, self.rule, self.teacher, self.accelerator, self.scaler, options)
        self.views = options.teacher_views if self.teacher and augment is not None else 0
        self.step = 0
        nested.calibration.clear()
        nested.train()
        self.ranks.same_start(self.parameters)
        self.before: dict[str, Tensor] = {}
        if options.may_lose < 1:
            if validation is None:
                raise TrainerError(f"may_lose = {options.may_lose}: it is measured on validation data; allowed without is 1")
            self.before = {name: p.detach().cpu().clone() for name, p in nested.full.named_parameters()}
        if run:
            with writing(run):
                run.mkdir(parents=True, exist_ok=True)

    def begin(self) -> None:
        """Removes what an earlier training has left in the run's folder."""
        if self.folder and self.ranks.first:
            for name in (LOG_FILE, CHECKPOINT_FILE, BEGIN_FILE):
                (self.folder / name).unlink(missing_ok=True)
            if self.before:
                save_tensors(self.before, self.folder / BEGIN_FILE)

    def restore(self) -> None:
        """Goes on from the run's last checkpoint. Raises TrainerError when there is none or its options differ."""
        if self.folder is None:
            raise TrainerError("resume: needs the folder of the run to go on with")
        saved = load_checkpoint(self.folder, self.nested, self.optimizer)
        begun = {f.name: f.default for f in fields(FitOptions)} | saved["options"]
        for name, value in asdict(self.options).items():
            if begun[name] != value and name not in FREE_TO_CHANGE:
                raise TrainerError(f"resume: {name} = {value!r}, but the run was begun with {begun[name]!r}")
        if self.before:
            self.before = load_tensors(self.folder / BEGIN_FILE)[0]
        if saved.get("scaler"):
            self.scaler.load_state_dict(saved["scaler"])
        self.step, self.gradients.passes = saved["step"], saved["gradient_computations"]
        if self.step > self.total_steps:
            done = -(-self.step // self.steps_per_epoch)
            raise TrainerError(f"resume: epochs = {self.options.epochs}: {done} are begun; allowed are {done} and more, in all")
        if self.ranks.first:
            drop_log_after(self.folder / LOG_FILE, self.step)

    def run(self, stopped: threading.Event, show_progress: bool, watch: Watch | None = None) -> FitResult:
        begun = saved_at = time.monotonic()
        losses: list[float] = []
        validation: dict[str, float] = {}
        # That pays from more epochs on than there are ranks, each of which remembers all.
        repeats = self.augment is None and self.options.epochs > self.ranks.count and self.step < self.total_steps
        here = self.options.workers, show_progress and self.ranks.first
        if self.views:
            assert self.teacher
            self.teacher.expect(self.examples, self.views * self.steps_per_epoch * self.batch_size)
            self.places = self._views()
        elif self.teacher and repeats and self.teacher.remember(self.examples, self.batch_size, self.accelerator, *here):
            self.places = (asked.indices for asked in self._order())
        batches = read(self.examples, self._order(), self.options.workers, self.accelerator.pins_memory, self.augment)
        with closing(batches), progress_bar(show_progress and self.ranks.first) as progress:
            task = progress.add_task("training", total=self.total_steps, completed=self.step, loss="")
            while self.step < self.total_steps:
                losses.append(self._one_step(next(batches)))
                self.step += 1
                if watch is not None and (steps := watch(self.step, losses[-1])) is not None:
                    self.total_steps = max(self.step, min(steps, self.total_steps))
                epoch_ends = self.step % self.steps_per_epoch == 0 or self.step == self.total_steps
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
        passes = (self.teacher.remembered_passes or self.step) if self.teacher else 0
        if self.views:  # those that a resumed training computes again are no others
            passes = min(self.step, self.views * self.steps_per_epoch)
        return FitResult(self.step, self.gradients.passes, passes, time.monotonic() - begun, loss, validation)

    def take_back(self) -> float:
        """What the training has cost the full model beyond `may_lose`; returns which part of the way is kept."""
        if not self.before:
            return 1.0
        return taken_back(dict(self.nested.full.named_parameters()), self.before, self._quality_of_full, self.options.may_lose)

    def _quality_of_full(self) -> float:
        largest = [self.nested.family.largest]
        assert self.validation is not None
        calibrate(self.nested, calibration_batches(self.examples, 2, self.options.workers), largest)
        (score,) = scores_of(self.nested, largest, self.validation, self.options.workers).values()
        self.nested.calibration.clear()
        return score.quality

    def _order(self) -> Iterator[Asked]:
        """Every batch that is left: of each epoch a permutation, like lengths together, and this rank's share of each batch."""
        seed = self.options.seed
        for epoch in range(self.step // self.steps_per_epoch, self.options.epochs):
            view = epoch % self.views if self.views else epoch
            permuted = order_of_epoch(self.examples, self.batch_size, _mixed(seed, "order", view))
            begun, seen = (e * self.steps_per_epoch for e in (epoch, view))
            for step in range(max(begun, self.step), begun + self.steps_per_epoch):  # read ahead: `step` is not `self.step`
                place = (step - begun) * self.batch_size
                indices = self.ranks.share(permuted[place : place + self.batch_size])
                yield Asked(indices, _mixed(seed + self.ranks.rank, "augment", seen + step - begun))

    def _views(self) -> Iterator[Tensor]:
        """Of every batch that is left: the places of its teacher's answers; a batch of a view is the same each time."""
        for step in range(self.step, self.total_steps):
            place = step % (self.views * self.steps_per_epoch) * self.batch_size
            yield self.ranks.share(torch.arange(place, place + self.batch_size))

    def _one_step(self, batch: Batch) -> float:
        seed = self.options.seed
        inputs = laid_out(as_inputs(batch.inputs, self.nested.input_names), self.device, self.channels_last)
        self._seed(_mixed(seed + self.ranks.rank, "dropout", self.step))
        indices = next(self.places) if self.places else None
        # Of those in memory all were checked before.
        check = None if isinstance(self.examples, Samples) else self._check
        positions, what = _mixed(seed + self.ranks.rank, "positions", self.step), f"step {self.step}, "
        loss = self.gradients.accumulate(self._shares(), inputs, batch.targets, positions, indices, check, what)
        if not math.isfinite(loss):
            raise TrainerError(
                f"loss = {loss} at step {self.step}: the training diverged; try a lower lr than {self.options.peak_lr}"
            )
        self.ranks.average_gradients(self.parameters)
        self.scaler.unscale_(self.optimizer)
        if self.options.clip_norm:
            torch.nn.utils.clip_grad_norm_(self.parameters, self.options.clip_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.options, self.step, self.total_steps) * group["scale"]
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return loss

    def _shares(self) -> dict[SubModel, float]:
        """The sub-models of this step, in the order of their computation, and the share of each in the loss."""
        submodels = self.rule.sample(self.step, self.options.seed)
        weights = {sub: float(submodels.count(sub)) for sub in submodels}
        if self.options.guard:
            weights[self.rule.largest] = weights.get(self.rule.largest, 0.0) + self.options.guard
        total = sum(weights.values())
        return {sub: weight / total for sub, weight in weights.items()}

    def _check(self, outputs: Outputs, targets: Any) -> None:
        try:
            self.task.check(outputs, targets)
        except TrainerError as error:
            raise TrainerError(f"training data, step {self.step}: {str(error).removeprefix('targets: ')}") from None

    def _validate(self) -> dict[str, float]:
        """Quality of the smallest and the largest on the validation split, with statistics calibrated for the moment."""
        if self.validation is None:
            return {}
        self.nested.eval()
        corners = [self.rule.smallest, self.rule.largest]
        calibrate(self.nested, calibration_batches(self.examples, 2, self.options.workers), corners)
        scores = scores_of(self.nested, corners, self.validation, self.options.workers)
        self.nested.calibration.clear()
        self.nested.train()
        return {sub.id: score.quality for sub, score in scores.items()}

    def _log(self, losses: Sequence[float], validation: Mapping[str, float], seconds: float) -> None:
        if self.folder is None or not self.ranks.first:
            return
        line = {
            "step": self.step,
            "epoch": self.step // self.steps_per_epoch,
            "loss": round(sum(losses) / len(losses), 6),
            "lr": learning_rate(self.options, self.step - 1, self.total_steps),
            "gradient_computations": self.gradients.passes,
            "seconds": round(seconds, 2),
            f"validation_{self.task.metric if self.task.metric == 'accuracy' else 'quality'}": {
                name: round(value, 6) for name, value in validation.items()
            },
        }
        with writing(self.folder), (self.folder / LOG_FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def _save(self) -> None:
        if self.folder and self.ranks.first:
            state = {"step": self.step, "gradient_computations": self.gradients.passes, "options": asdict(self.options)}
            state["steps_per_epoch"] = self.steps_per_epoch
            state["scaler"] = self.scaler.state_dict()
            save_checkpoint(self.folder, self.nested, self.optimizer, state)


def _mixed(seed: int, purpose: str, number: int) -> int:
    return Random(f"{seed}/{purpose}/{number}").getrandbits(63)
