"""Fixtures of the selector's tests."""

from tests.helpers.cascades import with_cascade
from tests.helpers.runtimes import ranked

__all__ = ["ranked", "with_cascade"]
