"""The dashboard in a headless Chromium on loopback: how soon it paints, what it transfers, whom it asks."""

from __future__ import annotations

import shutil
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from benchmarks.service.running import running

LOADS = 9
BROWSERS = ("chromium", "chromium-browser", "google-chrome")

NOTES = {
    "page_first_paint_ms": f"first-contentful-paint of PerformancePaintTiming, median of {LOADS} loads with an empty cache",
    "page_first_paint_worst_ms": "the slowest of these loads",
    "page_chart_ms": "from the start of the navigation until the chart of the frontier is there; median of the same loads",
    "page_warm_chart_ms": "the same with the assets in the browser's cache, median",
    "page_bytes": "bodies of the first load as transferred (gzip): HTML, styles, scripts, data; without the charting library",
    "page_charts_bytes": "of the charting library, which is fetched after the first paint and cached for good",
    "page_layout_shift": "cumulative layout shift of a load (layout-shift entries), the worst; up to 0.1 counts as good",
    "page_outside_requests": "requests to another host or port while loading, moving every slider and changing what is shown",
}

WATCH_SHIFTS = """
window.shifted = 0;
const add = (one) => { if (!one.hadRecentInput) window.shifted += one.value; };
new PerformanceObserver((list) => list.getEntries().forEach(add))
  .observe({type: "layout-shift", buffered: true});
"""


def measure(bundle: str | Path | None = None) -> dict[str, float]:
    """Of a bundle that has been measured; without one, of a small one that is made for it (a minute)."""
    from playwright.sync_api import sync_playwright

    browser_path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser_path is None:
        raise SystemExit("no chromium found; on Debian: apt-get install chromium")
    with (
        tempfile.TemporaryDirectory() as folder,
        running("sortednet", "serve", bundle or made(Path(folder) / "digits")) as service,
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        loads = [load(browser, service.url) for _ in range(LOADS)]
        outside = used(browser, service.url)
        browser.close()
    return {
        "page_first_paint_ms": statistics.median(one["paint"] for one in loads),
        "page_first_paint_worst_ms": max(one["paint"] for one in loads),
        "page_chart_ms": statistics.median(one["chart"] for one in loads),
        "page_warm_chart_ms": statistics.median(one["warm"] for one in loads),
        "page_bytes": loads[0]["bytes"],
        "page_charts_bytes": loads[0]["charts"],
        "page_layout_shift": max(one["shift"] for one in loads),
        "page_outside_requests": outside,
    }


def load(browser: Any, url: str) -> dict[str, float]:
    """One load with an empty cache, and one after it; milliseconds and bytes."""
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    page = context.new_page()
    page.add_init_script(WATCH_SHIFTS)
    finished: list[Any] = []
    page.on("requestfinished", lambda request: finished.append(request))
    page.goto(url)
    chart = charted(page)
    paint = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    page.wait_for_timeout(300)
    sizes = {request.url: request.sizes()["responseBodySize"] for request in finished}
    charts = sum(size for address, size in sizes.items() if "plotly" in address)
    page.goto(url)
    warm = charted(page)
    page.wait_for_timeout(300)
    shift = page.evaluate("window.shifted")
    context.close()
    total = sum(sizes.values())
    return {"paint": paint, "chart": chart, "warm": warm, "bytes": total - charts, "charts": charts, "shift": shift}


def charted(page: Any) -> float:
    """Milliseconds since the navigation began, once the chart is there."""
    page.wait_for_selector("#frontier-chart .main-svg")
    return float(page.evaluate("performance.now()"))


def used(browser: Any, url: str) -> int:
    """Uses the page as a visitor would, and counts what it asks of others."""
    page = browser.new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(url)
    charted(page)
    for field in ("latency_ms", "energy_mj", "memory_mb", "min_quality", "battery"):
        if page.is_enabled(f"#{field}"):
            page.focus(f"#{field}")
            for key in ("Home", "PageUp", "PageUp", "End"):
                page.keyboard.press(key)
                page.wait_for_timeout(100)
    for name in ("cost", "language", "compared", "theme", "percentile", "objective"):
        for one in page.locator(f"input[name={name}]").all():
            one.check(force=True)
            page.wait_for_timeout(100)
    page.locator("#live").scroll_into_view_if_needed()
    page.wait_for_timeout(500)
    own = urlsplit(url).netloc
    outside = [address for address in asked if urlsplit(address).scheme != "data" and urlsplit(address).netloc != own]
    page.close()
    return len(outside)


def made(path: Path) -> Path:
    """A bundle of untrained networks: what the page costs does not depend on what they have learned."""
    from device_profiles import write_profile
    from exporter import export
    from exporter.bundle import Bundle
    from selector.run.profiling import profile_bundle
    from trainer import NestedModel, fit
    from trainer.data import load_data
    from trainer.families import ResNet

    data = load_data("digits")
    family = ResNet.for_data(data.spec, channels=[16, 24, 32], blocks=[2, 2, 2], widths=[0.5, 0.75, 1.0], depths=[1, 2])
    nested = NestedModel(family)
    fit(nested, data.train, epochs=1, show_progress=False)
    export(nested, path, test_data=data.test, show_progress=False)
    profile = profile_bundle(Bundle(path), threads=1, repeats=10, show_progress=False)
    write_profile(profile, path / "profiles" / f"{profile.device.name}.json")
    return path


if __name__ == "__main__":
    for key, value in measure(*sys.argv[1:]).items():
        print(f"{key:28} {value:.6g}")
