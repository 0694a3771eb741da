"""The folder of subsets: shared by processes, bounded, made again where it is damaged."""

from __future__ import annotations

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from exporter.bundle import Bundle, BundleError
from exporter.subset import subset
from selector.service import create_app
from selector.service.files.subsets import SubsetStore, key_of, submodels_of


def test_processes_and_threads_share_one_folder(untrained_path: Path, tmp_path: Path) -> None:
    """Two stores are as two workers: nothing but the folder is common to them."""
    bundle = Bundle(untrained_path)
    stores = [SubsetStore(tmp_path), SubsetStore(tmp_path)]
    wanted = [["w0.50-d1"], ["w0.50-d2", "w0.75-d1"]]
    with ThreadPoolExecutor(8) as pool:
        parts = list(pool.map(lambda n: stores[n % 2].part(bundle, wanted[n // 2 % 2]), range(16)))
    assert len({part.path for part in parts}) == 2
    for part in parts:
        part.verify_files()
    assert len(list(tmp_path.iterdir())) == 2  # no locks and nothing half-done


def test_the_folder_is_bounded_and_what_went_is_made_again(untrained_path: Path, tmp_path: Path) -> None:
    bundle = Bundle(untrained_path)
    store = SubsetStore(tmp_path, max_bytes=1)
    first = store.part(bundle, ["w0.50-d1"])
    before = {path.name: path.read_bytes() for path in first.path.rglob("*") if path.is_file()}
    store.part(bundle, ["w0.75-d1"])
    assert not first.path.exists()
    again = store.part(bundle, ["w0.50-d1"])
    assert {path.name: path.read_bytes() for path in again.path.rglob("*") if path.is_file()} == before
    assert len(list(tmp_path.iterdir())) == 1


def test_what_a_killed_service_left_in_the_folder_goes_too(untrained_path: Path, tmp_path: Path) -> None:
    name = "0" * 32
    long_ago = [tmp_path / ".gone-1", tmp_path / f".{name}.partial-1", tmp_path / f".lock-{name}"]
    just_now = tmp_path / ".gone-2"
    for left in (*long_ago, just_now):
        (left / "part").mkdir(parents=True) if "lock" not in left.name else left.touch()
    for left in long_ago:
        os.utime(left, (0, 0))
    part = SubsetStore(tmp_path).part(Bundle(untrained_path), ["w0.50-d1"])
    assert sorted(tmp_path.iterdir()) == sorted([just_now, part.path])


def test_what_others_keep_in_the_folder_stays(untrained_path: Path, tmp_path: Path) -> None:
    others = ["photos/a.jpg", "0" * 32 + "/mine.txt", ".my-project/src/main.py", ".profile"]
    for name in others:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
        os.utime(tmp_path / name, (0, 0))
        os.utime((tmp_path / name).parent, (0, 0))
    store = SubsetStore(tmp_path, max_bytes=1)
    for part in ("w0.50-d1", "w0.75-d1"):
        store.part(Bundle(untrained_path), [part])
    assert [(tmp_path / name).read_text() for name in others] == others


def test_a_damaged_subset_is_made_again(untrained_path: Path, tmp_path: Path) -> None:
    bundle = Bundle(untrained_path)
    part = SubsetStore(tmp_path).part(bundle, ["w0.50-d1"])
    part.graph_path("w0.50-d1").write_bytes(b"x")
    SubsetStore(tmp_path).part(bundle, ["w0.50-d1"]).verify_files()


def test_no_subset_is_cut_from_a_bundle_that_was_replaced(untrained_path: Path, tmp_path: Path) -> None:
    bundle = Bundle(shutil.copytree(untrained_path, tmp_path / "digits"))
    bundle.graph_path("w0.50-d1").write_bytes(b"x")
    with pytest.raises(BundleError, match=r"w0\.50-d1\.onnx"):
        SubsetStore(tmp_path / "store").part(bundle, ["w0.50-d1"])


def test_a_key_names_one_subset_of_one_bundle(untrained_path: Path, tmp_path: Path) -> None:
    bundle = Bundle(untrained_path)
    names = list(bundle.submodels)
    for wanted in (names[:1], names[3:5], names):
        assert submodels_of(bundle, key_of(bundle, wanted)) == wanted
    part = subset(bundle, names[:2], tmp_path / "part")
    key = key_of(bundle, names[:1])
    assert submodels_of(part, key) is None
    bundles, _, bits = key.partition("-")
    for wrong in ("", "x", f"{bundles}-0", f"{bundles}-0{bits}", f"{bundles}-1{'0' * 400}", f"{bundles}-{bits}/x"):
        assert submodels_of(bundle, wrong) is None


def test_parts_that_must_make_room_for_each_other_are_made_all_the_same(untrained_path: Path, tmp_path: Path) -> None:
    """Of a folder that holds one at most, each may be gone before its answer is written."""
    app = create_app([Bundle(untrained_path)])
    app.extensions["sortednet-subsets"] = SubsetStore(tmp_path, max_bytes=1)
    names = list(Bundle(untrained_path).submodels)[:6]

    def ask_for(number: int) -> int:
        query = {"submodels": [names[number % len(names)]]}
        return int(app.test_client().post("/v1/bundles/digits/subsets", json=query).status_code)

    with ThreadPoolExecutor(6) as pool:
        assert set(pool.map(ask_for, range(60))) <= {200, 503}
