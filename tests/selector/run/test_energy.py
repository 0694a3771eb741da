"""Energy in the answer: what a run took by the profile's energies, marked by where these are from, or said to be unknown."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flask.testing import FlaskClient

from device_profiles import Measurement, Profile
from exporter.bundle import Bundle
from selector import Budget
from selector.adapt.energy import Energies, Energy, added
from selector.choose.cascades import Cascade
from selector.run.program import Part, Ran, run_in_parts
from selector.service import create_app
from tests.conftest import DEVICE
from tests.helpers import lengths
from tests.helpers.cascades import CHEAP, Fixed, program_of
from tests.helpers.commands import document
from tests.helpers.costs import sustained
from tests.helpers.runtimes import INPUT, images, runtime_of

MJ = 7.5


def with_energy(path: Path, source: str | None, *, but: str = "") -> Bundle:
    """Every sub-model takes MJ, from this source; of `but`, and of all where the source is None, nobody knows."""
    bundle = Bundle(path)
    profile = bundle.profile(DEVICE)

    def known(name: str, costs: Measurement) -> Measurement:
        values = costs.model_dump(exclude={"energy_mj"})
        values["source"] = {figure: where for figure, where in values["source"].items() if figure != "energy_mj"}
        if source is not None and name != but:
            values |= {"energy_mj": MJ, "source": values["source"] | {"energy_mj": source}}
        return Measurement.model_validate(values)

    submodels = {name: known(name, costs) for name, costs in profile.submodels.items()}
    bundle.save_profile(profile.model_copy(update={"submodels": submodels}), overwrite=True)
    return Bundle(path)


@pytest.fixture
def copied(bundle_path: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle_path, tmp_path / "copied"))


@pytest.mark.parametrize("source", ["measured", "declared", "predicted", None])
def test_a_result_and_the_history_say_what_a_batch_took(copied: Path, source: str | None) -> None:
    runtime = runtime_of(with_energy(copied, source).path)
    result = runtime.run({INPUT: images(3)})
    if source is None:
        assert (result.energy_mj, result.energy_source) == (None, "unknown")
        assert runtime.history[-1].energy_mj is None
    else:
        assert result.energy_mj == pytest.approx(3 * MJ)
        assert result.energy_source == source
        assert runtime.history[-1].energy_mj == pytest.approx(MJ)


def test_a_cascade_takes_what_its_stages_took(with_cascade: tuple[Bundle, Cascade]) -> None:
    bundle, cascade = with_cascade
    runtime = runtime_of(with_energy(bundle.path, "declared").path)
    result = runtime.run({INPUT: images(40)}, CHEAP)
    assert result.selection.stages
    passed = result.energy_mj / MJ - 40  # of 40 examples all are seen by the first
    assert passed == pytest.approx(round(passed))
    assert 0 <= passed <= 40
    unknown = runtime_of(with_energy(bundle.path, "declared", but=cascade.then).path)
    all_passed = program_of(cascade, Fixed(0.0, 0.0), Fixed(9.0, 0.0)).run({"input": np.zeros((2, 1), np.float32)})
    assert unknown.energies.of_run(all_passed.seen, DEVICE, 2, None) == Energy(None, "unknown")
    assert runtime.energies.of_run(all_passed.seen, DEVICE, 2, None) == Energy(4 * MJ, "declared")


class Passing:
    """Asks the larger one about examples above 0.5."""

    def run(self, feed: Any, *, shrink: bool = False) -> Ran:
        share = float((feed["input"] > 0.5).mean())
        return Ran(
            {"logits": feed["input"]}, (Part("small", 1.0), Part("large", 2.0, share)) if share else (Part("small", 1.0),)
        )


def test_a_batch_in_parts_takes_what_its_examples_take() -> None:
    asked = np.array([0, 1, 0, 0, 1, 1, 1], np.float32)
    ran = run_in_parts(Passing(), {"input": asked}, 7, 2)
    assert {part.submodel: part.share * 7 for part in ran.parts} == pytest.approx({"small": 7, "large": 4})


def test_a_short_text_takes_less_and_steady_work_more() -> None:
    profile = lengths.profile_of({"large": 4.0})
    of = Energies([profile]).of
    assert of(("large", "bench"), 1, 256) == Energy(pytest.approx(40), "measured")
    assert of(("large", "bench"), 2, 32).mj == pytest.approx(80 * lengths.taking(4.0, 32) / lengths.taking(4.0, 256))
    assert of(("other", "bench"), 1, 32).mj is None
    warm: Profile = profile.model_copy(update={"sustained": sustained(energy=1.3)})
    assert Energies([warm]).of(("large", "bench"), 1, 256, lasts=True).mj == pytest.approx(52)
    assert Energies([warm]).of(("large", "bench"), 1, 256).mj == pytest.approx(40)


def test_the_weakest_source_counts() -> None:
    assert added(Energy(1, "measured"), Energy(2, "declared")) == Energy(3, "declared")
    assert added(Energy(1, "predicted"), Energy(2, "measured")) == Energy(3, "predicted")
    assert added(Energy(1, "measured"), Energy()) == Energy(None, "unknown")


@pytest.fixture(params=["declared", None])
def asked(copied: Path, request: pytest.FixtureRequest) -> tuple[FlaskClient, Bundle, str | None]:
    bundle = with_energy(copied, request.param)
    return create_app([bundle]).test_client(), bundle, request.param


def test_over_rest_and_the_open_inference_protocol(asked: tuple[FlaskClient, Bundle, str | None]) -> None:
    client, bundle, source = asked
    given = images(2)
    expected = (pytest.approx(2 * MJ), source) if source else (None, "unknown")
    found = client.post("/v1/predict", json={"inputs": {INPUT: given.tolist()}}).json
    assert (found["energy_mj"], found["energy_source"]) == expected
    tensor = {"name": INPUT, "shape": list(given.shape), "datatype": "FP32", "data": given.ravel().tolist()}
    said = client.post(f"/v2/models/{bundle.name}/infer", json={"inputs": [tensor]}).json["parameters"]
    assert (said.get("energy_mj"), said["energy_source"]) == expected
    assert said.get("expected_energy_mj") == (MJ if source else None)  # of one example, when it was chosen


def test_on_the_command_line(copied: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "two.npy", images(2))
    for source, mj in (("declared", 2 * MJ), (None, None)):
        with_energy(copied, source)
        ran = document("run", copied, "--input", tmp_path / "two.npy")
        assert (ran["energy_mj"], ran["energy_source"]) == (mj, source or "unknown")


def test_a_budget_of_long_work_counts_what_it_takes_then(copied: Path) -> None:
    bundle = with_energy(copied, "measured")
    profile = bundle.profile(DEVICE).model_copy(update={"sustained": sustained(energy=1.4)})
    bundle.save_profile(profile, overwrite=True)
    runtime = runtime_of(copied)
    assert runtime.run({INPUT: images(1)}, Budget(sustained=True)).energy_mj == pytest.approx(1.4 * MJ)
    assert runtime.run({INPUT: images(1)}, Budget()).energy_mj == pytest.approx(MJ)
