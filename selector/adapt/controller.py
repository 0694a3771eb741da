"""`Controller`: the decision for every run, and what is learnt from it. Pure: time and readings come in as arguments, so that
recorded traces give the same decisions again."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from datetime import datetime
from math import exp, isclose

from device_profiles import Profile
from device_profiles.lengths import Curve
from selector.adapt.feedback import SlowDown
from selector.adapt.order import order
from selector.adapt.plans import Plans
from selector.adapt.quiet import Quiet
from selector.choose.battery import Battery, PowerLevel
from selector.choose.budget import Budget, Selection
from selector.choose.candidates import Key
from selector.choose.clock import wall_clock
from selector.choose.selector import LENGTHS, Selector, nearest_percentile

_NOT_JUDGED = object()
_NONE_FITS = 1e9  # times what the profile says
SPARE = 1.12
"""A larger sub-model than the present one is taken when it fits with so much to spare."""


class Controller:
    """Chooses by a selector, corrected by what earlier runs took.

    The choice is the best sub-model that keeps the deadline with the asked probability as things are now. A larger one than
    the present is taken only with something to spare, so that noise does not make the choice flutter.
    """

    def __init__(
        self,
        selector: Selector,
        profiles: Sequence[Profile],
        *,
        feedback: bool = True,
        clock: Callable[[], datetime] = wall_clock,
    ) -> None:
        self.feedback = feedback
        self.slow_downs = {profile.device.name: SlowDown(Quiet.of(profile)) for profile in profiles}
        self._tracked = list(self.slow_downs.values())
        costs = {(name, profile.device.name): one for profile in profiles for name, one in profile.submodels.items()}
        self._medians = {key: one.latency_ms.p50 for key, one in costs.items()}
        self._curves = {key: Curve(one.by_length) for key, one in costs.items() if one.by_length}
        self._keys = [offer.key for offer in selector.offered]
        self._present: Selection | None = None
        self._seen_at: dict[str, float] = {}
        self._low_power = selector.policy.low_power
        self.selector = _switchable(selector)
        self._level: PowerLevel | None = None  # of the battery policy, that counts now
        self._held: PowerLevel | None = None  # by the charge alone, also while the battery says nothing: for its hysteresis
        self._judged: object = _NOT_JUDGED  # the battery by which it does
        self.plans = Plans(clock)
        self._latest: dict[object, tuple[Budget, list[float], Selection | None, Selection, Selector]] = {}  # by length

    def choose(
        self, budget: Budget, now: float, battery: Battery | None = None, *, among: Collection[Key] | None = None
    ) -> Selection:
        """The best for the budget at this moment, in seconds of a clock. Raises BudgetError as `Selector.select` does."""
        if budget.plan is not None or self._level is not None or battery is not self._judged:
            return self._by_battery(budget, now, battery, among)
        return self._corrected(budget, now, among)

    @property
    def low_power(self) -> bool:
        """Saves at the policy's lowest level whatever the battery says, and instead of any plan; may be set at any time."""
        return self._low_power

    @low_power.setter
    def low_power(self, on: bool) -> None:
        self._low_power, self._judged = on, _NOT_JUDGED

    def _by_battery(self, budget: Budget, now: float, battery: Battery | None, among: Collection[Key] | None) -> Selection:
        """By the plan, or by the battery policy's level where one counts."""
        if budget.plan is None or self._low_power:
            return self._by_level(budget, now, battery, among)
        planned = self._planned(budget, now, battery, among)
        if planned is not None:
            return planned
        found = self._by_level(budget, now, battery, among)
        if self.plans.over(budget.plan, now):
            return found._replace(reason=f"the battery plan's end has passed: {found.reason}")
        return found

    def _by_level(self, budget: Budget, now: float, battery: Battery | None, among: Collection[Key] | None) -> Selection:
        if battery is not self._judged:  # once for every reading
            policy, self._judged = self.selector.policy, battery
            by_charge = policy.level(battery, self._held, low_power=False)
            self._level = policy.lowest if self._low_power else by_charge
            if battery is not None:
                self._held = by_charge
        level = self._level
        if level is None:
            return self._corrected(budget, now, among)
        selector = self.selector.at(budget)
        return selector.saved(budget, level, battery, lambda one: self._corrected(one, now, among))

    def _corrected(self, budget: Budget, now: float, among: Collection[Key] | None) -> Selection:
        """By the profile, or by what runs take where a deadline is given."""
        if budget.run_ms is None or not self.feedback:
            return self._unlimited(budget, among)
        reaches = self._reaches(budget, now)
        if among is not None or any(slow_down.suspicious for slow_down in self._tracked):
            return self._chosen(budget, reaches, now, among)
        length = budget.length, budget.prompt_tokens, budget.context
        latest, selector, present = self._latest.get(length), self.selector, self._present
        same = latest and latest[0] is budget and latest[1] == reaches and latest[2] is present and latest[4] is selector
        if latest and same:
            return latest[3]
        found = self._chosen(budget, reaches, now, None)
        if len(self._latest) >= LENGTHS:
            self._latest = {}
        self._latest[length] = (budget, reaches, present, found, selector)
        return found

    def _chosen(self, budget: Budget, reaches: list[float], now: float, among: Collection[Key] | None) -> Selection:
        wanted, present = self._best(budget, reaches, now, among), self._present
        if (
            present is not None
            and wanted.feasible
            and budget.wants_the_best
            and (wanted.quality or 0.0) > (present.quality or 0.0)
        ):
            wanted = self._carefully(wanted, present, budget, reaches, now, among)
        pace = self.slow_down(wanted.device)
        if abs(pace - 1) > 0.05:
            return wanted._replace(reason=f"{wanted.reason}; runs take {pace:.2f} times what the profile says")
        return wanted

    def _carefully(
        self,
        wanted: Selection,
        present: Selection,
        budget: Budget,
        reaches: list[float],
        now: float,
        among: Collection[Key] | None,
    ) -> Selection:
        """One that is better than the present one only where it fits with something to spare."""
        if (wanted.latency_ms or 0.0) * SPARE <= (budget.run_ms or 0.0):
            return wanted
        careful = self._best(budget, self._reaches(budget, now, SPARE), now, among)
        if careful.feasible and (careful.quality or 0.0) > (present.quality or 0.0):
            return careful
        key = (present.submodel, present.device)
        if among is not None and key not in among:
            return wanted
        staying = self._best(budget, reaches, now, [key])
        return staying if staying.feasible else wanted

    def spent(self, selection: Selection, inferences: float = 1, length: int | None = None) -> None:
        """So many inferences of the selection were made, of inputs of that length: every plan's account. Where text is
        generated, so many tokens in a context of that length."""
        key = (selection.submodel, selection.device)
        curve = None if length is None else self.selector.offered.curves.get(key)
        self.plans.spent(key, inferences, 1.0 if curve is None or length is None else curve.share(length))

    def observe(
        self, selection: Selection, latency_ms: float, now: float, *, ran: str | None = None, length: int | None = None
    ) -> None:
        """A run of the selection has taken so long in this sub-model (default: the one that was selected); how long a whole
        cascade takes depends on the example. `length`: of its input, whose own prediction it is compared with; where text is
        generated, a run is of one token, and the length that of its context."""
        present = self._present
        if present is None or selection.submodel != present.submodel or selection.device != present.device:
            self._present = selection
        slow_down = self.slow_downs.get(selection.device)
        key = (ran or selection.submodel, selection.device)
        expected = self._medians.get(key)
        if length is not None and (curve := self._curves.get(key)) is not None:
            expected = curve.at(length)
        if slow_down is None or expected is None:
            return
        slow_down.observe(selection.submodel, expected, latency_ms, now)
        since = self._seen_at.get(selection.device, now)
        for device, other in self.slow_downs.items() if len(self.slow_downs) > 1 else ():
            if other is not slow_down:  # for as long as neither has run
                other.approach(slow_down, now - max(since, self._seen_at.get(device, since)))
        self._seen_at[selection.device] = now

    def _planned(self, budget: Budget, now: float, battery: Battery | None, among: Collection[Key] | None) -> Selection | None:
        """What the plan has for this inference, or the best within its energy where the budget has other limits. None where
        there is nothing to plan."""
        selector = self.selector
        planner = self.plans.asked(budget, now, battery, selector)
        if planner is None:
            return None
        chosen = planner.next() if among is None else planner.latest  # asked again for the same inference
        keys = planner.costing_at_most(chosen)
        if among is not None:
            keys = [key for key in keys if key in among] or list(among)
        first = [chosen.key] if chosen.key in keys else keys
        other_limits = budget.model_copy(update={"plan": None, "sustained": selector.sustained is not selector})
        found = self._best_or_any(other_limits, now, first)
        if not found.feasible and first is not keys:
            found = self._best_or_any(other_limits, now, keys)
        return found._replace(reason=f"{planner.reason(now)}: {found.reason}")

    def _best_or_any(self, budget: Budget, now: float, among: Collection[Key]) -> Selection:
        if budget.run_ms is None or not self.feedback:
            return self._unlimited(budget, among)
        return self._best(budget, self._reaches(budget, now), now, among)

    def _unlimited(self, budget: Budget, among: Collection[Key] | None) -> Selection:
        """Without a limit on a run's latency, or without feedback. The time to a first token grows as that of runs does."""
        if budget.first_token_ms is None or not self.feedback:
            return self.selector.select(budget, among=among)
        found = []
        for device in self.slow_downs:
            keys = [key for key in among or self._keys if key[1] == device]
            if keys:
                slowdown = self._beyond(self.slow_down(device), budget, device)
                found.append(self.selector.select(budget, among=keys, slowdown=slowdown))
        return min(found, key=order(budget))

    def use(self, selector: Selector) -> None:
        """From now on chooses among this one's sub-models; what was learnt stays, and a plan goes on. From any thread: a choice
        that is just being made by the other is not kept."""
        self.selector = _switchable(selector)

    def slow_down(self, device: str) -> float:
        """How much slower than its profile this device's level is now."""
        found = self.slow_downs.get(device)
        return exp(found.level) if found else 1.0

    def _reaches(self, budget: Budget, now: float, spare: float = 1.0) -> list[float]:
        """For each profile the median that just keeps the budget's deadline, shorter by the spare, at its percentile now."""
        assert budget.run_ms is not None
        percentile, limit = nearest_percentile(budget.percentile), budget.run_ms / spare
        return [slow_down.reach(percentile, limit, now) for slow_down in self._tracked]

    def _lasting(self, budget: Budget, device: str) -> float | None:
        """How many times as long as in the first minute runs take in steady work, by which the selector's figures are then;
        None where the budget is not of such work or nothing of it is known."""
        lasting = self.selector.offered.lasting.get(device) if budget.lasts else None
        return None if lasting is None else lasting.at(nearest_percentile(budget.percentile))

    def _beyond(self, slow_down: float, budget: Budget, device: str) -> float:
        """The slow-down beside what steady work takes by itself."""
        lasting = self._lasting(budget, device)
        return slow_down if lasting is None else max(1.0, slow_down / lasting)

    def _best(self, budget: Budget, reaches: list[float], now: float, among: Collection[Key] | None) -> Selection:
        if len(reaches) == 1:
            return self._best_of(budget, among, next(iter(self.slow_downs)), reaches[0], now)
        keys_of = among or self._keys
        found = []
        for device, reach in zip(self.slow_downs, reaches, strict=True):
            keys = [key for key in keys_of if key[1] == device]
            if keys:
                found.append(self._best_of(budget, keys, device, reach, now))
        return min(found, key=order(budget))

    def _best_of(
        self,
        budget: Budget,
        among: Collection[Key] | None,
        device: str,
        reach: float,
        now: float,
    ) -> Selection:
        """Of one profile; those that have lately been slower than the others are judged by themselves."""
        limit, slow_down = budget.run_ms, self.slow_downs[device]
        assert limit is not None
        percentile, left = nearest_percentile(budget.percentile), among
        # What just fits is at the limit; the selector compares with it, and what is found takes what its own run takes.
        slowdown = min(limit / slow_down.quiet.latency(percentile, reach), _NONE_FITS) if reach > 0 else _NONE_FITS
        slowdown = 1.0 if isclose(slowdown, 1.0) else slowdown  # what takes as long as the limit by the profile keeps it
        lasting, slowdown = self._lasting(budget, device), self._beyond(slowdown, budget, device)
        missed: Selection | None = None  # of those that would fit, were they not slower by themselves, the fastest
        while True:
            found = self.selector.select(budget, among=left, slowdown=slowdown)
            expected = slow_down.quiet.median(percentile, (found.latency_ms or 0.0) / slowdown / (lasting or 1.0))
            taking, quiet = slow_down.latency(percentile, expected, now), slow_down.quiet.latency(percentile, expected)
            if lasting is not None:  # it may not have got warm yet
                taking, quiet = max(taking, lasting * quiet), lasting * quiet
            if found.feasible:
                found = found._replace(latency_ms=min(taking, limit))
            else:  # again with the factor of this one, which the reason names
                found = self.selector.select(budget, among=left, slowdown=taking / quiet)
            if not slow_down.suspicious:
                return found
            latency = (found.latency_ms or 0.0) * slow_down.offset(found.submodel, now)
            if not found.feasible:
                return missed if missed and (missed.latency_ms or 0.0) < latency else found
            if latency <= limit:
                return found._replace(latency_ms=latency)
            reason = f"nothing fits: the nearest sub-model has latency {latency:.4g} ms, limit {limit:g} ms"
            if missed is None or latency < (missed.latency_ms or 0.0):
                missed = found._replace(latency_ms=latency, feasible=False, reason=reason)
            left = [key for key in (self._keys if left is None else left) if key != (found.submodel, found.device)]


def _switchable(selector: Selector) -> Selector:
    """One that does not save by itself: low power may be switched off in the controller."""
    if not selector.policy.low_power:
        return selector
    return selector.with_policy(selector.policy.model_copy(update={"low_power": False}))
