"""What generating text costs: what a profile keeps of it, what is between the measured tokens, how it is measured."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_profiles import ProfileError, measure_decoding, profile_document, read_profile, write_profile
from device_profiles.decoding import CONTEXTS, PROMPTS, at_tokens, series
from device_profiles.estimate import predict
from device_profiles.merge import merged
from exporter.bundle.manifest import LayerEntry
from selector.adapt.quiet import pooled
from selector.service.fleet.device_models import aggregate
from tests.helpers.decoding import first_token, measurement, per_token, profile_of

PROFILE = profile_of({"small": 1.0, "large": 4.0})
COSTS = PROFILE.submodels["large"]


def test_it_is_written_and_read_again_and_nothing_of_it_where_there_is_none(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    write_profile(PROFILE, path)
    assert read_profile(path) == PROFILE
    assert set(json.loads(path.read_text())["submodels"]["small"]["decoding"]) == {"prefill", "token"}
    plain = COSTS.model_copy(update={"decoding": None})
    assert "decoding" not in profile_document(PROFILE.model_copy(update={"submodels": {"small": plain}}))["submodels"]["small"]


@pytest.mark.parametrize(
    ("part", "wrong"),
    [
        ("prefill", {}),
        ("token", {}),
        ("token", {"0": 1.0}),
        ("prefill", {"x": 1.0}),
        ("token", {str(2**21): 1.0}),
        ("token", None),
    ],
)
def test_what_is_no_decoding_is_refused(tmp_path: Path, part: str, wrong: dict[str, float] | None) -> None:
    document = PROFILE.model_dump(mode="json")
    latency = COSTS.latency_ms.model_dump()
    document["submodels"]["small"]["decoding"][part] = wrong and dict.fromkeys(wrong, latency)
    path = tmp_path / "bench.json"
    path.write_text(json.dumps(document))
    with pytest.raises(ProfileError, match=rf"bench\.json: submodels\.small\.decoding\.{part}"):
        read_profile(path)


@given(st.integers(1, 4096), st.integers(1, 8192))
def test_what_was_not_measured_is_between_and_marked(prompt: int, context: int) -> None:
    found = at_tokens(COSTS, prompt, context)
    assert found.decoding is not None
    assert found.decoding.prefill[prompt].p50 == pytest.approx(first_token(4.0, prompt), rel=1e-6)
    assert found.latency_ms.p50 == pytest.approx(per_token(4.0, context), rel=1e-6)
    both = prompt in PROMPTS and context in CONTEXTS
    assert found.source["latency_ms"] == ("measured" if both else "predicted")


def test_measured_numbers_of_tokens_stay_measured_and_energy_goes_with_the_latency() -> None:
    costs = measurement(1.0, energy_mj=30.0, memory_mb=5.0)
    there = at_tokens(costs, 128, 64)
    assert there.source == {"latency_ms": "measured", "energy_mj": "predicted", "memory_mb": "measured"}
    assert there.energy_mj == pytest.approx(30 * per_token(1, 64) / per_token(1, 1024))
    longest = at_tokens(costs, None, None)
    assert (longest.latency_ms, longest.energy_mj, longest.source) == (costs.latency_ms, 30.0, costs.source)
    plain = costs.model_copy(update={"decoding": None})
    assert at_tokens(plain, 5, 5) is plain


@pytest.mark.parametrize(
    ("most", "found"), [(4096, [64, 256, 1024]), (1024, [64, 256, 1024]), (300, [64, 256, 300]), (32, [32])]
)
def test_no_more_tokens_than_the_model_takes(most: int, found: list[int]) -> None:
    assert series(CONTEXTS, most) == found


def test_the_harness_reads_every_prompt_and_one_token_in_every_context(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is what the longest of both took."""
    clock, held = SimpleNamespace(now=0.0), SimpleNamespace(mb=0.0)
    told: list[tuple[str, int]] = []

    class Opened:
        def __init__(self) -> None:
            self.before = held.mb  # what other rounds have left behind

        def prefill(self, tokens: int) -> None:
            told.append(("prefill", tokens))
            clock.now += 0.002 * tokens
            held.mb = max(held.mb, self.before + 3.0 + tokens)

        def step(self, context: int) -> None:
            told.append(("token", context))
            clock.now += 0.001 * (1 + context)
            held.mb = max(held.mb, self.before + context)

    harness = importlib.import_module("device_profiles.harness")
    monkeypatch.setattr(harness, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    monkeypatch.setattr(harness, "private_memory_mb", lambda: 100.0 + held.mb)

    (found,) = measure_decoding(lambda name: Opened(), ["a"], [8, 2], [4, 1], repeats=10, show_progress=False).values()
    assert found.decoding is not None
    assert {n: one.p50 for n, one in found.decoding.prefill.items()} == pytest.approx({2: 4.0, 8: 16.0}, abs=1e-4)
    assert {n: one.p50 for n, one in found.decoding.token.items()} == pytest.approx({1: 2.0, 4: 5.0}, abs=1e-4)
    assert found.latency_ms == found.decoding.token[4]
    assert found.memory_mb == 11.0
    assert not found.lengths
    assert set(told) == {("prefill", 2), ("prefill", 8), ("token", 1), ("token", 4)}


def test_what_is_predicted_is_predicted_for_prompts_and_contexts() -> None:
    shape = {"kind": "matmul", "channels_in": 64, "channels_out": 64}
    layers = [LayerEntry(macs=100 * n, weights=64, activations=n, **shape) for n in (1, 2, 4, 8, 16)]
    counts: dict[str, dict[int, int]] = {f"s{i}": {i: 2} for i in range(5)}
    found, _ = predict(layers, counts, {f"s{i}": measurement(2.0**i) for i in (0, 1, 3, 4)})
    decoding = found["s2"].decoding
    assert decoding is not None
    assert {n: one.p50 for n, one in decoding.token.items()} == pytest.approx({n: per_token(4.0, n) for n in CONTEXTS}, rel=0.1)
    assert {n: one.p50 for n, one in decoding.prefill.items()} == pytest.approx(
        {n: first_token(4.0, n) for n in PROMPTS}, rel=0.1
    )


def test_a_profile_of_other_prompts_is_not_put_together() -> None:
    """The longest is what is asked for where no prompt is named."""
    costs = PROFILE.submodels["small"]
    assert costs.decoding is not None
    short = costs.decoding.model_copy(update={"prefill": {16: costs.decoding.prefill[16]}})
    other = PROFILE.model_copy(update={"submodels": {"small": costs.model_copy(update={"decoding": short})}})
    with pytest.raises(
        ProfileError, match=r"1 measurements are of prompt = 512 tokens, these of 16 tokens; .* --prompts up to"
    ):
        merged(PROFILE, other)
    with pytest.raises(ProfileError, match=r"length = 1024 tokens, these of 64 tokens; .* --contexts up to"):
        merged(PROFILE, other.model_copy(update={"length": 64}))


def test_device_models_merging_and_tails_keep_it() -> None:
    profiles = [profile_of({"small": weight}, device=f"d{place}") for place, weight in enumerate((1.0, 2.0, 5.0))]
    decoding = aggregate("kind", profiles).submodels["small"].decoding
    assert decoding is not None
    assert {n: one.p50 for n, one in decoding.token.items()} == {n: per_token(2.0, n) for n in CONTEXTS}
    one_without = profiles[0].submodels["small"].model_copy(update={"decoding": None})
    mixed = [profiles[0].model_copy(update={"submodels": {"small": one_without}}), *profiles[1:]]
    assert aggregate("kind", mixed).submodels["small"].decoding is None
    assert merged(PROFILE, PROFILE).submodels == PROFILE.submodels
    found = pooled(PROFILE).submodels["large"]
    assert found.decoding is not None
    assert found.latency_ms == found.decoding.token[1024]
    assert found.decoding.prefill == COSTS.decoding.prefill if COSTS.decoding else False
