"""Versions on a device: pulled with a key, grown, refused, tried, taken back, rolled back."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from exporter.bundle import Bundle, BundleError, atomic
from exporter.bundle.verify import self_test
from selector.fetch.pull import PullOptions
from selector.fetch.store import store_beside
from selector.fetch.transfer import PullError
from selector.ship.parts import open_signed
from selector.ship.signed import SignatureError, Trust, read_signed
from selector.ship.state import folder_of
from selector.ship.versions import VersionError, kept_folders, rollback, signed_version, versions
from sortednet.signing import sign
from tests.helpers.commands import call, document
from tests.helpers.keys import Keys, made
from tests.helpers.pulls import SMALL, contents
from tests.helpers.shelf import fetched

LARGE = "w1.00-d2"


def test_a_part_is_graphs_as_they_are_and_ranges_of_the_weights(first: Path, options: PullOptions, tmp_path: Path) -> None:
    done, _ = fetched(first, tmp_path / "mine", options, SMALL)
    mine, served = done.bundle, Bundle(first)
    assert list(mine.submodels) == [SMALL]
    assert options.trust is not None
    open_signed(mine.path, options.trust)
    assert (mine.path / mine.submodel(SMALL).graph).read_bytes() == (first / served.submodel(SMALL).graph).read_bytes()
    assert self_test(mine).submodels == 1
    weights = mine.manifest.weights
    assert mine.manifest.files[weights].bytes == served.manifest.files[weights].bytes
    assert mine.manifest.files[weights].sha256 != served.manifest.files[weights].sha256
    assert not fetched(first, tmp_path / "mine", options, SMALL)[0].changed


def test_all_of_it_is_what_was_exported(first: Path, options: PullOptions, tmp_path: Path) -> None:
    done, _ = fetched(first, tmp_path / "mine", options)
    own = {name: found for name, found in contents(first).items() if not name.startswith(("profiles/", "written"))}
    assert contents(done.bundle.path) == own


def test_growing_fetches_what_is_missing_and_nothing_twice(first: Path, options: PullOptions, tmp_path: Path) -> None:
    fetched(first, tmp_path / "mine", options, SMALL)
    done, client = fetched(first, tmp_path / "mine", options, SMALL, LARGE)
    content = Bundle(first).manifest
    graphs = [Bundle(first).submodel(name).graph for name in (SMALL, LARGE)]
    read = []
    signed = read_signed((first / "signed.json").read_bytes())
    for graph in graphs:
        ranges = signed.ranges[content.weights]
        read.append({place: ranges[place].end - ranges[place].begin for place in signed.needs[graph][content.weights]})
    difference = sum(size for place, size in read[1].items() if place not in read[0]) + content.files[graphs[1]].bytes
    assert difference <= done.fetched_bytes <= 1.05 * difference
    assert sum(size for _, size in client.asked) == done.fetched_bytes  # the signature too was here
    assert self_test(done.bundle).submodels == 2
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".pull")]


def test_an_update_fetches_the_ranges_that_changed(first: Path, second: Path, options: PullOptions, tmp_path: Path) -> None:
    fetched(first, tmp_path / "mine", options)
    done, client = fetched(second, tmp_path / "mine", options)
    weights = done.bundle.manifest.weights
    sizes = [size for path, size in client.asked if path.endswith(weights)]
    assert 0 < sum(sizes) < done.bundle.manifest.files[weights].bytes / 2
    assert contents(done.bundle.path)[weights] == contents(second)[weights]


def test_foreign_unsigned_and_older_ones_are_refused(
    first: Path, second: Path, bundle_path: Path, options: PullOptions, tmp_path: Path
) -> None:
    mine = tmp_path / "mine"
    fetched(second, mine, options, SMALL)
    before = contents(mine)
    foreign = replace(options, trust=Trust(made(tmp_path, "other").public))
    for source, given, error, said in [
        (second, foreign, SignatureError, "is no signature"),
        (bundle_path, options, SignatureError, "is not signed on the service"),
        (bundle_path, replace(options, trust=None), SignatureError, "holds a signed bundle; say with --key"),
        (first, options, VersionError, "version 1 is older than 2, which was here; --older"),
    ]:
        with pytest.raises(error, match=said):
            fetched(source, mine, given, SMALL)
        assert contents(mine) == before
    fetched(first, mine, replace(options, older=True), SMALL)
    assert signed_version(mine) == 1


@pytest.mark.parametrize("left", ["{", None])
def test_what_was_here_is_newer_though_it_is_damaged_or_gone(
    first: Path, second: Path, options: PullOptions, tmp_path: Path, left: str | None
) -> None:
    mine = tmp_path / "mine"
    fetched(first, mine, options)
    fetched(second, mine, options)
    if left is None:
        shutil.rmtree(mine)
    else:
        (mine / "manifest.json").unlink()
        (mine / "manifest.json").write_text(left)
    with pytest.raises(VersionError, match="version 1 is older than 2, which was here"):
        fetched(first, mine, options)
    fetched(second, mine, options)
    assert signed_version(mine) == 2


def test_a_device_whose_clock_is_wrong_takes_the_same_versions(
    first: Path, second: Path, options: PullOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.time", lambda: -4e8)
    fetched(first, tmp_path / "mine", options, SMALL)
    fetched(second, tmp_path / "mine", options, SMALL)
    with pytest.raises(VersionError, match="older"):
        fetched(first, tmp_path / "mine", options, SMALL)


@pytest.mark.parametrize("seconds", [-4e8, 4e9])
def test_who_signs_by_a_wrong_clock_signs_a_later_version_than_before(
    second: Path, keys: Keys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    mine = Path(shutil.copytree(second, tmp_path / "mine"))
    monkeypatch.setattr("time.time", lambda: seconds)
    numbers = [sign(Bundle(mine), key=keys.private).version for _ in range(2)]
    assert 2 < numbers[0] < numbers[1]


def test_what_the_service_falsifies_never_takes_the_old_ones_place(
    first: Path, second: Path, options: PullOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = tmp_path / "mine"
    fetched(first, mine, options, SMALL)
    before = contents(mine)
    weights = Bundle(second).manifest.weights
    falsified = Path(shutil.copytree(second, tmp_path / "served"))
    content = bytearray((falsified / weights).read_bytes())
    content[:64] = bytes(64)
    (falsified / weights).write_bytes(content)
    with pytest.raises((PullError, BundleError)):
        fetched(falsified, mine, options, SMALL)
    assert contents(mine) == before
    assert [one.number for one in versions(mine)] == [1]


def test_versions_share_files_and_one_can_go_back(first: Path, second: Path, options: PullOptions, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    fetched(first, mine, options)
    before = contents(mine)
    fetched(second, mine, options)
    (old,) = kept_folders(mine)[:1] if kept_folders(mine) else [None]
    assert old is not None
    graph = Bundle(mine).submodel(SMALL).graph
    assert os.path.samefile(old / graph, mine / graph)
    assert [(one["number"], one["current"]) for one in document("versions", mine)["versions"]] == [(2, True), (1, False)]
    assert document("rollback", mine)["number"] == 1
    assert contents(mine) == before
    shown = document("versions", mine)["versions"]
    assert {one["number"]: one["refused"] for one in shown} == {1: None, 2: "rolled back by hand"}
    with pytest.raises(VersionError, match=r"version 2 was taken back here \(rolled back by hand\)"):
        fetched(second, mine, options)
    done, client = fetched(second, mine, replace(options, older=True))
    assert done.fetched_bytes == 0  # it was kept
    assert [path for path, _ in client.asked if "models" in path] == []
    assert "is not kept here" in call("rollback", mine, "99").stderr
    assert [document("rollback", mine, *given)["number"] for given in ((), ("2",), ())] == [1, 2, 1]


@pytest.mark.parametrize("damaged", [False, True])
def test_what_its_owner_keeps_in_a_bundle_goes_back_with_it(
    damaged: bool, first: Path, second: Path, options: PullOptions, tmp_path: Path
) -> None:
    mine = tmp_path / "mine"
    fetched(first, mine, options)
    before = contents(mine)
    fetched(second, mine, options)
    own = {"notes.txt": "mine", ".git/HEAD": "ref: refs/heads/main", "profiles/old/phone.csv": "1,2"}
    for name, text in own.items():
        (mine / name).parent.mkdir(parents=True, exist_ok=True)
        (mine / name).write_text(text)
    (mine / "latest").symlink_to("notes.txt")
    if damaged:
        (mine / "manifest.json").write_text("{")
    rollback(mine)
    assert {name: (mine / name).read_text() for name in own} == own
    assert (mine / "latest").readlink() == Path("notes.txt")
    for name in (*own, "latest"):
        (mine / name).unlink()
    assert contents(mine) == before


def test_no_more_versions_are_kept_than_wanted(first: Path, options: PullOptions, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    for name in (SMALL, "w0.75-d1", LARGE, "w1.00-d1"):
        fetched(first, mine, replace(options, keep=1), name)
    assert len(versions(mine)) == 2
    fetched(first, mine, replace(options, keep=0), SMALL)
    assert [one.current for one in versions(mine)] == [True]
    with pytest.raises(VersionError, match="no version before this one"):
        rollback(mine)


def test_killed_between_keeping_and_changing_places_the_old_one_is_there(
    first: Path, second: Path, options: PullOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = tmp_path / "mine"
    fetched(first, mine, options)
    before = contents(mine)

    class Killed(BaseException):
        pass

    def killed(*given: Any) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(atomic, "_put_in_place", killed)
        with pytest.raises(Killed):
            fetched(second, mine, options)
    assert contents(mine) == before
    assert [one.current for one in versions(mine)] == [True]  # the same under two names is one
    fetched(second, mine, options)
    with monkeypatch.context() as patched:
        patched.setattr(atomic, "_put_in_place", killed)
        with pytest.raises(Killed):
            rollback(mine)
    assert signed_version(mine) == 2
    assert signed_version(rollback(mine).path) == 1


@pytest.mark.parametrize(
    "where", ["selector.fetch.pull.assemble", "selector.fetch.pull.keep", "selector.ship.versions.os.link"]
)
def test_a_full_disk_leaves_the_old_one(
    first: Path, second: Path, options: PullOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """While the weights are put together, while the old version is kept, while files are put beside it."""
    mine = tmp_path / "mine"
    fetched(first, mine, options)
    before = contents(mine)

    def full(*given: Any, **named: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(where, full)
        patched.setattr("selector.ship.versions.shutil.copyfile", full)
        with pytest.raises((BundleError, PullError), match=r"the disk is full|No space left"):
            fetched(second, mine, options)
    assert contents(mine) == before
    fetched(second, mine, options)
    assert signed_version(mine) == 2

    with monkeypatch.context() as patched:
        patched.setattr("selector.ship.versions.write_state", full)
        with pytest.raises(BundleError, match=r"the disk is full|No space left"):
            rollback(mine)
    assert signed_version(mine) == 2
    assert signed_version(rollback(mine).path) == 1


def test_two_at_once_do_not_disturb_each_other(first: Path, second: Path, options: PullOptions, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    fetched(first, mine, options)
    import fcntl

    with store_beside(mine), pytest.raises(PullError, match="another pull is writing there"):
        fetched(second, mine, options)
    folder_of(mine).mkdir(exist_ok=True)
    with (folder_of(mine) / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(BundleError, match="another version is just being put there"):
            fetched(second, mine, options)
        with pytest.raises(BundleError, match="another version is just being put there"):
            rollback(mine)
    fetched(second, mine, options)
