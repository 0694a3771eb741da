"""`hf`: what is refused of a Hugging Face data set, in one line each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value

from tests.helpers.tables import saved, texts
from trainer import TrainerError
from trainer.data import load_data

pytestmark = pytest.mark.usefixtures("no_hub")


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
        (
            {"text": ["a"] * 30, "title": ["b"] * 30},
            "texts in text, title; say which: text=text, or for pairs text=text and text_pair=title",
        ),
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


def test_lists_of_nothing_are_refused(tmp_path: Path) -> None:
    features = Features({"x": List(Value("float32")), "label": List(Value("int64"))})
    table = Dataset.from_dict({"x": [[0.5]] * 20, "label": [[]] * 20}, features=features)
    with pytest.raises(TrainerError, match=r"column 'label' has shape \(0,\) in row 0; allowed are numbers in every row"):
        load_data(saved(table, tmp_path / "rows"))
