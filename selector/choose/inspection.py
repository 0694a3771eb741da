"""The `inspect` document of a bundle as it lies on a device: with what was added to it there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from exporter.bundle import Bundle, inspection
from selector.choose.cascades import Cascade, read_cascades


def inspect(bundle: Bundle, cascades: Sequence[Cascade] | None = None) -> dict[str, Any]:
    """What `exporter.bundle.inspection.inspect` says, and the bundle's `cascades` (default: as they are read now), as JSON
    values. Raises BudgetError where their file is damaged."""
    found = read_cascades(bundle) if cascades is None else cascades
    return {**inspection.inspect(bundle), "cascades": [cascade.model_dump(mode="json") for cascade in found]}
