"""Cascades on the command line: `cascade` finds one, `select`, `run` and `inspect` know it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import sortednet
from device_profiles import write_profile
from exporter.bundle import Bundle
from selector import Runtime
from selector.choose.cascades import CASCADES_FILE, Cascade, read_cascades, write_cascades
from selector.service import create_app
from sortednet.validation import arrays, validation
from tests.conftest import DEVICE
from tests.helpers.cascades import CHEAP, cascades_of, costs_of, judged
from tests.helpers.commands import call, document, refused
from tests.helpers.predict_client import predicted
from trainer.data import DataSet
from trainer.data.token_examples import TokenExamples


def test_a_query_offers_it_with_its_stages_and_can_decline(with_cascade: tuple[Bundle, Cascade]) -> None:
    bundle, cascade = with_cascade
    chosen = document("select", bundle.path, "--min-accuracy", "0.995")
    assert (chosen["submodel"], chosen["feasible"], chosen["accuracy"]) == (cascade.id, True, 0.999)
    assert (chosen["stages"], chosen["threshold"]) == ([cascade.first, cascade.then], 0.8)
    assert f"a cascade: {cascade.first}, and where that is not sure (25%) {cascade.then}" in chosen["reason"]
    expected = costs_of(bundle.profile(DEVICE), bundle, cascade)
    assert (chosen["latency_ms"], chosen["memory_mb"]) == (expected.latency_ms.p50, expected.memory_mb)

    single = document("select", bundle.path, "--min-accuracy", "0.995", "--no-cascades", code=3)
    assert single["submodel"] in bundle.submodels
    assert (single["stages"], single["threshold"]) == ([], None)


def test_a_query_needs_no_numpy(with_cascade: tuple[Bundle, Cascade]) -> None:
    code = "import sys, sortednet; sortednet.app(sys.argv[1:], standalone_mode=False); print('numpy' in sys.modules)"
    query = [sys.executable, "-c", code, "select", str(with_cascade[0].path), "--min-accuracy", "0.995"]
    printed = subprocess.run(query, check=True, capture_output=True, text=True, timeout=60).stdout
    assert with_cascade[1].id in printed
    assert printed.split()[-1] == "False"


def test_what_a_query_names_is_what_runs(with_cascade: tuple[Bundle, Cascade], tmp_path: Path) -> None:
    bundle, cascade = with_cascade
    np.save(tmp_path / "x.npy", np.zeros((2, 1, 8, 8), np.float32))
    run = ["run", bundle.path, "--input", tmp_path / "x.npy", "--min-accuracy", "0.995", "--no-feedback"]
    ran = document(*run)
    assert ran["submodel"] == cascade.id
    assert ran["reason"] == document("select", bundle.path, "--min-accuracy", "0.995")["reason"]
    assert document(*run, "--no-cascades", code=3)["submodel"] in bundle.submodels
    without = Runtime(bundle, cascades=False, battery=lambda: None, sensors=False)
    assert (cascades_of(without), without.select(CHEAP).feasible) == ([], False)
    without.close()


def test_inspect_lists_it_with_its_costs(with_cascade: tuple[Bundle, Cascade]) -> None:
    bundle, cascade = with_cascade
    assert document("inspect", bundle.path)["cascades"] == [cascade.model_dump()]
    shown = call("inspect", bundle.path).stdout
    expected = costs_of(bundle.profile(DEVICE), bundle, cascade)
    (row,) = [line for line in shown.splitlines() if line.strip().startswith(f"{cascade.id} ") and "0.9990" in line]
    assert f"~{expected.latency_ms.p50:.3f}" in row
    assert "~: predicted" in shown
    assert f"{cascade.id} is a cascade: {cascade.first}, and where that is not sure (25%) {cascade.then}" in shown
    shutil.rmtree(bundle.path / "profiles")
    assert cascade.id in call("inspect", bundle.path).stdout


def test_it_is_offered_where_the_profile_knows_both_sub_models(with_cascade: tuple[Bundle, Cascade]) -> None:
    bundle, cascade = with_cascade
    profile = bundle.profile(DEVICE)
    some = {name: measured for name, measured in profile.submodels.items() if name != cascade.then}
    write_profile(profile.model_copy(update={"submodels": some}), bundle.path / "profiles" / f"{DEVICE}.json")
    assert document("select", bundle.path, "--min-accuracy", "0.995", code=3)["submodel"] in some


def test_a_floor_that_is_none_is_refused_before_anything_is_read(bundle_path: Path) -> None:
    line = refused("cascade", bundle_path, "--data", "nowhere", "--floor", "1.5")
    assert line == "error: floor = 1.5: allowed are values between 0 and 1"


def test_a_damaged_file_is_one_line_on_the_command_line_and_a_problem_over_rest(with_cascade: tuple[Bundle, Cascade]) -> None:
    bundle, cascade = with_cascade
    client = create_app([bundle]).test_client()
    wrong = cascade.model_dump() | {"threshold": 1.5}
    (bundle.path / CASCADES_FILE).write_text(json.dumps([wrong]))
    for command in ("select", "inspect"):
        line = refused(command, bundle.path)
        assert "cascades.json: 0.threshold = 1.5: input should be less than or equal to 1" in line
    assert "0.threshold = 1.5" in refused("verify", bundle.path, code=1)
    assert "0.threshold = 1.5" in refused("serve", bundle.path, "--port", "0")
    assert call("select", bundle.path, "--no-cascades").exit_code == 0
    for answer in (client.post("/v1/select", json={"cascades": True}), client.get(f"/v1/bundles/{bundle.name}")):
        assert (answer.status_code, answer.mimetype) == (500, "application/problem+json")
        assert "0.threshold = 1.5" in answer.get_json()["detail"]
    assert predicted(bundle).status_code == 500
    assert client.post("/v1/select", json={}).status_code == 200


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"labels": None}, "allowed is input, labels"),
        ({"more": np.zeros(60)}, "allowed is input, labels"),
        ({"input": np.zeros((60, 1, 8, 8))}, "'input': dtype float64; allowed is float32"),
        ({"input": np.zeros((60, 1, 7, 8), np.float32)}, "'input': shape (60, 1, 7, 8)"),
        ({"labels": np.zeros(59, np.int64)}, "labels: shape (59,); allowed is (60,)"),
        ({"labels": np.zeros((60, 1), np.int64)}, "labels: shape (60, 1); allowed is (60,)"),
        ({"labels": np.full(60, 0.5)}, "labels: dtype float64; allowed are whole numbers"),
        ({"labels": np.full(60, 10)}, "labels: 10 at position 0; allowed are 0 to 9"),
        ({"labels": np.array([*[0] * 59, -1])}, "labels: -1 at position 59; allowed are 0 to 9"),
        ({"input": np.zeros((2, 1, 8, 8), np.float32), "labels": np.zeros(2, np.int64)}, "2 examples; allowed are 3 or more"),
    ],
)
def test_data_that_are_none_are_one_line(change: dict[str, Any], named: str, bundle_path: Path, tmp_path: Path) -> None:
    arrays = {"input": np.zeros((60, 1, 8, 8), np.float32), "labels": np.zeros(60, np.int64)} | change
    np.savez(tmp_path / "data.npz", **{name: array for name, array in arrays.items() if array is not None})
    line = refused("cascade", bundle_path, "--data", tmp_path / "data.npz", "--floor", "0.5")
    assert named in line
    assert not (bundle_path / CASCADES_FILE).exists()


def test_a_data_set_is_its_validation_split(bundle_path: Path, digits: DataSet) -> None:
    (inputs,), labels = validation(Bundle(bundle_path), "digits")
    np.testing.assert_array_equal(inputs["input"], digits.validation.inputs["input"].numpy())
    np.testing.assert_array_equal(labels, digits.validation.targets.numpy())


def test_examples_of_unequal_lengths_are_batches_as_long_as_their_longest() -> None:
    order = np.random.default_rng(0).permutation(100) + 1
    rows = [[7] * n for n in order]
    inputs, labels = arrays(TokenExamples(rows, torch.from_numpy(order)), ["attention_mask", "input_ids"])
    assert [batch["input_ids"].shape for batch in inputs] == [(64, 100), (36, 36)]
    np.testing.assert_array_equal(np.concatenate([batch["attention_mask"].sum(axis=1) for batch in inputs]), labels)
    with pytest.raises(ValueError, match=r"targets of shape \(64, 100\); allowed is a label for each example"):
        arrays(TokenExamples(rows, tags=rows), ["attention_mask", "input_ids"])


def test_from_the_command_line(bundle_path: Path, tmp_path: Path) -> None:
    path = shutil.copytree(bundle_path, tmp_path / "bundle")
    data = str(judged(Bundle(path), tmp_path / "data.npz"))
    result = CliRunner().invoke(sortednet.app, ["cascade", str(path), "--data", data, "--floor", "0.8", "--json"])
    assert result.exit_code == 0, result.stderr
    cascade = Cascade.model_validate_json(result.stdout)
    assert cascade.accuracy >= 0.8
    assert read_cascades(Bundle(path)) == [cascade]
    for source in (data, "digits"):
        result = CliRunner().invoke(sortednet.app, ["cascade", str(path), "--data", source, "--floor", "0.9999"])
        assert result.exit_code == 2
        assert "no pair keeps it" in result.stderr


def test_a_data_set_of_another_shape_is_one_line(bundle_path: Path) -> None:
    line = refused("cascade", bundle_path, "--data", "mnist", "--floor", "0.9")
    assert "shape (750, 1, 28, 28); allowed is (batch, 1, 8, 8)" in line


def test_its_quality_is_on_the_scale_of_the_sub_models(with_cascade: tuple[Bundle, Cascade]) -> None:
    """The second sub-model is 0.95 on the test split and was 0.99 on the certifying examples, the cascade there 0.98."""
    bundle, cascade = with_cascade
    assert bundle.qualities[cascade.then] == 0.95
    paired = cascade.model_copy(update={"accuracy": 0.98, "then_accuracy": 0.99})
    write_cascades(bundle, [paired])
    chosen = document("select", bundle.path, "--min-accuracy", "0.935", "--objective", "latency")
    assert (chosen["submodel"], chosen["accuracy"]) == (cascade.id, pytest.approx(0.94))
    assert document("select", bundle.path, "--min-accuracy", "0.945")["submodel"] == cascade.then
    shown = call("inspect", bundle.path).stdout
    assert "0.9400" in shown
    never = {"escalation": 0.0, "accuracy": 0.98, "first_accuracy": 0.98}  # its answers are the first's
    assert paired.model_copy(update=never).quality(bundle.qualities) == pytest.approx(bundle.qualities[cascade.first])
    always = {"escalation": 1.0, "accuracy": 0.99, "first_accuracy": 0.5}
    assert paired.model_copy(update=always).quality(bundle.qualities) == pytest.approx(0.95)
    assert "its accuracy is expected on the test split: 0.9800 on 1000 validation examples, above 0.9" in shown
