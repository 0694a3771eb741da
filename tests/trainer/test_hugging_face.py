"""`hf`: what the columns of a Hugging Face data set become, whatever it is read from, and what is refused."""

from __future__ import annotations

import json
import shutil
from io import BytesIO
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from datasets import Array3D, ClassLabel, Dataset, DatasetDict, Features, Image, List, Value
from PIL import Image as Images
from tokenizers import Tokenizer

from exporter.bundle.preprocessing import ImagePreprocessing, read_image
from tests.helpers.pictures import shorten, write_pictures
from trainer import Samples, TrainerError
from trainer.data import DataSet, load_data
from trainer.data.loading import read
from trainer.data.tokens import MAX_TOKENS

NAMES = ("bread", "river", "star")


@pytest.fixture(autouse=True)
def _own_cache_and_no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()


def texts(rows: int = 60, first: int = 0, **more: Any) -> Dataset:
    """A document of its own in each row, its class in turn."""
    columns = {
        "text": [f"the {NAMES[i % 3]} of number{i}" for i in range(first, first + rows)],
        "label": [i % 3 for i in range(first, first + rows)],
        **more,
    }
    features = Features(
        {"text": Value("string"), "label": ClassLabel(names=list(NAMES)), **dict.fromkeys(more, Value("int64"))}
    )
    return Dataset.from_dict(columns, features=features)


def saved(table: Dataset | DatasetDict, folder: Path) -> str:
    table.save_to_disk(folder)
    return f"hf:{folder}"


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


# Pictures


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
        (by_worker,) = read(part, [torch.arange(len(part))], workers=1)
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


# What is refused


def test_what_is_not_at_hand_is_told_with_what_to_do(tmp_path: Path) -> None:
    for name in ("nobody/nothing_here", "nothing_here"):
        with pytest.raises(TrainerError) as refused:
            load_data(f"hf:{name}")
        assert "\n" not in str(refused.value)
        assert f"datasets.load_dataset('{name}').save_to_disk(FOLDER) fetches it: give it as hf:FOLDER" in str(refused.value)
        assert "the hub cannot be reached" in str(refused.value)
    with pytest.raises(TrainerError, match=f"there is no {tmp_path / 'nothing_here'}; allowed are a folder, a file, or a name"):
        load_data(f"hf:{tmp_path / 'nothing_here'}")
    (tmp_path / "table.xls").write_text("1")
    with pytest.raises(TrainerError, match=r"a file \.xls; allowed are \.parquet, \.csv"):
        load_data(f"hf:{tmp_path / 'table.xls'}")


def test_damaged_files_and_code_are_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "damaged.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(TrainerError, match=r"damaged\.parquet': Arrow\w+: [^\n]+$"):
        load_data(f"hf:{tmp_path / 'damaged.parquet'}")
    (tmp_path / "empty").mkdir()
    with pytest.raises(TrainerError, match=r"empty': EmptyDatasetError: [^\n]+$"):
        load_data(f"hf:{tmp_path / 'empty'}")
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    (tmp_path / "code" / "train.csv").write_text("text,label\na,0\n")
    with pytest.raises(TrainerError, match="scripts are no longer supported"):
        load_data(f"hf:{tmp_path / 'code'}")
    assert not (tmp_path / "ran").exists()
    place = saved(texts(), tmp_path / "texts")
    (tmp_path / "texts" / "state.json").write_text("{")
    with pytest.raises(TrainerError, match=r"texts': JSONDecodeError: [^\n]+$"):
        load_data(place)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train": "training"}, "train = 'training': allowed are its splits train, test"),
        ({"test": "test", "train": "test"}, "allowed is each split once"),
        ({"test": "train"}, "has splits train, test; say which is for training, such as train=test"),
        ({"config": "small"}, "config = 'small': allowed for a name on the hub"),
        ({"label": "stars"}, "label = 'stars': allowed are its columns text, label, id"),
        ({"text": "id"}, "text = 'id': 'id' holds int64; allowed are texts"),
        ({"text": "title"}, "text = 'title': 'title' is none of its columns text, label, id"),
        ({"input": "label"}, "input = 'label': 'label' is the label; allowed are other columns"),
        ({"text": "text", "image": "text"}, "image and text given; allowed is one of image, text and input"),
        ({"size": 32}, "has no option 'size'; allowed are config, train, .*, max_tokens, vocabulary, lowercase"),
        ({"max_tokens": 0}, "max_tokens = 0: allowed are whole numbers from 1"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    place = saved(DatasetDict({"train": texts(id=range(60)), "test": texts(9, id=range(9))}), tmp_path / "texts")
    with pytest.raises(TrainerError, match=message):
        load_data(place, options)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"text": ["a"] * 30}, r"which column is the label\? Say label=COLUMN; it has text \(string\)"),
        ({"text": ["a"] * 30, "title": ["b"] * 30}, "texts in text, title; say which: text=text"),
        ({"text": ["a"] * 30, "price": [0.5] * 30}, r"texts in text, numbers in price; say text=text or input=\[\"price\"\]"),
        ({}, "no column of pictures, texts or numbers beside 'label': none"),
        ({"at": [{"x": 1}] * 30}, "no column of pictures, texts or numbers beside 'label': at"),
        ({"text": [None] + ["a"] * 29}, r"column 'text' has no text in row 0 \(1 rows\)"),
        ({"x": [[1.0]] * 30, "y": [1.0] * 30}, "column 'y' holds single numbers, others arrays; .* input=x"),
    ],
)
def test_columns_that_are_not_clear_are_refused(columns: dict[str, Any], message: str, tmp_path: Path) -> None:
    labels = {} if list(columns) == ["text"] and None not in columns["text"] else {"label": [0, 1, 2] * 10}
    with pytest.raises(TrainerError, match=message):
        load_data(saved(Dataset.from_dict({**columns, **labels}), tmp_path / "table"))


def test_splits_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    other = texts(9).cast_column("label", ClassLabel(names=["star", "bread", "river"]))
    with pytest.raises(TrainerError, match="its splits differ: "):
        load_data(saved(DatasetDict({"train": texts(), "test": other}), tmp_path / "names"))
    named = [Dataset.from_dict({"text": ["x"] * 20, "label": ["a", b] * 10}) for b in ("b", "c")]
    with pytest.raises(TrainerError, match="column 'label' has 'c' in row 21, which no training row has"):
        load_data(saved(DatasetDict({"train": named[0], "test": named[1]}), tmp_path / "values"))
    with pytest.raises(TrainerError, match="has splits a, b; say which is for training, such as train=a"):
        load_data(saved(DatasetDict({"a": texts(), "b": texts()}), tmp_path / "unnamed"))


def test_the_record_is_json(tmp_path: Path) -> None:
    record = load_data(saved(texts(), tmp_path / "texts"), {"max_tokens": MAX_TOKENS}).record
    assert json.loads(json.dumps(record)) == record
