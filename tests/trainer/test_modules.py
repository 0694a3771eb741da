"""`module:function`: data sets of a user's own, and where his code went wrong."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import torch

from trainer import NestedModel, TrainerError, fit
from trainer.data import DataSet, load_data
from trainer.data.loading import Asked, batches_of, read
from trainer.families import ResNet

BEGINNING = """
    import numpy as np
    import torch
    from torch.utils.data import Dataset, TensorDataset

    class Pictures(Dataset):
        def __init__(self, count, item=None):
            self.count, self.item = count, item

        def __len__(self):
            return self.count

        def __getitem__(self, index):
            if self.item is not None:
                return self.item(index)
            values = np.random.default_rng(index)
            return values.integers(0, 256, (3, 8, 8), dtype=np.uint8), index % 4

    def parts(item=None):
        return Pictures(32, item), Pictures(8, item), Pictures(12, item)
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Writes a module `own_data` and loads `own_data:data` with options; line 1 is the first of the given ones."""
    monkeypatch.chdir(tmp_path)

    def loaded(code: str, **options: Any) -> DataSet:
        (tmp_path / "own_data.py").write_text(f"{dedent(code)}\n{dedent(BEGINNING)}")
        sys.modules.pop("own_data", None)
        return load_data("own_data:data", options)

    yield loaded
    sys.modules.pop("own_data", None)
    sys.path[:] = [path for path in sys.path if path != str(tmp_path)]


def test_three_datasets(module: Any) -> None:
    data = module("def data(): return parts()")
    assert [len(part) for part in (data.train, data.validation, data.test)] == [32, 8, 12]
    assert (data.spec.input_shape, data.spec.classes, len(data.spec.mean)) == ((3, 8, 8), 4, 3)
    inputs, targets = data.train.batch(torch.tensor([5, 2]))
    assert (inputs["input"].dtype, targets.tolist()) == (torch.float32, [1, 2])
    assert 0 <= inputs["input"].min() < 0.1 < 0.9 < inputs["input"].max() <= 1
    assert data.record["sizes"] == {"train": 32, "validation": 8, "test": 12}
    assert module("def data(): return parts()").record == data.record == json.loads(json.dumps(data.record))
    assert "content_sha256" not in data.record  # not all of it is read: an export goes by what the run recorded


def test_a_dict_with_labels_augmentation_and_options(module: Any) -> None:
    data = module(
        """
        def data(count=3, noise=0.0):
            parts = {name: Pictures(count) for name in ("train", "validation", "test")}
            return {**parts, "labels": ["a", "b", "c", "d"], "augment": lambda inputs, targets, generator: (
                {"input": inputs["input"] + noise}, targets)}
        """,
        count=7,
        noise=2.0,
    )
    assert (data.labels, data.spec.classes, len(data.test)) == (("a", "b", "c", "d"), 4, 7)
    batch = data.train.batch(torch.arange(2))
    changed, _ = data.augment(batch.inputs, batch.targets, torch.Generator())
    assert torch.equal(changed["input"], batch.inputs["input"] + 2)
    assert data.record["options"] == {"count": 7, "noise": 2.0}
    assert load_data(data.record["name"], data.record["options"]).record == data.record


@pytest.mark.parametrize("name", ["targets", "labels", "label"])
def test_items_by_name(name: str, module: Any) -> None:
    data = module(
        f"""
        def data():
            return parts(lambda index: {{"ids": np.arange(5) + index, "mask": np.ones(5, bool), "{name}": [index / 2, 1.0]}})
        """
    )
    assert (data.spec.inputs, data.spec.classes) == ({"ids": (5,), "mask": (5,)}, 0)
    batch = data.train.batch(torch.tensor([4]))
    assert {key: tensor.tolist() for key, tensor in batch.inputs.items()} == {"ids": [[4, 5, 6, 7, 8]], "mask": [[True] * 5]}


def test_a_dataset_that_reads_files_is_read_by_workers(module: Any) -> None:
    """And one that knows its classes, as torchvision's do, need not be gone through."""
    data = module(
        """
        def data():
            Pictures.reads_files, Pictures.classes = True, ["zero", "one", "two", "three"]
            in_worker = lambda: torch.utils.data.get_worker_info() is not None
            Pictures.__getitem__ = lambda self, index: (torch.full((1, 2, 2), in_worker()), index % 4)
            return parts()
        """
    )
    assert data.labels == ("zero", "one", "two", "three")
    assert all(bool(batch.inputs["input"].all()) for batch in batches_of(data.train, 4))
    assert not any(bool(batch.inputs["input"].any()) for batch in batches_of(data.train, 4, workers=0))


def test_classes_of_a_large_set_are_asked_for_or_known(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.data.modules.SCANNED_EXAMPLES", 20)
    with pytest.raises(TrainerError, match="32 examples are not read to count the classes; return a dict with 'labels'"):
        module("def data(): return parts()")
    data = module(
        """
        def data():
            Pictures.targets = property(lambda self: [index % 9 for index in range(self.count)])
            return parts()
        """
    )
    assert data.spec.classes == 9


def test_hugging_face_data_sets_are_read_row_by_row(module: Any) -> None:
    data = module(
        """
        def data():
            from datasets import Dataset
            rows = {"x": [[0.5, float(i)] for i in range(12)], "label": [i % 3 for i in range(12)]}
            return tuple(Dataset.from_dict(rows) for _ in range(3))
        """
    )
    assert (data.spec.input_shape, data.spec.classes) == ((2,), 3)
    batch = data.test.batch(torch.tensor([4, 5]))
    assert torch.equal(batch.inputs["x"], torch.tensor([[0.5, 4], [0.5, 5]]))
    assert torch.equal(batch.targets, torch.tensor([1, 2]))


@pytest.mark.parametrize(
    "targets",
    ["{'start': torch.arange(32) % 4, 'end': torch.zeros(32)}", "['cat', 'dog'] * 16", "{'cat': 0, 'dog': 1}", "[7]"],
)
def test_what_else_a_dataset_calls_targets_is_not_asked(targets: str, module: Any) -> None:
    assert module(f"def data():\n    Pictures.targets = property(lambda self: {targets})\n    return parts()").spec.classes == 4


def test_samples_may_have_several_targets(module: Any) -> None:
    data = module(
        """
        def data():
            from trainer import Samples
            targets = {"start": torch.arange(12) % 5, "end": torch.arange(12)}
            return tuple(Samples(torch.zeros(12, 2), targets) for _ in range(3))
        """
    )
    assert data.spec.classes == 5


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("data = 3", "is a int; allowed is a function that returns datasets"),
        ("def data(): return 3", r"returns a int; allowed is \(train, validation, test\) or a dict"),
        ("def data(): return parts()[:2]", "returns a tuple of 2; allowed"),
        (
            "def data(): return {'train': Pictures(3)}",
            "returns a dict without 'validation'; train, validation, test are needed",
        ),
        (
            "def data(): return {**dict(zip(('train', 'validation', 'test'), parts())), 'trian': 1}",
            "returns a dict with an unknown 'trian'; .* labels and augment allowed",
        ),
        ("def data(): return iter([1]), Pictures(3), Pictures(3)", "data of type list_iterator: allowed are"),
        ("def data(): return Pictures(3), Pictures(1), Pictures(3)", "validation has 1 examples; allowed are 2 and more"),
        (
            "def data(): return {**dict(zip(('train', 'validation', 'test'), parts())), 'labels': 'ab'}",
            "labels = 'ab'; allowed is a list of the classes' names",
        ),
        (
            "def data(): return {**dict(zip(('train', 'validation', 'test'), parts())), 'augment': 'ab'}",
            "augment is a str; allowed is a function",
        ),
        ("def data(): return parts(lambda index: index)", r"an item is a int; allowed are pairs \(inputs, targets\)"),
        ("def data(): return parts(lambda index: {'x': 1})", "an item has 'x'; allowed are inputs and one of"),
        ("def data(): return parts(lambda index: (torch.zeros(index), 1))", "cannot be put in one batch: .*equal size"),
        (
            "def data(): return parts(lambda index: ('text', 1))",
            "inputs are no numbers, or nested; allowed are an array or arrays",
        ),
        (
            "class Own:\n    def __len__(self): return 2\n    def batch(self, indices): return 1 / 0\n"
            "def data(): return Own(), Own(), Own()",
            r"data 'own_data:data': ZeroDivisionError: .*\(in Own\.batch, .*own_data\.py, line 3\)",
        ),
        ("def date(): pass", "own_data has no data"),
        ("def data(): return parts()\nimport nothing_of_that_name", "No module named 'nothing_of_that_name'"),
    ],
)
def test_what_is_no_data_is_refused(code: str, message: str, module: Any) -> None:
    with pytest.raises(TrainerError, match=message):
        module(code)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def data():\n    return 1 / 0", r"ZeroDivisionError: division by zero \(in data, .*own_data.py, line 2\)"),
        (
            "def data():\n    return parts(item)\ndef item(index):\n    return [][0]",
            r"item 0: IndexError.*\(in item, .*own_data.py, line 4\)",
        ),
        (
            "def data():\n    Pictures.__len__ = length\n    return parts()\ndef length(self):\n    return 1 / 0",
            r"in length, .*, line 5\)",
        ),
        ("1 / 0\ndef data(): pass", r"ZeroDivisionError: .*own_data.py, line 1\)"),
    ],
)
def test_an_exception_of_the_users_code_is_told_with_its_place(code: str, message: str, module: Any) -> None:
    with pytest.raises(TrainerError, match=message):
        module(code)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_exception_in_the_middle_of_an_epoch_is_told_with_its_place(workers: int, module: Any) -> None:
    data = module(
        """
        def item(index):
            if index == 23 and torch.initial_seed() >= 0 and armed:
                raise OSError("no such picture")
            return torch.rand(1, 8, 8), index % 4

        armed = False

        def data():
            return parts(item)
        """
    )
    nested = NestedModel(ResNet.for_data(data.spec, channels=[4], blocks=[1], widths=[1.0], multiple=4))
    sys.modules["own_data"].armed = True  # type: ignore[attr-defined]
    with pytest.raises(TrainerError, match=r"data, item 23: OSError: no such picture \(in item, .*own_data.py, line 4\)"):
        fit(nested, data.train, epochs=1, batch_size=8, workers=workers, show_progress=False)


def test_an_exception_of_an_augmentation_is_told_with_its_place(module: Any) -> None:
    data = module(
        """
        def wrong(inputs, targets, generator):
            return inputs["picture"], targets

        def data():
            return {**dict(zip(("train", "validation", "test"), parts())), "augment": wrong}
        """
    )
    with pytest.raises(TrainerError, match=r"augmentation: KeyError: 'picture' \(in wrong, .*own_data.py, line 3\)"):
        list(read(data.train, [Asked(torch.arange(2))], augment=data.augment))


def test_a_mistyped_prefix_is_no_module(tmp_path: Path) -> None:
    with pytest.raises(TrainerError, match=re.escape("unknown data set 'image-folders:/x'; known are digits")):
        load_data("image-folders:/x")
    with pytest.raises(TrainerError, match="data 'nothing_here:function': No module named 'nothing_here'"):
        load_data("nothing_here:function")
