"""The dashboard of a device that was kept busy: what holds in the first minute, and what after."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from device_profiles import LatencyMs, read_profile, write_profile
from device_profiles.schema import Sustained
from exporter.bundle import Bundle
from selector.choose.profiles import selector_for
from tests.conftest import DEVICE
from tests.helpers.dashboard import OTHER, asked_by, expect, expected, needs_a_browser, opened, settled
from tests.helpers.server import serving

pytestmark = needs_a_browser

TIMES = 2.0
"""So much slower is steady work."""


@pytest.fixture
def busy(bundle_path: Path, tmp_path: Path) -> Path:
    """Of one of two devices it is known."""
    path = Path(shutil.copytree(bundle_path, tmp_path / "digits"))
    profile = read_profile(path / "profiles" / f"{DEVICE}.json")
    first, after = (LatencyMs(p50=ms, p90=ms, p99=ms, mean=ms, n=9) for ms in (2.0, 2.0 * TIMES))
    kept = Sustained(submodel=next(iter(profile.submodels)), minutes=10, first=first, after=after, settled_minutes=3.5)
    other = profile.model_copy(update={"device": profile.device.model_copy(update={"name": OTHER})})
    for one in (profile.model_copy(update={"sustained": kept}), other):
        write_profile(one, path / "profiles" / f"{one.device.name}.json")
    return path


def test_frontier_and_choice_are_those_of_steady_work_where_that_is_chosen(browser: Any, busy: Path, tmp_path: Path) -> None:
    errors: list[str] = []
    selector = selector_for(Bundle(busy), DEVICE)
    limit = sorted(one.latency_ms.p50 for one in Bundle(busy).profile(DEVICE).submodels.values())[-1]
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(60_000)  # however busy the machine is
    page.on("pageerror", lambda error: errors.append(str(error)))
    with serving(tmp_path / "log", busy) as server:
        opened(page, f"{server.url}/?device={DEVICE}&latency_ms={limit}&sustained=true")
        expect(page.locator("#lasting-about")).to_have_text(
            f"{next(iter(Bundle(busy).submodels))} without a pause for 10 min: p50 2.00 ms in the first minute, 4.00 ms after, "
            "settled after 3.5 min"
        )
        chosen, costs = set(), []
        for work in ("sustained", "first"):
            page.check(f"input[name=lasting][value={work}]", force=True)
            settled(page)
            about = expect(page.locator("#frontier-about"))
            (about.to_contain_text if work == "sustained" else about.not_to_contain_text)("Costs are those in steady work.")
            query = asked_by(page)
            assert query["budget"].get("sustained", False) == ("sustained=true" in page.url) == (work == "sustained")
            found = expected(selector, query)
            expect(page.locator("#submodel")).to_have_text(found.submodel)
            expect(page.locator("#compare-table")).to_contain_text("steady work" if work == "sustained" else "thread")
            chosen.add(found.submodel)
            cells = page.evaluate(
                "[...document.querySelectorAll('#frontier-table tbody tr td:first-child')].map((one) => one.textContent)"
            )
            costs.append([float(one) for one in cells])
        assert len(chosen) == 2
        assert costs[0] == pytest.approx([TIMES * one for one in costs[1]], rel=0.01)
        page.check("input[name=lasting][value=sustained]", force=True)
        page.select_option("#device", OTHER)
        expect(page.locator("#pick-lasting")).to_be_hidden()
        settled(page)
        assert "sustained" not in asked_by(page)["budget"]
        assert server.get(f"/dashboard/frontiers/digits/{DEVICE}?sustained=1").status == 422
    page.close()
    assert errors == []
