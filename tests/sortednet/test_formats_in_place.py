"""`sortednet export --format --overwrite`: what goes is what was written in that format, and nothing else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import onnxruntime as ort
import pytest

from exporter.bundle import Bundle, BundleError
from sortednet.formats import write_format
from tests.helpers.commands import refused
from tests.helpers.pulls import contents

KINDS = [
    "hf",
    "oci",
    pytest.param("ortpackage", marks=pytest.mark.skipif(not hasattr(ort, "ModelPackage"), reason="knows no model packages")),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "names", [("README.md", "src/main.py"), ("manifest.json",), ("oci-layout", "index.json"), ("config.json", "README.md")]
)
def test_what_another_program_wrote_stays(untrained_path: Path, tmp_path: Path, kind: Any, names: tuple[str, ...]) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps({"model_type": "llama", "manifests": [], "additional_metadata": {}}))
    before = contents(tmp_path)
    with pytest.raises(BundleError, match=f"would lose .*{names[-1]}.*; allowed is another place"):
        write_format(Bundle(untrained_path), tmp_path, kind, overwrite=True)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("kind", KINDS)
def test_a_bundle_is_no_other_format_not_even_its_own_source(untrained_path: Path, tmp_path: Path, kind: Any) -> None:
    source = Path(shutil.copytree(untrained_path, tmp_path / "bundle"))
    before = contents(source)
    assert "would lose " in refused("export", source, "--format", kind, "--out", source, "--overwrite")
    assert contents(source) == before


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_added_to_a_folder_of_the_format_is_named(untrained_path: Path, tmp_path: Path, kind: Any) -> None:
    out = tmp_path / "out"
    write_format(Bundle(untrained_path), out, kind)
    (out / "notes.txt").write_text("mine")
    before = contents(out)
    with pytest.raises(BundleError, match=r"would lose notes\.txt, not written in this format"):
        write_format(Bundle(untrained_path), out, kind, overwrite=True)
    assert contents(out) == before
    link = tmp_path / "link"
    (out / "notes.txt").unlink()
    link.symlink_to(out)
    write_format(Bundle(untrained_path), link, kind, overwrite=True)
    assert link.is_symlink()
    with pytest.raises(BundleError, match="is no folder"):
        write_format(Bundle(untrained_path), out / next(iter(contents(out))), kind, overwrite=True)


def test_a_clone_of_a_repository_keeps_what_is_gits(untrained_path: Path, tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    (clone / ".git" / "objects").mkdir(parents=True)
    (clone / ".git" / "HEAD").write_text("ref: refs/heads/main")
    (clone / ".gitattributes").write_text("*.bin filter=lfs")
    for _ in range(2):
        write_format(Bundle(untrained_path), clone, "hf", overwrite=True)
        assert (clone / ".git" / "HEAD").read_text() == "ref: refs/heads/main"
        assert (clone / ".git" / "objects").is_dir()
        assert (clone / ".gitattributes").read_text() == "*.bin filter=lfs"
        Bundle(clone).verify_files()


def test_what_came_there_during_the_work_stays(untrained_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"

    def meanwhile(*arguments: Any, **more: Any) -> bool:
        out.mkdir()
        (out / "letter.txt").write_text("dear")
        return False

    monkeypatch.setattr("sortednet.formats.hub.draw_frontier", meanwhile)
    with pytest.raises(BundleError, match="is there already"):
        write_format(Bundle(untrained_path), out, "hf")
    assert contents(tmp_path) == {"out/letter.txt": contents(out)["letter.txt"]}
