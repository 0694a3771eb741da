"""How long idle threads wait actively: as the profile was measured, or as whoever opens the runtime says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import onnxruntime as ort
import pytest

from device_profiles import Profile, read_profile
from exporter.bundle import Bundle
from exporter.bundle.session import SPIN_US, SessionOptions, open_session
from selector import profile_bundle
from tests.conftest import DEVICE
from tests.helpers.runtimes import images, runtime_of

ALLOWED, SPIN = "session.intra_op.allow_spinning", "session.intra_op.spin_duration_us"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    """What sessions were asked for: their config entries."""
    found: list[dict[str, str]] = []

    class Options(ort.SessionOptions):
        def __init__(self) -> None:
            super().__init__()
            found.append({})

        def add_session_config_entry(self, name: str, value: str) -> None:
            found[-1][name] = value
            super().add_session_config_entry(name, value)

    monkeypatch.setattr(ort, "SessionOptions", Options)
    return found


@pytest.mark.parametrize(("spinning", "entries"), [(True, {SPIN: str(SPIN_US)}), (False, {ALLOWED: "0"})])
def test_threads_never_wait_without_an_end(bundle: Bundle, asked: list[dict[str, str]], spinning: bool, entries: Any) -> None:
    open_session(bundle.graph_path("w0.50-d1"), SessionOptions(threads=2, spinning=spinning))
    assert asked == [entries]


@pytest.mark.parametrize(
    ("measured", "given", "spins"), [(True, None, True), (False, None, False), (False, True, True), (True, False, False)]
)
def test_a_runtime_spins_as_the_profile_was_measured(
    bundle_path: Path, tmp_path: Path, asked: list[dict[str, str]], measured: bool, given: bool | None, spins: bool
) -> None:
    path = Path(shutil.copytree(bundle_path, tmp_path / "copied"))
    file = path / "profiles" / f"{DEVICE}.json"
    document = json.loads(file.read_text())
    document["device"]["spinning"] = measured
    file.write_text(Profile.model_validate(document).model_dump_json())
    with runtime_of(path, device=DEVICE, cache=False, spinning=given) as runtime:
        runtime.run(images(1))
    assert [SPIN in entries for entries in asked] == [spins]


@pytest.mark.parametrize("spinning", [True, False])
def test_a_profile_records_it(bundle: Bundle, spinning: bool) -> None:
    measured = profile_bundle(bundle, submodels=["w0.50-d1"], repeats=1, threads=1, spinning=spinning, show_progress=False)
    assert measured.device.spinning is spinning


def test_one_from_before_that_was_recorded_is_read(bundle_path: Path, tmp_path: Path) -> None:
    document = json.loads((bundle_path / "profiles" / f"{DEVICE}.json").read_text())
    del document["device"]["spinning"], document["sha256"]
    (tmp_path / "old.json").write_text(json.dumps(document))
    assert read_profile(tmp_path / "old.json").device.spinning
