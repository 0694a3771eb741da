"""`hf`: what the columns of a Hugging Face data set become, whatever it is read from, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Array3D, ClassLabel, Dataset, DatasetDict, Features, List, Value
from tokenizers import Tokenizer

from tests.helpers.tables import NAMES, saved, texts
from trainer import Samples, TrainerError
from trainer.data import DataSet, load_data
from trainer.data.tokens import MAX_TOKENS

pytestmark = pytest.mark.usefixtures("no_hub")


def words_of(data: DataSet, part: Any) -> list[str]:
    tokenizer = Tokenizer.from_str(data.files["tokenizer.json"].decode())
    return [tokenizer.decode(ids) for ids in part.batch(torch.arange(len(part))).inputs["input"].tolist()]


# Texts


def test_texts_become_token_ids_as_those_of_a_folder_do(tmp_path: Path) -> None:
    data = load_data(saved(texts(first=100), tmp_path / "texts"), {"max_tokens": 12})
    assert (data.labels, data.spec.classes, data.spec.input_shape) == (NAMES, 3, (12,))
    assert data.preprocessing == {"input": {"kind": "text", "tokenizer": "tokenizer.json", "max_tokens": 12}}
    assert data.record["sizes"] == {"train": 39, "validation": 9, "test": 12}
    assert data.record["split"] == {
        "train": "split train",
        **dict.fromkeys(("validation", "test"), "split off, by class"),
    }
    assert data.record["columns"] == {"inputs": ["text"], "label": "label"}
    whole = set()
    for part in (data.train, data.validation, data.test):
        documents, batch = words_of(data, part), part.batch(torch.arange(len(part)))
        assert all(NAMES[label] in words for words, label in zip(documents, batch.targets.tolist(), strict=True))
        assert [int((batch.targets == label).sum()) for label in range(3)] == [len(part) // 3] * 3
        whole |= set(documents)
    assert len(whole) == 60
    # Nothing was learned from the words of the other parts.
    vocabulary = Tokenizer.from_str(data.files["tokenizer.json"].decode()).get_vocab()
    assert {f"number{i}" for i in range(100, 160)} & set(vocabulary) == {w.split()[-1] for w in words_of(data, data.train)}


def test_a_data_set_is_the_same_whatever_it_is_read_from(tmp_path: Path) -> None:
    table = texts()
    (tmp_path / "folder").mkdir()
    table.to_parquet(tmp_path / "folder" / "train.parquet")
    table.to_parquet(tmp_path / "one.parquet")
    table.to_csv(tmp_path / "one.csv")
    table.to_json(tmp_path / "one.jsonl")
    first = load_data(saved(table, tmp_path / "texts")).record
    places = [
        f"hf:{tmp_path / 'folder'}",
        f"hf:{tmp_path / 'one.parquet'}",
        str(tmp_path / "one.parquet"),
        str(tmp_path / "texts"),
    ]
    for place in [saved(DatasetDict({"train": table}), tmp_path / "dict"), *places]:
        assert {**load_data(place).record, "name": ""} == {**first, "name": ""}
    for suffix in ("csv", "jsonl"):  # the names of the classes are lost there
        data = load_data(f"hf:{tmp_path / f'one.{suffix}'}")
        assert (data.labels, data.spec.classes) == ((), 3)
        assert data.record["content_sha256"] == first["content_sha256"]


def test_a_touched_copy_is_the_same_data_set(tmp_path: Path) -> None:
    """Its content is hashed: the fingerprints of `datasets` follow the times of files."""
    texts().to_parquet(tmp_path / "one.parquet")
    first = load_data(str(tmp_path / "one.parquet")).record
    content = (tmp_path / "one.parquet").read_bytes()
    (tmp_path / "one.parquet").unlink()
    (tmp_path / "one.parquet").write_bytes(content)
    shutil.rmtree(tmp_path / "cache")
    assert load_data(str(tmp_path / "one.parquet")).record == first


def test_its_own_splits_are_the_parts(tmp_path: Path) -> None:
    own = DatasetDict({"train": texts(30), "val": texts(20, first=30), "test": texts(6, first=50)})
    data = load_data(saved(own, tmp_path / "texts"))
    assert [len(part) for part in (data.train, data.validation, data.test)] == [30, 20, 6]
    assert data.record["split"] == {"train": "split train", "validation": "split val", "test": "split test"}
    assert len(set(words_of(data, data.test)) - set(words_of(data, data.train))) == 6
    data = load_data(saved(own, tmp_path / "texts"), {"train": "val", "test": "train"})
    assert data.record["sizes"] == {"train": 17, "validation": 3, "test": 30}
    assert data.record["split"] == {"train": "split val", "validation": "split off, by class", "test": "split train"}


def test_a_split_without_labels_is_no_part(tmp_path: Path) -> None:
    """As the test splits of competitions are: a class of -1 in every row."""
    hidden = texts(10, first=60).remove_columns("label").add_column("label", [-1] * 10).cast(texts().features)
    place = saved(DatasetDict({"train": texts(), "test": hidden}), tmp_path / "texts")
    data = load_data(place)
    assert data.record["sizes"] == {"train": 39, "validation": 9, "test": 12}
    assert data.record["split"]["test"] == "split off, by class"
    with pytest.raises(TrainerError, match=r"column 'label' has no label in row 60 \(10 of 70 rows\)"):
        load_data(place, {"test": "test"})


def test_a_format_that_was_saved_with_the_data_changes_nothing(tmp_path: Path) -> None:
    plain = load_data(saved(texts(), tmp_path / "plain")).record
    formatted = load_data(saved(texts().with_format("torch"), tmp_path / "torch")).record
    assert {**formatted, "name": ""} == {**plain, "name": ""}


# Targets


@pytest.mark.parametrize(
    ("labels", "names", "classes"),
    [
        (["low", "high"] * 20, ("high", "low"), 2),
        ([5, 1, 3, 1] * 10, ("1", "3", "5"), 3),
        ([0, 1, 2, 3] * 10, (), 4),
        ([True, False] * 20, (), 2),
    ],
)
def test_values_become_classes_in_ascending_order(
    labels: list[Any], names: tuple[str, ...], classes: int, tmp_path: Path
) -> None:
    table = Dataset.from_dict({"text": [f"{value} x" for value in labels], "stars": labels})
    data = load_data(saved(table, tmp_path / "stars"), {"label": "stars"})
    assert (data.labels, data.spec.classes) == (names, classes)
    for words, label in zip(words_of(data, data.test), data.test.batch(torch.arange(8)).targets.tolist(), strict=True):
        assert words.split()[0] == (names[label] if names else str(sorted(set(labels))[label]).lower())


def test_real_numbers_are_targets_of_a_regression(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random((50, 5))
    table = Dataset.from_dict({**{f"x{i}": values[:, i] for i in range(3)}, "target": values[:, 3]})
    data = load_data(saved(table, tmp_path / "one"))
    assert (data.spec.classes, data.spec.outputs, data.spec.input_shape) == (0, 1, (3,))
    assert data.record["split"]["test"] == "split off, at random"
    rows = {tuple(row[:3]): row[3] for row in values.astype(np.float32).tolist()}
    batch = data.train.batch(torch.arange(len(data.train)))
    assert {
        tuple(x): y for x, y in zip(batch.inputs["input"].tolist(), batch.targets.tolist(), strict=True)
    }.items() <= rows.items()
    table = Dataset.from_dict({"x": values[:, :3], "y": values[:, 3:]})
    data = load_data(saved(table, tmp_path / "two"), {"label": "y"})
    assert (data.spec.classes, data.spec.target_shape) == (0, (2,))
    assert data.train.batch(torch.arange(4)).targets.shape == (4, 2)


# Numbers


def test_arrays_become_inputs_of_their_names(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 3, 6, 5), dtype=np.uint8)
    features = Features({"pixels": Array3D((3, 6, 5), "uint8"), "extra": List(Value("float64")), "label": ClassLabel(2)})
    columns = {"pixels": pixels, "extra": np.arange(80.0).reshape(40, 2), "label": [0, 1] * 20}
    place = saved(Dataset.from_dict(columns, features=features), tmp_path / "arrays")
    data = load_data(place)
    assert dict(data.spec.inputs) == {"pixels": (3, 6, 5), "extra": (2,)}
    assert isinstance(data.train, Samples)
    assert (data.train.inputs["pixels"].dtype, data.train.inputs["extra"].dtype) == (torch.uint8, torch.float32)
    data = load_data(place, {"input": "pixels"})
    assert (data.spec.input_shape, len(data.spec.mean), dict(data.spec.inputs)) == ((3, 6, 5), 3, {})
    found = data.test.batch(torch.arange(8)).inputs["input"]
    assert found.max() <= 1
    assert all(any(np.allclose(picture * 255, one) for one in pixels) for picture in found.numpy())
    with pytest.raises(
        TrainerError, match=r"column 'extra', .*|data 'hf:.*': input = \['extra', 'size'\]: 'size' is none of its"
    ):
        load_data(place, {"input": ["extra", "size"]})


def test_single_numbers_are_laid_side_by_side(tmp_path: Path) -> None:
    columns = {"height": list(range(30)), "on": [i % 2 == 0 for i in range(30)], "label": [0, 1, 2] * 10}
    data = load_data(saved(Dataset.from_dict(columns), tmp_path / "table"))
    assert data.record["columns"] == {"inputs": ["height", "on"], "label": "label"}
    rows = data.train.batch(torch.arange(len(data.train)))
    assert rows.inputs["input"].dtype == torch.float32
    for (height, on), label in zip(rows.inputs["input"].tolist(), rows.targets.tolist(), strict=True):
        assert (on, label) == (height % 2 == 0, height % 3)


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ([[1.0]] * 20 + [[1.0, 2.0]] * 10, r"column 'x' has shape \(2,\) in row 20, \(1,\) in row 0; allowed is one shape"),
        ([1.0] * 7 + [None] + [1.0] * 22, "column 'x' has no number in row 7"),
        ([[1.0, 2.0]] * 9 + [[1.0, None]] + [[1.0, 2.0]] * 20, "column 'x' has no number in row 9"),
        ([1.0] * 29 + [float("nan")], "column 'x' has no number in row 29"),
    ],
)
def test_numbers_with_gaps_and_of_several_shapes_are_refused(column: list[Any], message: str, tmp_path: Path) -> None:
    table = Dataset.from_dict({"x": column, "label": [0, 1, 2] * 10})
    with pytest.raises(TrainerError, match=message):
        load_data(saved(table, tmp_path / "table"))


def test_the_record_is_json(tmp_path: Path) -> None:
    record = load_data(saved(texts(), tmp_path / "texts"), {"max_tokens": MAX_TOKENS}).record
    assert json.loads(json.dumps(record)) == record
