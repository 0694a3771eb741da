"""The frontier as a picture for a model card: quality over cost, one dot for each sub-model. Needs Pillow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sortednet.formats.figures import Figures, Line

WIDTH, HEIGHT = 960, 600
LEFT, RIGHT, TOP, BOTTOM = 110, 40, 60, 90
"""Of the margins, in pixels."""
INK, GRID, DOT, LINE = "#1f2430", "#d9dde5", "#9aa3b2", "#3b6fd4"
TICKS = 5


def draw_frontier(figures: Figures, metric: str, title: str, out: Path) -> bool:
    """Writes a PNG, the same bytes for the same figures; False where fewer than two sub-models have a cost and a quality."""
    from PIL import Image, ImageDraw, ImageFont

    shown = [(line, line.cost, line.entry.quality) for line in figures.lines]
    known = [(line, cost, quality) for line, cost, quality in shown if cost is not None and quality is not None]
    if len(known) < 2:
        return False
    image = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(18)
    across = _Axis([cost for _, cost, _ in known], LEFT, WIDTH - RIGHT)
    up = _Axis([quality for _, _, quality in known], HEIGHT - BOTTOM, TOP)
    for value in across.ticks():
        draw.line([(across.at(value), TOP), (across.at(value), HEIGHT - BOTTOM)], fill=GRID)
        draw.text((across.at(value), HEIGHT - BOTTOM + 10), f"{value:.3g}", fill=INK, font=font, anchor="ma")
    for value in up.ticks():
        draw.line([(LEFT, up.at(value)), (WIDTH - RIGHT, up.at(value))], fill=GRID)
        draw.text((LEFT - 10, up.at(value)), f"{value:.3f}", fill=INK, font=font, anchor="rm")
    path = [(across.at(cost), up.at(quality)) for line, cost, quality in known if line.chosen]
    if len(path) > 1:
        draw.line(path, fill=LINE, width=3)
    for line, cost, quality in known:
        _dot(draw, across.at(cost), up.at(quality), line)
    cost_name = f"latency in ms (p50) on {figures.device}" if figures.device else "multiply-accumulates"
    draw.text((WIDTH / 2, HEIGHT - 30), cost_name, fill=INK, font=font, anchor="mm")
    draw.text((LEFT, TOP / 2), f"{title}: {metric} over cost, {len(known)} sub-models", fill=INK, font=font, anchor="lm")
    image.save(out, optimize=True)
    return True


def _dot(draw: Any, x: float, y: float, line: Line) -> None:
    radius = 7 if line.chosen else 4
    draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=LINE if line.chosen else DOT)


class _Axis:
    """Values to pixels, with a little room at both ends."""

    def __init__(self, values: list[float], first: float, last: float) -> None:
        low, high = min(values), max(values)
        room = (high - low) * 0.05 or abs(high) * 0.05 or 1.0
        self._low, self._high, self._first, self._last = low - room, high + room, first, last

    def at(self, value: float) -> float:
        return self._first + (value - self._low) / (self._high - self._low) * (self._last - self._first)

    def ticks(self) -> list[float]:
        return [self._low + (self._high - self._low) * i / TICKS for i in range(TICKS + 1)]
