"""New versions on trial: which stay, and which are taken back."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from exporter.bundle import Bundle, BundleError
from exporter.bundle.manifest import sealed
from selector.choose.budget import Budget
from selector.fetch.pull import PullOptions
from selector.run import canary
from selector.ship import trial as trial_module
from selector.ship.runs import Run
from selector.ship.state import Figures
from selector.ship.trial import Comparison, WorseError, higher, read_canary
from selector.ship.versions import VersionError, signed_version, versions
from sortednet.signing import sign
from tests.helpers.keys import Keys
from tests.helpers.pulls import SMALL, contents
from tests.helpers.shelf import broken, fetched, larger, other_weights


def _wrong_answers(bundle: Path) -> None:
    other_weights(bundle, lambda weights: larger(weights, 30.0), selftest=False)


def _less_accurate(bundle: Path) -> None:
    """Whole by its own self-test, but it answers as another network would."""
    other_weights(bundle, lambda weights: np.random.default_rng(1).shuffle(weights[: len(weights) // 2]))


BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a broken graph": (broken, "the self-test fails: .*NoSuchOperator"),
    "other answers": (_wrong_answers, "the self-test fails: .* are off by"),
    "less accurate": (_less_accurate, r"accuracy 0\.\d+ on 40 labelled examples, \d\.\d+ before"),
}


@pytest.mark.parametrize("fault", BAD)
def test_a_bad_version_is_not_taken_and_not_fetched_again(
    first: Path, keys: Keys, options: PullOptions, tmp_path: Path, fault: str
) -> None:
    make, said = BAD[fault]
    bad = Path(shutil.copytree(first, tmp_path / "bad" / "digits"))
    make(bad)
    sign(Bundle(bad), key=keys.private, version=2)
    mine = tmp_path / "mine"
    fetched(first, mine, options)
    before = contents(mine)
    with pytest.raises(WorseError, match=said):
        fetched(bad, mine, replace(options, trial=True))
    assert contents(mine) == before
    with pytest.raises(VersionError, match="version 2 was taken back here"):
        fetched(bad, mine, replace(options, trial=True))


@pytest.mark.parametrize(("times", "taken"), [([1.5, 1.5], False), ([1.5, 1.1], True)])
def test_networks_that_are_others_are_timed_beside_the_old_ones(
    first: Path,
    keys: Keys,
    options: PullOptions,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    times: list[float],
    taken: bool,
) -> None:
    """Twice, where the first says that one is slower."""
    other = Path(shutil.copytree(first, tmp_path / "other" / "digits"))
    found = json.loads((other / "manifest.json").read_bytes())
    for entry in found["submodels"]:
        if entry["id"] == SMALL:
            entry["topology"] = "0" * 64
    (other / "manifest.json").write_text(json.dumps(sealed(found), indent=1) + "\n")
    sign(Bundle(other), key=keys.private, version=2)
    asked: list[str] = []

    def timed(old: Bundle, new: Bundle, name: str) -> tuple[float, float]:
        asked.append(name)
        return 1.0, times[len(asked) - 1]

    monkeypatch.setattr(trial_module, "medians", timed)
    mine = tmp_path / "mine"
    fetched(first, mine, options)
    if taken:
        fetched(other, mine, replace(options, trial=True))
    else:
        with pytest.raises(WorseError, match=f"{SMALL}: p50 1.5 ms, 1.50 times that before"):
            fetched(other, mine, replace(options, trial=True))
    assert asked == [SMALL, SMALL]
    assert signed_version(mine) == (2 if taken else 1)


def test_labelled_examples_must_be_some(first: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(first, tmp_path / "copied"))
    inputs, labels = read_canary(Bundle(copied))
    np.savez(copied / "canary.npz", labels=labels[:-1], **{f"input/{name}": one for name, one in inputs.items()})
    with pytest.raises(BundleError, match="of one length"):
        read_canary(Bundle(copied, verify=False))


@pytest.mark.parametrize(("times", "late", "worse"), [(1.0, False, False), (1.5, False, True), (1.0, True, True)])
def test_runs_tell_a_slower_version_within_50_of_them(times: float, late: bool, worse: bool) -> None:
    """Latencies scatter by a tenth, as those of a device do."""
    noise = np.random.default_rng(2)
    found = Comparison()
    while not (found.done or found.worse):
        for _ in range(9):
            found.add(Run(new=False, submodel="one", latency_ms=10 * noise.lognormal(0, 0.1), missed=False))
        found.add(Run(new=True, submodel="one", latency_ms=(10 * times) * noise.lognormal(0, 0.1), missed=late))
    assert (found.worse is not None) == worse
    assert found.runs <= 50
    figures = found.figures(Figures(quality=0.9, quality_before=0.8))
    assert (figures.runs, figures.submodel, figures.quality, figures.missed) == (found.runs, "one", 0.9, float(late))
    assert figures.p50_ms is not None
    assert figures.p50_ms_before is not None
    assert (figures.p50_ms / figures.p50_ms_before >= 1.3) == (times == 1.5)


def test_a_version_that_is_as_good_stays_however_much_its_runs_scatter() -> None:
    """As first runs of processes on a busy device do: the median of a dozen is easily 1.3 times another's."""
    taken_back = alone = 0
    for seed in range(40):
        noise, found = np.random.default_rng(seed), Comparison()
        while not (found.done or found.worse):
            for new in [False] * 9 + [True]:
                found.add(Run(new=new, submodel="one", latency_ms=noise.lognormal(0, 0.8)))
            alone += any(now >= 1.3 * before for _, now, before in found._medians())
        taken_back += found.worse is not None
    assert alone > 40  # by the median alone
    assert taken_back <= 2


def test_ranks_are_compared_as_others_do() -> None:
    from scipy.stats import mannwhitneyu

    draw = np.random.default_rng(0)
    for new, old in [(draw.random(15), draw.random(60) * 0.7), (draw.random(15) > 0.3, draw.random(60) > 0.5)]:
        expected = mannwhitneyu(new, old, method="asymptotic", use_continuity=False, alternative="greater").pvalue
        assert NormalDist().cdf(-higher(list(new), list(old))) == pytest.approx(expected, rel=1e-6)
    assert higher([1.0] * 3, [1.0] * 9) == 0.0


class Timed:
    """Runtimes whose runs take as long as is said of their folders, or fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, new: Path, latency_ms: float | None) -> None:
        class Said(canary.Runtime):
            def run(inner, inputs: Any, budget: Budget | None = None) -> Any:  # noqa: N805
                if inner.bundle.path != new:
                    return SimpleNamespace(selection=SimpleNamespace(submodel=SMALL), each_ms=10.0, version=1)
                if latency_ms is None:
                    raise RuntimeError("broken")
                return SimpleNamespace(selection=SimpleNamespace(submodel=SMALL), each_ms=latency_ms, version=2)

        monkeypatch.setattr(canary, "Runtime", Said)


@pytest.mark.parametrize(("latency_ms", "stays"), [(10.5, True), (15.0, False), (None, False)])
def test_a_share_of_the_runs_tries_a_version_which_stays_or_is_taken_back(
    first: Path,
    second: Path,
    options: PullOptions,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    latency_ms: float | None,
    stays: bool,
) -> None:
    mine = tmp_path / "mine"
    fetched(first, mine, options)
    fetched(second, mine, replace(options, trial=True))
    assert [one.trial for one in versions(mine)] == [True, False]
    Timed(monkeypatch, mine, latency_ms)
    with canary.CanaryRuntime(mine, share=0.2, sensors=False) as runtime:
        answers = [runtime.run(np.zeros(1)) for _ in range(255)]
        assert not runtime.trying
        assert runtime.canary_runs <= 50
        assert (runtime.reason is None) == stays
    assert signed_version(mine) == (2 if stays else 1)
    assert [one.trial for one in versions(mine)] == [False, False]
    assert answers[-1].version == (2 if stays else 1)
    assert answers[0].version == 1
    if not stays:
        with pytest.raises(VersionError, match="was taken back here"):
            fetched(second, mine, options)
