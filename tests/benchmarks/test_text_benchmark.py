"""`benchmarks/text`: a run of the experiments can be exported, and figures are what they are called."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.text import cascades, graphs, lengths, rival
from benchmarks.text.bundles import Made, exported_alone, exported_by_torch, make_exportable
from benchmarks.text.experiment import Setting
from benchmarks.text.timing import texts
from exporter.bundle.session import open_session, relative_error, run_session
from exporter.run import export_run
from selector.choose.cascades import Cascade
from sortednet.validation import arrays
from tests.helpers import lengths as made_up
from tests.helpers.text_settings import tiny_setting
from tests.helpers.texts import CLASSES
from trainer import NestedModel
from trainer.checkpoint import save_checkpoint
from trainer.options import FitOptions
from trainer.run import load_run

NAMES = ["attention_mask", "input_ids"]


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    return tiny_setting(tmp_path_factory.mktemp("texts"))


def run_of(given: Setting, folder: Path, step: int) -> NestedModel:
    """What a training leaves that was asked for 2 epochs of 3 steps."""
    torch.manual_seed(0)
    nested = NestedModel(given.family).eval()
    with torch.no_grad():
        for parameter in nested.full.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    folder.mkdir()
    state = {"step": step, "steps_per_epoch": 3, "options": asdict(FitOptions(epochs=2))}
    save_checkpoint(folder, nested, torch.optim.SGD(nested.full.parameters(), lr=0.1), state)
    return nested


@pytest.fixture(scope="module")
def made(given: Setting, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("made")
    run_of(given, folder / "run", step=6)
    make_exportable(folder / "run", given)
    return Made(export_run(folder / "run", folder / "bundle"), load_run(folder / "run").nested)


def other_weights(made: Made) -> Made:
    torch.manual_seed(1)
    return Made(made.bundle, NestedModel(made.nested.family).eval())


def test_a_training_that_came_to_its_end_can_be_exported(given: Setting, made: Made, tmp_path: Path) -> None:
    trained = run_of(given, tmp_path / "run", step=5)
    for (name, own), (_, exported) in zip(trained.full.named_parameters(), made.nested.full.named_parameters(), strict=True):
        assert torch.equal(own, exported), name
    assert made.bundle.manifest.task.labels == CLASSES
    assert made.bundle.manifest.preprocessing["input_ids"]["max_tokens"] == 20
    assert (made.bundle.path / "tokenizer.json").read_bytes() == given.data.files["tokenizer.json"]
    assert all(entry.accuracy is not None for entry in made.bundle.manifest.submodels)
    with pytest.raises(SystemExit, match=r"has 1\.7 of 2 epochs"):
        make_exportable(tmp_path / "run", given)


def test_sizes_are_spread_over_their_macs(made: Made) -> None:
    names = list(made.sizes())
    macs = [made.bundle.submodels[name].macs for name in names]
    assert len(names) == 8
    assert macs == sorted(macs)
    some = list(made.sizes(3))
    assert (some[0], some[-1], len(some)) == (names[0], names[-1], 3)


def test_parity_is_of_every_sub_model_and_sees_other_weights(made: Made) -> None:
    assert graphs.parity_of(made, 3, 20) < 1e-4
    assert graphs.parity_of(other_weights(made), 2, 4) > 1e-2
    found = graphs.pairs(3, 8, 256)
    assert {(1, 1), (1, 256), (8, 1), (8, 256)} < set(found)
    assert all(1 <= count <= 8 and 1 <= length <= 256 for count, length in found)
    assert len({pair for seed in range(96) for pair in graphs.pairs(seed, 8, 256)}) > 700


def test_texts_are_padded_behind_their_ends() -> None:
    feed = texts(4, 9, 0, 50, padded=True)
    counts = feed["attention_mask"].sum(axis=1)
    assert counts[0] == 9
    assert len(set(counts)) > 1
    assert ((feed["input_ids"] == 0) == (feed["attention_mask"] == 0)).all()
    assert (texts(4, 9, 0, 50)["attention_mask"] == 1).all()


def test_a_size_is_compared_with_exports_of_the_same_weights(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "OPENINGS", 1)
    monkeypatch.setattr(graphs, "ROUNDS", 1)
    name, sub = list(made.sizes().items())[2]
    for plain in (
        exported_alone(made.nested, sub, tmp_path / "alone"),
        exported_by_torch(made.nested, sub, tmp_path / "x.onnx"),
    ):
        assert graphs.faster(made, name, plain, length=7) > 0
    with pytest.raises(RuntimeError, match=f"{name}: answers .* other than its own export"):
        graphs.faster(made, name, exported_alone(other_weights(made).nested, sub, tmp_path / "other"), length=7)


def test_the_figures_of_both_tasks_are_the_worse_one() -> None:
    assert graphs.worst("parity", {"bbc": 1e-6, "gloss": 2e-6}) == {"parity": 2e-6, "parity.bbc": 1e-6, "parity.gloss": 2e-6}
    of_bbc = {"cascade_vs_single.bbc": 0.5, "cascade_cost_ratio.bbc": 0.4, "cascade_points.bbc": 0.1, "cascade_found.bbc": 1.0}
    of_gloss = {"cascade_vs_single.gloss": 0.6, "cascade_points.gloss": -0.1, "cascade_found.gloss": 1.0}
    found = cascades.joined(of_bbc | of_gloss, ["bbc", "gloss"])
    assert (found["cascade_vs_single"], found["cascade_points"], found["cascade_found"]) == (0.6, -0.1, 1.0)
    assert "cascade_cost_ratio" not in found  # of one task alone it would not be the worse one


def test_lengths_that_fit_are_within_and_others_are_not() -> None:
    first = made_up.profile_of({"small": 1.0, "large": 3.0})
    again = made_up.profile_of({"small": 1.0, "large": 4.0})
    found = lengths.errors(first, again, (16, 64, 256), (32, 128))
    assert found["length_within_10pct"] == 1.0
    assert found["length_p95_error"] < 1e-6
    assert found["length_measured_again_within_10pct"] == 0.5
    kinked = first.submodels["large"].lengths | {32: made_up.latency(3.0)}
    submodels = first.submodels | {"large": first.submodels["large"].model_copy(update={"lengths": kinked})}
    found = lengths.errors(first.model_copy(update={"submodels": submodels}), again, (16, 64, 256), (32, 128))
    assert found["length_within_10pct"] == 0.75


def logits_for(right: np.ndarray, labels: np.ndarray, margin: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
    found = np.zeros((len(labels), 3), np.float32)
    found[np.arange(len(labels)), np.where(right, labels, (labels + 1) % 3)] = margin
    return found


def test_the_cascade_is_chosen_on_the_validation_split_alone() -> None:
    """The small one is sure where it is right; together they are as good as the large one."""
    random = np.random.default_rng(0)
    labels, right = random.integers(0, 3, 900), random.random(900) < 0.7
    large = random.random(900) < 0.95
    logits = {
        "small": logits_for(right & large, labels, np.where(right & large, 5.0, 0.1)),
        "large": logits_for(large, labels, np.full(900, 5.0)),
    }
    costs = {"small": 1.0, "large": 10.0}
    reached = float(large[cascades.split(900)[1]].mean())
    tried = cascades.floors(reached)
    assert tried[0] == pytest.approx(reached)
    assert max(np.diff(tried)) < 0
    found = cascades.certified(logits, labels, costs, tried)
    assert 0 < len(found) < len(tried)  # the highest cannot be certified
    best = cascades.chosen(found, costs, reached - cascades.POINTS)
    assert best is not None
    assert (best.first, best.then) == ("small", "large")
    assert best.accuracy >= reached - cascades.POINTS
    assert cascades.chosen(found, costs, 1.1) is None
    assert cascades.cheapest_alike(logits, labels, costs, reached - cascades.POINTS, "full") == "large"
    assert cascades.cheapest_alike(logits, labels, costs, 1.1, "full") == "full"
    ends = [cascades.on(best.model_copy(update={"threshold": t}), logits, labels) for t in (0.0, 1.0)]
    assert ends == [pytest.approx((right & large).mean()), pytest.approx(large.mean())]


def test_texts_are_run_one_by_one_at_their_own_length(given: Setting, made: Made) -> None:
    (first, *_, then), (_, labels) = made.sizes(), arrays(given.data.test, NAMES)
    single = cascades.drawn(given.data.test, NAMES)
    assert len(single) == len(labels)
    assert {feed["input_ids"].shape for feed in single} == {(1, int(n)) for n in given.data.test.lengths}
    shares = {"escalation": 0.5, "accuracy": 0.9, "floor": 0.8, "confidence": 0.9, "examples": 9}
    cascade = Cascade(id=f"{first}+{then}", first=first, then=then, threshold=0.5, **shares)
    found = cascades.mean_seconds(made.bundle, cascade, [first, then], single)
    assert set(found) == {first, then, cascade.id}
    assert all(np.isfinite(seconds) and seconds > 0 for seconds in found.values())


def test_what_optimum_is_given_answers_as_the_graphs_do(made: Made, tmp_path: Path) -> None:
    """With transformers' own class, which knows nothing of ours."""
    from transformers import BertForSequenceClassification

    assert {sub.axes[rival.HEADS] for sub in rival.comparable(made).values()} == {2}
    rival.prepare(made, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(rival.comparable(made))
    feed = texts(3, 11, 0, made.vocabulary, padded=True)
    for path in tmp_path.iterdir():
        theirs = BertForSequenceClassification.from_pretrained(path).eval()
        with torch.no_grad():
            logits = theirs(**{name: torch.from_numpy(array) for name, array in feed.items()}).logits.numpy()
        session = open_session(made.bundle.graph_path(path.name))
        assert relative_error(run_session(session, feed), {"logits": logits}) < 1e-4


def test_the_comparison_with_optimum_is_over_all_tasks() -> None:
    found = rival.figures([{"ratios": {"a": 1.0, "b": 1.2}, "error": 1e-6}, {"ratios": {"a": 1.1}, "error": 1e-5}])
    assert found == {"optimum_ratio": 1.1, "optimum_ratio_min": 1.0, "optimum_ratio_max": 1.2, "optimum_max_error": 1e-5}
