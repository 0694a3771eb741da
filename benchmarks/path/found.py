"""What one part of this benchmark found."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Found:
    """Figures by name, how each was taken, and the raw rows behind them."""

    figures: dict[str, float] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    rows: list[dict[str, object]] = field(default_factory=list)
