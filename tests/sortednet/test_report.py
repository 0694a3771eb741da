"""The HTML report: whole without a network, and no name in it can become markup."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import sortednet
from device_profiles import write_profile
from device_profiles.schema import PredictionError
from exporter.bundle import MANIFEST_FILE, Bundle
from exporter.bundle.manifest import sealed
from selector import Budget, selector_for
from selector.choose.cascades import Cascade
from tests.conftest import DEVICE
from tests.helpers.dashboard import CHROMIUM, needs_a_browser, sync_api

LOADS = {"src", "href", "srcset", "data", "poster", "action", "formaction", "background", "xlink:href", "manifest"}
EVIL = "<script>alert(1)</script>"


class Page(HTMLParser):
    """What a browser would see: the tags, what they load, the styles, and the text outside of scripts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loaded: list[str] = []
        self.styles: list[str] = []
        self.text = ""
        self._inside = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._inside = tag
        self.loaded += [value for name, value in attrs if name in LOADS and value]
        self.styles += [value for name, value in attrs if name == "style" and value]

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "style":
            self.styles.append(data)
        elif self._inside != "script":
            self.text += data


@pytest.fixture
def copied(bundle_path: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle_path, tmp_path / "<b>bold"))


def report(bundle: Path, *options: str) -> str:
    out = bundle.parent / "report.html"
    result = CliRunner().invoke(sortednet.app, ["report", str(bundle), "--out", str(out), *options])
    assert result.exit_code == 0, result.stderr
    return out.read_text(encoding="utf-8")


def add_device(bundle: Path, name: str, label: str = "") -> None:
    profile = Bundle(bundle).profile(DEVICE)
    device = profile.device.model_copy(update={"name": name, "label": label, "cpu": f"{EVIL} cpu"})
    write_profile(profile.model_copy(update={"device": device}), bundle / "profiles" / f"{name}.json")


def test_a_browser_loads_nothing_from_elsewhere(copied: Path) -> None:
    page = Page(report(copied))
    assert "script" in page.tags  # the chart's code is in the page
    assert [target for target in page.loaded if not target.startswith(("#", "data:"))] == []
    assert not {"link", "iframe", "object", "embed", "base"} & set(page.tags)
    assert re.findall(r"@import|url\((?!['\"]?(?:data:|#))", "".join(page.styles)) == []


def test_every_device_and_submodel_is_named_with_its_figures(copied: Path) -> None:
    add_device(copied, "phone", label="A phone on a desk")
    html, bundle = report(copied), Bundle(copied)
    text = Page(html).text
    for name in (DEVICE, "phone", "A phone on a desk", *bundle.submodels):
        assert name in text
        assert name in html
    for entry in bundle.submodels.values():
        assert f"{entry.accuracy:.4f}" in text
        assert f"{bundle.profile(DEVICE).submodels[entry.id].latency_ms.p90:.3f}" in text


def test_one_device_can_be_chosen(copied: Path) -> None:
    add_device(copied, "phone")
    text = Page(report(copied, "--device", "phone")).text
    assert "phone" in text
    assert DEVICE not in text


def test_names_cannot_become_markup(copied: Path) -> None:
    scripts = Page(report(copied)).tags.count("script")
    add_device(copied, "phone", label=EVIL)
    html = report(copied)
    page = Page(html)
    assert EVIL not in html
    assert EVIL in page.text  # as text
    assert page.tags.count("script") == scripts
    assert "b" not in page.tags  # the bundle's folder is named <b>bold


def charted(html: str) -> dict[str, Any]:
    found = re.search(r"const { costs, devices, metric } = (.*);\n", html)
    assert found
    document: dict[str, Any] = json.loads(found[1])
    return document


@pytest.mark.parametrize("percentile", [50, 90, 99])
def test_what_the_slider_looks_up_is_what_the_selector_chooses(copied: Path, percentile: int) -> None:
    (device,) = charted(report(copied))["devices"]
    steps = device["frontiers"][f"latency_ms.p{percentile}"]
    selector = selector_for(Bundle(copied), DEVICE)
    assert len(steps) > 1
    for (limit, name), after in zip(steps, [*(limit for limit, _ in steps[1:]), 1e9], strict=True):
        for budget in (limit, (limit + after) / 2):
            chosen = selector.select(Budget(latency_ms=budget, percentile=percentile))
            assert (chosen.submodel, chosen.feasible) == (name, True)
    assert not selector.select(Budget(latency_ms=steps[0][0] * 0.999, percentile=percentile)).feasible


def test_predicted_figures_are_marked(copied: Path) -> None:
    profile = Bundle(copied).profile(DEVICE)
    name, measured = next(iter(profile.submodels.items()))
    predicted = measured.model_copy(update={"source": dict.fromkeys(measured.source, "predicted")})
    submodels = {**profile.submodels, name: predicted}
    errors = {"latency_ms": PredictionError(median=0.01, p95=0.034)}
    told = profile.model_copy(update={"submodels": submodels, "prediction": errors})
    write_profile(told, copied / "profiles" / f"{DEVICE}.json")
    html = report(copied)
    text = Page(html).text
    assert f"~{measured.latency_ms.p50:.3f}" in text
    assert text.count(f"~{measured.latency_ms.p50:.3f}") == 1
    assert "off by 1.0 % in the median and 3.4 % at the 95th percentile" in text
    assert charted(html)["devices"][0]["submodels"][name]["source"]["latency_ms"] == "predicted"


def test_without_a_profile_it_says_how_to_measure(copied: Path) -> None:
    shutil.rmtree(copied / "profiles")
    out = copied.parent / "report.html"
    result = CliRunner().invoke(sortednet.app, ["report", str(copied), "--out", str(out)])
    assert result.exit_code == 2
    assert "sortednet profile" in result.stderr
    assert not out.exists()


def test_a_page_that_cannot_be_written_is_an_error(copied: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(sortednet.app, ["report", str(copied), "--out", str(tmp_path / "none" / "x.html")])
    assert result.exit_code == 2
    assert "x.html" in result.stderr


def test_cascades_are_listed_with_what_their_accuracy_is_of(with_cascade: tuple[Bundle, Cascade]) -> None:
    bundle, cascade = with_cascade
    html = report(bundle.path)
    text = Page(html).text
    assert f"{cascade.id} is {cascade.words}" in " ".join(text.split())
    assert "accuracy is of the validation split: 0.9990 on 1000 validation examples, above 0.9 with 95 %" in text
    (device,) = charted(html)["devices"]
    assert device["submodels"][cascade.id]["kind"] == "cascade"
    assert [name for _, name in device["frontiers"]["latency_ms.p50"]].count(cascade.id) == 1


def test_its_tables_scroll_and_show_it_and_marks_have_the_colour_of_their_device(copied: Path) -> None:
    add_device(copied, "phone")
    html = report(copied)
    regions = re.findall(r'<div class="scroll" tabindex="0" role="region"[^>]*?(?:style="--mark: (#\w+)")?>', html)
    assert regions == ["", *(device["colour"] for device in charted(html)["devices"])]
    assert html.count("<table") == len(regions)  # each of them
    assert "no-repeat local" in html


@pytest.mark.parametrize("width", [390, 1280])
@needs_a_browser[0]
@needs_a_browser[1]
def test_the_page_is_no_wider_than_the_screen(width: int, copied: Path) -> None:
    document = json.loads((copied / MANIFEST_FILE).read_bytes())
    document["training"]["data"] = {"name": f"text-folder:/home/{'somebody' * 8}/texts", "sizes": {"test": 240}}
    (copied / MANIFEST_FILE).write_text(json.dumps(sealed(document)), encoding="utf-8")
    add_device(copied, "phone" * 8, label="A phone on a desk")
    report(copied)
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": 900})
        page.goto((copied.parent / "report.html").as_uri())
        page.wait_for_selector("#chart .main-svg")
        assert page.evaluate("document.documentElement.scrollWidth") == width
        browser.close()
