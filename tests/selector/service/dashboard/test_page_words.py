"""What the dashboard says: nothing typed is passed over, nothing cut off; what is known is said, with its unit and colour."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from exporter.bundle import Bundle
from tests.conftest import DEVICE
from tests.helpers.dashboard import BARE, asked_by, expect, needs_a_browser, opened, settled
from tests.helpers.server import Server

pytestmark = needs_a_browser


@pytest.mark.parametrize(
    ("field", "typed", "said"),
    [
        ("min_quality", "98", "98 is no accuracy; allowed is 0 to 1, such as 0.98"),
        ("min_quality", "-0.5", "-0.5 is no accuracy; allowed is 0 to 1"),
        ("latency_ms", "-1", "-1 is no limit; allowed is what is above 0"),
        ("memory_mb", "0", "0 is no limit"),
        ("battery", "101", "101 is no charge; allowed are 0 to 100 %"),
    ],
)
def test_what_is_typed_and_is_no_limit_is_said_not_to_count(page: Any, field: str, typed: str, said: str) -> None:
    hint, usual = page.locator(f"#{field}-hint"), page.inner_text(f"#{field}-hint")
    page.fill(f"#{field}-exact", typed)
    expect(hint).to_contain_text(f"Not counted: {said}")
    expect(page.locator(f"#{field}-exact")).to_have_attribute("aria-invalid", "true")
    settled(page)
    assert asked_by(page)["budget"] == {}
    page.focus(f"#{field}")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Home" if field == "battery" else "PageUp")
    expect(hint).to_have_text(usual)


def test_an_address_with_nonsense_says_so_too(page: Any, server: Server) -> None:
    opened(page, f"{server.url}/?min_quality=98")
    expect(page.locator("#min_quality-hint")).to_contain_text("Not counted: 98")


def test_a_device_that_is_not_known_is_said_to_be_none(page: Any, server: Server) -> None:
    opened(page, f"{server.url}/?device=nobody")
    expect(page.locator("#device-about")).to_contain_text("nobody is not known here; shown is ")
    page.select_option("#device", DEVICE)
    settled(page)
    expect(page.locator("#device-about")).not_to_contain_text("nobody")


def test_the_axis_follows_the_percentile_also_after_clear_and_from_an_address(page: Any, server: Server) -> None:
    title = page.locator("#frontier-chart .xtitle")
    page.check("input[name=percentile][value='99']", force=True)
    expect(title).to_have_text("Latency, p99 (ms)")
    settled(page)
    opened(page, page.url)
    expect(title).to_have_text("Latency, p99 (ms)")
    assert "cost" not in parse_qs(urlsplit(page.url).query)
    page.click("#clear")
    expect(title).to_have_text("Latency, p50 (ms)")
    assert page.is_checked("input[name=cost][value='latency_ms.p50']")


def test_the_page_says_what_it_is_for(page: Any) -> None:
    expect(page.locator("main h1")).to_be_visible()
    expect(page.locator("main .about p")).to_contain_text("Say what one inference may cost on a device")


def test_without_a_profile_the_quality_is_said_and_the_query_says_what_it_needs(page: Any, fleet: Any) -> None:
    page.select_option("#bundle", BARE)
    expect(page.locator("#submodel")).to_have_text("No choice")
    best = max(entry.quality for entry in Bundle(fleet).submodels.values())
    expect(page.locator("[data-figure=quality] b")).to_have_text(f"≤ {best:.4f}")
    expect(page.locator("#latency_ms-exact")).to_have_attribute("placeholder", "no profile")
    expect(page.locator("#code")).to_contain_text("# Answered once a device has measured the bundle: sortednet profile")
    page.check("input[name=language][value=python]", force=True)
    expect(page.locator("#code")).to_contain_text("# Answered once")
    page.select_option("#bundle", "digits")
    settled(page)
    expect(page.locator("#code")).not_to_contain_text("# Answered once")


def cut_off(page: Any) -> list[str]:
    """The texts of all cells, hints and code that lie beyond the edge of what scrolls, or of the screen."""
    script = """() => [...document.querySelectorAll("#compare-table :is(th, td), #code, .hint, .limit label, .figures dt")]
      .filter((one) => one.getClientRects().length).filter((one) => {
        const around = one.closest(".scroll")?.getBoundingClientRect().right ?? innerWidth;
        const hides = getComputedStyle(one).overflow === "hidden" && one.scrollWidth > one.clientWidth + 1;
        return hides || one.getBoundingClientRect().right > around + 1;
      }).map((one) => one.textContent)"""
    found: list[str] = page.evaluate(script)
    return found


def test_nothing_is_cut_off_at_1280_pixels(page: Any) -> None:
    page.fill("#latency_ms-exact", "0.000001")
    expect(page.locator("#compare-table")).to_contain_text("no, nearest")
    expect(page.locator("#compare-chart .main-svg").first).to_be_visible()
    assert cut_off(page) == []


def test_on_a_phone_code_is_broken_and_a_table_shows_that_it_goes_on(page: Any) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    page.fill("#latency_ms-exact", "0.000001")
    expect(page.locator("#compare-table")).to_contain_text("no, nearest")
    assert [text for text in cut_off(page) if "curl" in text] == []
    fits = page.evaluate("document.querySelector('#compare-table .fits').getBoundingClientRect().right <= innerWidth")
    assert fits
    shadows = "getComputedStyle(document.getElementById('compare-table').parentElement).backgroundAttachment"
    assert page.evaluate(shadows) == "local, local, scroll, scroll"


def test_the_name_of_the_choice_stays_within_the_chart(page: Any) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    page.fill("#latency_ms-exact", "0.000001")
    settled(page)
    label, chart = page.locator("#frontier-chart .textpoint text"), page.locator("#frontier-chart")
    expect(label).to_be_visible()
    inner, outer = label.bounding_box(), chart.bounding_box()
    assert outer["x"] <= inner["x"]
    assert inner["x"] + inner["width"] <= outer["x"] + outer["width"]


def test_colours_of_the_legend_are_those_of_the_chart_and_of_the_table(page: Any) -> None:
    page.fill("#latency_ms-exact", "0.000001")
    expect(page.locator("#compare-table")).to_contain_text("no, nearest")
    traces = "document.getElementById('{}').data.filter((one) => {}).map((one) => {})"
    lines = page.evaluate(traces.format("compare-chart", "one.showlegend !== false", "one.line.color"))
    styles = "[...document.querySelectorAll('#compare-table {}')].map((one) => getComputedStyle(one).{})"
    assert page.evaluate(styles.format(".key", "backgroundColor")) == lines
    ink = page.evaluate("getComputedStyle(document.body).color")
    assert set(page.evaluate(styles.format("td.number", "color"))) == {ink}  # none in the colour of another line
    clouds = page.evaluate(traces.format("frontier-chart", "one.mode === 'markers'", "one.marker"))
    assert all(cloud["opacity"] == 1 for cloud in clouds)  # else the legend shows the mean


def test_readings_of_this_host_have_their_units(page: Any, server: Server, fleet: Any) -> None:
    spec = Bundle(fleet).manifest.inputs[0]
    body = {"bundle": fleet.name, "device": DEVICE, "inputs": {spec.name: [[[[0.0] * 8] * 8]]}}
    answer = page.request.post(f"{server.url}/v1/predict", data=body)
    assert answer.ok, answer.text()
    readings = {}
    for _ in range(100):
        readings = page.request.get(f"{server.url}/dashboard/runtime").json()["bundles"][fleet.name]["sensors"]
        if readings:
            break
        page.wait_for_timeout(100)
    assert readings["memory_available"].endswith(" MB")
    page.focus("#live")
    expect(page.locator("#live-figures")).to_contain_text(" MB")


def test_models_beyond_those_that_are_listed_are_found_by_name(page: Any, server: Server) -> None:
    """So many are made up: the service's own lists go on after a name, which `test_profile_routes.py` holds."""
    asked = []

    def list_models(route: Any) -> None:
        query = parse_qs(urlsplit(route.request.url).query)
        after = query.get("after", [""])[0]
        asked.append(after)
        first = int(after.removeprefix("phone-") or 0) + 1 if after.removeprefix("phone-").isdigit() or not after else 9000
        names = [f"phone-{n:05d}" for n in range(first, first + int(query["limit"][0]))]
        route.fulfill(json={"models": [{"model": name, "devices": 1} for name in names], "next": names[-1]})

    page.route("**/models?*", list_models)
    try:
        opened(page, server.url)
        expect(page.locator("#find-device")).to_be_visible()
        assert page.locator("#device optgroup option").count() == 5000
        page.fill("#find", "phone-090")
        expect(page.locator("#found")).to_contain_text("found, listed under Device")
        expect(page.locator("#device optgroup option").first).to_have_text("phone-09000")
        page.goto(f"{server.url}/?device=phone-09000")
        expect(page.locator("#device")).to_have_value("phone-09000")
        assert asked[-1] < "phone-09000"
        assert not asked[-1].startswith("phone-09000")
    finally:
        page.unroute_all()
        opened(page, server.url)
    expect(page.locator("#find-device")).to_be_hidden()


def test_the_pages_of_the_api_begin_with_select(server: Server) -> None:
    document = server.get("/openapi.json").document
    assert document["tags"][0]["name"] == "select"
    assert next(iter(document["paths"])) == "/v1/select"
    used = {operation["tags"][0] for path in document["paths"].values() for operation in path.values()}
    assert used == {tag["name"] for tag in document["tags"]}
