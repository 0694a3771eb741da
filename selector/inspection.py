"""The `inspect` document of a bundle as it lies on a device: with what was added to it there."""

from __future__ import annotations

from typing import Any

from exporter import inspection
from exporter.bundle import Bundle
from selector.cascade_file import read_cascades


def inspect(bundle: Bundle) -> dict[str, Any]:
    """What `exporter.inspection.inspect` says, and the bundle's `cascades`, as JSON values. Raises BudgetError where their file
    is damaged."""
    return {**inspection.inspect(bundle), "cascades": [cascade.model_dump(mode="json") for cascade in read_cascades(bundle)]}
