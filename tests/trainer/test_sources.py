"""What holds for every registered source of data. A new one is tested when `make` here knows how to write a small one."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from datasets import Dataset
from torch import Tensor

from sortednet.console import guard
from tests.helpers.binaries import write_cifar10, write_idx
from tests.helpers.pictures import write_pictures
from tests.helpers.sounds import write_sounds
from tests.helpers.texts import write_texts
from trainer import TrainerError
from trainer.data import Source, load_data, register_source, registered_sources
from trainer.data.loading import Asked, read

OWN_SOURCE = """
import torch
from torch.utils.data import TensorDataset

def data():
    values = torch.rand(90, 5, generator=torch.Generator().manual_seed(0))
    return tuple(TensorDataset(values[i::3], torch.arange(30) % 3) for i in range(3))
"""


def _idx(folder: Path, name: str) -> str:
    labels = {"train_labels": np.arange(200, dtype=np.uint8) % 10, "test_labels": np.arange(30, dtype=np.uint8) % 10}
    write_idx(folder / name, train=200, test=30, **labels)
    return name


def _pictures(folder: Path) -> str:
    write_pictures(folder / "pictures")
    return f"image-folder:{folder / 'pictures'}"


def _arrays(folder: Path) -> str:
    np.savez(folder / "data.npz", values=np.random.default_rng(0).random((60, 4)), targets=np.arange(60) % 3)
    return f"arrays:{folder / 'data.npz'}"


def _cifar10(folder: Path) -> str:
    write_cifar10(folder / "cifar10")
    return "cifar10"


def _texts(folder: Path) -> str:
    write_texts(folder / "texts")
    return f"text-folder:{folder / 'texts'}"


def _sounds(folder: Path) -> str:
    write_sounds(folder / "sounds")
    return f"audio-folder:{folder / 'sounds'}"


def _saved(folder: Path) -> str:
    columns = {"text": [f"{'ab'[i % 2]} {i}" for i in range(40)], "label": ["ab"[i % 2] for i in range(40)]}
    Dataset.from_dict(columns).save_to_disk(folder / "saved")
    return f"hf:{folder / 'saved'}"


def _csv(folder: Path) -> str:
    with (folder / "rows.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *((f"{'ab'[i % 2]}, {i}\n", "ab"[i % 2]) for i in range(40))])
    return f"csv:{folder / 'rows.csv'}"


def _jsonl(folder: Path) -> str:
    rows = [json.dumps({"text": f"{'ab'[i % 2]} {i}", "label": "ab"[i % 2]}) + "\n" for i in range(40)]
    (folder / "rows.jsonl").write_text("".join(rows))
    return f"jsonl:{folder / 'rows.jsonl'}"


def _own(folder: Path) -> str:
    (folder / "own_source.py").write_text(OWN_SOURCE)
    return "own_source:data"


def _prefixed(prefix: str, write: Callable[[Path], str]) -> Callable[[Path], str]:
    return lambda folder: f"{prefix}:{folder / write(folder)}"


MAKE: dict[str, Callable[[Path], str]] = {
    "digits": lambda folder: "digits",
    "fashion-mnist": lambda folder: _idx(folder, "fashion-mnist"),
    "mnist": lambda folder: _idx(folder, "mnist"),
    "mnist-5k": lambda folder: "mnist-5k",
    "cifar10": _cifar10,
    "idx-folder": _prefixed("idx-folder", lambda folder: _idx(folder, "images")),
    "cifar10-folder": _prefixed("cifar10-folder", _cifar10),
    "image-folder": _pictures,
    "text-folder": _texts,
    "arrays": _arrays,
    "audio-folder": _sounds,
    "hf": _saved,
    "csv": _csv,
    "jsonl": _jsonl,
    "": _own,
}
"""By source: writes a small data set into a folder and returns what is given to `--data`."""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SORTEDNET_DATA", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", sorted(registered_sources()))
def test_every_source(name: str, here: Path) -> None:
    given = MAKE[name](here)
    data = load_data(given)
    again = load_data(data.record["name"], data.record.get("options"))
    assert data.record == again.record == json.loads(json.dumps(data.record))
    assert data.spec == again.spec
    assert data.spec.classes >= 2
    assert not data.labels or len(data.labels) == data.spec.classes
    sizes = data.record["sizes"]
    for part in ("train", "validation", "test"):
        examples = getattr(data, part)
        assert len(examples) == sizes[part] >= 2
        indices = torch.arange(len(examples)).flip(0)[:7]
        batch, repeated = examples.batch(indices), getattr(again, part).batch(indices)
        (inputs,), (others,) = batch.inputs.values(), repeated.inputs.values()
        assert tuple(inputs.shape) == (len(indices), *data.spec.input_shape)
        assert inputs.dtype in (torch.float32, torch.int64)
        assert isinstance(batch.targets, Tensor)
        assert 0 <= batch.targets.min() <= batch.targets.max() < data.spec.classes
        assert torch.equal(inputs, others)
        (by_worker,) = read(examples, [Asked(indices)], workers=1)
        assert torch.equal(next(iter(by_worker.inputs.values())), inputs)
        assert torch.equal(by_worker.targets, batch.targets)  # type: ignore[arg-type]
    for described in data.preprocessing.values():
        assert described["kind"] in ("image", "audio", "text")
    if data.augment is not None:
        batch = data.train.batch(torch.arange(5))
        changed, _ = data.augment(batch.inputs, batch.targets, torch.Generator().manual_seed(0))
        assert {n: t.shape for n, t in changed.items()} == {n: t.shape for n, t in batch.inputs.items()}


@pytest.mark.parametrize("name", sorted(name for name, source in registered_sources().items() if name))
def test_every_source_refuses_an_option_that_it_does_not_have(name: str, here: Path) -> None:
    with pytest.raises(TrainerError, match="has no option 'colour'; allowed are "):
        load_data(MAKE[name](here), {"colour": "red"})


@pytest.mark.parametrize("name", sorted(name for name, source in registered_sources().items() if source.recognises))
def test_a_bare_path_is_recognised_as_what_it_is_and_nothing_else(name: str, here: Path) -> None:
    path = Path(MAKE[name](here).partition(":")[2])
    recognised = [other for other, source in registered_sources().items() if source.recognises and source.recognises(path)]
    assert recognised == [name]
    bare = load_data(str(path)).record
    assert {**bare, "name": ""} == {**load_data(f"{name}:{path}").record, "name": ""}


@pytest.mark.parametrize("name", sorted(name for name, source in registered_sources().items() if source.rest and name))
def test_a_prefix_alone_and_a_path_to_nothing_are_refused(name: str, here: Path) -> None:
    with pytest.raises(TrainerError, match=f"data = '{name}:': nothing follows the prefix; write {name}:"):
        load_data(f"{name}:")
    with pytest.raises(TrainerError, match="nothing_here"):
        load_data(f"{name}:{here / 'nothing_here'}")


def test_a_folder_of_pictures_is_never_read_as_text_nor_texts_as_pictures(here: Path) -> None:
    """Also where the prefix says so, and where the first file of each folder is what was asked for."""
    pictures, texts = _pictures(here).partition(":")[2], _texts(here).partition(":")[2]
    with pytest.raises(TrainerError, match=r"0\.png': is no text; allowed are text files"):
        load_data(f"text-folder:{pictures}")
    with pytest.raises(
        TrainerError, match=r"0\.txt' \(20 of 20 files there\): allowed are image files \(\.jpg, \.jpeg, \.png\)"
    ):
        load_data(f"image-folder:{texts}")
    for name in ("cat", "dog", "owl"):
        (Path(pictures) / name / "zz.txt").write_text("a text")
    with pytest.raises(TrainerError, match=r"cat/zz\.txt' \(1 of 11 files there\): allowed are image files"):
        load_data(pictures)
    for name in ("bread", "rivers", "stars"):
        (Path(texts) / name / "zz.txt").write_bytes((Path(pictures) / "cat" / "0.png").read_bytes())
    with pytest.raises(TrainerError, match=r"bread/zz\.txt': is no text"):
        load_data(texts)


def test_what_is_found_at_a_path_is_said_where_no_source_knows_it(here: Path) -> None:
    write_pictures(here / "mixed", classes=("cat", "dog"), per_class=3)
    write_texts(here / "mixed", per_class=2)
    (here / "mixed" / "cat" / "notes.md").write_text("x")
    children = r"bread/, cat/, dog/, rivers/, stars/ \(files: 6 \.png, 6 \.txt, 1 \.md\)"
    with pytest.raises(TrainerError, match=f"mixed': holds {children}, which is none of the formats known: digits, "):
        load_data(str(here / "mixed"))
    (here / "empty").mkdir()
    with pytest.raises(TrainerError, match="empty': is empty, which is none"):
        load_data(str(here / "empty"))
    (here / "table.xls").write_text("1,2")
    with pytest.raises(TrainerError, match=r"table\.xls': is a file \.xls, which is none"):
        load_data(str(here / "table.xls"))
    (here / "only" / "a" / "b").mkdir(parents=True)
    with pytest.raises(TrainerError, match=r"only': holds a/ \(no files\), which is none"):
        load_data(str(here / "only"))


def test_no_name_and_a_taken_name_are_refused() -> None:
    with pytest.raises(TrainerError, match="data = '': allowed are digits, "):
        load_data("")
    with pytest.raises(TrainerError, match="data source 'digits' is taken"):
        register_source(Source("digits", lambda name, rest: load_data("digits")))


@pytest.mark.parametrize(
    ("name", "module", "ours", "extra"),
    [
        ("audio-folder", "soundfile", "exporter.bundle.sounds", "audio"),
        ("image-folder", "PIL", "exporter.bundle.preprocessing", "image"),
        ("hf", "datasets", "trainer.data.hub", "hf"),
        ("text-folder", "tokenizers", "trainer.data.tokens", "text"),
        ("csv", "tokenizers", "trainer.data.tokens", "text"),
    ],
)
def test_a_missing_library_is_told_with_the_extra_that_brings_it(
    name: str,
    module: str,
    ours: str,
    extra: str,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = MAKE[name](here)
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    monkeypatch.delitem(sys.modules, ours, raising=False)

    @guard
    def train() -> None:
        load_data(given)

    with pytest.raises(typer.Exit) as left:
        train()
    assert left.value.exit_code == 2
    assert f"train needs {module}: pip install '.[{extra}]'" in capsys.readouterr().err
