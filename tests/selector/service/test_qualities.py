"""Two versions of the same networks: what a device measured is of both, how good they are is each one's own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from exporter.bundle import MANIFEST_FILE, Bundle
from exporter.bundle.manifest import sealed
from selector.service import create_app, served
from selector.service.fleet.store import Store
from tests.conftest import DEVICE


def better(path: Path, by: float) -> Bundle:
    document = json.loads((path / MANIFEST_FILE).read_bytes())
    for entry in document["submodels"]:
        entry["quality"] += by
        entry["metrics"] = {}
    (path / MANIFEST_FILE).unlink()
    (path / MANIFEST_FILE).write_text(json.dumps(sealed(document)))
    return Bundle(path)


@pytest.mark.parametrize("model", [False, True])
def test_a_choice_goes_by_the_quality_of_the_version_that_is_asked(
    bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: bool
) -> None:
    """Of a new version beside the old one, and of one that was put in its place."""
    monkeypatch.setattr(served, "LOOK_AGAIN_S", 0.0)
    paths = [Path(shutil.copytree(bundle_path, tmp_path / name / "digits")) for name in ("old", "new")]
    old, new = Bundle(paths[0]), better(paths[1], 0.01)
    assert old.fingerprint == new.fingerprint
    measured = old.profile(DEVICE)
    phone = measured.model_copy(update={"device": measured.device.model_copy(update={"name": "phone"})})
    with Store(f"sqlite:///{tmp_path / 'store.db'}") as store:
        stored, _ = store.put("digits", phone)
        canary = Bundle(paths[1], name="digits@canary")
        client = create_app([old, canary], store, predict=None, generate=None).test_client()
        asked: dict[str, Any] = {"device": stored.model if model else "phone", "budget": {"latency_ms": 1e6}}

        def quality(name: str) -> float:
            return float(client.post("/v1/select", json={"bundle": name, **asked}).get_json()["quality"])

        best = max(one for one in old.qualities.values() if one is not None)
        assert [quality(name) for name in ("digits", "digits@canary")] == pytest.approx([best, best + 0.01])
        better(paths[0], 0.02)
        client.get("/readyz")
        while client.get("/readyz").status_code != 200:
            pass
        assert quality("digits") == pytest.approx(best + 0.02)
