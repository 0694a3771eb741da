"""`hf`: pictures in a column of a Hugging Face data set."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, Value
from PIL import Image as Images

from exporter.bundle.preprocessing import ImagePreprocessing, read_image
from tests.helpers.pictures import shorten, write_pictures
from tests.helpers.tables import saved
from trainer import TrainerError
from trainer.data import load_data
from trainer.data.loading import Asked, read

pytestmark = pytest.mark.usefixtures("no_hub")


def pictures(count: int = 30, mode: str = "RGB", size: tuple[int, int] = (10, 12)) -> tuple[Dataset, list[Any]]:
    """Random ones, and their pixels."""
    values = np.random.default_rng(0)
    shape = (count, *size) if mode == "L" else (count, *size, 3)
    pixels = values.integers(0, 256, shape, dtype=np.uint8)
    features = Features({"img": Image(), "id": Value("int64"), "fine": ClassLabel(names=["cat", "dog", "owl"])})
    columns = {"img": [Images.fromarray(p) for p in pixels], "id": range(count), "fine": [i % 3 for i in range(count)]}
    return Dataset.from_dict(columns, features=features), list(pixels)


def test_pictures_are_read_as_those_of_a_folder(tmp_path: Path) -> None:
    table, pixels = pictures()
    data = load_data(saved(table, tmp_path / "pictures"))
    assert (data.spec.input_shape, data.spec.classes, data.labels) == ((3, 10, 12), 3, ("cat", "dog", "owl"))
    assert data.record["columns"] == {"inputs": ["img"], "label": "fine"}
    assert data.record["sizes"] == {"train": 19, "validation": 5, "test": 6}
    assert data.augment is not None
    places = {one.tobytes(): i for i, one in enumerate(pixels)}
    seen = set()
    for part in (data.train, data.validation, data.test):
        batch = part.batch(torch.arange(len(part)))
        (by_worker,) = read(part, [Asked(torch.arange(len(part)))], workers=1)
        assert torch.equal(by_worker.inputs["input"], batch.inputs["input"])
        for picture, label in zip(batch.inputs["input"], batch.targets.tolist(), strict=True):
            place = places[(picture * 255).round().byte().permute(1, 2, 0).numpy().tobytes()]
            assert place % 3 == label
            seen.add(place)
    assert len(seen) == 30
    assert data.record == load_data(f"hf:{tmp_path / 'pictures'}").record
    data = load_data(f"hf:{tmp_path / 'pictures'}", {"size": 8, "augment": "none", "channels": 1})
    assert (data.spec.input_shape, data.augment) == ((1, 8, 8), None)
    buffer = BytesIO()
    Images.fromarray(pixels[0]).save(buffer, "PNG")
    on_device = read_image(buffer, ImagePreprocessing(**data.preprocessing["input"]))
    everything = torch.cat([p.batch(torch.arange(len(p))).inputs["input"] for p in (data.train, data.validation, data.test)])
    assert any(np.array_equal(on_device[0], picture) for picture in everything.numpy())


def test_a_folder_of_pictures_may_be_read_so_too(tmp_path: Path) -> None:
    for part in ("train", "test"):
        write_pictures(tmp_path / "pictures" / part, size=(6, 6))
    data = load_data(f"hf:{tmp_path / 'pictures'}")
    assert (data.labels, data.spec.input_shape) == (("cat", "dog", "owl"), (3, 6, 6))
    assert data.record["split"] == {"train": "split train", "validation": "split off, by class", "test": "split test"}
    before = data.record["content_sha256"]
    Images.fromarray(np.zeros((6, 6, 3), np.uint8)).save(tmp_path / "pictures" / "train" / "cat" / "3.png")
    assert load_data(f"hf:{tmp_path / 'pictures'}").record["content_sha256"] != before


def test_of_many_pictures_the_record_keeps_fingerprints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.data.hugging_face.HASHED_BYTES", 1000)
    record = load_data(saved(pictures()[0], tmp_path / "pictures")).record
    assert "content_sha256" not in record
    assert list(record["fingerprints"]) == ["train"]
    assert record == load_data(f"hf:{tmp_path / 'pictures'}").record
    other = load_data(saved(pictures()[0].select(range(29, -1, -1)), tmp_path / "other")).record
    assert other["fingerprints"] != record["fingerprints"]


def read_all(place: str) -> None:
    data = load_data(place)
    for part in (data.train, data.validation, data.test):
        part.batch(torch.arange(len(part)))


def test_a_damaged_picture_is_named_by_its_row(tmp_path: Path) -> None:
    table, _ = pictures()
    rows: list[Any] = table.cast_column("img", Image(decode=False))[:]["img"]
    (tmp_path / "whole.png").write_bytes(rows[4]["bytes"])
    shorten(tmp_path / "whole.png")
    for content, message in (
        ((tmp_path / "whole.png").read_bytes(), "cannot be read as a picture"),
        (b"no picture", "is no picture; allowed are JPEG and PNG"),
        (None, "is empty; allowed are pictures"),
    ):
        rows[4] = {"bytes": content, "path": None} if content is not None else None
        columns = {"img": rows, "fine": table["fine"][:]}
        features = Features({"img": Image(), "fine": table.features["fine"]})
        folder = tmp_path / message.partition(";")[0].replace(" ", "-")
        Dataset.from_dict(columns, features=features).save_to_disk(folder)
        with pytest.raises(TrainerError, match=f"column 'img', row 4: {message}"):
            read_all(f"hf:{folder}")


def test_a_gray_picture_among_others_is_named(tmp_path: Path) -> None:
    gray, coloured = pictures(3, "L")[0], pictures(27)[0]
    place = saved(datasets.concatenate_datasets([coloured, gray]), tmp_path / "pictures")
    with pytest.raises(TrainerError, match="column 'img', row 27: a picture with 1 channel among others with 3 channels"):
        load_data(place)
    assert load_data(place, {"channels": 3}).spec.input_shape == (3, 10, 12)


def with_labels(labels: list[Any], folder: Path) -> str:
    table, _ = pictures(len(labels), "L")
    return saved(table.select_columns(["img"]).add_column("label", labels), folder)


@pytest.mark.parametrize(
    ("label", "augmented", "note"),
    [
        ([[0, 1] * 6] * 10, False, "the targets may say where something is."),  # a class for every pixel
        ([0.5, 0.25], False, "where they do not: --data-option augment=flip-and-shift"),  # a point
        (0.5, False, "where they do not: --data-option augment=flip-and-shift"),
        ([0, 1, 1], True, ""),  # several classes of the whole picture
        ("cat", True, ""),
    ],
)
def test_pictures_are_moved_only_where_targets_do_not_say_where_something_is(
    label: Any, augmented: bool, note: str, tmp_path: Path
) -> None:
    data = load_data(with_labels([label] * 30, tmp_path / "pictures"))
    assert (data.augment is not None) == augmented
    assert len(data.notes) == (not augmented)
    assert all(note in one for one in data.notes)


def test_an_augmentation_that_would_leave_masks_behind_is_refused(tmp_path: Path) -> None:
    place = with_labels([[[0, 1] * 6] * 10] * 30, tmp_path / "pictures")
    assert load_data(place, {"augment": "none"}).notes == ()
    with pytest.raises(TrainerError, match=r"augment = 'shift': would move .* of shape \(10, 12\) each; allowed is none"):
        load_data(place, {"augment": "shift"})
    points = with_labels([[0.5, 0.25]] * 30, tmp_path / "points")
    assert load_data(points, {"augment": "shift"}).augment is not None
