"""Training: update rules, options, logs, checkpoints, and what happens when a process is stopped, in this process."""

from __future__ import annotations

import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.hard import Hard
from tests.helpers.runs import equal, first, first_arrays, hard, log_of, network, noise, weights
from trainer import NestedModel, Samples, SubModel, TrainerError, fit
from trainer.calibration import calibration_batches
from trainer.data import DataSet
from trainer.interruption import TrainingInterrupted
from trainer.tasks import Classification
from trainer.updates import RULES, UpdateRule, make_rule

GRID = [SubModel(width=w, depth=d) for w in (0.25, 0.5, 1.0) for d in (1, 2)]


def steps_of(rule: UpdateRule, times: int = 300) -> list[list[SubModel]]:
    return [list(rule.sample(i, 0)) for i in range(times)]


def test_sorted_draws_different_sub_models_with_equal_chances() -> None:
    steps = steps_of(make_rule("sorted", GRID, 2), 1200)
    assert all(len(set(step)) == 2 for step in steps)
    counts = Counter(sub for step in steps for sub in step)
    assert counts.keys() == set(GRID)
    assert all(300 < count < 500 for count in counts.values())  # 400 expected; the draws are the same every time
    assert set(make_rule("sorted", GRID, 99).sample(0, 0)) == set(GRID)


def test_sorted_draws_the_ends_of_the_grid_as_often_as_asked() -> None:
    grid = [SubModel(width=k / 20) for k in range(1, 21)]
    counts = Counter(sub for step in steps_of(make_rule("sorted", grid, 1, 0.2), 4000) for sub in step)
    for end in (grid[0], grid[-1]):
        assert counts[end] / 4000 == pytest.approx(0.1 + 0.8 / 20, abs=0.015)
    assert counts[grid[7]] / 4000 == pytest.approx(0.8 / 20, abs=0.015)
    assert all(len(set(step)) == 3 for step in steps_of(make_rule("sorted", grid, 3, 0.9)))


def test_sum_computes_every_sub_model_and_full_the_largest_alone() -> None:
    assert all(step == GRID for step in steps_of(make_rule("sum", GRID, 1), 3))
    assert all(step == [GRID[-1]] for step in steps_of(make_rule("full", GRID, 3), 3))


def test_sandwich_computes_the_largest_first_then_others_then_the_smallest() -> None:
    steps = steps_of(make_rule("sandwich", GRID, 2))
    assert all((step[0], step[-1], len(set(step))) == (GRID[-1], GRID[0], 4) for step in steps)
    assert {sub for step in steps for sub in step} == set(GRID)
    assert make_rule("sandwich", GRID[:1], 2).sample(0, 0) == GRID[:1]


def test_sandwich_teaches_the_small_from_the_largest_not_from_the_labels() -> None:
    rule = make_rule("sandwich", GRID, 1)
    task, labels = Classification(), torch.arange(4)
    logits, teacher = torch.randn(4, 10), torch.randn(4, 10)
    outputs, earlier = {"logits": logits}, {GRID[-1]: {"logits": teacher}}
    of_largest = rule.loss(task, outputs, labels, {})
    assert of_largest != rule.loss(task, outputs, labels + 1, {})
    distilled = rule.loss(task, outputs, labels, earlier)
    assert distilled == rule.loss(task, outputs, labels + 1, earlier)
    by_hand = -(teacher.softmax(1) * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(distilled, by_hand)


@pytest.mark.parametrize(("update", "per_step"), [("sorted", 2), ("sum", 4), ("sandwich", 4), ("full", 1)])
def test_training_with_each_rule_learns_digits(update: str, per_step: int, digits: DataSet, tmp_path: Path) -> None:
    nested = network(digits)
    result = fit(
        nested,
        first(digits, 512),
        digits.validation,
        run=tmp_path,
        update=update,
        samples_per_step=2,
        epochs=4,
        batch_size=16,
        lr=0.3,
        show_progress=False,
    )
    log = log_of(tmp_path)
    assert [line["step"] for line in log] == [32, 64, 96, 128]
    assert log[-1]["loss"] == pytest.approx(result.loss, abs=1e-5)
    assert log[-1]["loss"] < 0.75 * log[0]["loss"]
    assert 0 <= log[-1]["lr"] < log[1]["lr"] <= 0.3
    assert result.gradient_computations == log[-1]["gradient_computations"] == 128 * per_step
    assert result.validation[nested.family.largest.id] > 0.4  # 0.1 by chance
    assert not any(nested.needs_calibration(sub) for sub in nested.submodels)


def test_the_layout_of_images_in_memory_does_not_change_the_training(digits: DataSet) -> None:
    """Not only for its own sake: oneDNN's channels-last convolutions write beyond their buffers, see `speed.layout`."""
    images, labels = first_arrays(digits, 128)
    channels_last = torch.empty(128, 8, 8, 1).permute(0, 3, 1, 2).copy_(images)
    assert channels_last.stride() != images.stride()
    results = []
    for layout in (images, channels_last):
        nested = network(digits)
        fit(nested, (layout, labels), epochs=2, batch_size=16, show_progress=False)
        results.append(weights(nested))
    assert equal(*results)


def test_a_rule_is_added_with_one_class(monkeypatch: pytest.MonkeyPatch) -> None:
    class Corners(UpdateRule):
        name = "corners"

        def sample(self, step: int, seed: int) -> list[SubModel]:
            return [self.smallest, self.largest]

    monkeypatch.setitem(RULES, Corners.name, Corners)
    nested, data = hard()
    before = weights(nested)
    assert fit(nested, data, epochs=1, batch_size=4, update="corners", show_progress=False).gradient_computations == 20
    assert not equal(before, weights(nested))


def test_the_seed_decides_the_weights() -> None:
    results = []
    for seed in (1, 1, 2):
        nested, data = hard()
        fit(nested, data, epochs=1, batch_size=4, seed=seed, show_progress=False)
        results.append(weights(nested))
    assert equal(results[0], results[1])
    assert not equal(results[0], results[2])


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("epochs", v) for v in (0, -1, 1.5, "3", float("nan"), True)),
        *(("batch_size", v) for v in (1, 0, 2.5)),
        *(("samples_per_step", v) for v in (0, 1.5)),
        *(("lr", v) for v in (-0.1, float("inf"), "fast")),
        *(("momentum", v) for v in (1.0, -0.1)),
        ("weight_decay", -1e-4),
        ("warmup", 1.0),
        ("clip_norm", -1),
        ("label_smoothing", 1.0),
        *(("edges", v) for v in (-0.1, 1.5)),
        ("update", "random"),
        ("optimizer", "lion"),
    ],
)
def test_a_wrong_option_is_refused_with_its_value(option: str, value: object) -> None:
    nested, data = hard()
    with pytest.raises(TrainerError, match=f"^{option} = .*allowed are") as caught:
        fit(nested, data, show_progress=False, **{option: value})
    assert repr(value) in str(caught.value)


def test_an_unknown_option_is_refused_and_told_what_is_known() -> None:
    nested, data = hard()
    with pytest.raises(TrainerError, match=r"unknown option 'learning_rate'; allowed are .*\blr\b"):
        fit(nested, data, learning_rate=0.1)


@pytest.mark.parametrize(("label", "split"), [(12, "training"), (-1, "training"), (12, "validation")])
def test_a_label_outside_the_classes_is_refused_with_its_place(label: int, split: str) -> None:
    nested, data = hard()
    labels = data.targets.clone()  # type: ignore[union-attr]
    labels[23] = label
    wrong = Samples(data.inputs, labels)
    before = weights(nested)
    with pytest.raises(TrainerError, match=rf"{split} data.*label {label} at position 23; allowed are 0 to 3"):
        fit(nested, *((wrong,) if split == "training" else (data, wrong)), epochs=1, batch_size=8, show_progress=False)
    assert equal(before, weights(nested))


def test_a_training_that_diverges_says_so(tmp_path: Path) -> None:
    nested, data = hard()
    with pytest.raises(TrainerError, match=r"loss = (nan|inf) at step \d+: the training diverged; try a lower lr than 1e\+30"):
        fit(nested, data, run=tmp_path, lr=1e30, clip_norm=0, epochs=3, batch_size=4, show_progress=False)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"optimizer": "adamw", "update": "sandwich"},
        {"momentum": 0.0, "update": "full"},
        {"samples_per_step": 2},
    ],
    ids=["sgd", "adamw", "no momentum", "two per step"],
)
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("at_step", [4, 9, 10], ids="step {}".format)
def test_a_resumed_training_ends_with_the_same_weights(
    options: dict[str, Any], stop: signal.Signals, at_step: int, tmp_path: Path
) -> None:
    options = {"epochs": 3, "batch_size": 4, "show_progress": False, **options}
    whole, data = hard()
    fit(whole, data, data, run=tmp_path / "whole", augment=noise(), **options)
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    interrupted, _ = hard()
    with pytest.raises(TrainingInterrupted, match=rf"after step {at_step + 1} of 30; .*--resume"):
        fit(interrupted, data, data, run=tmp_path / "run", augment=noise(at_step, (stop,)), **options)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    torch.manual_seed(99)
    resumed = NestedModel(Hard())
    fit(resumed, data, data, run=tmp_path / "run", resume=True, augment=noise(), **options)
    assert equal(weights(resumed), weights(whole))
    assert all(equal(resumed.calibration[sub], whole.calibration[sub]) for sub in whole.submodels)
    for line, wanted in zip(log_of(tmp_path / "run"), log_of(tmp_path / "whole"), strict=True):
        assert all(line[key] == wanted[key] for key in ("step", "lr", "gradient_computations", "validation_accuracy"))


def test_a_second_signal_stops_at_once(tmp_path: Path) -> None:
    nested, data = hard()
    with pytest.raises(KeyboardInterrupt):
        fit(nested, data, run=tmp_path, batch_size=4, augment=noise(3, (signal.SIGINT, signal.SIGINT)), show_progress=False)
    assert not list(tmp_path.glob("*.safetensors"))


def test_a_half_written_last_line_of_the_log_does_not_stop_a_resume(tmp_path: Path) -> None:
    nested, data = hard()
    options = {"run": tmp_path, "epochs": 3, "batch_size": 4, "show_progress": False}
    with pytest.raises(TrainingInterrupted):
        fit(nested, data, augment=noise(14, (signal.SIGINT,)), **options)
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 20, "epoch": 2, "lo')
    fit(nested, data, resume=True, augment=noise(), **options)
    assert [line["step"] for line in log_of(tmp_path)] == [10, 20, 30]


@pytest.mark.parametrize(
    ("option", "value"),
    [("lr", 0.05), ("seed", 1), ("update", "sum"), ("batch_size", 8)],
)
def test_resuming_with_another_option_is_refused_by_name(option: str, value: object, tmp_path: Path) -> None:
    nested, data = hard()
    options = {"epochs": 3, "batch_size": 4}
    fit(nested, data, run=tmp_path, show_progress=False, **options)
    with pytest.raises(TrainerError, match=f"resume: {option} = {value!r}, but the run was begun with"):
        fit(nested, data, run=tmp_path, resume=True, show_progress=False, **{**options, option: value})


def test_resuming_goes_on_to_more_epochs_and_not_back_to_fewer(tmp_path: Path) -> None:
    nested, data = hard()
    options = {"batch_size": 4, "run": tmp_path, "show_progress": False}
    fit(nested, data, epochs=2, **options)
    assert fit(nested, data, epochs=3, resume=True, **options).steps == 30
    assert [line["step"] for line in log_of(tmp_path)] == [10, 20, 30]
    with pytest.raises(TrainerError, match="resume: epochs = 2: 3 are begun; allowed are 3 and more, in all"):
        fit(nested, data, epochs=2, resume=True, **options)


def test_resuming_what_was_never_begun_is_refused(tmp_path: Path) -> None:
    nested, data = hard()
    with pytest.raises(TrainerError, match=r"checkpoint\.safetensors does not exist"):
        fit(nested, data, run=tmp_path, resume=True)
    with pytest.raises(TrainerError, match="resume: needs the folder"):
        fit(nested, data, resume=True)
    (tmp_path / "checkpoint.safetensors").write_bytes(b"\x80\x04half a pickle")
    with pytest.raises(TrainerError, match=r"checkpoint\.safetensors is damaged"):
        fit(nested, data, run=tmp_path, resume=True)


def test_every_calibration_example_counts_about_the_same() -> None:
    examples = Samples(torch.rand(258, 5), torch.arange(258) % 4)
    sizes = [len(inputs["input"]) for inputs in calibration_batches(examples)]
    assert sizes == [129, 129]


def test_arrays_are_as_good_as_tensors() -> None:
    nested, data = hard()
    fit(nested, (data.inputs["input"].numpy(), data.targets.numpy()), epochs=1, batch_size=4, show_progress=False)  # type: ignore[arg-type]
    of_tensors, _ = hard()
    fit(of_tensors, data, epochs=1, batch_size=4, show_progress=False)
    assert equal(weights(nested), weights(of_tensors))


def test_a_folder_that_cannot_be_written_to_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    nested, data = hard()
    with pytest.raises(TrainerError, match=r"file.*cannot be written"):
        fit(nested, data, run=tmp_path / "file", epochs=1, batch_size=4, show_progress=False)


def test_who_watches_is_told_of_every_step_and_shortens_the_training(digits: DataSet) -> None:
    told: list[int] = []

    def watch(step: int, loss: float) -> int | None:
        assert loss > 0
        told.append(step)
        return {2: 6, 3: 9, 5: 1}.get(step)  # no more than there are, no fewer than are done

    result = fit(network(digits), first(digits, 320), epochs=2, batch_size=32, show_progress=False, watch=watch)
    assert (told, result.steps) == ([1, 2, 3, 4, 5], 5)
