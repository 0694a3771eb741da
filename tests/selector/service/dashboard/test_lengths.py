"""The dashboard of a bundle that was measured at several lengths of its inputs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from exporter.bundle import Bundle
from selector.choose.profiles import selector_for
from tests.helpers.dashboard import asked_by, expect, expected, needs_a_browser, opened, settled
from tests.helpers.figures import ranks
from tests.helpers.lengths import LENGTHS, taking
from tests.helpers.server import Server, serving

pytestmark = needs_a_browser


@pytest.fixture(scope="module")
def texts(words_path: Path, bundle_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("texts") / "log", words_path, bundle_path) as found:
        yield found


def test_the_frontier_and_the_choice_are_those_of_the_chosen_length(
    browser: Any, texts: Server, words_path: Path, bundle_path: Path
) -> None:
    bundle = Bundle(words_path)
    selector, limit = selector_for(bundle, "bench"), taking(2.0, 256)
    errors: list[str] = []
    context = browser.new_context()
    page = context.new_page()
    page.on("pageerror", lambda error: errors.append(str(error)))
    opened(page, f"{texts.url}/?bundle={words_path.name}&device=bench&latency_ms={limit:g}&length=32")
    for length in (32, 64, None):
        page.select_option("#length", "" if length is None else str(length))
        settled(page)
        at = length or max(LENGTHS)
        expect(page.locator("#frontier-about")).to_contain_text(f"Costs are of inputs of {at}.")
        query = asked_by(page)
        assert query["budget"].get("length") == length
        chosen = expected(selector, query)
        expect(page.locator("#submodel")).to_have_text(chosen.submodel)
        expect(page.locator("#reason")).to_contain_text(chosen.reason[1:])
        costs = page.evaluate(
            "[...document.querySelectorAll('#frontier-table tbody tr td:first-child')].map((one) => one.textContent)"
        )
        assert [float(one) for one in costs] == pytest.approx(
            [taking(weight, at) for weight in sorted(ranks(bundle).values())], rel=0.01
        )
        assert (f"length={length}" in page.url) == (length is not None)
    assert page.locator("#length option").all_inner_texts() == ["256, the longest measured", "128", "64", "32", "16"]

    page.select_option("#length", "16")
    page.select_option("#bundle", bundle_path.name)  # of inputs of one size
    expect(page.locator("#pick-length")).to_be_hidden()
    settled(page)
    assert "length" not in asked_by(page)["budget"]
    context.close()
    assert errors == []
