"""A real server of bundles and profiles, and a real browser on its page."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from device_profiles import read_profile, write_profile
from device_profiles.models import model_of
from exporter.bundle import MANIFEST_FILE, Bundle
from exporter.bundle.manifest import sealed
from selector.service.fleet.rings import Rings
from selector.service.fleet.store import Store
from selector.ship.state import Figures, Report
from selector.ship.versions import content_of
from tests.conftest import DEVICE
from tests.helpers.dashboard import BARE, BLIND, CHROMIUM, OTHER, SENT, SLOW, Visit, expect, opened, phones, settled, sync_api
from tests.helpers.server import Server, serving


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
    document["submodels"] = [{**entry, "quality": None, "metrics": {}} for entry in document["submodels"]]
    (blind / MANIFEST_FILE).write_text(json.dumps(sealed(document)), encoding="utf-8")
    store = f"sqlite:///{folder / 'store.db'}"
    canary = Path(shutil.copytree(blind, folder / "next" / SENT))
    with Store(store) as opened_store:
        rings = Rings(opened_store.engine)
        for phone in phones(fleet):
            opened_store.put(SENT, phone)
            trial = {"model": model_of(phone.device), "version": content_of(Bundle(canary)), "state": "taken back"}
            rings.tell(SENT, phone.device.name, Report(**trial, reason=SLOW, figures=Figures(p50_ms=15, p50_ms_before=10)))
    options = ("--store", store, "--canary", str(canary))
    with serving(tmp_path_factory.mktemp("service") / "log", fleet, bare, blind, sent, options=options) as found:
        yield found


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


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
