"""A profile where one of the same name stands: put together, or refused before anything is measured."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from device_profiles import Profile, ProfileError, describe_device, profile_document
from device_profiles.merge import merged
from exporter.bundle import Bundle, BundleError
from exporter.subset import subset
from selector.run import profiling
from tests.conftest import DEVICE, taking
from tests.helpers.commands import call, document, refused
from tests.helpers.disks import read_only

ONE = "w0.50-d1"


def measuring(path: Path, *more: str) -> list[str]:
    return ["profile", str(path), "--device", "mine", "--repeats", "1", "--threads", "1", *more]


def only(profile: Profile, *names: str, **device: Any) -> Profile:
    kept = {name: profile.submodels[name] for name in names}
    return profile.model_copy(update={"submodels": kept, "device": profile.device.model_copy(update=device)})


@pytest.fixture
def full(bundle: Bundle) -> Profile:
    return bundle.profile(DEVICE)


def test_a_measurement_of_one_leaves_those_of_the_others(copied: Path) -> None:
    before = document(*measuring(copied))
    after = document(*measuring(copied, "--submodels", ONE, "--label", "on a desk"))
    assert list(after["submodels"]) == list(before["submodels"])
    assert {n for n, found in after["submodels"].items() if found != before["submodels"][n]} <= {ONE}
    assert profile_document(Bundle(copied).profile("mine")) == after
    assert after["device"]["label"] == "on a desk"
    assert list(document(*measuring(copied, "--submodels", ONE, "--overwrite"))["submodels"]) == [ONE]


def test_a_measured_figure_is_not_replaced_by_a_predicted_one(full: Profile) -> None:
    new = taking(full, 3.0)
    costs = dict(new.submodels)
    for name in list(costs)[2:]:
        costs[name] = costs[name].model_copy(update={"source": dict.fromkeys(costs[name].source, "predicted")})
    found = merged(full, new.model_copy(update={"submodels": costs}))
    assert [found.submodels[name] == full.submodels[name] for name in costs] == [False] * 2 + [True] * (len(costs) - 2)
    assert found.prediction == {}


@pytest.mark.parametrize(
    ("changes", "part", "named"),
    [
        ({"threads": 2}, False, "threads = 1, these of 2"),
        ({"cpu": "another"}, False, "cpu = 'cpu', these of 'another'"),
        ({"execution_provider": "CUDAExecutionProvider"}, False, "execution_provider"),
        ({"onnxruntime": "99"}, True, "onnxruntime"),
        ({"energy": "a meter"}, True, "energy"),
    ],
)
def test_other_conditions_are_refused_with_what_would_be_lost(
    full: Profile, copied: Path, changes: dict[str, Any], part: bool, named: str
) -> None:
    bundle = Bundle(copied)
    full = only(full, *full.submodels, cpu="cpu", threads=1, onnxruntime="1")
    bundle.save_profile(full, overwrite=True)
    new = only(full, *([ONE] if part else full.submodels), **changes)
    with pytest.raises(ProfileError, match=rf"{named}.*--device.*--overwrite"):
        bundle.save_profile(new)
    assert bundle.profile(DEVICE) == full
    bundle.save_profile(new, overwrite=True)
    assert bundle.profile(DEVICE) == new


@pytest.mark.parametrize("changes", [{"onnxruntime": "99"}, {"ram_mb": 7}, {"label": "new"}])
def test_the_same_device_measured_as_a_whole_again_is_its_profile(full: Profile, copied: Path, changes: dict[str, Any]) -> None:
    new = only(full, *full.submodels, **changes)
    Bundle(copied).save_profile(new)
    assert Bundle(copied).profile(DEVICE) == new


def _another_thread(bundle: Bundle) -> None:
    here = describe_device(name="mine", threads=7, onnxruntime="1", execution_provider="CPUExecutionProvider")
    bundle.save_profile(bundle.profile(DEVICE).model_copy(update={"device": here}))


def _damage(bundle: Bundle) -> None:
    (bundle.path / "profiles" / "mine.json").write_text('{"device": ')


@pytest.mark.parametrize(("stands", "named"), [(_another_thread, "threads = "), (_damage, "mine.json")])
def test_nothing_is_measured_for_a_profile_that_will_not_be_kept(
    stands: Any, named: str, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stands(Bundle(copied))
    monkeypatch.setattr(profiling, "measure", lambda *_, **__: pytest.fail("measured"))
    line = refused(*measuring(copied))
    assert named in line
    assert "--overwrite" in line


def test_nothing_is_measured_on_a_read_only_disk(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiling, "measure", lambda *_, **__: pytest.fail("measured"))
    read_only(monkeypatch, copied)
    assert "profiles/mine.json': cannot be written: Read-only file system" in refused(*measuring(copied))


def another_in_its_place(bundle: Bundle) -> None:
    """Of one of its sub-models, ONE."""
    shutil.rmtree(bundle.path / "profiles")
    aside = bundle.path.with_name("aside")
    bundle.path.rename(aside)
    subset(Bundle(aside), [ONE], bundle.path)


def test_a_profile_is_not_kept_in_a_bundle_that_took_the_place_of_its_own(full: Profile, copied: Path) -> None:
    bundle = Bundle(copied)
    another_in_its_place(bundle)
    with pytest.raises(BundleError, match=r"profiles/.*\.json': another bundle was put in .*; measure again"):
        bundle.save_profile(full)
    assert Bundle(copied).devices() == []


@pytest.mark.parametrize("cache", ["--cache", "--no-cache"])
def test_a_bundle_that_is_replaced_is_not_measured_on(copied: Path, cache: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the middle: its first sub-model has been opened."""
    coming, opening = [lambda: another_in_its_place(Bundle(copied))], profiling.program_opener

    def opener(*given: Any) -> Any:
        opened = opening(*given)

        def one(name: str) -> Any:
            found = opened(name)
            if coming:
                coming.pop()()
            return found

        return one

    monkeypatch.setattr(profiling, "program_opener", opener)
    result = call(*measuring(copied, cache))
    assert (result.exit_code, result.stdout) == (2, "")
    assert "another version was put there, and" in result.stderr.splitlines()[-1]
    assert Bundle(copied).devices() == []


def test_profiles_that_are_kept_at_once_are_put_together(full: Profile, copied: Path) -> None:
    Bundle(copied).save_profile(only(full, ONE), overwrite=True)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: Bundle(copied, verify=False).save_profile(only(full, name)), full.submodels))
    assert set(Bundle(copied).profile(DEVICE).submodels) == set(full.submodels)


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_a_profile_that_cannot_be_kept_after_all_is_printed(
    copied: Path, options: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(*_: Any, **__: Any) -> None:
        raise ProfileError("the disk has become full")

    monkeypatch.setattr(Bundle, "save_profile", full_disk)
    result = call(*measuring(copied, "--submodels", ONE), *options)
    assert result.exit_code == 2
    assert list(Profile.model_validate_json(result.stdout).submodels) == [ONE]
    assert result.stderr.splitlines()[-1].startswith("error: the disk has become full; what was measured is on stdout")
