"""Bundles of format 1, which knew classification alone, are read, selected from, cut and served as before."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from exporter.bundle import MANIFEST_FILE, Bundle, BundleError
from exporter.bundle.manifest import sealed
from exporter.bundle.verify import self_test
from exporter.subset import subset
from selector.service import create_app
from selector.service.fleet.store import Store
from tests.helpers.commands import call, document

NEW = ("task", "quality_from", "preprocessing", "int8_range")


def as_format_1(path: Path) -> dict[str, Any]:
    """Writes the bundle's manifest as the first version did, and returns the document."""
    manifest = json.loads((path / MANIFEST_FILE).read_text(encoding="utf-8"))
    old = {key: value for key, value in manifest.items() if key not in NEW}
    fields = ("id", "axes", "params", "macs", "graph", "topology", "precision", "layers")
    old["submodels"] = [{**{k: entry[k] for k in fields}, "accuracy": entry["quality"]} for entry in manifest["submodels"]]
    old["format_version"] = 1
    old = sealed(old)
    (path / MANIFEST_FILE).write_text(json.dumps(old, indent=1), encoding="utf-8")
    return old


@pytest.fixture
def old(bundle_path: Path, tmp_path: Path) -> Path:
    path = Path(shutil.copytree(bundle_path, tmp_path / "old"))
    as_format_1(path)
    return path


def test_it_is_read_as_a_classification_of_the_same_networks(old: Path, bundle_path: Path) -> None:
    read, new = Bundle(old), Bundle(bundle_path)
    assert (read.metric, read.manifest.task.kind) == ("accuracy", "classification")
    assert read.qualities == read.accuracies == new.qualities
    assert read.fingerprint == new.fingerprint  # its profiles stay valid
    assert self_test(read).submodels == len(new.submodels)


def test_it_is_selected_from_shown_cut_and_served(old: Path, bundle_path: Path, tmp_path: Path) -> None:
    chosen = document("select", old, "--min-accuracy", "0.85", "--objective", "accuracy")
    assert chosen == document("select", bundle_path, "--min-accuracy", "0.85", "--objective", "accuracy")
    assert document("inspect", old)["task"] == {"kind": "classification", "metric": "accuracy", "labels": []}
    assert call("report", old, "--out", tmp_path / "report.html").exit_code == 0
    part = subset(Bundle(old), [chosen["submodel"]], tmp_path / "part")
    assert (part.metric, part.qualities) == ("accuracy", {chosen["submodel"]: chosen["quality"]})
    client = create_app([Bundle(old)], Store(f"sqlite:///{tmp_path / 'store.db'}")).test_client()
    assert client.post("/v1/select", json={"budget": {"min_accuracy": 0.85}}).get_json()["accuracy"] == chosen["accuracy"]


def test_an_edit_is_noticed(old: Path) -> None:
    manifest = json.loads((old / MANIFEST_FILE).read_text(encoding="utf-8"))
    manifest["submodels"][0]["accuracy"] = 1.0
    (old / MANIFEST_FILE).write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(BundleError, match="was altered"):
        Bundle(old)
