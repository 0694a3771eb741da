"""Fixtures of the benchmarks' tests."""

from tests.helpers.threads import one_thread

__all__ = ["one_thread"]
