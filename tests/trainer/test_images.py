"""`image-folder:PATH`: which picture is of which class and part, what it becomes, and what is refused."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from exporter.bundle.preprocessing import ImagePreprocessing, read_image
from tests.helpers.pictures import CLASSES, shorten, write_pictures
from trainer import NestedModel, TrainerError, fit
from trainer.data import DataSet, folders, load_data
from trainer.data.images import PictureFiles
from trainer.data.loading import Asked, read
from trainer.families import ResNet

PARTS = ("train", "validation", "test")


def parts_of(data: DataSet) -> dict[str, PictureFiles]:
    parts = {part: getattr(data, part) for part in PARTS}
    assert all(isinstance(examples, PictureFiles) for examples in parts.values())
    return parts


def names(examples: PictureFiles, root: Path) -> list[str]:
    return [Path(examples.path(i)).relative_to(root).as_posix() for i in range(len(examples))]


def load(folder: Path, **options: Any) -> DataSet:
    return load_data(f"image-folder:{folder}", options)


@pytest.mark.parametrize("prefix", ["image-folder:", ""])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_every_picture_is_in_one_part_with_its_class_and_its_pixels(prefix: str, mode: str, tmp_path: Path) -> None:
    written = write_pictures(tmp_path, mode=mode)
    (tmp_path / "cat" / ".hidden").write_bytes(b"\0")
    data = load_data(f"{prefix}{tmp_path}")
    assert (data.labels, data.spec.classes, data.spec.input_shape) == (CLASSES, 3, (len(mode), 12, 16))
    found = []
    for examples in parts_of(data).values():
        inputs, targets = examples.batch(torch.arange(len(examples)))
        for name, pixels, label in zip(names(examples, tmp_path), inputs["input"], targets, strict=True):
            assert data.labels[int(label)] == name.partition("/")[0]
            assert np.array_equal(pixels.numpy() * 255, np.moveaxis(np.atleast_3d(written[name]), 2, 0))
        assert {data.labels[int(label)] for label in targets} == set(CLASSES)
        found += names(examples, tmp_path)
    assert sorted(found) == sorted(written)
    assert [len(examples) for examples in parts_of(data).values()] == [19, 5, 6]


def test_the_split_is_the_same_every_time_and_does_not_know_where_the_folder_lies(tmp_path: Path) -> None:
    write_pictures(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b", copy_function=shutil.copyfile)  # other times of modification
    first, again, copied = (load(tmp_path / name) for name in "aab")
    assert first.record == again.record == json.loads(json.dumps(first.record))
    assert {**copied.record, "name": first.record["name"]} == first.record
    assert first.spec == again.spec == copied.spec


def test_folders_of_the_parts_are_respected(tmp_path: Path) -> None:
    for i, (part, count) in enumerate({"train": 9, "val": 3, "test": 4}.items()):
        write_pictures(tmp_path / part, per_class=count, seed=i)
    data = load_data(str(tmp_path))
    assert {name.split("/")[0] for name in names(parts_of(data)["validation"], tmp_path)} == {"val"}
    assert [len(parts_of(data)[part]) for part in PARTS] == [27, 9, 12]
    for part, examples in parts_of(data).items():
        for name, label in zip(names(examples, tmp_path), examples.targets.tolist(), strict=True):
            assert name.startswith(part[:3])
            assert name.split("/")[1] == CLASSES[label]
    assert data.record["split"] == {"train": "train/", "validation": "val/", "test": "test/"}


@pytest.mark.parametrize(
    ("given", "sizes"), [(("train",), [19, 5, 6]), (("train", "test"), [25, 5, 12]), (("train", "validation"), [24, 12, 6])]
)
def test_a_part_without_a_folder_is_split_off_the_training_part(
    given: tuple[str, ...], sizes: list[int], tmp_path: Path
) -> None:
    for part in given:
        write_pictures(tmp_path / part, per_class=10 if part == "train" else 4)
    parts = parts_of(load(tmp_path))
    assert [len(parts[part]) for part in PARTS] == sizes
    split_off = [parts[part] for part in PARTS if part not in given]
    assert all(name.startswith("train/") for examples in split_off for name in names(examples, tmp_path))
    everything = [name for examples in parts.values() for name in names(examples, tmp_path)]
    assert len(set(everything)) == len(everything) == sum(sizes)
    assert load(tmp_path).record["split"]["train"] == "train/"


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({}, (3, 12, 16)),
        ({"size": 8}, (3, 8, 8)),
        ({"size": [6, 9]}, (3, 6, 9)),
        ({"size": 8, "channels": 1}, (1, 8, 8)),
        ({"size": 8, "resize": 10, "interpolation": "bicubic"}, (3, 8, 8)),
        ({"size": 8, "crop": "none", "interpolation": "nearest"}, (3, 8, 8)),
    ],
)
def test_a_device_reads_a_picture_as_the_training_did(options: dict[str, Any], shape: tuple[int, ...], tmp_path: Path) -> None:
    write_pictures(tmp_path, suffix=".jpg")
    data = load(tmp_path, **options)
    spec = ImagePreprocessing.model_validate(json.loads(json.dumps(data.preprocessing["input"])))
    assert data.spec.input_shape == shape == (spec.channels, *spec.size)
    pixels = data.test.batch(torch.tensor([2])).inputs["input"]
    assert np.array_equal(read_image(parts_of(data)["test"].path(2), spec), pixels.numpy())
    assert data.record["preprocessing"] == data.preprocessing["input"]


def test_a_class_of_few_pictures_may_be_missing_from_a_part_that_is_split_off(tmp_path: Path) -> None:
    write_pictures(tmp_path, classes=CLASSES[:2], per_class=30)
    write_pictures(tmp_path, classes=CLASSES[2:], per_class=3)
    labels = {part: set(examples.targets.tolist()) for part, examples in parts_of(load(tmp_path)).items()}
    assert labels["train"] == {0, 1, 2}
    assert {0, 1} <= labels["test"]


def test_pictures_of_several_sizes_or_large_ones_get_the_usual_size(tmp_path: Path) -> None:
    write_pictures(tmp_path / "several", per_class=8)
    write_pictures(tmp_path / "several", classes=["owl"], per_class=1, size=(13, 16))
    write_pictures(tmp_path / "large", classes=("a", "b"), per_class=5, size=(8, 513))
    assert load(tmp_path / "several").spec.input_shape == (3, 224, 224)
    assert load(tmp_path / "large").spec.input_shape == (3, 224, 224)
    assert load(tmp_path / "large", size=[8, 513]).spec.input_shape == (3, 8, 513)


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_pictures_that_a_turned_camera_stored_have_the_size_that_they_are_seen_in(suffix: str, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    write_pictures(tmp_path, size=(30, 40), suffix=suffix)
    for i, path in enumerate(sorted(tmp_path.rglob(f"*{suffix}"))):
        with Image.open(path) as picture:
            turned = picture.transpose(Image.Transpose.ROTATE_90)
        if i % 2:
            turned.save(path, exif=exif)
    assert load(tmp_path).spec.input_shape == (3, 30, 40)


def test_normalisation_is_learned_from_the_training_pictures(tmp_path: Path) -> None:
    write_pictures(tmp_path)
    data = load(tmp_path)
    pixels = data.train.batch(torch.arange(len(data.train))).inputs["input"]
    assert data.spec.mean == pytest.approx(pixels.mean(dim=(0, 2, 3)).tolist(), abs=1e-5)
    assert data.spec.std == pytest.approx(pixels.std(dim=(0, 2, 3)).tolist(), abs=1e-3)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_worker_processes_give_the_same_batches_in_the_same_order(workers: int, tmp_path: Path) -> None:
    write_pictures(tmp_path)
    train = load(tmp_path, size=8).train
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(1)).tensor_split(4)
    before = torch.random.get_rng_state()
    found = list(read(train, [Asked(indices) for indices in order], workers))
    assert torch.equal(torch.random.get_rng_state(), before)
    for batch, indices in zip(found, order, strict=True):
        wanted = train.batch(indices)
        assert batch.inputs["input"].dtype == torch.float32
        assert torch.equal(batch.inputs["input"], wanted.inputs["input"])
        assert torch.equal(batch.targets, wanted.targets)


# The record


def test_the_record_notices_a_changed_pixel_of_a_small_set(tmp_path: Path) -> None:
    write_pictures(tmp_path)
    before = load(tmp_path).record
    Image.fromarray(np.zeros((12, 16, 3), np.uint8)).save(tmp_path / "dog" / "3.png")
    after = load(tmp_path).record
    assert before["content_sha256"] != after["content_sha256"]
    assert before["split_sha256"] == after["split_sha256"]


def test_of_a_large_set_names_and_sizes_are_hashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "HASHED_BYTES", 1000)
    write_pictures(tmp_path)
    before = load(tmp_path).record
    assert "content_sha256" not in before
    changed = tmp_path / "dog" / "3.png"
    content = bytearray(changed.read_bytes())
    changed.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))  # of the same length: not looked at
    assert load(tmp_path).record == before
    changed.write_bytes(content + b"\0")
    assert load(tmp_path).record["names_and_sizes_sha256"] != before["names_and_sizes_sha256"]
    changed.write_bytes(content)
    changed.rename(tmp_path / "dog" / "33.png")
    assert load(tmp_path).record["names_and_sizes_sha256"] != before["names_and_sizes_sha256"]


# What is refused


def test_a_picture_of_one_channel_among_three_is_named(tmp_path: Path) -> None:
    write_pictures(tmp_path)
    gray = tmp_path / "dog" / "4.png"
    Image.fromarray(np.full((12, 16), 120, np.uint8)).save(gray)
    with pytest.raises(
        TrainerError, match=f"^{re.escape(str(gray))}: a picture with 1 channel among others with 3.*channels=1"
    ):
        load(tmp_path)
    assert load(tmp_path, channels=3).spec.input_shape == (3, 12, 16)
    assert load(tmp_path, channels=1).spec.input_shape == (1, 12, 16)


def test_a_picture_that_has_lost_its_colours_since_is_named_when_it_is_read(tmp_path: Path) -> None:
    write_pictures(tmp_path)
    train = parts_of(load(tmp_path))["train"]
    Image.fromarray(np.full((12, 16), 120, np.uint8)).save(train.path(3))
    with pytest.raises(TrainerError, match=f"^{re.escape(train.path(3))}: a picture with 1 channel"):
        train.batch(torch.arange(5))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_picture_truncated_in_the_middle_of_an_epoch_is_named(workers: int, tmp_path: Path) -> None:
    write_pictures(tmp_path / "data", suffix=".jpg", per_class=16, size=(64, 64))
    data = load(tmp_path / "data")
    nested = NestedModel(ResNet.for_data(data.spec, channels=[4], blocks=[1], widths=[1.0], multiple=4))
    damaged = Path(parts_of(data)["train"].path(len(data.train) - 1))
    shorten(damaged)
    with pytest.raises(TrainerError, match=f"^{re.escape(str(damaged))}: cannot be read as a picture: .*truncated"):
        fit(nested, data.train, epochs=1, batch_size=4, workers=workers, run=tmp_path / "run", show_progress=False)
    assert data.train.batch(torch.arange(4)).inputs["input"].shape[0] == 4  # the others can be read


def test_a_damaged_picture_is_named_before_the_training_where_it_is_met(tmp_path: Path) -> None:
    write_pictures(tmp_path, suffix=".jpg", size=(64, 64))
    damaged = Path(parts_of(load(tmp_path))["train"].path(0))
    shorten(damaged)
    with pytest.raises(TrainerError, match=f"^{re.escape(str(damaged))}: .*truncated"):
        load(tmp_path)
    damaged.write_text("no picture")
    with pytest.raises(TrainerError, match=f"^{re.escape(str(damaged))}: is no picture; allowed are JPEG and PNG"):
        load(tmp_path)


def rename(root: Path, old: str, new: str) -> None:
    (root / old).rename(root / new)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda root: (root / "dog" / "notes.txt").write_text("x"),
            r"dog/notes\.txt' \(1 of 11 files there\): allowed are image",
        ),
        (lambda root: [p.rename(p.with_suffix(".gif")) for p in root.rglob("*.png")], r"cat/0\.gif' \(10 of 10 files there\)"),
        (lambda root: [shutil.rmtree(root / name) for name in ("dog", "owl")], "1 class folders; allowed are two and more"),
        (lambda root: [shutil.rmtree(root / name) for name in CLASSES], "0 class folders; allowed are two and more"),
        (lambda root: (root / "empty").mkdir(), "empty': holds no file"),
        (lambda root: shutil.copy(root / "cat" / "0.png", root), r"0\.png lies in no class folder"),
        (lambda root: write_pictures(root / "dog"), "dog': holds the folder cat/"),
        (lambda root: [p.unlink() for p in root.glob("owl/[1-9].png")], "by class: class owl has 1"),
        (
            lambda root: (root / "dog" / "x.png").symlink_to("far"),
            r"dog/x\.png': is a link to 'far', where nothing is; allowed",
        ),
        (lambda root: (root / "test").symlink_to("far"), r"test': is a link to 'far', where nothing is; allowed are files"),
        (lambda root: write_pictures(root / "train"), "train': holds the folder|has cat/ beside train/"),
    ],
)
def test_a_folder_that_is_none_of_pictures_is_refused(spoil: Any, message: str, tmp_path: Path) -> None:
    write_pictures(tmp_path)
    spoil(tmp_path)
    with pytest.raises(TrainerError, match=message):
        load(tmp_path)


@pytest.mark.parametrize("part", ["train", "test"])
def test_classes_that_differ_between_the_parts_are_refused(part: str, tmp_path: Path) -> None:
    for each in PARTS:
        write_pictures(tmp_path / each)
    shutil.rmtree(tmp_path / part / "dog")
    with pytest.raises(TrainerError, match=r"'dog' is no class of the training files|test has 2 of 3 classes, not 'dog'"):
        load(tmp_path)


@pytest.mark.parametrize("part", ["train", "test"])
def test_folders_of_parts_by_other_names_are_not_taken_for_classes(part: str, tmp_path: Path) -> None:
    for each in ("training", "testing"):
        write_pictures(tmp_path / each)
    with pytest.raises(TrainerError, match=r"testing': holds the folder cat/.*train/, validation/ and test/"):
        load(tmp_path)


def test_a_file_name_may_be_of_any_bytes(tmp_path: Path) -> None:
    write_pictures(tmp_path)
    (tmp_path / "cat" / "0.png").rename(os.fsdecode(os.fsencode(tmp_path / "cat") + b"/caf\xe9.png"))
    assert load(tmp_path).record["sizes"] == {"train": 19, "validation": 5, "test": 6}
    (tmp_path / "cat").rename(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    with pytest.raises(TrainerError, match=r"class 'caf\\udce9': allowed are names in UTF-8"):
        load(tmp_path)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(TrainerError, match=r"image folder .*nothing' does not exist; expected is one folder per class"):
        load(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, r"size = 0: allowed are one number or \[height, width\], each from 1 to 4096"),
        ({"size": 100_000}, "size = 100000"),
        ({"size": [8]}, r"size = \[8\]"),
        ({"size": True}, "size = True"),
        ({"size": "8"}, "size = '8'"),
        ({"size": 8, "resize": 6}, "resize = 6: allowed is 8 and more"),
        ({"crop": "left"}, "crop = 'left': .*'center' or 'none'"),
        ({"interpolation": "best"}, "interpolation = 'best'"),
        ({"channels": 4}, "channels = 4"),
        ({"augment": "blur"}, "augment = 'blur': allowed are flip-and-shift, shift, random-resized-crop, none"),
        ({"colour": 1}, "has no option 'colour'; allowed are size, resize, crop, interpolation, augment, channels"),
    ],
)
def test_options_are_checked(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    write_pictures(tmp_path, per_class=5)
    with pytest.raises(TrainerError, match=message):
        load(tmp_path, **options)


def test_augmentation_is_an_option(tmp_path: Path) -> None:
    write_pictures(tmp_path)
    assert load(tmp_path, augment="none").augment is None
    batch = load(tmp_path).train.batch(torch.arange(6))
    changed = {}
    for name in ("flip-and-shift", "shift", "random-resized-crop"):
        augment = load(tmp_path, augment=name).augment
        assert augment is not None
        inputs, targets = augment(batch.inputs, batch.targets, torch.Generator().manual_seed(0))
        assert inputs["input"].shape == batch.inputs["input"].shape
        assert targets is batch.targets
        changed[name] = inputs["input"].numpy().tobytes()
    assert len({*changed.values(), batch.inputs["input"].numpy().tobytes()}) == 4
