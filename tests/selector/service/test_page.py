"""The dashboard as its readers meet it: a real server, a real browser. `test_service.py` holds the paths."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from device_profiles import Profile, read_profile, write_profile
from exporter.bundle import MANIFEST_FILE, Bundle
from exporter.bundle.manifest import sealed
from selector.choose.battery import Battery
from selector.choose.budget import Budget
from selector.choose.cascades import Cascade, write_cascades
from selector.choose.profiles import selector_for
from selector.choose.selector import Selector
from selector.service.fleet.device_models import model_of
from selector.service.fleet.store import Store
from selector.service.routes.page import PAGES
from tests.conftest import DEVICE, taking
from tests.helpers.server import Server, serving

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install 'sortednet[dev]'")
Page, expect = sync_api.Page, sync_api.expect
expect.set_options(timeout=60_000)  # however busy the machine is

OTHER = "other-device"  # half as fast, and its energy is known
BARE, BLIND = "unmeasured", "untested"  # bundles without a profile, and without accuracies
SENT, PHONES = "sent", {"phone-1": 2.0, "phone-2": 4.0}  # a bundle whose profiles devices have sent: milliseconds
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium found: apt-get install chromium")


@pytest.fixture(scope="module")
def fleet(bundle_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle with two devices."""
    path = Path(shutil.copytree(bundle_path, tmp_path_factory.mktemp("page") / "digits"))
    profile = read_profile(path / "profiles" / f"{DEVICE}.json")
    for name, factor in ((DEVICE, 1.0), (OTHER, 2.0)):
        submodels = {}
        for submodel, costs in profile.submodels.items():
            slower = {key: value if key == "n" else value * factor for key, value in costs.latency_ms.model_dump().items()}
            source = {**costs.source, "energy_mj": "declared"}
            energy = costs.latency_ms.p50 * 15
            update = {"latency_ms": type(costs.latency_ms)(**slower), "energy_mj": energy, "source": source}
            submodels[submodel] = costs.model_copy(update=update)
        device = profile.device.model_copy(update={"name": name})
        changed = profile.model_copy(update={"device": device, "submodels": submodels})
        write_profile(changed, path / "profiles" / f"{name}.json")
    return path


@pytest.fixture(scope="module")
def server(fleet: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("others")
    bare, blind, sent = (Path(shutil.copytree(fleet, folder / name)) for name in (BARE, BLIND, SENT))
    shutil.rmtree(bare / "profiles")
    shutil.rmtree(sent / "profiles")
    document = json.loads((blind / MANIFEST_FILE).read_bytes())
    document["submodels"] = [{**entry, "accuracy": None} for entry in document["submodels"]]
    (blind / MANIFEST_FILE).write_text(json.dumps(sealed(document)), encoding="utf-8")
    store = f"sqlite:///{folder / 'store.db'}"
    with Store(store) as opened_store:
        for phone in phones(fleet):
            opened_store.put(SENT, phone)
    with serving(tmp_path_factory.mktemp("service") / "log", fleet, bare, blind, sent, options=("--store", store)) as found:
        yield found


def phones(fleet: Path) -> list[Profile]:
    """What two devices of one model have sent."""
    profile = read_profile(fleet / "profiles" / f"{DEVICE}.json")
    info = profile.device.model_copy(update={"cpu": "Phone 9"})
    return [
        taking(profile, ms).model_copy(update={"device": info.model_copy(update={"name": name})}) for name, ms in PHONES.items()
    ]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


class Visit(NamedTuple):
    page: Any
    asked: list[str]  # addresses
    errors: list[str]  # in the console


@pytest.fixture(scope="module")
def visit(browser: Any, server: Server) -> Iterator[Visit]:
    """One for all tests: what takes longest is to load the charting library."""
    context = browser.new_context(permissions=["clipboard-read", "clipboard-write"])
    visit = Visit(context.new_page(), [], [])
    visit.page.on("request", lambda request: visit.asked.append(request.url))
    visit.page.on("console", lambda one: visit.errors.append(one.text) if one.type in ("error", "warning") else None)
    visit.page.on("pageerror", lambda error: visit.errors.append(str(error)))
    opened(visit.page, server.url)
    yield visit
    context.close()


@pytest.fixture
def page(visit: Visit, server: Server, fleet: Path) -> Iterator[Any]:
    """The page as it is at first. After the test: nothing was asked of another host, and the console has no errors."""
    page = visit.page
    visit.asked.clear()
    visit.errors.clear()
    page.set_viewport_size({"width": 1280, "height": 900})
    page.emulate_media(color_scheme="light")
    for name, value in (("cost", "latency_ms.p50"), ("language", "curl"), ("theme", "auto")):
        page.check(f"input[name={name}][value='{value}']", force=True)
    page.select_option("#bundle", fleet.name)
    expect(page.locator(f"#device option[value={DEVICE}]")).to_be_attached()
    page.select_option("#device", DEVICE)
    page.click("#clear")
    expect(page.locator("#frontier-chart .main-svg").first).to_be_visible()
    settled(page)
    yield page
    page.unroute_all()
    assert [url for url in visit.asked if not url.startswith((server.url, "data:"))] == []
    assert visit.errors == []


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


def test_each_slider_moved_by_keyboard_shows_what_the_selector_chooses(page: Any, fleet: Path) -> None:
    selector = selector_for(Bundle(fleet), DEVICE)
    for field, objective in (
        ("latency_ms", "accuracy"),
        ("energy_mj", "accuracy"),
        ("memory_mb", "accuracy"),
        ("min_accuracy", "latency"),
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
    cascade = Cascade(id=f"{first}+{then}", first=first, then=then, **figures)
    write_cascades(bundle, [cascade])
    selector = selector_for(bundle, DEVICE, cascades=[cascade])
    with serving(tmp_path / "log", path) as server:
        page, errors = browser.new_page(), []
        page.on("pageerror", lambda error: errors.append(str(error)))
        opened(page, server.url)
        page.select_option("#device", DEVICE)
        page.fill("#min_accuracy-exact", "0.995")
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
    for _ in range(45):
        page.keyboard.press("Tab")
        visited.append(
            page.evaluate("(({id, name, className, tagName}) => id || name || className || tagName)(document.activeElement)")
        )
    assert visited[0] == "skip"
    order = ["bundle", "device", "clear", "objective", "latency_ms-exact", "latency_ms", "percentile", "energy_mj", "memory_mb"]
    order += ["min_accuracy", "battery", "cost", "language", "copy", "compared"]
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


def test_its_headers_keep_scripts_of_others_out_and_assets_in_the_cache(server: Server, browser: Any) -> None:
    request = browser.new_context().request
    page = request.get(server.url)
    policy = dict(part.split(" ", 1) for part in page.headers["content-security-policy"].split("; "))
    assert (policy["default-src"], policy["script-src"]) == ("'none'", "'self'")
    assert request.get(server.url, headers={"If-None-Match": page.headers["etag"]}).status == 304
    assets = re.findall(r'"(/assets/[^"]+)"', page.text())
    assert len(assets) >= 10
    for path in assets:
        asset = request.get(server.url + path)
        assert (asset.status, asset.headers["cache-control"]) == (200, "public, max-age=31536000, immutable")
    version = assets[0].split("/")[2]
    for path in (f"/assets/{version}/index.html", f"/assets/{version}/..%2fpage_routes.py", "/assets/0/page.css"):
        assert request.get(server.url + path).status == 404


def test_no_file_of_the_page_names_an_address() -> None:
    for path in PAGES.iterdir():
        found = re.findall(r"https?://(?!www\.w3\.org/)\S+", path.read_text(encoding="utf-8"))
        assert found == [], path.name
