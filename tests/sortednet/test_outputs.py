"""What `run`, `report` and `cascade` write: in its own format, over nothing but what they wrote themselves."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exporter.bundle import Bundle
from selector.choose.cascades import CASCADES_FILE, Cascade, read_cascades
from selector.run import calibrating
from selector.run.runtime import Runtime
from tests.helpers.cascades import judged
from tests.helpers.commands import call, document, refused
from tests.helpers.disks import read_only


@pytest.mark.parametrize("name", ["a.npy", "out.txt", "out", "image.html"])
def test_outputs_have_their_suffix(name: str, bundle_path: Path, images: Path, tmp_path: Path) -> None:
    (tmp_path / name).write_text("mine")
    for more in ((), ("--overwrite",)):
        line = refused("run", bundle_path, "--input", images, "--output", tmp_path / name, *more)
        assert "allowed is FILE.npz" in line
    assert (tmp_path / name).read_text() == "mine"


def test_a_file_that_no_run_wrote_is_not_replaced(
    bundle_path: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named, own, out = tmp_path / "input.npz", tmp_path / "own.npz", tmp_path / "out.npz"
    np.savez(named, input=np.load(images))
    np.savez(own, logits=np.zeros(3))
    run = ("run", bundle_path, "--input", named, "--output")
    with monkeypatch.context() as patched:
        patched.setattr(Runtime, "run", lambda *_, **__: pytest.fail("ran"))
        assert "is the input" in refused(*run, named)
        assert "was not written by a run of this bundle" in refused(*run, own)
        read_only(patched, tmp_path)
        assert "cannot be written: Read-only file system" in refused(*run, tmp_path / "new.npz")
    with np.load(own) as kept:
        assert kept["logits"].shape == (3,)
    for target in (out, out):  # our own is replaced
        document(*run, target)
    document(*run, own, "--overwrite")
    with np.load(own) as written, np.load(out) as same:
        np.testing.assert_array_equal(written["logits"], same["logits"])
    other = Path(shutil.copytree(bundle_path, tmp_path / "another"))
    assert "was not written by a run of this bundle" in refused("run", other, "--input", named, "--output", out)


def test_what_json_has_no_numbers_for_is_in_the_file(
    bundle_path: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, out = Runtime.run, tmp_path / "out.npz"

    def diverged(*given: Any) -> Any:
        return replace(run(*given), outputs={"logits": np.full((1, 2), np.nan)})

    monkeypatch.setattr(Runtime, "run", diverged)
    asked = ("run", bundle_path, "--input", images, "--json", "--output", out)
    assert "2 of 2 values are NaN or infinite; --output FILE.npz keeps them" in refused(*asked, code=1)
    with np.load(out) as kept:
        assert np.isnan(kept["logits"]).all()


def test_a_report_replaces_nothing_but_a_report_of_the_bundle(bundle_path: Path, tmp_path: Path) -> None:
    image, page = tmp_path / "image.npy", tmp_path / "page.html"
    for path in (image, page):
        path.write_text("<title>mine</title>")
    for more in ((), ("--overwrite",)):
        assert "allowed is FILE.html" in refused("report", bundle_path, "--out", image, *more)
    assert f"is no report of {Bundle(bundle_path).name}" in refused("report", bundle_path, "--out", page)
    assert {path.read_text() for path in (image, page)} == {"<title>mine</title>"}
    for more in (("--overwrite",), ()):
        assert call("report", bundle_path, "--out", page, *more).exit_code == 0
    other = Path(shutil.copytree(bundle_path, tmp_path / "<another>"))
    assert "is no report of <another>" in refused("report", other, "--out", page)
    for _ in range(2):
        assert call("report", other, "--out", tmp_path / "other.html").exit_code == 0


def test_a_cascade_that_was_certified_otherwise_stays(copied: Path, tmp_path: Path) -> None:
    data = judged(Bundle(copied), tmp_path / "data.npz")
    find = ("cascade", copied, "--data", data, "--floor", "0.8")
    document(*find)
    document(*find)  # the same again
    (found,) = read_cascades(Bundle(copied))
    result = call(*find, "--confidence", "0.94", "--json")
    assert result.exit_code == 2
    assert Cascade.model_validate_json(result.stdout).id == found.id  # what was found is not lost for that
    assert "is there with confidence = 0.95, this one has 0.94" in result.stderr
    assert read_cascades(Bundle(copied)) == [found]
    document(*find, "--confidence", "0.94", "--overwrite")
    assert [one.confidence for one in read_cascades(Bundle(copied))] == [0.94]


def test_no_cascade_is_looked_for_that_cannot_be_kept(copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = ("cascade", copied, "--data", judged(Bundle(copied), tmp_path / "data.npz"), "--floor", "0.8")
    (copied / CASCADES_FILE).write_text(json.dumps({"what": "ever"}))
    with monkeypatch.context() as patched:
        patched.setattr(calibrating, "candidates", lambda *_: pytest.fail("searched"))
        assert "--overwrite replaces the file" in refused(*find)
        read_only(patched, copied)
        assert "cannot be written to" in refused(*find)
    document(*find, "--overwrite")
    assert len(read_cascades(Bundle(copied))) == 1
