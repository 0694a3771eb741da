"""The dashboard as its readers meet it: a real server, a real browser. `test_service.py` holds the paths."""

from __future__ import annotations

import re
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exporter.bundle import Bundle
from selector.choose.budget import Budget
from selector.choose.profiles import selector_for
from selector.service.routes.page import PAGES
from tests.conftest import DEVICE
from tests.helpers.dashboard import (
    asked_by,
    expect,
    needs_a_browser,
    opened,
    settled,
)
from tests.helpers.proxy import Proxy
from tests.helpers.server import Server

pytestmark = needs_a_browser


def test_colours_follow_the_system_and_a_choice_that_is_remembered(page: Any, server: Server) -> None:
    def dark() -> bool:
        shown = page.evaluate("getComputedStyle(document.body).backgroundColor")
        return sum(map(int, re.findall(r"\d+", shown)[:3])) < 200

    assert not dark()
    page.emulate_media(color_scheme="dark")
    assert dark()
    page.focus("input[name=theme]:checked")
    page.keyboard.press("ArrowRight")
    assert not dark()
    page.emulate_media(color_scheme="light")
    page.keyboard.press("ArrowRight")
    assert dark()
    opened(page, server.url)
    assert dark()
    assert page.is_checked("input[name=theme][value=dark]")


@pytest.mark.parametrize("width", [360, 1920])
def test_nothing_is_wider_than_the_screen(page: Any, server: Server, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 740})
    for _ in range(300):
        page.wait_for_timeout(200)  # the charts follow, on a busy machine later
        widest = page.evaluate("document.documentElement.scrollWidth")
        if widest <= width:
            break
    assert widest <= width


def test_everything_is_reached_by_keyboard_in_the_order_of_reading(page: Any, server: Server) -> None:
    opened(page, server.url)
    visited = []
    for _ in range(46):
        page.keyboard.press("Tab")
        visited.append(
            page.evaluate("(({id, name, className, tagName}) => id || name || className || tagName)(document.activeElement)")
        )
    assert visited[0] == "skip"
    order = ["bundle", "device", "clear", "objective", "latency_ms-exact", "latency_ms", "percentile", "energy_mj", "memory_mb"]
    order += ["min_quality", "battery", "cost", "language", "copy", "compared"]
    places = [visited.index(name) for name in order]
    assert places == sorted(places)
    named = "(one) => one.labels?.length || one.ariaLabel || one.innerText"
    assert page.evaluate(f"[...document.querySelectorAll('input, select, button')].every({named})")


def test_an_address_holds_the_query(page: Any, server: Server) -> None:
    page.fill("#memory_mb-exact", "77")
    page.fill("#battery-exact", "40")
    settled(page)
    address = page.url
    opened(page, server.url)
    opened(page, address)
    query = asked_by(page)
    assert (query["budget"], query["battery"]) == ({"memory_mb": 77}, {"percent": 40, "discharging": False})


def test_an_address_may_name_a_bundle_that_is_not_there(page: Any, server: Server, fleet: Path) -> None:
    for name in ("nothing", "constructor"):
        opened(page, f"{server.url}/?bundle={name}")
        assert page.input_value("#bundle") == fleet.name


def test_runs_on_this_host_are_shown_while_they_come(page: Any, server: Server, fleet: Path) -> None:
    spec = Bundle(fleet).manifest.inputs[0]
    example = np.zeros([1, *spec.shape[1:]], np.float32).tolist()

    def predict() -> None:
        body = {"bundle": fleet.name, "device": DEVICE, "budget": {"latency_ms": 100_000}, "inputs": {spec.name: example}}
        for _ in range(4):
            answer = page.request.post(f"{server.url}/v1/predict", data=body)
            assert answer.ok, answer.text()

    page.focus("#live")
    expect(page.locator("#live-none")).to_be_visible()
    predict()
    figures = page.locator("#live-figures")
    expect(page.locator("#live-chart .main-svg").first).to_be_visible()
    expect(figures).to_contain_text("4 of 4")
    expect(figures).to_contain_text(selector_for(Bundle(fleet), DEVICE).select(Budget()).submodel)
    predict()
    expect(figures).to_contain_text("8 of 8")


def test_runs_that_miss_their_deadline_are_counted_and_sensors_shown(page: Any, server: Server, fleet: Path) -> None:
    """What this machine will not do on demand: the answers of the service are made up."""
    run = {"submodel": next(iter(Bundle(fleet).submodels)), "device": DEVICE, "limit_ms": 2.0, "slow_down": 1.25}
    history = [
        {"at": 1.7e9 + i, "latency_ms": 1.0 + i % 2 * 1.5, "met": not i % 2, "battery_percent": None, **run} for i in range(8)
    ]
    answer = {"bundles": {fleet.name: {"history": history, "sensors": {"temperature_c": 61.0}}}}
    page.route("**/dashboard/runtime", lambda route: route.fulfill(json=answer))
    page.focus("#live")
    for text in ("50.0 %", "4 of 8", "× 1.25", "61.0"):
        expect(page.locator("#live-figures")).to_contain_text(text)


def test_of_texts_tokens_per_second_are_shown(page: Any, fleet: Path) -> None:
    run = {"submodel": next(iter(Bundle(fleet).submodels)), "device": DEVICE, "limit_ms": 20.0, "slow_down": 1.0, "met": True}
    text = {"at": 1.7e9, "latency_ms": 12.5, "battery_percent": None, "tokens_per_second": 80.0, **run}
    answer = {"bundles": {fleet.name: {"history": [text], "sensors": {}}}}
    page.route("**/dashboard/runtime", lambda route: route.fulfill(json=answer))
    page.focus("#live")
    for said in ("tokens per second", "80.0", "latency per token"):
        expect(page.locator("#live-figures")).to_contain_text(said)
    expect(page.locator("#live-state")).to_contain_text("the latest 1 text")


def test_its_headers_keep_scripts_of_others_out_and_assets_in_the_cache(server: Server, browser: Any) -> None:
    request = browser.new_context().request
    page = request.get(server.url)
    policy = dict(part.split(" ", 1) for part in page.headers["content-security-policy"].split("; "))
    assert (policy["default-src"], policy["script-src"]) == ("'none'", "'self'")
    assert request.get(server.url, headers={"If-None-Match": page.headers["etag"]}).status == 304
    assets = re.findall(r'"(assets/[^"]+)"', page.text())
    assert len(assets) >= 10
    for path in assets:
        asset = request.get(f"{server.url}/{path}")
        assert (asset.status, asset.headers["cache-control"]) == (200, "public, max-age=31536000, immutable")
    version = assets[0].split("/")[1]
    for path in (f"/assets/{version}/index.html", f"/assets/{version}/..%2fpage_routes.py", "/assets/0/page.css"):
        assert request.get(server.url + path).status == 404


def test_the_page_works_below_a_prefix_of_a_proxy(server: Server, browser: Any) -> None:
    context = browser.new_context()
    with Proxy(server.url, "/models") as proxy:
        thread = threading.Thread(target=proxy.serve_forever)
        thread.start()
        try:
            page, failed = context.new_page(), []
            page.on("response", lambda answer: failed.append(answer.url) if answer.status >= 400 else None)
            opened(page, f"{proxy.url}/models/")
            expect(page.locator("#code")).to_contain_text(f"{proxy.url}/models/v1/select")
            assert page.locator("nav a", has_text="API").evaluate("a => a.href") == f"{proxy.url}/models/docs"
            assert failed == []
        finally:
            context.close()
            proxy.shutdown()
            thread.join()


def test_no_file_of_the_page_names_an_address() -> None:
    for path in (path for path in PAGES.rglob("*") if path.is_file()):
        found = re.findall(r"https?://(?!www\.w3\.org/)\S+", path.read_text(encoding="utf-8"))
        assert found == [], path.name
