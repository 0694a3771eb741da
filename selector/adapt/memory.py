"""`MemoryGuard`: how much memory the sessions may take while the device's own memory comes and goes. Pure: readings and time
come in as arguments."""

from __future__ import annotations

from math import inf

import psutil

from device_profiles.cgroups import memory_limits

CALM_SECONDS = (10.0, 640.0)
"""Memory must have been there for as long as the first before the limit is raised; doubled, up to the second, each time
that it gets short again soon after."""
STALLED = 0.2
"""Pressure stall information: share of ten seconds in which some task waited for memory."""
_SPARE = 1.25  # times the reserve must be free before the limit is raised, and stays free after it


def default_reserve_mb() -> float:
    """A twentieth of the memory that this process may use, at most 512 MB."""
    limits = [group.limit for group in memory_limits()]
    return min(0.05 * min(float(psutil.virtual_memory().total) / 2**20, *limits, inf), 512.0)


class MemoryGuard:
    """Keeps `reserve_mb` of the device's memory free by what the sessions may take, at most `most_mb`.

    Below the reserve the limit falls by what is missing; the rest of the device comes first. It rises when a quarter more than
    the reserve has been free for a while, by what is free beyond that, so that opening sessions up to the limit does not
    make memory short again.
    """

    def __init__(self, most_mb: float, reserve_mb: float) -> None:
        self.most_mb, self.reserve_mb = most_mb, reserve_mb
        self.limit_mb = most_mb
        self._calm_seconds = CALM_SECONDS[0]
        self._calm_since: float | None = None
        self._raised_at = self._stalled_at = -inf

    def update(self, used_mb: float, available_mb: float | None, pressure: float | None, now: float) -> float:
        """The limit (MB). `used_mb`: by the sessions that are open; None: not known, which changes nothing by itself."""
        if available_mb is None:
            return self.limit_mb
        missing = self.reserve_mb - available_mb
        # Tasks also wait for memory where a container has used up its own: closing sessions here would help nobody.
        stalled = pressure is not None and pressure > STALLED and available_mb < 4 * self.reserve_mb
        if missing > 0 or stalled:
            self._lower(used_mb, missing, now)
        elif self.limit_mb < self.most_mb:
            calm = -missing >= (_SPARE - 1) * self.reserve_mb and (pressure or 0.0) <= STALLED / 2
            self._raise(used_mb, available_mb - _SPARE * self.reserve_mb, now, calm)
        return self.limit_mb

    def _lower(self, used_mb: float, missing_mb: float, now: float) -> None:
        if missing_mb <= 0:  # a mean over ten seconds: what has just been closed shows in it later
            if 0 <= now - self._stalled_at < 10.0:
                return
            self._stalled_at, missing_mb = now, used_mb / 4
        if self._calm_since is not None or self.limit_mb == self.most_mb:  # short again, not still
            soon = 0 <= now - self._raised_at < 4 * self._calm_seconds
            self._calm_seconds = min(2 * self._calm_seconds, CALM_SECONDS[1]) if soon else CALM_SECONDS[0]
        self._calm_since = None
        self.limit_mb = max(0.0, min(self.limit_mb, used_mb - missing_mb))

    def _raise(self, used_mb: float, free_mb: float, now: float, calm: bool) -> None:
        if not calm:
            self._calm_since = None
            return
        if self._calm_since is None or now < self._calm_since:  # a clock that was set back
            self._calm_since = now
        if now - self._calm_since >= self._calm_seconds and used_mb + free_mb > self.limit_mb:
            self.limit_mb = min(self.most_mb, used_mb + free_mb)
            self._raised_at = now
