"""`csv:` and `jsonl:`: which columns are what, what labels become, and the line of what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.helpers.texts import write_checkpoint
from trainer import TrainerError
from trainer.data import DataSet, load_data


@pytest.fixture
def tokenizer(tmp_path: Path) -> dict[str, Any]:
    return {"tokenizer": str(write_checkpoint(tmp_path / "checkpoint"))}


def jsonl(folder: Path, rows: list[Any], name: str = "rows") -> str:
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return f"jsonl:{folder / name}.jsonl"


def comma(folder: Path, text: str, suffix: str = "csv") -> str:
    (folder / f"rows.{suffix}").write_text(text, encoding="utf-8")
    return f"csv:{folder / 'rows'}.{suffix}"


def targets(data: DataSet) -> np.ndarray[Any, Any]:
    return np.concatenate([part.batch(torch.arange(len(part))).targets for part in (data.train, data.validation, data.test)])  # type: ignore[arg-type]


@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_a_cell_may_hold_anything(suffix: str, tmp_path: Path, tokenizer: dict[str, Any]) -> None:
    """Quotes, line ends, separators, a byte order mark, a line separator of Unicode, a text longer than the library's limit."""
    sign = {"csv": ",", "tsv": "\t"}[suffix]
    rows = [
        f'"the, ""a""\tof\nand {"bread " * (30_000 if i == 7 else 1)}\u2028a\x85b"{sign}{"xy"[i % 2]}\r\n' for i in range(20)
    ]
    data = load_data(
        comma(tmp_path, f"\ufeffheadline{sign}label\r\n{''.join(rows)}", suffix), {"text": "headline", **tokenizer}
    )
    assert data.record["columns"] == {"text": "headline", "label": "label"}
    assert sorted(targets(data).tolist()) == [0] * 10 + [1] * 10
    assert sum(data.record["truncated"].values()) == 1


@pytest.mark.parametrize(
    ("labels", "classes", "names", "wanted"),
    [
        (["no", "yes"], 2, ("no", "yes"), {0, 1}),
        ([0, 1], 2, (), {0, 1}),
        ([3, 5], 2, ("3", "5"), {0, 1}),
        ([False, True], 2, ("False", "True"), {0, 1}),
        ([0.5, 2], 0, (), {0.5, 2.0}),
    ],
)
@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_what_labels_become(
    kind: str,
    labels: list[Any],
    classes: int,
    names: tuple[str, ...],
    wanted: set[Any],
    tmp_path: Path,
    tokenizer: dict[str, Any],
) -> None:
    rows = [{"text": "bread", "label": labels[i % 2]} for i in range(20)]
    if kind == "csv":
        given = comma(tmp_path, "text,label\n" + "".join(f"{row['text']},{row['label']}\n" for row in rows))
    else:
        given = jsonl(tmp_path, rows)
    data = load_data(given, tokenizer)
    assert (data.spec.classes, data.labels) == (classes, names)
    assert set(targets(data).tolist()) == wanted
    assert data.record["split"]["test"] == ("split off, by class" if classes else "split off, at random")


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["1_1", "11", "1_2"], ("11", "1_1", "1_2")),
        (["007", "7", "042"], ("007", "042", "7")),
        (["\u0663", "3"], ("3", "\u0663")),
        (["1.5", "1_0"], ("1.5", "1_0")),
        (["-1", "+1"], ("-1", "1")),
    ],
)
def test_names_that_only_look_like_numbers_stay_as_they_are(
    labels: list[str], names: tuple[str, ...], tmp_path: Path, tokenizer: dict[str, Any]
) -> None:
    text = "text,label\n" + "".join(f"bread,{labels[i % len(labels)]}\n" for i in range(30))
    assert load_data(comma(tmp_path, text), tokenizer).labels == names


def test_tags_that_only_look_like_numbers_stay_as_they_are(tmp_path: Path, tokenizer: dict[str, Any]) -> None:
    text = "tokens,tags\n" + "".join(f"the bread,{'1_1 11' if i % 2 else '007 7'}\n" for i in range(20))
    assert load_data(comma(tmp_path, text), tokenizer).labels == ("007", "11", "1_1", "7")


def test_a_vector_is_a_target(tmp_path: Path, tokenizer: dict[str, Any]) -> None:
    data = load_data(jsonl(tmp_path, [{"text": "bread", "label": [0.25, i]} for i in range(20)]), tokenizer)
    assert (data.spec.classes, data.spec.target_shape) == (0, (2,))
    assert (targets(data)[:, 0] == 0.25).all()


def test_parts_of_their_own(tmp_path: Path, tokenizer: dict[str, Any]) -> None:
    parts = {"train": 12, "val": 4, "test": 6}
    paths = {p: jsonl(tmp_path, [{"text": p, "label": i % 2} for i in range(n)], p).partition(":")[2] for p, n in parts.items()}
    given = {"validation": paths["val"], "test": paths["test"], **tokenizer}
    data = load_data(f"jsonl:{paths['train']}", given)
    assert data.record["sizes"] == {"train": 12, "validation": 4, "test": 6}
    assert data.record["split"]["test"] == paths["test"]
    here = {"validation": "val.jsonl", "test": "test.jsonl", "tokenizer": "checkpoint"}  # where a run was begun
    again = load_data("jsonl:train.jsonl", here, tmp_path)
    assert again.record["content_sha256"] == data.record["content_sha256"]
    assert again.record["options"] == here
    (tmp_path / "val.jsonl").write_text(json.dumps({"text": "a", "label": 7}) + "\n")
    with pytest.raises(TrainerError, match=r"val\.jsonl, line 1: 'label' is 7, which no training row has"):
        load_data(f"jsonl:{paths['train']}", given)


GOOD = [{"text": "bread", "label": i % 2} for i in range(20)]
TAGGED = [{"tokens": ["a", "b"], "tags": ["O", "B"]} for _ in range(20)]


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([*GOOD, {"text": "a"}], {}, "line 21: no 'label'; allowed is a value for it in every row"),
        ([{"text": "a"}, *GOOD], {}, "line 1: no 'label'; allowed is a value for it in every row"),
        ([*GOOD, {"text": "a", "label": None}], {}, "line 21: no 'label'"),
        ([*GOOD, {"text": 5, "label": 1}], {}, "line 21: 'text' holds a int; allowed are texts"),
        ([*GOOD, {"text": "a", "label": "1"}], {}, "line 21: 'label' holds a str, .*line 1 a int; allowed are names, numbers"),
        ([*GOOD, {"text": "a", "label": [1]}], {}, "line 21: 'label' holds a list"),
        ([*GOOD, [1]], {}, "line 21: is a list; allowed is an object with named columns"),
        ([{"text": "a", "label": [1, 2]}, {"text": "a", "label": [1]}], {}, r"line 2: 'label' is \[1\]; allowed are 2 numbers"),
        ([{"text": "a", "label": 1.0}, {"text": "a", "label": float("nan")}], {}, "line 2: 'label' is nan; allowed are finite"),
        (
            [{"text": "a", "label": 1.5}, {"text": "a", "label": 10**400}],
            {},
            "line 2: 'label' is 10+; allowed are numbers in fl",
        ),
        (
            [{"text": "a", "label": [1]}, {"text": "a", "label": [10**30]}],
            {},
            r"line 2: 'label' is \[10+\]; .* numbers in int64",
        ),
        ([], {}, "holds no row"),
        (GOOD, {"text": "body"}, r"text = 'body': .*rows\.jsonl has columns 'text', 'label'"),
        (GOOD, {"text_pair": "text"}, "columns: 'text', 'text', 'label'; allowed is each for one thing"),
        (GOOD, {"tokens": "text"}, "tags: which column\\? Say tags=COLUMN"),
        (GOOD, {"tokens": "text", "tags": "label"}, "line 1: tokens are 'bread'; allowed is a list of words"),
        ([{"headline": "a"}] * 9, {}, r"text: which column\? Say text=COLUMN; .* has 'headline'"),
        (TAGGED, {"text": "tags", "tokens": "tokens"}, "text = 'tags': allowed are texts, or tokens with tags, not both"),
        ([*TAGGED, {"tokens": ["a"], "tags": []}], {}, "line 21: 1 tokens with 0 tags; allowed is one tag for each token"),
        ([*TAGGED, {"tokens": [], "tags": []}], {}, "line 21: no tokens"),
        ([*TAGGED, {"tokens": [1], "tags": ["O"]}], {}, "line 21: tokens hold 1; allowed is a list of words"),
        ([*TAGGED, {"tokens": ["a"], "tags": [2]}], {}, "tags are numbers here and names there"),
        ([{"tokens": ["a"], "tags": [-1]}], {}, "line 1: tag -1, which no training row has"),
    ],
)
def test_bad_rows_are_named_by_their_line(
    rows: list[Any], options: dict[str, Any], message: str, tmp_path: Path, tokenizer: dict[str, Any]
) -> None:
    with pytest.raises(TrainerError, match=message):
        load_data(jsonl(tmp_path, rows), {**tokenizer, **options})


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ('text,label\n"a\nb",x\nc\n', {}, "line 4: 1 values; allowed is one for each of 2 columns"),
        ('text,label\na,x\n"b,y\n', {}, "is no CSV"),
        ("text,text\na,x\n", {}, "columns 'text', 'text'; allowed are names of their own"),
        ("text,label\na,x\nb,\n", {}, "line 3: no 'label'"),
        ("text,label\n", {}, "holds no row"),
        ("text;label\na;x\n", {}, "text: which column"),
        ("text;label\na;x\n", {"delimiter": ";;"}, "delimiter = ';;': allowed is one character"),
        ("tokens,tags\n['a'],O\n", {}, "line 2: 'tokens' begins with \\[ and is no JSON list"),
        ("text,label\na\0,x\n", {}, "is no text"),
    ],
)
def test_bad_csv_is_named_by_its_line(
    content: str, options: dict[str, Any], message: str, tmp_path: Path, tokenizer: dict[str, Any]
) -> None:
    with pytest.raises(TrainerError, match=message):
        load_data(comma(tmp_path, content), {**tokenizer, **options})


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "a", "label": 1}\n\n{"text": "a"\n')
    with pytest.raises(TrainerError, match=r"rows\.jsonl, line 3: is no JSON"):
        load_data(f"jsonl:{tmp_path / 'rows.jsonl'}")


def test_bytes_that_are_no_utf_8_are_replaced(tmp_path: Path, tokenizer: dict[str, Any]) -> None:
    (tmp_path / "rows.csv").write_bytes(b"text,label\n" + b"bread caf\xe9,x\nrivers,y\n" * 10)
    assert load_data(f"csv:{tmp_path / 'rows.csv'}", tokenizer).spec.classes == 2
