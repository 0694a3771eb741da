"""`sortednet report`: one HTML page without outside addresses, for people who decide which sub-models to ship."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from markupsafe import escape
from plotly.offline import get_plotlyjs

from device_profiles import PERCENTILES, Measurement, Profile
from device_profiles.atomic import check_writable, replacing
from device_profiles.sustained import in_words
from exporter.bundle import Bundle
from selector.choose.budget import BudgetError
from selector.choose.candidates import Candidates
from selector.choose.cascades import Cascade, read_cascades
from selector.choose.metrics import metric_name, shown
from selector.choose.selector import Selector
from sortednet.console import short

COSTS = {
    **{f"latency_ms.p{p}": (f"Latency, p{p}", "ms") for p in PERCENTILES},
    "energy_mj": ("Energy", "mJ"),
    "memory_mb": ("Memory", "MB"),
}
_HEAD_BYTES = 1024
"""Of a page, in which its title stands."""
COLOURS = ("#3b6fd4", "#d1643a", "#2e8b6f", "#8a5cc2", "#b08a1e", "#c2487f")


def write_report(bundle: Bundle, out: Path, device: str | None = None, *, overwrite: bool = False) -> None:
    """Writes the page for one device's profile, or for all that the bundle has. An earlier one of the bundle is replaced.

    Raises BudgetError when nothing has been measured, for a name that is not .html, when the file cannot be written, and
    without `overwrite` when another file stands there.
    """
    _check_place(out, bundle, overwrite)
    profiles = [bundle.profile(name) for name in ([device] if device else bundle.devices())]
    if not profiles:
        raise BudgetError(f"report: no profile in this bundle yet; measure with `sortednet profile {bundle.path}`")
    template = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        (Path(__file__).parent / "report.html").read_text(encoding="utf-8")
    )
    cascades = read_cascades(bundle)
    devices = [_Device(bundle, profile, cascades, COLOURS[i % len(COLOURS)]) for i, profile in enumerate(profiles)]
    page = template.render(
        bundle=bundle,
        manifest=bundle.manifest,
        devices=devices,
        cascades=cascades,
        metric=metric_name(bundle.metric),
        plotly=get_plotlyjs(),
        charted=json.dumps({**_charted(bundle, devices), "metric": metric_name(bundle.metric)}).replace("</", "<\\/"),
    )
    try:
        with replacing(out) as partial:
            partial.write_text(page, encoding="utf-8")
    except OSError as error:
        raise BudgetError(f"out = {str(out)!r}: cannot be written: {error.strerror}") from None


def _check_place(out: Path, bundle: Bundle, overwrite: bool) -> None:
    if out.suffix.lower() not in (".html", ".htm"):
        raise BudgetError(f"out = {str(out)!r}: allowed is FILE.html, which is what is written")
    try:
        if not out.parent.is_dir():
            raise NotADirectoryError(errno.ENOENT, os.strerror(errno.ENOENT))
        check_writable(out.parent)
        title = f"<title>{escape(bundle.name)} · sortednet</title>"
        if not overwrite and out.exists() and title.encode() not in out.read_bytes()[:_HEAD_BYTES]:
            raise BudgetError(
                f"out = {str(out)!r}: is no report of {bundle.name}; choose another file, or replace it with --overwrite"
            )
    except OSError as error:
        raise BudgetError(f"out = {str(out)!r}: cannot be written: {error.strerror}") from None


class _AtLength(NamedTuple):
    costs: dict[str, Measurement]
    frontiers: dict[str, list[tuple[float, str]]]


class _Device:
    """A profile as the page shows it; `frontiers` holds, by cost, what is chosen from which budget on."""

    def __init__(self, bundle: Bundle, profile: Profile, cascades: Sequence[Cascade], colour: str) -> None:
        self.profile, self.colour = profile, colour
        self.lasting = "" if profile.sustained is None else in_words(profile.sustained)
        known = {one.id: one for one in cascades}
        offers = Candidates.of(bundle, [profile], cascades)
        self.costs = {**profile.submodels, **{offer.submodel: offer.costs for offer in offers if offer.stages}}
        self.qualities = {
            **{name: bundle.qualities[name] for name in profile.submodels},
            **{o.submodel: o.quality for o in offers},
        }
        self.frontiers = _frontiers(offers)
        self.lengths = {length: self._at(offers, length) for length in offers.lengths}
        self.cascades = [known[name] for name in self.costs if name in known]
        best = max((quality or 0.0) for quality in bundle.qualities.values())
        chosen = [name for _, name in self.frontiers["latency_ms.p50"]]
        self.chosen = len(chosen)
        self.lines = [
            {
                "name": name,
                "macs": "" if name in known else short(bundle.submodel(name).macs),
                "params": "" if name in known else short(bundle.submodel(name).params),
                "quality": shown(self.qualities[name]),
                "cost": self.costs[name],
                "retention": (self.qualities[name] or 0.0) / best if best else None,
                "chosen": name in chosen,
            }
            for name in [*chosen, *(name for name in self.costs if name not in chosen)]
        ]

    def _at(self, offers: Candidates, length: int) -> _AtLength:
        """What those of known quality cost for inputs of that length, and their frontiers."""
        there = offers.at_length(length)
        return _AtLength({offer.submodel: offer.costs for offer in there}, _frontiers(there))


def _frontiers(offers: Candidates) -> dict[str, list[tuple[float, str]]]:
    """By cost: from which budget on, which sub-model is the choice. Empty where no quality is known."""
    try:
        selector = Selector(offers)
    except BudgetError:
        return {cost: [] for cost in COSTS}
    found = {}
    for cost in COSTS:
        name, _, percentile = cost.partition(".p")
        costs, candidates = selector.afforded_by(name, int(percentile or 50))
        found[cost] = [(limit, candidate.submodel) for limit, candidate in zip(costs, candidates, strict=True)]
    return found


def _charted(bundle: Bundle, devices: Sequence[_Device]) -> dict[str, Any]:
    """What the chart and the slider need: the choice for a budget is looked up in a frontier, never computed again."""
    known = [
        cost
        for cost in COSTS
        if any(_value(measured, cost) is not None for device in devices for measured in device.costs.values())
    ]
    return {
        "costs": [{"key": cost, "label": COSTS[cost][0], "unit": COSTS[cost][1]} for cost in known],
        "devices": [
            {
                "name": device.profile.device.name,
                "colour": device.colour,
                **_figures(bundle, device, device.costs, device.frontiers, known),
                "lengths": {
                    length: _figures(bundle, device, there.costs, there.frontiers, known)
                    for length, there in device.lengths.items()
                },
            }
            for device in devices
        ],
    }


def _figures(
    bundle: Bundle,
    device: _Device,
    costs: Mapping[str, Measurement],
    frontiers: Mapping[str, list[tuple[float, str]]],
    known: Sequence[str],
) -> dict[str, Any]:
    cascades = {one.id for one in device.cascades}
    return {
        "submodels": {
            name: {
                "quality": device.qualities[name],
                "costs": {cost: _value(measured, cost) for cost in known},
                "source": measured.source,
                "kind": "cascade" if name in cascades else bundle.submodel(name).precision,
            }
            for name, measured in costs.items()
            if device.qualities[name] is not None
        },
        "frontiers": {cost: frontiers[cost] for cost in known},
    }


def _value(measured: Measurement, cost: str) -> float | None:
    name, _, percentile = cost.partition(".")
    value: float | None = getattr(measured.latency_ms, percentile) if percentile else getattr(measured, name)
    return value
