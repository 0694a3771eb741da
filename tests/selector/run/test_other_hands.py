"""Files that other systems and newer versions have written, file systems without locks, and a process on some of the cores."""

from __future__ import annotations

import codecs
import errno
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from device_profiles import ProfileError, read_profile
from exporter.bundle import Bundle
from selector import BudgetError, find_profile, read_policy
from selector.choose.cascades import read_cascades
from selector.fetch.store import store_beside
from selector.fetch.transfer import PullError
from tests.conftest import DEVICE
from tests.helpers.runtimes import unmeasured

MARKS = [("utf-8", codecs.BOM_UTF8), ("utf-16-le", codecs.BOM_UTF16_LE), ("utf-16-be", codecs.BOM_UTF16_BE)]


@pytest.fixture
def copied(bundle_path: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle_path, tmp_path / "copied"))


@pytest.mark.parametrize(("encoding", "mark"), MARKS)
def test_a_byte_order_mark_is_read_over(copied: Path, encoding: str, mark: bytes) -> None:
    files = {
        copied / "profiles" / f"{DEVICE}.json": None,
        copied / "policy.json": '{"low_percent": 30}',
        copied / "cascades.json": "[]",
    }
    for path, text in files.items():
        path.write_bytes(mark + (text or path.read_text(encoding="utf-8")).encode(encoding))
    assert Bundle(copied).profile(DEVICE).device.name == DEVICE
    assert [level.below_percent for level in read_policy(copied / "policy.json").levels] == [30]
    assert read_cascades(Bundle(copied)) == []


def test_what_is_no_text_is_told(copied: Path) -> None:
    for path in (copied / "profiles" / f"{DEVICE}.json", copied / "policy.json", copied / "cascades.json"):
        path.write_bytes(b'{"\xff\xfe\xfd": 1}')
    with pytest.raises(ProfileError, match=r"document: is no text"):
        read_profile(copied / "profiles" / f"{DEVICE}.json")
    with pytest.raises(BudgetError, match=r"policy .*policy.json.: document: is no text"):
        read_policy(copied / "policy.json")
    with pytest.raises(BudgetError, match=r"cascades.json: document: is no text"):
        read_cascades(Bundle(copied))


def test_fields_of_a_newer_version_are_ignored(copied: Path) -> None:
    path = copied / "profiles" / f"{DEVICE}.json"
    before, document = read_profile(path), json.loads(path.read_text())
    del document["sha256"]  # its writer's, over what it wrote
    document["colour"] = document["device"]["colour"] = "blue"
    for measured in document["submodels"].values():
        measured["first_token_ms"] = 3.0
        measured["source"]["first_token_ms"] = "measured"
        measured["latency_ms"]["p999"] = 50.0
    document["prediction"] = {"first_token_ms": {"median": 0.1, "p95": 0.2}}
    path.write_text(json.dumps(document))
    assert read_profile(path) == before


def test_a_profile_of_a_newer_format_is_refused(copied: Path) -> None:
    path = copied / "profiles" / f"{DEVICE}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 2}))
    with pytest.raises(ProfileError, match=r"format_version: .*2 is newer than this sortednet, which knows 1"):
        read_profile(path)


def test_what_macos_leaves_beside_a_file_is_no_device(copied: Path) -> None:
    (copied / "profiles" / f"._{DEVICE}.json").write_bytes(b"\x00\x05\x16\x07")
    assert Bundle(copied).devices() == [DEVICE]
    assert find_profile(Bundle(copied)).device.name == DEVICE


@pytest.mark.parametrize(
    ("usable", "devices", "chosen"),
    [
        (1, ("cpu-4c-1t", "cpu-4c-2t", "phone"), "cpu-4c-1t"),  # as under `taskset -c 0`
        (2, ("cpu-4c-1t", "cpu-4c-2t", "cpu-4c-4t"), "cpu-4c-2t"),
        (1, ("cpu-4c-2t", "cpu-4c-4t"), "cpu-4c-2t"),  # none that one core can run
        (1, ("cpu-4c-2t", "cpu-1c-1t"), "cpu-1c-1t"),  # measured on so many
        (4, ("cpu-4c-1t", "cpu-4c-4t", "cpu-8c-8t"), "cpu-4c-4t"),
    ],
)
def test_the_profile_of_a_process_on_some_of_the_cores(
    bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, usable: int, devices: tuple[str, ...], chosen: str
) -> None:
    monkeypatch.setattr("selector.choose.profiles.physical_cores", lambda: usable)
    monkeypatch.setattr("selector.choose.profiles.default_device_name", lambda threads: f"cpu-{usable}c-{threads}t")
    monkeypatch.setattr("psutil.cpu_count", lambda logical=True: 8 if logical else 4)
    assert find_profile(Bundle(unmeasured(bundle_path, tmp_path, devices=devices))).device.name == chosen


@pytest.mark.parametrize(("number", "goes_on"), [(errno.ENOLCK, True), (errno.EOPNOTSUPP, True), (errno.EWOULDBLOCK, False)])
def test_a_file_system_without_locks_is_not_another_pull(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, goes_on: bool
) -> None:
    def refused(*given: Any) -> None:
        raise OSError(number, "no")

    monkeypatch.setattr("fcntl.flock", refused)
    if goes_on:
        with store_beside(tmp_path / "bundle") as store:
            assert store.is_dir()
        return
    with pytest.raises(PullError, match="another pull is writing there"), store_beside(tmp_path / "bundle"):
        pass
