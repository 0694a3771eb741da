"""What runs a version goes on with that version, whatever is put in its place; and all paths of a service speak of one."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exporter.bundle import Bundle, BundleError
from exporter.bundle.session import open_session, run_session
from selector.fetch.pull import PullOptions
from selector.run import Runtime
from selector.run import opening as opening_module
from selector.service import create_app, served
from selector.ship.state import Figures, folder_of, id_of, trial_of
from selector.ship.versions import accept, rollback
from sortednet.signing import sign
from tests.conftest import DEVICE
from tests.helpers.keys import Keys
from tests.helpers.pulls import SMALL
from tests.helpers.shelf import fetched, larger, other_weights


@pytest.fixture
def far(first: Path, keys: Keys, tmp_path: Path) -> Path:
    """Version 2, which answers otherwise."""
    copied = Path(shutil.copytree(first, tmp_path / "far" / "digits"))
    other_weights(copied, lambda weights: larger(weights, 30.0))
    sign(Bundle(copied), key=keys.private, version=2)
    return copied


def outputs(bundle: Path) -> Any:
    inputs, _ = Bundle(bundle).selftest()
    return inputs, run_session(open_session(Bundle(bundle).graph_path(SMALL)), inputs)


@pytest.mark.parametrize("cache", [True, False])
def test_what_is_opened_later_is_of_the_version_that_runs(
    first: Path, far: Path, options: PullOptions, tmp_path: Path, cache: bool
) -> None:
    """Also what is kept of its graphs for the next time: gone back, it would say what the other one does."""
    mine = tmp_path / "mine"
    fetched(first, mine, options)
    inputs, expected = outputs(mine)
    assert not np.array_equal(next(iter(expected.values())), next(iter(outputs(far)[1].values())))
    with Runtime(mine, cache=cache, sensors=False, load_ahead=False) as runtime:
        fetched(far, mine, options)
        assert runtime.program(SMALL).run(inputs).outputs.keys() == expected.keys()
        said = runtime.program(SMALL).run(inputs).outputs
    assert all(np.allclose(said[name], expected[name], atol=1e-5) for name in expected)
    rollback(mine)
    with Runtime(mine, cache=cache, sensors=False) as runtime:
        said = runtime.program(SMALL).run(inputs).outputs
    assert all(np.allclose(said[name], expected[name], atol=1e-5) for name in expected)


def test_what_is_opened_while_another_version_comes_is_of_the_version_that_runs(
    first: Path, far: Path, options: PullOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = tmp_path / "mine"
    fetched(first, mine, options)
    inputs, expected = outputs(mine)
    opening, coming = opening_module.place_of, [lambda: fetched(far, mine, options)]

    def place_of(bundle: Bundle) -> Path:
        found = opening(bundle)
        if coming:
            coming.pop()()  # just after the folder was looked at
        return found

    monkeypatch.setattr(opening_module, "place_of", place_of)
    with Runtime(mine, sensors=False, load_ahead=False) as runtime:
        said = runtime.program(SMALL).run(inputs).outputs
    assert not coming
    assert all(np.allclose(said[name], expected[name], atol=1e-5) for name in expected)


def test_a_version_that_is_not_kept_is_not_mistaken_for_another(
    first: Path, far: Path, options: PullOptions, tmp_path: Path
) -> None:
    mine = tmp_path / "mine"
    fetched(first, mine, options)
    with Runtime(mine, sensors=False, load_ahead=False) as runtime:
        fetched(far, mine, replace(options, keep=0))
        with pytest.raises(BundleError, match=r"another version was put there, and .* is not kept: open it anew"):
            runtime.program(SMALL)


def test_a_bundle_that_is_gone_is_not_said_to_be_another(
    bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that was opened by a path from a folder that is not the current one any more."""
    shutil.copytree(bundle_path, tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    with Runtime("mine", sensors=False, load_ahead=False) as runtime:
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir("elsewhere")
        with pytest.raises(BundleError, match=r"'mine': there is no bundle any more, seen from '.*elsewhere': open it anew"):
            runtime.program(SMALL)


class Device:
    """A service on a device that has measured version 1 and tries version 2."""

    def __init__(self, mine: Path, *, measured: bool) -> None:
        self.mine = mine
        self.new, self.before = Bundle(mine), Bundle(next(folder_of(mine).glob("[0-9a-f]*")))
        if not measured:
            shutil.rmtree(mine / "profiles", ignore_errors=True)
            self.new = Bundle(mine)
        self.client = create_app([self.new], generate=None).test_client()

    def spoken_of(self) -> str:
        """The version."""
        named = id_of(self.client.application.extensions["sortednet"].bundle("mine"))
        listed = self.client.get("/v1/bundles/mine/files/manifest.json").get_json()
        assert listed["sha256"].startswith(named)
        return named

    def asked(self) -> list[int]:
        (spec,) = self.new.manifest.inputs
        inputs = {spec.name: np.zeros((1, *spec.shape[1:])).tolist()}
        budget = {"latency_ms": 1e6, "percentile": 90}
        paths = {"select": {"device": DEVICE, "budget": budget}, "predict": {"device": DEVICE, "inputs": inputs}}
        return [self.client.post(f"/v1/{path}", json=body).status_code for path, body in paths.items()] + [
            self.client.get(f"/dashboard/frontiers/mine/{DEVICE}").status_code
        ]


@pytest.fixture
def mine(bundle_path: Path, first: Path, second: Path, options: PullOptions, tmp_path: Path) -> Path:
    """Version 2 on trial; both were measured here."""
    mine = tmp_path / "mine"
    fetched(first, mine, options)
    shutil.copytree(bundle_path / "profiles", mine / "profiles", dirs_exist_ok=True)
    fetched(second, mine, replace(options, trial=True))
    return mine


@pytest.mark.parametrize("stays", [True, False])
@pytest.mark.parametrize("measured", [True, False])
def test_all_paths_speak_of_the_version_that_answers(
    mine: Path, monkeypatch: pytest.MonkeyPatch, measured: bool, stays: bool
) -> None:
    """That before while one is on trial, or waits to be measured; then whichever has come of it, at once."""
    device = Device(mine, measured=measured)
    assert device.spoken_of() == id_of(device.before)
    assert device.asked() == [200, 200, 200]
    trial = trial_of(mine)
    assert trial is not None
    if stays:
        accept(mine, trial, Figures())
        assert device.spoken_of() == id_of(device.new)
    else:
        rollback(mine, reason="slow")
        assert device.spoken_of() == id_of(device.before)
        assert device.asked() == [200, 200, 200]
        monkeypatch.setattr(served, "LOOK_AGAIN_S", 0.0)
        device.client.application.extensions["sortednet"].served._seen["mine"] = served._Seen((), 0.0)
        while device.client.get("/readyz").status_code != 200:
            pass
        assert device.spoken_of() == id_of(device.before)
        assert device.asked() == [200, 200, 200]
    assert id_of(Bundle(mine)) == id_of(device.new if stays else device.before)
