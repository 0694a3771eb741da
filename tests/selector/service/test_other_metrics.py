"""A bundle whose metric is not accuracy: chosen by quality, refused where a budget speaks of accuracy."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from exporter.bundle import MANIFEST_FILE, Bundle
from exporter.bundle.manifest import sealed
from selector import Budget, Runtime
from selector.choose.budget import BudgetError
from selector.service import PredictOptions, create_app
from selector.service.fleet.store import Store
from tests.helpers.commands import call, document, refused


@pytest.fixture
def overlapping(bundle_path: Path, tmp_path: Path) -> Path:
    """The measured bundle, as if its qualities were a mean IoU."""
    path = Path(shutil.copytree(bundle_path, tmp_path / "overlapping"))
    manifest = json.loads((path / MANIFEST_FILE).read_text(encoding="utf-8"))
    manifest["task"] |= {"kind": "segmentation", "metric": "mean_iou"}
    for entry in manifest["submodels"]:
        entry["metrics"] = {"mean_iou": entry["quality"]}
    (path / MANIFEST_FILE).write_text(json.dumps(sealed(manifest)), encoding="utf-8")
    return path


@pytest.fixture
def client(overlapping: Path, tmp_path: Path) -> FlaskClient:
    store = Store(f"sqlite:///{tmp_path / 'store.db'}")
    return create_app([Bundle(overlapping)], store, predict=PredictOptions()).test_client()


def test_quality_is_what_is_chosen_by_and_its_metric_is_named(overlapping: Path, client: FlaskClient) -> None:
    best = max(Bundle(overlapping).qualities.values(), key=lambda quality: quality or 0.0)
    chosen = document("select", overlapping, "--min-quality", "0.9")
    assert (chosen["quality"], chosen["metric"]) == (best, "mean_iou")
    assert "accuracy" not in chosen
    assert f"mean IoU {best:.4f}" in call("select", overlapping).stdout
    answer = client.post("/v1/select", json={"budget": {"min_quality": 0.9, "objective": "quality"}})
    assert {**answer.get_json(), "stages": ()} == {**chosen, "stages": ()}
    inspected = client.get("/v1/bundles/overlapping").get_json()
    assert inspected["task"]["metric"] == "mean_iou"
    assert not any("accuracy" in entry for entry in inspected["submodels"])


@pytest.mark.parametrize(
    ("options", "budget"),
    [(["--min-accuracy", "0.5"], {"min_accuracy": 0.5}), (["--objective", "accuracy"], {"objective": "accuracy"})],
)
def test_who_asks_for_accuracy_is_told_the_metric(
    options: list[str], budget: dict[str, Any], overlapping: Path, client: FlaskClient
) -> None:
    assert "the metric here is mean_iou" in refused("select", overlapping, *options)
    for path, more in (("/v1/select", {}), ("/v1/predict", {"inputs": {"input": [[[[0.0] * 8] * 8]]}})):
        answer = client.post(path, json={"budget": budget, **more})
        assert answer.status_code == 422, path
        (problem,) = answer.get_json()["errors"]
        assert problem["field"] == f"budget.{next(iter(budget))}"
        assert "the metric here is mean_iou" in problem["message"]
    runtime = Runtime(overlapping, sensors=False, battery=lambda: None)
    with pytest.raises(BudgetError, match="the metric here is mean_iou"):
        runtime.select(Budget(**budget))
    runtime.close()
