"""`arrays:FILE.npz`: inputs, targets and splits by name, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from trainer import Samples, TrainerError
from trainer.data import DataSet, load_data

N = 60
VALUES = np.random.default_rng(0)
IMAGES = VALUES.integers(0, 256, (N, 3, 6, 5), dtype=np.uint8)
LABELS = np.arange(N) % 4


def load(path: Path, **arrays: Any) -> DataSet:
    np.savez(path / "data.npz", **arrays)
    return load_data(f"arrays:{path / 'data.npz'}")


def samples(data: DataSet) -> dict[str, Samples]:
    parts = {part: getattr(data, part) for part in ("train", "validation", "test")}
    assert all(isinstance(part, Samples) for part in parts.values())
    return parts


@pytest.mark.parametrize("prefix", ["arrays:", ""])
def test_pixels_and_labels(prefix: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", image=IMAGES, targets=LABELS)
    data = load_data(f"{prefix}{tmp_path / 'data.npz'}")
    assert (data.spec.input_shape, data.spec.classes, data.spec.outputs, data.spec.inputs) == ((3, 6, 5), 4, 4, {})
    assert data.spec.mean == pytest.approx((data.train.inputs["image"] / 255).mean(dim=(0, 2, 3)).tolist(), abs=1e-5)  # type: ignore[attr-defined]
    assert (
        {part: len(examples) for part, examples in samples(data).items()}
        == data.record["sizes"]
        == {"train": 39, "validation": 9, "test": 12}
    )
    assert set(data.record["split"].values()) == {"split by class"}
    place = {image.tobytes(): i for i, image in enumerate(IMAGES)}
    found = []
    for part in samples(data).values():
        batch = part.batch(torch.arange(len(part)))
        assert batch.inputs["image"].dtype == torch.float32
        indices = [place[(image * 255).round().to(torch.uint8).numpy().tobytes()] for image in batch.inputs["image"]]
        assert batch.targets.tolist() == LABELS[indices].tolist()  # type: ignore[union-attr]
        assert set(LABELS[indices]) == {0, 1, 2, 3}
        found += indices
    assert sorted(found) == list(range(N))


def test_several_inputs_and_targets_by_name(tmp_path: Path) -> None:
    left, right = VALUES.random((N, 4)), VALUES.integers(0, 7, (N, 2), dtype=np.uint32)
    data = load(tmp_path, left=left, right=right, **{"targets/price": left[:, 0], "targets/size": left[:, :2]})
    assert data.spec.inputs == {"left": (4,), "right": (2,)}
    assert (data.spec.classes, data.spec.target_shape, data.spec.outputs) == (0, (), 1)
    batch = data.train.batch(torch.arange(5))
    assert {name: tensor.dtype for name, tensor in batch.inputs.items()} == {"left": torch.float32, "right": torch.int64}
    assert isinstance(batch.targets, dict)
    assert torch.equal(batch.targets["price"], batch.inputs["left"][:, 0])
    assert torch.equal(batch.targets["size"], batch.inputs["left"][:, :2])
    assert set(data.record["split"].values()) == {"split at random"}
    assert sorted(torch.cat([s.inputs["left"][:, 0] for s in samples(data).values()]).tolist()) == sorted(
        left[:, 0].astype(np.float32).tolist()
    )


@pytest.mark.parametrize(
    "split",
    [
        np.arange(N) % 3,
        np.array(["train", "val", "test"])[np.arange(N) % 3],
        np.array([b"train", b"validation", b"test"])[np.arange(N) % 3],
    ],
)
def test_a_split_is_respected(split: NDArray[Any], tmp_path: Path) -> None:
    data = load(tmp_path, x=np.arange(N, dtype=np.float32)[:, None], targets=LABELS, split=split)
    for number, part in enumerate(samples(data).values()):
        assert part.inputs["x"][:, 0].tolist() == list(range(number, N, 3))
    assert set(data.record["split"].values()) == {"array split"}


def test_parts_that_a_split_does_not_name_are_split_off_the_training_part(tmp_path: Path) -> None:
    data = load(
        tmp_path, x=np.arange(N, dtype=np.float32)[:, None], targets=LABELS, split=np.repeat(["train", "test"], [40, 20])
    )
    parts = {name: part.inputs["x"][:, 0].tolist() for name, part in samples(data).items()}
    assert parts["test"] == list(range(40, 60))
    assert sorted(parts["train"] + parts["validation"]) == list(range(40))
    assert len(parts["validation"]) == 6


def test_token_ids_tell_the_vocabulary_and_segmentation_its_classes(tmp_path: Path) -> None:
    tokens = load(tmp_path, ids=np.array([[3, 9], [5, 0]] * 30), targets=LABELS)
    assert (tokens.spec.vocabulary, tokens.spec.mean, tokens.spec.input_shape) == (10, (), (2,))
    masks = VALUES.integers(-1, 3, (N, 6, 5)).astype(np.int16)
    data = load(tmp_path, image=IMAGES, targets=np.where(masks < 0, -100, masks))
    assert (data.spec.classes, data.spec.target_shape) == (3, (6, 5))
    both = load(tmp_path, x=VALUES.random((N, 2)), targets=VALUES.random((N, 5)) > 0.5)
    assert (both.spec.classes, both.spec.outputs) == (0, 5)


def test_the_record_notices_another_value(tmp_path: Path) -> None:
    first = load(tmp_path, x=VALUES.random((N, 2)).astype(np.float32), targets=LABELS)
    again = load_data(first.name)
    assert first.record == again.record == json.loads(json.dumps(first.record))
    with np.load(tmp_path / "data.npz") as stored:
        changed = dict(stored)
    changed["x"][17, 1] += 1
    assert load(tmp_path, **changed).record["content_sha256"] != first.record["content_sha256"]


class _Anything:
    pass


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": IMAGES}, r"holds 'x', no array 'targets' \(or targets/NAME for several\)"),
        ({"targets": LABELS}, "no input beside the targets"),
        ({}, "holds nothing, no array 'targets'"),
        ({"x": IMAGES, "targets": LABELS[:-1]}, "examples: x 60, targets 59; allowed is one length"),
        ({"x": IMAGES, "targets": LABELS, "split": LABELS[:5]}, "x 60, targets 60, split 5"),
        ({"x": IMAGES[:0], "targets": LABELS[:0]}, "x 0, targets 0; allowed is one length for all arrays, and not none"),
        ({"x": IMAGES, "targets": np.array([_Anything()] * N)}, "array 'targets' holds Python objects; allowed are numbers"),
        ({"x": np.array(["a"] * N), "targets": LABELS}, "array 'x': dtype <U1; allowed are real and whole numbers"),
        ({"x": IMAGES.astype(complex), "targets": LABELS}, "array 'x': dtype complex128"),
        ({"x": np.float64(3), "targets": LABELS}, "array 'x': is a single number"),
        (
            {"x": IMAGES, "targets": np.zeros((N, 0), int)},
            r"array 'targets': shape \(60, 0\), which is nothing of each example",
        ),
        ({"x": np.zeros((N, 3, 0, 4)), "targets": LABELS}, r"array 'x': shape \(60, 3, 0, 4\), .*; allowed are sizes from 1"),
        ({"x": IMAGES, "targets": LABELS, "targets/a": LABELS}, "allowed are targets or targets/NAME, not both"),
        ({"x": IMAGES.transpose(0, 2, 3, 1), "targets": LABELS}, r"pixels of shape \(6, 5, 3\) have their channels last"),
        ({"x": IMAGES, "targets": LABELS, "split": np.arange(N) % 4}, "array 'split': '3' at position 3; allowed are 0, 1, 2"),
        ({"x": IMAGES, "targets": LABELS, "split": np.array(["dev"] * N)}, "array 'split': 'dev' at position 0"),
        ({"x": IMAGES, "targets": LABELS, "split": LABELS / 2}, r"array 'split': shape \(60,\), dtype float64"),
        ({"x": IMAGES, "targets": LABELS, "split": np.ones(N, int)}, "array 'split': names no example for training"),
        (
            {"x": IMAGES, "targets": np.arange(N)},
            "60 examples cannot be split by class: class 0 has 1; allowed are 2 and more of every class",
        ),
        (
            {"x": IMAGES[:12], "targets": np.arange(12) % 4},
            "12 examples of 4 classes cannot be split; allowed are 22 examples and more",
        ),
    ],
)
def test_what_is_no_data_is_refused_in_one_line(arrays: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(TrainerError, match=message) as caught:
        load(tmp_path, **arrays)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read"),
        (b"no archive", "is no .npz file"),
        (b"PK\x03\x04" + bytes(50), "cannot be read"),
    ],
)
def test_a_damaged_file_is_named(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    path.write_bytes(content)
    with pytest.raises(TrainerError, match=f"^{re.escape(str(path))}: .*{message}"):
        load_data(f"arrays:{path}")
    with pytest.raises(TrainerError, match=r"nothing\.npz: there is no such file"):
        load_data(f"arrays:{tmp_path / 'nothing.npz'}")


def test_a_truncated_file_and_a_bare_array_are_named(tmp_path: Path) -> None:
    load(tmp_path, x=IMAGES, targets=LABELS)
    path = tmp_path / "data.npz"
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(TrainerError, match=r"data\.npz: cannot be read"):
        load_data(f"arrays:{path}")
    with path.open("wb") as file:
        np.save(file, IMAGES)
    with pytest.raises(TrainerError, match=r"data\.npz: holds one array without a name; allowed is \.npz"):
        load_data(f"arrays:{path}")
