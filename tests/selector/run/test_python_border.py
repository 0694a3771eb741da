"""What is given in Python and is of another type is told by its name, with what is allowed."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest

from device_profiles import ProfileError
from exporter.bundle import Bundle, BundleError
from selector import Budget, BudgetError, Runtime, profile_bundle, selector_for
from tests.conftest import DEVICE
from tests.helpers.runtimes import images, runtime_of

WRONG: dict[str, Any] = {
    "device": 5,
    "threads": "2",
    "provider": 1,
    "spinning": "no",
    "memory_mb": "5",
    "load_ahead": 1,
    "feedback": None,
    "cache": "folder",
    "cascades": "yes",
    "policy": {"low_percent": 20},
    "battery": 50,
    "sensors": [],
    "memory_reserve_mb": "100",
    "speculative": True,
}


@pytest.mark.parametrize("name", sorted(WRONG))
def test_an_option_of_another_type_is_refused_by_its_name(bundle_path: Path, name: str) -> None:
    with pytest.raises(BudgetError, match=rf"^{name} = .+: allowed (are|is) "):
        Runtime(bundle_path, **{"device": DEVICE, name: WRONG[name]})


def test_every_option_is_checked() -> None:
    from dataclasses import fields

    from selector import RuntimeOptions

    assert {field.name for field in fields(RuntimeOptions)} == WRONG.keys()


def test_a_budget_of_another_type_is_refused(bundle_path: Path) -> None:
    given: Any
    with runtime_of(bundle_path, device=DEVICE) as runtime:
        for given in ({"latency_ms": 5}, 5, "fast"):
            with pytest.raises(BudgetError, match=r"^budget = .+ allowed is a Budget, such as Budget\("):
                runtime.run(images(1), given)
            with pytest.raises(BudgetError, match=r"^budget = .+ allowed is a Budget"):
                runtime.select(given)
            with pytest.raises(BudgetError, match=r"^budget = .+ allowed is a Budget"):
                selector_for(runtime.bundle, DEVICE).select(given)
        given = 15
        with pytest.raises(BudgetError, match=r"^battery = 15: allowed is a Battery"):
            selector_for(runtime.bundle, DEVICE).select(Budget(), given)


def test_options_and_bundles_of_another_type_are_refused(bundle_path: Path) -> None:
    given: Any = {"threads": 1}
    with pytest.raises(BudgetError, match=r"^options = .+: allowed are RuntimeOptions"):
        Runtime(bundle_path, given)
    with pytest.raises(BundleError, match=r"^bundle = .+: allowed are the path"):
        Runtime(given)


@pytest.mark.parametrize(
    ("name", "value"), [("repeats", "3"), ("repeats", 0), ("threads", "2"), ("predict_from", 2.5), ("watts", "4")]
)
def test_what_is_to_be_measured_is_checked_first(bundle: Bundle, name: str, value: Any) -> None:
    shown = "measure" if name == "predict_from" else name
    with pytest.raises(ProfileError, match=rf"^{shown} = {value!r}: allowed are "):
        profile_bundle(bundle, **{name: value}, show_progress=False)


def test_a_profile_may_be_named_by_its_path(bundle_path: Path) -> None:
    path = bundle_path / "profiles" / f"{DEVICE}.json"
    for given in (path, [path], str(path)):
        with runtime_of(bundle_path, device=given) as runtime:
            assert runtime.run(images(1)).selection.device == DEVICE


def test_a_runtime_is_closed_at_the_end_of_its_with(bundle_path: Path) -> None:
    with runtime_of(bundle_path, device=DEVICE) as runtime:
        runtime.run(images(1))
        assert runtime.pool.loaded
    assert not runtime.pool.loaded


@pytest.mark.parametrize("copied", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_runtime_that_cannot_be_copied_says_what_to_do(bundle_path: Path, copied: Any) -> None:
    with (
        runtime_of(bundle_path, device=DEVICE) as runtime,
        pytest.raises(TypeError, match=r"open Runtime\('.+'\) in each process"),
    ):
        copied(runtime)
