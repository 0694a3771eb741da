"""What tests of the dashboard need beside a browser."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from device_profiles import Profile, read_profile
from selector.choose.battery import Battery
from selector.choose.budget import Budget
from selector.choose.selector import Selector
from tests.conftest import DEVICE, taking

try:
    from playwright import sync_api
except ImportError:  # the tests are skipped
    sync_api = None  # type: ignore[assignment]
expect: Any = None if sync_api is None else sync_api.expect
if sync_api is not None:
    expect.set_options(timeout=60_000)  # however busy the machine is

OTHER = "other-device"  # half as fast, and its energy is known
BARE, BLIND = "unmeasured", "untested"  # bundles without a profile, and without accuracies
SENT, PHONES = "sent", {"phone-1": 2.0, "phone-2": 4.0}  # a bundle whose profiles devices have sent: milliseconds
SLOW = "w1.00-d2: p50 15 ms, 1.50 times that before"  # why they took a new version back
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


needs_a_browser = [
    pytest.mark.skipif(sync_api is None, reason="needs playwright: pip install '.[dev]'"),
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium found: apt-get install chromium"),
]


def phones(fleet: Path) -> list[Profile]:
    """What two devices of one model have sent."""
    profile = read_profile(fleet / "profiles" / f"{DEVICE}.json")
    info = profile.device.model_copy(update={"cpu": "Phone 9"})
    return [
        taking(profile, ms).model_copy(update={"device": info.model_copy(update={"name": name})}) for name, ms in PHONES.items()
    ]


class Visit(NamedTuple):
    page: Any
    asked: list[str]  # addresses
    errors: list[str]  # in the console


def opened(page: Any, url: str) -> None:
    page.goto(url)
    page.wait_for_selector("#frontier-chart .main-svg")
    settled(page)


def settled(page: Any) -> None:
    """Until the question that the budget asks is answered."""
    expect(page.locator("#choice")).to_have_attribute("aria-busy", "false")


def asked_by(page: Any) -> dict[str, Any]:
    """The query as the page would have it sent with curl."""
    page.check("input[name=language][value=curl]", force=True)
    found = re.search(r"-d '(.*)'$", page.inner_text("#code"), re.DOTALL)
    assert found
    query: dict[str, Any] = json.loads(found[1])
    return query


def expected(selector: Selector, query: dict[str, Any]) -> Any:
    battery = query.get("battery")
    return selector.select(Budget(**query["budget"]), Battery(**battery) if battery else None)
