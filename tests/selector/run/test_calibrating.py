"""How a cascade is found: the floor is kept on fresh examples, at less cost than a single sub-model's."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from exporter.bundle import CASCADES_FILE, Bundle
from selector import BudgetError, Runtime
from selector.choose.cascades import Cascade, add_cascade, read_cascades
from selector.run.calibrating import calibrate_cascade, find_cascade
from selector.run.program import passed_on
from sortednet.validation import validation
from tests.helpers.cascades import cascades_of, judged
from tests.helpers.shelf import larger, other_weights

COSTS = {"small": 1.0, "middle": 3.0, "large": 9.0}


def classifier(n: int, accuracy: float, seed: int) -> tuple[dict[str, NDArray[np.float32]], NDArray[np.int64]]:
    """Logits of three classifiers of ten classes: an example is as hard for all, and the larger see clearer."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 10, n)
    hardness, luck = random.exponential(1.0, n), random.normal(0, 1, (n, 10))
    found = {}
    for name, clear in (("small", 1.0), ("middle", 1.6), ("large", 2.2)):
        logits = luck + random.normal(0, 0.3, (n, 10))
        logits[np.arange(n), labels] += accuracy * 5 * clear / (0.6 + hardness)
        found[name] = (2 * logits).astype(np.float32)
    return found, labels


def cascaded(cascade: Cascade, logits: dict[str, NDArray[np.float32]]) -> NDArray[np.int64]:
    passed = passed_on(cascade, logits[cascade.first])
    return np.where(passed, logits[cascade.then].argmax(axis=1), logits[cascade.first].argmax(axis=1))


def test_the_floor_is_kept_as_often_as_promised() -> None:
    """Certified on 60 drawn validation sets; the truth is the accuracy on 100,000 other examples."""
    truth, labels = classifier(100_000, 0.9, 1)
    floor, below, made = 0.87, 0, 0
    for seed in range(60):
        logits, known = classifier(3000, 0.9, 100 + seed)
        cascade = find_cascade(logits, known, COSTS, floor, 0.95)
        made += 1
        below += bool((cascaded(cascade, truth) == labels).mean() < floor)
    assert made == 60
    assert below <= 7  # of 60 with 5 % each, more than 7 has a probability of 1 %


def test_it_costs_less_than_the_sub_model_that_is_as_accurate() -> None:
    logits, labels = classifier(6000, 0.9, 5)
    right = {name: (found.argmax(axis=1) == labels).mean() for name, found in logits.items()}
    cascade = find_cascade(logits, labels, COSTS, right["large"] - 0.02, 0.95)
    cost = COSTS[cascade.first] + cascade.escalation * COSTS[cascade.then]
    same = min(COSTS[name] for name in COSTS if right[name] >= cascade.accuracy - 0.005)
    assert cost <= 0.7 * same
    assert cascade.accuracy >= right["large"] - 0.02


def test_a_floor_that_nothing_keeps_is_an_error() -> None:
    logits, labels = classifier(500, 0.9, 2)
    with pytest.raises(BudgetError, match=r"floor = 0.999: no pair keeps it"):
        find_cascade(logits, labels, COSTS, 0.999, 0.95)
    with pytest.raises(BudgetError, match=r"floor = 1\.5"):
        find_cascade(logits, labels, COSTS, 1.5, 0.95)
    with pytest.raises(BudgetError, match=r"logits of small: shape \(500, 1\)"):
        find_cascade({"small": logits["small"][:, :1]}, labels, {"small": 1.0}, 0.5, 0.95)


def test_the_same_pair_may_serve_several_floors(bundle_path: Path, tmp_path: Path) -> None:
    bundle = Bundle(shutil.copytree(bundle_path, tmp_path / "bundle"))
    data = validation(bundle, str(judged(bundle, tmp_path / "data.npz")))
    found = [calibrate_cascade(bundle, *data, floor=floor, confidence=0.9) for floor in (0.7, 0.8, 0.7)]
    assert {cascade.floor for cascade in read_cascades(bundle)} == {0.7, 0.8}
    assert len(read_cascades(bundle)) == len({cascade.id for cascade in found}) == 2
    runtime = Runtime(bundle, battery=lambda: None, sensors=False)
    assert set(cascades_of(runtime)) == {cascade.id for cascade in found}
    runtime.close()


def test_cascades_that_are_added_at_once_are_all_kept(with_cascade: tuple[Bundle, Cascade]) -> None:
    bundle, cascade = with_cascade
    more = [cascade.model_copy(update={"id": f"number-{number}"}) for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda one: add_cascade(Bundle(bundle.path, verify=False), one), more))
    assert {one.id for one in read_cascades(bundle)} == {cascade.id, *(one.id for one in more)}


def test_a_cascade_is_not_kept_in_a_bundle_that_took_the_place_of_its_own(with_cascade: tuple[Bundle, Cascade]) -> None:
    """What was certified on one version's weights says nothing of the next's."""
    bundle, cascade = with_cascade
    other_weights(bundle.path, lambda weights: larger(weights, 2.0))
    before = (bundle.path / CASCADES_FILE).read_bytes()
    with pytest.raises(BudgetError, match=r"cascades\.json: another bundle was put in .*; find the cascade again"):
        add_cascade(bundle, cascade.model_copy(update={"id": "late"}))
    assert (bundle.path / CASCADES_FILE).read_bytes() == before
