"""What is written into a bundle later is sealed and indexed: `verify` names what is missing, altered, damaged or misnamed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from device_profiles import DeviceInfo, Profile, ProfileError, profile_document, read_profile, write_profile
from device_profiles.seal import SealError, check_seal, seal_of, sealed
from exporter.bundle import CASCADES_FILE, Bundle, BundleError
from exporter.bundle.written import WRITTEN_FILE, check_written, recording
from selector.choose.budget import BudgetError
from selector.choose.cascades import Cascade, read_cascades, write_cascades
from tests.conftest import DEVICE
from tests.helpers.commands import call, document, refused

PHONE, TABLET = "profiles/phone.json", "profiles/tablet.json"


def renamed(profile: Profile, name: str) -> Profile:
    device: DeviceInfo = profile.device.model_copy(update={"name": name})
    return profile.model_copy(update={"device": device})


@pytest.fixture
def written(bundle_path: Path, tmp_path: Path) -> Bundle:
    """A bundle with two profiles and a cascade that were written to it, and no others."""
    bundle = Bundle(shutil.copytree(bundle_path, tmp_path / "bundle"))
    profile = bundle.profile(DEVICE)
    (bundle.path / "profiles" / f"{DEVICE}.json").unlink()
    bundle.save_profile(renamed(profile, "phone"))
    bundle.save_profile(renamed(profile, "tablet"))
    small, *_, large = bundle.submodels
    shares: dict[str, float] = {"threshold": 0.5, "escalation": 0.2, "accuracy": 0.9, "floor": 0.8, "confidence": 0.95}
    write_cascades(bundle, [Cascade(id="both", first=small, then=large, **shares, examples=100)])  # type: ignore[arg-type]
    return bundle


def edited(path: Path, change: Callable[[dict[str, Any]], None], *, reseal: bool = False) -> None:
    whole = json.loads(path.read_text(encoding="utf-8"))
    change(whole)
    path.write_text(json.dumps(sealed(whole) if reseal else whole), encoding="utf-8")


def truncated(root: Path) -> None:
    os.truncate(root / PHONE, 100)


def digit(root: Path) -> None:
    text = (root / PHONE).read_text()
    (root / PHONE).write_text(text.replace('"n": 1', '"n": 2', 1))


def label(root: Path) -> None:
    edited(root / PHONE, lambda whole: whole["device"].update(label="mine"))


def swapped(root: Path) -> None:
    (root / PHONE).rename(root / "x")
    (root / TABLET).rename(root / PHONE)
    (root / "x").rename(root / TABLET)


def removed(root: Path) -> None:
    (root / PHONE).unlink()


def another(root: Path) -> None:
    edited(root / PHONE, lambda whole: whole["device"].update(label="another"), reseal=True)


def no_cascades(root: Path) -> None:
    (root / CASCADES_FILE).unlink()


def cascade(root: Path) -> None:
    edited(root / CASCADES_FILE, lambda whole: whole["cascades"][0].update(threshold=0.6))


def another_cascade(root: Path) -> None:
    edited(root / CASCADES_FILE, lambda whole: whole["cascades"][0].update(threshold=0.6), reseal=True)


def index(root: Path) -> None:
    edited(root / WRITTEN_FILE, lambda whole: whole["documents"].pop(PHONE))


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (truncated, [f"{PHONE}: is truncated or no JSON"]),
        (digit, [f"{PHONE}: was altered"]),
        (label, [f"{PHONE}: was altered"]),
        (swapped, [f"{PHONE}: is the profile of 'tablet'", f"{TABLET}: is the profile of 'phone'"]),
        (removed, [f"{PHONE}: is missing"]),
        (another, [f"{PHONE}: is another document than was written"]),
        (no_cascades, [f"{CASCADES_FILE}: is missing"]),
        (cascade, [f"{CASCADES_FILE}: was altered"]),
        (another_cascade, [f"{CASCADES_FILE}: is another document than was written"]),
        (index, [f"{WRITTEN_FILE}: was altered"]),
    ],
)
def test_what_differs_from_what_was_written_is_named(damage: Callable[[Path], None], named: list[str], written: Bundle) -> None:
    sealed_documents = dict.fromkeys([CASCADES_FILE, PHONE, TABLET], "sealed")
    assert document("verify", written.path)["documents"] == sealed_documents
    damage(written.path)
    line = refused("verify", written.path, code=1)
    assert all(one in line for one in named)
    found = document("verify", written.path, code=1)
    assert [problem.split(":")[0] for problem in found["problems"]] == [one.split(":")[0] for one in named]


@pytest.mark.parametrize("damage", [truncated, digit, swapped])
def test_a_damaged_profile_is_neither_hidden_nor_used(damage: Callable[[Path], None], written: Bundle) -> None:
    damage(written.path)
    shown = call("inspect", written.path)
    assert shown.exit_code == 0
    assert f"warning: {PHONE}: " in shown.stderr
    assert any(PHONE in problem for problem in document("inspect", written.path)["problems"])
    assert "phone.json" in refused("select", written.path, "--device", "phone")


def test_an_altered_cascade_is_refused(written: Bundle) -> None:
    cascade(written.path)
    with pytest.raises(BudgetError, match=r"cascades\.json: was altered"):
        read_cascades(written)


def test_documents_from_before_there_were_checksums_are_read_and_called_unsealed(written: Bundle) -> None:
    (written.path / WRITTEN_FILE).unlink()
    edited(written.path / PHONE, lambda whole: whole.pop("sha256"))
    cascades = read_cascades(written)
    (written.path / CASCADES_FILE).write_text(json.dumps([one.model_dump() for one in cascades]))
    assert read_cascades(written) == cascades
    assert document("verify", written.path)["documents"] == {
        CASCADES_FILE: "unsealed",
        PHONE: "unsealed",
        TABLET: "sealed",
    }
    assert f"{PHONE} is whole: unsealed" in call("verify", written.path).stdout
    written.save_profile(written.profile("phone"))
    assert document("verify", written.path)["documents"][PHONE] == "sealed"


def test_a_user_who_removes_or_replaces_one_by_hand_can_say_so(written: Bundle) -> None:
    removed(written.path)
    refused("verify", written.path, code=1)
    assert list(document("verify", written.path, code=1)["problems"]) == [f"{PHONE}: is missing; it was written to this bundle"]
    assert document("verify", written.path, code=1)["ok"] is False
    assert call("verify", written.path, "--accept").exit_code == 0
    assert call("verify", written.path).exit_code == 0
    digit_of_the_other = written.path / TABLET
    edited(digit_of_the_other, lambda whole: whole["device"].update(cpu="another"))
    assert f"{TABLET}: was altered" in refused("verify", written.path, "--accept", code=1)  # what is damaged stays so


def test_no_bundle_is_wrong_usage_and_no_fault_that_was_found(written: Bundle, tmp_path: Path) -> None:
    assert "'nope' is no bundle" in refused("verify", "nope")
    assert "is no bundle" in refused("verify", tmp_path)
    (written.path / "manifest.json").unlink()
    assert "manifest.json" in refused("verify", written.path, code=1)


def test_a_writer_that_is_killed_on_the_way_leaves_nothing_that_looks_altered(written: Bundle) -> None:
    """Whether it was killed before the document was in its place or after."""
    before = read_profile(written.path / PHONE)
    after = before.model_copy(update={"device": before.device.model_copy(update={"label": "later"})})
    fresh = renamed(before, "watch")
    for name, now in ((PHONE, after), ("profiles/watch.json", fresh)):
        with recording(written.path, name, profile_document(now)):
            on_the_way = (written.path / WRITTEN_FILE).read_bytes()
        (written.path / WRITTEN_FILE).write_bytes(on_the_way)
        assert [one.problem for one in check_written(written.path) if one.fault] == []
        write_profile(now, written.path / name)
        assert [one.problem for one in check_written(written.path) if one.fault] == []


def test_a_writing_that_fails_leaves_the_index_as_it_was(written: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (written.path / WRITTEN_FILE).read_bytes()

    def failing(profile: Profile, path: Path) -> None:
        raise ProfileError(f"profile {str(path)!r}: cannot be written: no space")

    monkeypatch.setattr("exporter.bundle.bundle.write_profile", failing)
    with pytest.raises(ProfileError, match=r"watch\.json.*cannot be written"):
        written.save_profile(renamed(written.profile("phone"), "watch"))
    assert (written.path / WRITTEN_FILE).read_bytes() == before


def test_another_format_of_the_same_document_is_no_alteration(written: Bundle) -> None:
    whole = json.loads((written.path / PHONE).read_text())
    text = json.dumps(dict(reversed(whole.items())), indent=7).replace(".0,", ",")  # 2 is 2.0
    (written.path / PHONE).write_text(text)
    assert [one.fault for one in check_written(written.path)] == [None, None, None]


def test_the_checksum_is_that_of_rfc_8785() -> None:
    """Members in the order of their UTF-16 code units, shortest numbers, text as it is: written by hand, so that another
    language's writer can be compared with it."""
    text = '{"a":[56,1e+30,0.000001,true,null],"é":"ü","\U0001f600":"\\n","\ufb33":333333333.3333333}'
    whole = {"\ufb33": 333333333.33333329, "\U0001f600": "\n", "é": "ü", "a": [56.0, 10**30, 1e-6, True, None]}
    assert seal_of(whole) == hashlib.sha256(text.encode()).hexdigest()
    assert check_seal(sealed(whole))
    assert not check_seal(whole)


@pytest.mark.parametrize("own", [None, 5, "", "A" * 64, "0" * 64])
def test_a_checksum_that_is_none_or_another_is_refused(own: object) -> None:
    with pytest.raises(SealError, match="sha256"):
        check_seal({"a": 1, "sha256": own})


def test_what_has_no_canonical_form_is_not_sealed() -> None:
    for value in (float("nan"), float("inf"), "\ud800", 10**400, {1: 2}):
        with pytest.raises(SealError, match="no canonical form"):
            seal_of({"a": value})


def test_a_profile_under_another_name_is_refused_in_the_bundle_only(written: Bundle, tmp_path: Path) -> None:
    shutil.copyfile(written.path / PHONE, written.path / "profiles" / "mine.json")
    with pytest.raises(BundleError, match=r"mine\.json: is of device 'phone'"):
        written.profile("mine")
    shutil.copyfile(written.path / PHONE, tmp_path / "any.json")
    assert written.profile(tmp_path / "any.json").device.name == "phone"
