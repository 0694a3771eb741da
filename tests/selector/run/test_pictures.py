"""A picture in, the names of classes out: `sortednet run --input photo.jpg`, and the same in Python."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from typer.testing import CliRunner, Result

import sortednet
from exporter import export
from exporter.bundle import Bundle
from exporter.bundle.manifest import sealed
from exporter.bundle.preprocessing import ImagePreprocessing, read_image
from selector import Runtime
from selector.run.files import read_inputs
from selector.run.runtime import InputError
from tests.helpers.exports import calibrated
from tests.helpers.pictures import CLASSES, write_pictures
from trainer import NestedModel
from trainer.data import DataSet, load_data
from trainer.families import ResNet


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photos")
    write_pictures(path, suffix=".jpg", size=(20, 30))
    return path


@pytest.fixture(scope="module")
def data(folder: Path) -> DataSet:
    return load_data(f"image-folder:{folder}", {"size": 16, "resize": 18})


@pytest.fixture(scope="module")
def nested(data: DataSet) -> NestedModel:
    return calibrated(ResNet.for_data(data.spec, channels=[8, 12], blocks=[1, 1], widths=[0.5, 1.0], multiple=4))


@pytest.fixture(scope="module")
def photos(nested: NestedModel, data: DataSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that knows how its pictures were read and what its classes are called."""
    path = tmp_path_factory.mktemp("bundles") / "photos"
    export(nested, path, test_data=data.test, labels=data.labels, preprocessing=data.preprocessing, show_progress=False)
    return path


def call(*arguments: str | Path) -> Result:
    result = CliRunner().invoke(sortednet.app, ["run", *(str(argument) for argument in arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def probabilities(nested: NestedModel, pixels: NDArray[Any], submodel: str) -> dict[str, float]:
    """What torch says of one picture."""
    sub = next(sub for sub in nested.submodels if sub.id == submodel)
    with torch.no_grad():
        (row,) = nested(torch.from_numpy(pixels), sub).softmax(dim=1)
    return dict(zip(CLASSES, row.tolist(), strict=True))


def test_a_photo_is_read_as_in_the_training_and_answered_by_name(
    photos: Path, folder: Path, nested: NestedModel, data: DataSet
) -> None:
    spec = ImagePreprocessing.model_validate(Bundle(photos).manifest.preprocessing["input"])
    assert (spec.size, spec.resize) == ((16, 16), 18)
    photo = folder / "owl" / "3.jpg"
    shown = call(photos, "--input", photo)
    assert shown.exit_code == 0
    found = json.loads(call(photos, "--input", photo, "--json").stdout)
    wanted = probabilities(nested, read_image(photo, spec), found["submodel"])
    best = sorted(wanted, key=lambda name: -wanted[name])
    (answers,) = found["answers"]
    assert [answer["label"] for answer in answers] == best
    assert [answer["probability"] for answer in answers] == pytest.approx([wanted[name] for name in best], abs=1e-3)
    assert sum(answer["probability"] for answer in answers) == pytest.approx(1)
    lines = shown.stdout.splitlines()
    assert [line.split()[0] for line in lines[1:4]] == best
    assert float(lines[1].split()[1].rstrip("%")) == pytest.approx(100 * wanted[best[0]], abs=0.1)


def test_a_photo_without_a_suffix_is_known_by_its_content(photos: Path, folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "owl" / "3.jpg", tmp_path / "photo")
    named = json.loads(call(photos, "--input", tmp_path / "photo", "--json").stdout)
    assert named["outputs"] == json.loads(call(photos, "--input", folder / "owl" / "3.jpg", "--json").stdout)["outputs"]


def test_answers_in_python(photos: Path, folder: Path, nested: NestedModel) -> None:
    runtime = Runtime(photos, cache=False)
    both = np.concatenate([read_inputs(folder / name, runtime.bundle)["input"] for name in ("cat/1.jpg", "owl/2.jpg")])
    result = runtime.run({"input": both})
    for row, label, answers in zip(both, result.labels, result.answers(2), strict=True):
        wanted = probabilities(nested, row[None], result.selection.submodel)
        best = sorted(wanted, key=lambda name: -wanted[name])
        assert label == best[0]
        assert [answer.label for answer in answers] == best[:2]
        assert answers[0].probability == pytest.approx(wanted[best[0]], abs=1e-3)
    runtime.close()


def test_classes_without_names_are_numbered(bundle_path: Path, images: NDArray[Any], tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", images[:1])
    found = json.loads(call(bundle_path, "--input", tmp_path / "one.npy", "--json").stdout)
    order = np.argsort(-np.array(found["outputs"]["logits"][0]))
    assert [answer["label"] for answer in found["answers"][0]] == [str(number) for number in order[:3]]
    np.save(tmp_path / "two.npy", images[:2])
    assert "logits (2, 10)" in call(bundle_path, "--input", tmp_path / "two.npy").stdout
    assert len(json.loads(call(bundle_path, "--input", tmp_path / "two.npy", "--json").stdout)["answers"]) == 2


def test_what_is_no_picture_is_refused(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("no picture")
    refused = call(photos, "--input", tmp_path / "a.jpg")
    assert refused.exit_code == 2
    assert f"input {tmp_path / 'a.jpg'}: is no picture; allowed are JPEG and PNG" in refused.stderr
    (tmp_path / "a.gif").write_bytes(b"GIF89a" + bytes(20))
    refused = call(photos, "--input", tmp_path / "a.gif")
    assert refused.exit_code == 2
    assert "cannot be read as .npy or .npz, and is no JPEG or PNG" in refused.stderr


def test_a_bundle_that_does_not_say_how_to_read_pictures_refuses_them(
    nested: NestedModel, folder: Path, tmp_path: Path
) -> None:
    export(nested, tmp_path / "bundle", show_progress=False)
    refused = call(tmp_path / "bundle", "--input", folder / "cat" / "1.jpg")
    assert refused.exit_code == 2
    assert "this bundle does not say how a picture becomes its input 'input'; allowed are .npy and .npz" in refused.stderr


def test_a_way_to_read_pictures_that_is_not_known_here_is_refused(photos: Path, folder: Path, tmp_path: Path) -> None:
    newer = Path(shutil.copytree(photos, tmp_path / "newer"))
    manifest = json.loads((newer / "manifest.json").read_text())
    manifest["preprocessing"]["input"]["colour_space"] = "lab"
    (newer / "manifest.json").write_text(json.dumps(sealed(manifest)))
    with pytest.raises(InputError, match="input 'input': the bundle's preprocessing is not known here: colour_space"):
        read_inputs(folder / "cat" / "1.jpg", Bundle(newer))


def test_without_pillow_the_extra_is_named(photos: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    refused = call(photos, "--input", folder / "cat" / "1.jpg")
    assert refused.exit_code == 2
    assert "pip install '.[image]'" in refused.stderr
