"""`PlanEnd`: when a plan is over, by the clock that never jumps, while the wall clock that its user goes by does. Pure: both
come in as arguments."""

from __future__ import annotations

from datetime import datetime, time, timedelta

from selector.choose.budget import BatteryPlan, seconds_between

AGAIN_SECONDS = 10.0
"""So often the wall clock is looked at."""
WRONG_SECONDS = 7 * 86_400.0
"""A wall clock that is set forward by more was no clock before: of a device without a battery for it, which begins in 1970."""
_LONGEST = timedelta(hours=26).total_seconds()
"""Until the next time of day: a day, and what a change to winter time or of the time zone may add."""


class PlanEnd:
    """Where a plan lasts for some hours, their end, whatever the wall clock says.

    Where it lasts until a moment, that moment by the wall clock as it is now. A time of day without a time zone is the
    device's: the first to come when the plan began, on that date, and in the zone where the device is now. Only where the clock
    was wrong altogether it is the first to come from now.
    """

    def __init__(self, plan: BatteryPlan, wall: datetime, now: float) -> None:
        self.plan = plan
        self._fixed = now + plan.seconds(wall) if plan.for_hours is not None else None
        self._looked_at, self._wall_ahead = now, wall.timestamp() - now
        self._moment = None if plan.until is None else plan.moment(wall)

    def due(self, now: float) -> bool:
        """The wall clock should be looked at again."""
        return self._fixed is None and not 0 <= now - self._looked_at < AGAIN_SECONDS

    def at(self, wall: datetime, now: float) -> float:
        """The end, in seconds of the clock that `now` is of."""
        if self._fixed is not None:
            return self._fixed
        assert self._moment is not None
        until, ahead = self.plan.until, wall.timestamp() - now
        if isinstance(until, time):
            if until.tzinfo is None:  # where the device is now
                self._moment = self._moment.replace(tzinfo=wall.tzinfo)
            if ahead - self._wall_ahead > WRONG_SECONDS or seconds_between(wall, self._moment) > _LONGEST:
                self._moment = self.plan.moment(wall)
        self._looked_at, self._wall_ahead = now, ahead
        return now + seconds_between(wall, self._moment)
