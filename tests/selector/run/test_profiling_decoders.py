"""A bundle that generates text is measured by prompts and contexts, with the calls that generate it."""

from __future__ import annotations

from pathlib import Path

import pytest

from device_profiles import ProfileError, read_profile
from exporter.bundle import Bundle
from selector import profile_bundle
from selector.run.decode.timed import TimedDecoder
from tests.helpers.commands import call, refused
from tests.helpers.decoders import Tiny
from tests.helpers.generators import write_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_bundle(tmp_path_factory.mktemp("measured") / "bundle", profiled=False)


def test_what_is_timed_is_what_generates() -> None:
    """The token after a prompt, and the one after another, whatever was timed before; the oracle computes all anew."""
    tiny = Tiny()
    timed = TimedDecoder(tiny.decoder(prefill=8))
    ids = timed._ids
    for tokens in (20, 5, 40):
        assert timed.prefill(tokens) == tiny.logits(ids[:tokens])[-1].argmax()
    timed.prefill(40)
    for _ in range(2):
        assert timed.step(40) == tiny.logits(ids[:41])[-1].argmax()
    timed.step(90)
    timed.prefill(30)
    assert timed.step(30) == tiny.logits(ids[:31])[-1].argmax()


def test_prompts_and_contexts_are_measured(bundle: Bundle) -> None:
    found = profile_bundle(
        bundle, device="here", threads=1, submodels=["small", "full"], prompts=[4, 32], contexts=[16, 64], repeats=3, watts=3,
        show_progress=False,
    )  # fmt: skip
    assert found.length == 64
    for one in found.submodels.values():
        assert one.decoding is not None
        assert (set(one.decoding.prefill), set(one.decoding.token)) == ({4, 32}, {16, 64})
        assert one.latency_ms == one.decoding.token[64]
        assert one.latency_ms.n == 3
        assert not one.lengths
        assert one.energy_mj is not None


def test_the_command_measures_what_the_model_can_take(bundle: Bundle) -> None:
    """Its context is 512: 511 tokens, and a place for the next."""
    shown = call("profile", bundle.path, "--device", "there", "--submodels", "small", "--repeats", "1", "--watts", "3").stdout
    assert "per token after 511" in shown
    assert "for a prompt of 16" in shown
    assert "--token-ms" in shown
    decoding = read_profile(bundle.path / "profiles" / "there.json").submodels["small"].decoding
    assert decoding is not None
    assert (sorted(decoding.prefill), sorted(decoding.token)) == ([16, 128, 511], [64, 256, 511])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"prompts": [512]}, r"prompts = 512: allowed are up to 64 whole numbers from 1 to 511"),
        ({"contexts": [0]}, r"contexts = 0: allowed"),
        ({"contexts": []}, r"contexts = 0 of them: allowed"),
        ({"prompts": list(range(1, 70))}, r"prompts = 69 of them: allowed"),
        ({"lengths": [16]}, r"lengths = 16: allowed is none, this bundle generates text"),
    ],
)
def test_what_the_model_cannot_take_is_refused(bundle: Bundle, options: dict[str, list[int]], said: str) -> None:
    with pytest.raises(ProfileError, match=said):
        profile_bundle(bundle, **options)  # type: ignore[arg-type]


def test_a_bundle_without_text_has_no_prompts(bundle_path: Path) -> None:
    assert "prompts = 5: allowed is none, this bundle generates no text" in refused("profile", bundle_path, "--prompts", "5")
