"""`sortednet report`: one HTML page without outside addresses, for people who decide which sub-models to ship."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from device_profiles import Measurement, Profile
from exporter.bundle import Bundle
from selector.budget import BudgetError
from selector.selector import Selector

COSTS = {
    "latency_ms": "Latency, p50 (ms)",
    "memory_mb": "Memory (MB)",
    "energy_mj": "Energy per inference (mJ)",
}
COLOURS = ("#3b6fd4", "#d1643a", "#2e8b6f", "#8a5cc2", "#b08a1e", "#c2487f")


def write_report(bundle: Bundle, out: Path, device: str | None = None) -> None:
    """Writes the page for one device's profile, or for all that the bundle has.

    Raises BudgetError when nothing has been measured or the file cannot be written.
    """
    profiles = [bundle.profile(name) for name in ([device] if device else bundle.devices())]
    if not profiles:
        raise BudgetError(f"report: no profile in this bundle yet; measure with `sortednet profile {bundle.path}`")
    template = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        (Path(__file__).parent / "report.html").read_text(encoding="utf-8")
    )
    page = template.render(
        bundle=bundle,
        manifest=bundle.manifest,
        profiles=profiles,
        rows=[_row(bundle, profile) for profile in profiles],
        plotly=get_plotlyjs(),
        figure=_figure(bundle, profiles).to_json(),
    )
    try:
        out.write_text(page, encoding="utf-8")
    except OSError as error:
        raise BudgetError(f"out = {str(out)!r}: cannot be written: {error.strerror}") from None


def _row(bundle: Bundle, profile: Profile) -> dict[str, Any]:
    """A device's table: its frontier first, then what is never chosen."""
    best = max((entry.accuracy or 0.0) for entry in bundle.submodels.values())
    chosen = _frontier(bundle, profile)
    names = [*chosen, *(name for name in profile.submodels if name not in chosen)]
    lines = [
        {
            "name": name,
            "entry": bundle.submodels[name],
            "cost": profile.submodels[name],
            "retention": (bundle.submodels[name].accuracy or 0.0) / best if best else None,
            "chosen": name in chosen,
        }
        for name in names
    ]
    return {"profile": profile, "lines": lines, "chosen": len(chosen)}


def _figure(bundle: Bundle, profiles: Sequence[Profile]) -> go.Figure:
    """Accuracy over each cost that is known, one colour per device; a menu switches the cost."""
    figure = go.Figure()
    known = [c for c in COSTS if any(getattr(m, c) is not None for p in profiles for m in p.submodels.values())]
    for cost in known:
        for number, profile in enumerate(profiles):
            for trace in _traces(bundle, profile, cost, COLOURS[number % len(COLOURS)]):
                figure.add_trace(trace.update(visible=cost == known[0]))
    per_cost = len(figure.data) // len(known)
    buttons = [
        {
            "label": COSTS[cost],
            "method": "update",
            "args": [
                {"visible": [i // per_cost == place for i in range(len(figure.data))]},
                {"xaxis.title.text": COSTS[cost]},
            ],
        }
        for place, cost in enumerate(known)
    ]
    figure.update_layout(
        xaxis={"title": {"text": COSTS[known[0]]}, "rangemode": "tozero"},
        yaxis={"title": {"text": "Accuracy on the test split"}, "tickformat": ".1%"},
        legend={"orientation": "h", "y": -0.2},
        margin={"l": 70, "r": 20, "t": 50, "b": 60},
        hovermode="closest",
        modebar={"bgcolor": "rgba(0,0,0,0)"},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        updatemenus=[{"buttons": buttons, "type": "buttons", "direction": "right", "x": 0, "y": 1.14, "xanchor": "left"}],
    )
    return figure


def _traces(bundle: Bundle, profile: Profile, cost: str, colour: str) -> list[go.Scatter]:
    """All sub-models as faint points, and the frontier of this cost as a line through the chosen ones."""
    points = [
        (value, accuracy, name)
        for name, measurement in profile.submodels.items()
        if (value := _cost(measurement, cost)) is not None and (accuracy := bundle.submodels[name].accuracy) is not None
    ]
    points.sort(key=lambda p: (p[0], -p[1]))
    frontier: list[tuple[float, float, str]] = []
    for point in points:
        if not frontier or point[1] > frontier[-1][1]:
            frontier.append(point)
    hover = "%{text}<br>%{y:.2%}<br>%{x:.4g} " + COSTS[cost].rpartition("(")[2].rstrip(")") + "<extra></extra>"
    name = profile.device.name

    def scatter(chosen: Sequence[tuple[Any, Any, str]], **style: Any) -> go.Scatter:
        xs, ys, texts = zip(*chosen, strict=True) if chosen else ((), (), ())
        return go.Scatter(x=xs, y=ys, text=texts, hovertemplate=hover, **style)

    faint: Mapping[str, Any] = {"mode": "markers", "marker": {"color": colour, "size": 7, "opacity": 0.35}}
    line: Mapping[str, Any] = {
        "mode": "lines+markers",
        "line": {"color": colour, "shape": "hv"},
        "marker": {"size": 10, "color": colour},
    }
    return [
        scatter(points, name=f"{name}: all", **faint),
        scatter(frontier, name=f"{name}: frontier", **line),
    ]


def _cost(measurement: Measurement, cost: str) -> float | None:
    value: float | None = measurement.latency_ms.p50 if cost == "latency_ms" else getattr(measurement, cost)
    return value


def _frontier(bundle: Bundle, profile: Profile) -> list[str]:
    try:
        selector = Selector(profile, bundle.accuracies)
    except BudgetError:
        return []
    return [candidate.submodel for candidate in selector.afforded_by("latency_ms")[1]]
