"""An export where something stands: what would be lost is named before the work, and stays unless it may go."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import exporter.run
import exporter.writer
from exporter import ExportError, export
from exporter.bundle import Bundle, BundleError, atomic
from exporter.bundle.atomic import built_beside, check_place
from exporter.run import export_run
from selector.choose.cascades import Cascade, read_cascades, write_cascades
from tests.conftest import DEVICE
from tests.helpers.disks import read_only
from tests.helpers.pulls import contents
from tests.helpers.runs import train
from trainer import NestedModel

SMALL, LARGE = "w0.50-d1", "w1.00-d2"
FIGURES = {"threshold": 0.5, "escalation": 0.2, "accuracy": 0.9, "floor": 0.8, "confidence": 0.95, "examples": 100}
CASCADE = Cascade(id="both", first=SMALL, then=LARGE, **FIGURES)


@pytest.fixture
def standing(bundle_path: Path, tmp_path: Path) -> Path:
    """A bundle of `untrained` with a profile and a cascade."""
    path = Path(shutil.copytree(bundle_path, tmp_path / "bundle"))
    write_cascades(Bundle(path), [CASCADE])
    return path


def again(nested: NestedModel, out: Path, *names: str, **more: Any) -> Bundle:
    chosen = [sub for sub in nested.submodels if not names or sub.id in names]
    return export(nested, out, submodels=chosen, show_progress=False, **more)


def test_the_same_networks_again_keep_profiles_and_cascades(standing: Path, untrained: NestedModel) -> None:
    before = contents(standing / "profiles")
    again(untrained, standing)
    assert contents(standing / "profiles") == before
    assert read_cascades(Bundle(standing)) == [CASCADE]


def test_fewer_sub_models_are_refused_with_what_goes_and_take_what_fits(standing: Path, untrained: NestedModel) -> None:
    before = contents(standing)
    with pytest.raises(ExportError, match=rf"would lose cascades\.json, .*{LARGE} in profiles/{DEVICE}\.json.*--overwrite"):
        again(untrained, standing, SMALL, "w0.75-d1")
    assert contents(standing) == before
    full = Bundle(standing).profile(DEVICE)
    new = again(untrained, standing, SMALL, "w0.75-d1", overwrite=True)
    assert new.profile(DEVICE).submodels == {name: full.submodels[name] for name in (SMALL, "w0.75-d1")}
    assert read_cascades(new) == []


@pytest.mark.parametrize(
    "name",
    ["notes.txt", "models/own.onnx", "profiles/mine.csv", "profiles/broken.json", ".git/HEAD", ".env", "profiles/.own.json"],
)
def test_a_file_of_the_owner_is_named(name: str, standing: Path, untrained: NestedModel) -> None:
    (standing / name).parent.mkdir(exist_ok=True)
    (standing / name).write_text("mine")
    with pytest.raises(ExportError, match=f"would lose {name}"):
        again(untrained, standing)
    assert (standing / name).read_text() == "mine"


@pytest.mark.parametrize("name", [".DS_Store", "models/._weights.bin", ".nfs0001", "profiles/.phone.json.partial-17"])
def test_what_the_system_keeps_there_is_nobodys(name: str, standing: Path, untrained: NestedModel) -> None:
    (standing / name).write_text("")
    again(untrained, standing)
    assert not (standing / name).exists()


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("manifest", ['{"name": "My app", "start_url": "/"}', '["a", "b"]'])
def test_a_manifest_of_another_program_makes_no_bundle(
    manifest: str, overwrite: bool, tmp_path: Path, untrained: NestedModel
) -> None:
    site = tmp_path / "site"
    site.mkdir()
    (site / "manifest.json").write_text(manifest)
    (site / "index.html").write_text("hello")
    before = contents(site)
    with pytest.raises(BundleError, match="site': exists and is no bundle"):
        again(untrained, site, SMALL, overwrite=overwrite)
    assert contents(site) == before


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (lambda text: text[:100], r"cannot be read \(manifest.json: is truncated.*--overwrite"),
        (lambda text: text.replace('"family"', '"familie"'), r"cannot be read \(manifest.json: .*--overwrite"),
        (
            lambda text: text.replace('"format_version": 2', '"format_version": 3'),
            "of format 3, newer than 2: update.*--overwrite",
        ),
    ],
    ids=["truncated", "altered", "newer"],
)
def test_a_bundle_that_cannot_be_read_stays_unless_it_may_go(
    changed: Callable[[str], str], message: str, standing: Path, untrained: NestedModel
) -> None:
    manifest = standing / "manifest.json"
    manifest.write_text(changed(manifest.read_text()))
    before = contents(standing)
    with pytest.raises(BundleError, match=message):
        again(untrained, standing)
    assert contents(standing) == before
    again(untrained, standing, overwrite=True)
    Bundle(standing)


@pytest.mark.parametrize("empty", [False, True])
def test_what_comes_there_during_the_work_stays(empty: bool, tmp_path: Path) -> None:
    place = tmp_path / "bundle"
    if empty:
        place.mkdir()

    def build() -> None:
        with built_beside(place) as folder:
            (folder / "manifest.json").write_text("{}")
            place.mkdir(exist_ok=True)
            (place / "thesis.txt").write_text("mine")

    with pytest.raises(BundleError, match="has changed while the new bundle was built"):
        build()
    assert contents(tmp_path) == {"bundle/thesis.txt": b"mine"}


def test_a_bundle_that_another_export_has_put_there_meanwhile_stays(
    standing: Path, untrained: NestedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Path(shutil.copytree(standing, standing.parent / "other"))
    written = exporter.writer.write_manifest

    def slowly(*given: Any) -> Any:
        shutil.rmtree(standing)
        other.rename(standing)
        return written(*given)

    before = contents(standing)
    monkeypatch.setattr(exporter.writer, "write_manifest", slowly)
    with pytest.raises(BundleError, match="has changed while"):
        again(untrained, standing, SMALL, overwrite=True)
    assert contents(standing) == before


def test_a_profile_that_is_measured_during_an_export_stays(
    standing: Path, untrained: NestedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = (standing / "profiles" / f"{DEVICE}.json").read_bytes()
    (standing / "profiles" / f"{DEVICE}.json").unlink()
    written = exporter.writer.write_manifest

    def slowly(*given: Any) -> Any:
        (standing / "profiles" / f"{DEVICE}.json").write_bytes(measured)
        return written(*given)

    monkeypatch.setattr(exporter.writer, "write_manifest", slowly)
    again(untrained, standing)
    assert (standing / "profiles" / f"{DEVICE}.json").read_bytes() == measured


def test_a_cascade_goes_only_with_a_word_where_the_weights_are_others(standing: Path, untrained: NestedModel) -> None:
    import torch

    from tests.conftest import family_for
    from tests.helpers.exports import calibrated
    from trainer.data import load_data

    other = calibrated(family_for(load_data("digits")))
    with torch.no_grad():
        for parameter in other.full.parameters():
            parameter.mul_(1.5)
    before = contents(standing)
    with pytest.raises(ExportError, match=r"would lose cascades\.json"):
        again(other, standing)
    assert contents(standing) == before


def test_another_run_is_refused_before_its_data_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, options in (("one", {}), ("two", {"seed": 5})):
        train(tmp_path / name, options=options)
    bundle = export_run(tmp_path / "one", tmp_path / "bundle")
    weights = bundle.path / "models" / "weights.bin"
    before = weights.read_bytes()
    export_run(tmp_path / "one", tmp_path / "bundle", ["w1.00-d2"])  # nothing was added: nothing is lost
    with monkeypatch.context() as patched:
        patched.setattr(exporter.run, "load_data", lambda *_: pytest.fail("the data were read"))
        with pytest.raises(ExportError, match=r"holds the bundle of another run \(options: seed = 0, here 5\).*--overwrite"):
            export_run(tmp_path / "two", tmp_path / "bundle")
        read_only(patched, tmp_path)
        with pytest.raises(BundleError, match=r"out = .*/other': cannot be written: Read-only file system"):
            export_run(tmp_path / "two", tmp_path / "other")
    export_run(tmp_path / "two", tmp_path / "bundle", overwrite=True)
    assert weights.read_bytes() != before


def test_a_link_stays_and_what_it_leads_to_is_replaced(standing: Path, untrained: NestedModel) -> None:
    link = standing.parent / "link"
    link.symlink_to("bundle")
    again(untrained, link, SMALL, overwrite=True)
    assert link.is_symlink()
    assert list(Bundle(standing).submodels) == [SMALL]
    assert sorted(path.name for path in standing.parent.iterdir()) == ["bundle", "link"]


@pytest.fixture
def volume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that the system says is a mount point, and whose name cannot be given to another one."""
    folder = tmp_path / "volume"
    (folder / "lost+found").mkdir(parents=True)
    monkeypatch.setattr(atomic, "is_mount", lambda path: Path(path) == folder)
    rename = Path.rename

    def busy(path: Path, target: Path) -> Path:
        if folder in (path, target):
            raise OSError(16, os.strerror(16), str(path))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", busy)
    monkeypatch.setattr(atomic, "exchanged", lambda one, other: False)
    return folder


def test_an_empty_mount_point_is_filled_the_manifest_last(volume: Path, untrained: NestedModel) -> None:
    bundle = again(untrained, volume, SMALL)
    assert sorted(path.name for path in volume.iterdir()) == ["lost+found", "manifest.json", "models", "selftest.npz"]
    assert [path.name for path in volume.parent.iterdir()] == ["volume"]
    with pytest.raises(BundleError, match=r"is a mount point.*a folder in it.*--overwrite"):
        again(untrained, volume, LARGE)
    assert list(Bundle(volume).submodels) == [SMALL]
    assert list(again(untrained, volume, LARGE, overwrite=True).submodels) == [LARGE]
    assert not (bundle.path / "models" / f"{SMALL}.onnx").exists()


def test_a_mount_point_that_is_half_filled_is_no_bundle(volume: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(folder: Path) -> None:
        for name in ("a.bin", "manifest.json", "z.bin"):
            (folder / name).write_text(name)

    rename = Path.rename
    moved: list[str] = []

    def watched(path: Path, target: Path) -> Path:
        moved.append(path.name)
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", watched)
    with built_beside(volume) as folder:
        fill(folder)
    assert moved == ["a.bin", "z.bin", "manifest.json"]


def test_a_place_that_turns_out_busy_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(*_: Any) -> None:
        raise OSError(16, os.strerror(16))

    monkeypatch.setattr(Path, "rename", busy)
    with pytest.raises(BundleError, match="cannot be written: Device or resource busy"), built_beside(tmp_path / "b"):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("needed", [0, 10**18])
def test_a_look_leaves_nothing(needed: int, tmp_path: Path) -> None:
    look: Callable[[], Any] = lambda: check_place(tmp_path / "new" / "bundle", needed=needed)  # noqa: E731
    if needed:
        with pytest.raises(BundleError, match=r"the disk is full .*1,000,000,000,000,000,000 bytes are to come"):
            look()
    else:
        look()
    assert list(tmp_path.iterdir()) == []
