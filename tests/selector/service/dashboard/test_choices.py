"""The dashboard's choices as its readers make them: what the page shows is what the selector chooses."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from device_profiles.models import model_of
from exporter.bundle import Bundle
from selector.choose.budget import Budget
from selector.choose.cascades import Cascade, write_cascades
from selector.choose.profiles import selector_for
from tests.conftest import DEVICE
from tests.helpers.dashboard import (
    BARE,
    BLIND,
    OTHER,
    PHONES,
    SENT,
    SLOW,
    Visit,
    asked_by,
    expect,
    expected,
    needs_a_browser,
    opened,
    phones,
    settled,
)
from tests.helpers.server import serving

pytestmark = needs_a_browser


def test_each_slider_moved_by_keyboard_shows_what_the_selector_chooses(page: Any, fleet: Path) -> None:
    selector = selector_for(Bundle(fleet), DEVICE)
    for field, objective in (
        ("latency_ms", "quality"),
        ("energy_mj", "quality"),
        ("memory_mb", "quality"),
        ("min_quality", "latency"),
    ):
        page.click("#clear")
        page.check(f"input[name=objective][value={objective}]", force=True)
        seen = set()
        for key in ("Home", *["PageUp"] * 4, "ArrowLeft", "End", "ArrowLeft"):
            page.focus(f"#{field}")
            page.keyboard.press(key)
            settled(page)
            query = asked_by(page)
            selection = expected(selector, query)
            expect(page.locator("#submodel")).to_have_text(selection.submodel)
            expect(page.locator("#reason")).to_contain_text(selection.reason[1:])
            assert (page.inner_text("#verdict") == "Nothing fits; this is the nearest") is (not selection.feasible)
            value = page.input_value(f"#{field}-exact")
            assert query["budget"].get(field) == (float(value) if value else None)
            seen.add(selection.submodel)
        assert len(seen) > 1, field


def test_percentile_objective_and_battery_by_keyboard(page: Any, fleet: Path) -> None:
    selector = selector_for(Bundle(fleet), DEVICE)

    def agrees(**budget: Any) -> dict[str, Any]:
        settled(page)
        query = asked_by(page)
        assert query["budget"] == budget
        expect(page.locator("#submodel")).to_have_text(expected(selector, query).submodel)
        return query

    page.focus("input[name=objective]:checked")
    page.keyboard.press("ArrowRight")
    agrees(objective="energy")
    page.keyboard.press("ArrowRight")
    agrees(objective="latency")
    page.keyboard.press("ArrowRight")
    agrees()
    page.focus("input[name=percentile]:checked")
    page.keyboard.press("ArrowLeft")
    agrees(percentile=99)
    assert page.is_checked("input[name=cost][value='latency_ms.p99']")
    page.focus("#battery")
    page.keyboard.press("Home")
    for _ in range(12):
        page.keyboard.press("ArrowRight")
    assert agrees(percentile=99)["battery"] == {"percent": 12, "discharging": False}
    page.focus("#discharging")
    page.keyboard.press("Space")
    assert agrees(percentile=99)["battery"] == {"percent": 12, "discharging": True}
    expect(page.locator("#reason")).to_contain_text("attery at 12 % and discharging")


def test_a_cascade_is_on_the_frontier_and_can_be_chosen(browser: Any, fleet: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(fleet, tmp_path / "digits"))
    bundle = Bundle(path)
    first, *_, then = sorted(bundle.submodels, key=lambda name: bundle.submodels[name].macs)
    figures = {"threshold": 0.8, "escalation": 0.25, "accuracy": 0.999, "floor": 0.9, "confidence": 0.95, "examples": 1000}
    cascade = Cascade(id=f"{first}+{then}+0.{'9' * 14}", first=first, then=then, **figures)
    write_cascades(bundle, [cascade])
    selector = selector_for(bundle, DEVICE, cascades=[cascade])
    with serving(tmp_path / "log", path) as server:
        page, errors = browser.new_page(), []
        page.on("pageerror", lambda error: errors.append(str(error)))
        opened(page, server.url)
        page.select_option("#device", DEVICE)
        page.fill("#min_quality-exact", "0.995")
        settled(page)
        query = asked_by(page)
        assert query.pop("cascades") is True
        selection = expected(selector, query)
        assert selection.submodel == cascade.id
        expect(page.locator("#submodel")).to_have_text(cascade.id)
        expect(page.locator("#verdict")).to_have_text("cascade")
        expect(page.locator("#reason")).to_contain_text(f"a cascade: {first}, and where that is not sure (25%) {then}")
        expect(page.locator("#frontier-table")).to_contain_text(cascade.id)
        expect(page.locator("#frontier-about")).to_contain_text(f"{len(bundle.submodels)} sub-models, latency of")
        expect(page.locator("#frontier-about")).to_contain_text("1 cascade at the cost that is expected")
        expect(page.locator("#compare-table tbody tr").first.locator("td").first).to_have_text(cascade.id)
        points = page.evaluate("document.getElementById('frontier-chart').data.flatMap((one) => one.text ?? [])")
        assert any(f"{first}, and in 25 % {then}" in text for text in points)
        page.set_viewport_size({"width": 390, "height": 844})
        page.fill("#min_quality-exact", "0.996")  # drawn anew
        settled(page)
        label, chart = (page.locator(f"#frontier-chart{part}").bounding_box() for part in (" .textpoint text", ""))
        assert chart["x"] <= label["x"]
        assert label["x"] + label["width"] <= chart["x"] + chart["width"]
        assert errors == []
        page.close()


def test_the_python_query_runs_and_answers_what_the_page_shows(page: Any) -> None:
    page.fill("#latency_ms-exact", "0.000001")
    settled(page)
    page.check("input[name=language][value=python]", force=True)
    page.click("#copy")
    expect(page.locator("#copy")).to_have_text("Copied")
    code = page.evaluate("navigator.clipboard.readText()")
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.split()[0] == page.inner_text("#submodel")
    assert "nothing fits" in printed


def test_an_overtaken_question_is_aborted_and_its_answer_never_shown(page: Any) -> None:
    """The first answer never comes."""
    best = page.inner_text("#submodel")

    def hold(route: Any) -> None:
        if '"latency_ms":0.000001' not in (route.request.post_data or ""):
            route.continue_()

    failed: list[str] = []
    page.on("requestfailed", lambda request: failed.append(request.post_data))
    page.route("**/v1/select", hold)
    with page.expect_request(lambda request: '"latency_ms":0.000001' in (request.post_data or "")):
        page.fill("#latency_ms-exact", "0.000001")
    page.fill("#latency_ms-exact", "100000")
    settled(page)
    expect(page.locator("#submodel")).to_have_text(best)
    assert any('"latency_ms":0.000001' in body for body in failed)


def test_devices_are_compared_by_their_own_choices(page: Any, fleet: Path) -> None:
    bundle = Bundle(fleet)
    middle = sorted(costs.latency_ms.p50 for costs in bundle.profile(DEVICE).submodels.values())[3]
    page.fill("#latency_ms-exact", str(middle))
    rows = page.locator("#compare-table tbody tr")
    expect(rows).to_have_count(2)
    for row, device in zip(rows.all(), (OTHER, DEVICE), strict=True):
        selection = selector_for(bundle, device).select(Budget(latency_ms=middle))
        expect(row.locator("th")).to_contain_text(device)
        expect(row.locator("td").first).to_have_text(selection.submodel)
    expect(page.locator("#compare-chart .legendtext")).to_have_text([OTHER, DEVICE])


def test_the_choice_is_marked_in_the_chart_and_points_explain_themselves(page: Any) -> None:
    chosen = page.inner_text("#submodel")
    expect(page.locator("#frontier-chart .textpoint text")).to_have_text(chosen)
    points = page.evaluate("document.getElementById('frontier-chart').data.flatMap((one) => one.text ?? [])")
    assert any(chosen in text and "accuracy" in text and "p99" in text for text in points)
    page.check("input[name=cost][value=memory_mb]", force=True)
    expect(page.locator("#frontier-chart .xtitle")).to_have_text("Memory (MB)")


def test_a_bundle_without_a_profile_or_accuracies_says_what_to_do(page: Any) -> None:
    for bundle, said in ((BARE, "sortednet profile"), (BLIND, "export with test data")):
        page.select_option("#bundle", bundle)
        expect(page.locator("#frontier-chart .empty")).to_contain_text(said)
        expect(page.locator("#submodel")).to_have_text("No choice")
        expect(page.locator("#latency_ms")).to_be_disabled()
    page.select_option("#bundle", "digits")
    expect(page.locator("#latency_ms")).to_be_enabled()
    expect(page.locator("#frontier-chart .main-svg").first).to_be_visible()


def test_devices_that_sent_a_profile_are_shown_and_what_those_of_a_model_have_in_common(page: Any, fleet: Path) -> None:
    page.select_option("#bundle", SENT)
    rows = page.locator("#compare-table tbody tr")
    model = model_of(phones(fleet)[0].device)
    expect(rows).to_have_count(3)
    for row, name in zip(rows.all(), [*PHONES, model], strict=True):
        expect(row.locator("th")).to_contain_text(name)
    for name, ms in (*PHONES.items(), (model, 4.0)):  # of two the larger one is the median
        page.select_option("#device", name)
        settled(page)
        assert asked_by(page)["device"] == name
        expect(page.locator("[data-figure=latency_ms] b")).to_have_text(f"{ms:.2f}")
        expect(page.locator("#frontier-chart .main-svg").first).to_be_visible()


def test_a_new_version_is_shown_with_what_devices_told_of_it(page: Any, fleet: Path) -> None:
    expect(page.locator("#rings")).to_be_hidden()  # of this bundle there is none
    page.select_option("#bundle", SENT)
    row = page.locator("#rings-models tbody tr")
    expect(row).to_have_count(1)
    expect(row.locator("th")).to_have_text(model_of(phones(fleet)[0].device))
    expect(row.locator(".fits")).to_have_text("stopped2 of 2 devices took it back")
    assert row.locator("td.number").all_inner_texts() == ["0", "0", "2", "× 1.50", "–", "–"]
    page.click("#rings summary")
    expect(page.locator("#rings-devices tbody tr")).to_have_count(len(PHONES))
    expect(page.locator("#rings-devices .fits small").first).to_have_text(SLOW)
    page.set_viewport_size({"width": 390, "height": 844})
    while page.evaluate("document.documentElement.scrollWidth") > 390:  # until the charts have noticed
        page.wait_for_timeout(10)
    page.select_option("#bundle", "digits")
    expect(page.locator("#rings")).to_be_hidden()


def test_the_query_of_a_bundle_that_nobody_measured_is_code_too(page: Any) -> None:
    for language, code in (
        ("curl", f'{{"bundle":"{BARE}","budget":{{}}}}'),
        ("python", f'{{"bundle": "{BARE}", "budget": {{}}}}'),
    ):
        page.check(f"input[name=language][value={language}]", force=True)
        page.select_option("#bundle", "digits")
        expect(page.locator("#latency_ms")).to_be_enabled()
        page.select_option("#bundle", BARE)
        expect(page.locator("#frontier-chart .empty")).to_contain_text("sortednet profile")
        expect(page.locator("#code")).to_contain_text(code)


def test_a_question_that_is_aborted_while_its_answer_is_read_shows_nothing(page: Any) -> None:
    """The headers have come, the body has not."""
    script = """async () => {
        const api = document.querySelector("link[rel=modulepreload][href$='/api.js']").href;
        const { select, ServiceError } = await import(api);
        const { fetch } = window;
        window.fetch = async () => ({ ok: true, status: 200, json: () => Promise.reject(new DOMException("", "AbortError")) });
        return select({}).then(() => "answered", ({ name }) => name).finally(() => (window.fetch = fetch));
    }"""
    assert page.evaluate(script) == "AbortError"


def test_a_comparison_that_fails_says_so_in_the_table(page: Any, visit: Visit) -> None:
    problem = {"title": "Too many", "detail": "come back later"}

    def refuse(route: Any) -> None:
        many = "queries" in (route.request.post_data_json or {})
        route.fulfill(status=429, json=problem) if many else route.continue_()

    page.route("**/v1/select", refuse)
    page.fill("#latency_ms-exact", "100000")
    expect(page.locator("#compare-table tbody tr").first).to_contain_text("come back later")
    page.unroute_all()
    page.click("#clear")
    expect(page.locator("#compare-table")).not_to_contain_text("come back later")
    assert all("429" in error for error in visit.errors)  # the browser's own word
    visit.errors.clear()
