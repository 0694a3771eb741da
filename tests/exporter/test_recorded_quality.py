"""Where a bundle's qualities come from: the graphs, or, where the data are large or gone, what the run recorded in torch."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

import sortednet
from exporter.bundle import Bundle
from exporter.run import ExportError, export_run
from tests.helpers.pictures import write_pictures
from trainer import TrainerError
from trainer.data import folders
from trainer.making import train_run

SMALL = {"channels": [4], "blocks": [1], "widths": [0.5, 1.0], "multiple": 2}


def trained(root: Path) -> Path:
    """A run over the pictures in `root`, in a folder beside them."""
    run = root.with_name("run")
    options = {"epochs": 2, "batch_size": 8}
    train_run("resnet", str(root), run, grid={}, settings=SMALL, options=options, show_progress=False)
    return run


def recorded(run: Path) -> dict[str, float]:
    results = json.loads((run / "run.json").read_text())["results"]
    return {name: score["quality"] for name, score in results["test"].items()}


def qualities(bundle: Bundle) -> dict[str, float | None]:
    return {name: entry.quality for name, entry in bundle.submodels.items()}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("small") / "photos"
    write_pictures(root, per_class=12)
    trained(root)
    return root


def test_of_a_small_set_the_graphs_are_measured(photos: Path, tmp_path: Path) -> None:
    told: list[str] = []
    bundle = export_run(photos.with_name("run"), tmp_path / "bundle", say=told.append)
    assert (bundle.manifest.quality_from, told) == ("graph", [])
    assert qualities(bundle) == pytest.approx(recorded(photos.with_name("run")), abs=0.02)
    assert bundle.manifest.task.labels == ("cat", "dog", "owl")


def test_of_data_that_are_gone_the_run_knows_quality_names_and_preprocessing(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = photos.rename(photos.with_name("away"))
    try:
        run = photos.with_name("run")
        shown = CliRunner().invoke(sortednet.app, ["export", str(run), "--out", str(tmp_path / "bundle")])
        assert shown.exit_code == 0
        assert "Quality is what the run measured in torch: its data are not at hand" in " ".join(shown.stderr.split())
        bundle = Bundle(tmp_path / "bundle")
        assert bundle.manifest.quality_from == "torch"
        assert qualities(bundle) == recorded(run)
        assert bundle.manifest.task.labels == ("cat", "dog", "owl")
        assert bundle.manifest.preprocessing["input"]["size"] == [12, 16]
        with pytest.raises(ExportError, match="int8: needs training data"):
            export_run(run, tmp_path / "int8", int8=True)
        told: list[str] = []
        again = export_run(run, tmp_path / "measured", data=f"image-folder:{away}", say=told.append)
        assert (again.manifest.quality_from, told) == ("graph", [])
    finally:
        away.rename(photos)


def test_data_that_have_changed_are_refused(photos: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(photos, tmp_path / "photos"))
    run = Path(shutil.copytree(photos.with_name("run"), tmp_path / "run"))
    record = json.loads((run / "run.json").read_text())
    record["data"]["name"] = str(root)
    (run / "run.json").write_text(json.dumps(record))
    export_run(run, tmp_path / "copied")  # the same pictures elsewhere, with other times
    write_pictures(root, classes=["owl"], per_class=1, seed=5)
    with pytest.raises(TrainerError, match="photos' has changed since the training"):
        export_run(run, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_relative_paths_are_from_where_the_training_was_begun(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Path(shutil.copytree(photos.with_name("run"), tmp_path / "run"))
    record = json.loads((run / "run.json").read_text())
    assert record["folder"] == str(Path.cwd())
    absolute = record["data"]["name"]
    for prefix in ("", "image-folder:"):
        record |= {"folder": str(photos.parent), "data": {**record["data"], "name": f"{prefix}photos"}}
        (run / "run.json").write_text(json.dumps(record))
        monkeypatch.chdir(tmp_path)
        bundle = export_run(run, tmp_path / "bundle")
        assert bundle.manifest.quality_from == "graph"
        assert str(photos.parent) not in (bundle.path / "manifest.json").read_text()  # a device need not know
        write_pictures(tmp_path / "photos", classes=["owl"], per_class=8, seed=5)  # others, which have the same name here
    assert train_run(
        "resnet", absolute, run, grid={}, settings=SMALL, options=record["options"], resume=True, show_progress=False
    )["steps"]


def test_of_large_data_what_the_run_recorded_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "HASHED_BYTES", 1000)
    write_pictures(tmp_path / "photos", per_class=8)
    run = trained(tmp_path / "photos")
    told: list[str] = []
    bundle = export_run(run, tmp_path / "bundle", say=told.append)
    assert bundle.manifest.quality_from == "torch"
    assert "its data are large; --data SOURCE measures it on the graphs" in told[0]
    assert qualities(bundle) == recorded(run)
    measured = export_run(run, tmp_path / "measured", data=str(tmp_path / "photos"))
    assert measured.manifest.quality_from == "graph"
    (tmp_path / "photos" / "cat" / "0.png").unlink()
    with pytest.raises(TrainerError, match="has changed since the training"):
        export_run(run, tmp_path / "changed")
