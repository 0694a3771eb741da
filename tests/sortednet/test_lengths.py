"""What people see of a bundle that was measured at several lengths: `inspect` and the report."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from device_profiles.lengths import at_length
from exporter.bundle import Bundle
from selector import Budget, selector_for
from selector.service import create_app
from tests.helpers import text_bundles
from tests.helpers.commands import call, document, refused
from tests.helpers.figures import ranks, written_down
from tests.helpers.lengths import LENGTHS, profile_of, taking


def test_inspect_shows_the_lengths_and_the_costs_at_one(words_path: Path) -> None:
    bundle = Bundle(words_path)
    largest = max(ranks(bundle), key=lambda name: ranks(bundle)[name])
    weight = ranks(bundle)[largest]
    assert document("inspect", words_path)["lengths"] == {"bench": list(LENGTHS)}
    shown = call("inspect", words_path, "--device", "bench").stdout
    assert f"of inputs of 256; measured were {', '.join(map(str, LENGTHS))}" in shown
    assert f" {taking(weight, 256):.3f} " in shown
    shown = call("inspect", words_path, "--device", "bench", "--length", "100").stdout
    assert "of inputs of 100;" in shown
    assert f" ~{taking(weight, 100):.3f} " in shown
    assert "length = -1" in refused("inspect", words_path, "--length", "-1")
    assert "length = -1" in refused("inspect", words_path, "--length", "-1", "--json")
    assert "'nobody'" in refused("inspect", words_path, "--device", "nobody", "--json")
    costs = document("inspect", words_path, "--device", "bench", "--length", "100")["costs"]
    assert (costs["device"], costs["length"]) == ("bench", 100)
    profile = Bundle(words_path).profile("bench")
    for name, there in costs["submodels"].items():
        expected = at_length(profile.submodels[name], 100).latency_ms
        assert expected is not None
        assert there["latency_ms"]["p50"] == expected.p50
    assert "costs" not in document("inspect", words_path)


def test_a_length_that_changes_nothing_is_told(bundle_path: Path) -> None:
    shown = call("inspect", bundle_path, "--length", "100")
    assert "length = 100: changes nothing" in shown.stderr
    assert "lengths" not in document("inspect", bundle_path)
    assert document("inspect", bundle_path, "--length", "100")["costs"]["length"] is None


def test_a_text_that_is_cut_costs_what_the_longest_does(tmp_path: Path) -> None:
    bundle = Bundle(written_down(text_bundles.sentences(tmp_path / "sentences").path))
    bundle.save_profile(profile_of(ranks(bundle), bundle.fingerprint), overwrite=True)
    most, device = text_bundles.MAX_TOKENS, ("--device", "bench")
    cut, long = ([*device, "--latency-ms", 1, "--length", length] for length in (most, 200))
    assert (wanted := document("select", bundle.path, *cut)) == document("select", bundle.path, *long)
    assert f"for inputs of up to {most}" in wanted["reason"]
    assert f"cut off after {most} tokens: a length of 200 costs what {most} does" in call("select", bundle.path, *long).stderr
    assert f"of inputs of {most};" in call("inspect", bundle.path, *device, "--length", 200).stdout
    client = create_app([bundle]).test_client()
    budget = {"latency_ms": 1.0, "length": 200}
    assert client.post("/v1/select", json={"device": "bench", "budget": budget}).json == wanted
    there = (client.get(f"/dashboard/frontiers/sentences/bench?length={length}").json for length in (most, 200))
    assert next(there) == next(there)


@pytest.fixture(scope="module")
def page(words_path: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("report") / "words.html"
    assert call("report", words_path, "--out", str(out), "--device", "bench").exit_code == 0
    return out.read_text(encoding="utf-8")


def test_the_report_has_the_frontier_of_every_length(words_path: Path, page: str) -> None:
    found = re.search(r"const { costs, devices, metric } = (.*);\n", page)
    assert found
    (device,) = json.loads(found[1])["devices"]
    selector = selector_for(Bundle(words_path), "bench")
    assert list(device["lengths"]) == [str(n) for n in LENGTHS]
    for length in LENGTHS:
        there: dict[str, Any] = device["lengths"][str(length)]
        steps = there["frontiers"]["latency_ms.p50"]
        assert len(steps) > 1
        for limit, name in steps:
            assert selector.select(Budget(latency_ms=limit * 1.0001, length=length)).submodel == name
            assert there["submodels"][name]["costs"]["latency_ms.p50"] == pytest.approx(limit)
    assert device["lengths"]["256"] == {name: device[name] for name in ("submodels", "frontiers")}
    assert "of inputs of 256, the longest; measured were 16, 32, 64, 128, 256" in " ".join(page.split())
