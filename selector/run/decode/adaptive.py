"""What drafts cost and what they bring on this device: how many tokens to verify in a call, and whether to guess at all.

A call over k + 1 tokens takes c(k + 1) and gives 1 + a + a·b + a·b² + … tokens, where a is how often the first guess of its
kind was right of late, and b how often a further one was where those before it were. A guess is compared with what came,
whether it was used or not: so nothing has to be tried to know whether it would pay.
"""

from __future__ import annotations

from dataclasses import dataclass, field

MARGIN = 1.03
"""By how much a draft must be expected to be faster than none: what is known of both is not exact."""
_FORGET = 0.97
"""Of what is known of a kind of guess, at each further one: about 30 count."""
_PRIOR = 4.0
"""Guesses that a kind is taken to have had before the first one."""
_PRIORS = {1: (0.1, 0.4), 2: (0.2, 0.5), 3: (0.35, 0.6), 4: (0.5, 0.75), 6: (0.65, 0.85), 9: (0.75, 0.9), 14: (0.85, 0.95)}
"""By the length of the match: the shares of these whose first token was right, and a further one."""
_LEARN = 0.1
_LEAST_WAIT, _MOST_WAIT = 32, 1024
"""Tokens until exits that did not pay are tried again: twice as many each time."""
_TRIES = 4
"""Drafts of an exit, by which it is judged."""


@dataclass
class Rate:
    """How often of late, as a share."""

    right: float
    tried: float = _PRIOR

    def add(self, right: bool) -> None:
        self.right = _FORGET * self.right + right
        self.tried = _FORGET * self.tried + 1

    @property
    def value(self) -> float:
        return self.right / self.tried


@dataclass
class Costs:
    """Milliseconds of a call of each part over so many tokens, and of an exit's head. `scale`: what they take now, by what was
    measured when the graph was opened: load, heat, a longer context."""

    parts: list[dict[int, float]]  # by part, the lowest first: tokens of the call → ms
    head: float = 0.0
    scale: float = 1.0

    @property
    def rows(self) -> tuple[int, ...]:
        """Tokens of a call that were measured, from 1 on."""
        return tuple(sorted(self.parts[0]))

    def call(self, rows: int, first: int = 0, last: int | None = None) -> float:
        """Of these parts, without `scale`."""
        return sum(part[rows] for part in self.parts[first:last])

    def observe(self, rows: int, ms: float) -> None:
        """A call of all parts."""
        expected = self.call(rows)
        if expected > 0 and ms < 20 * self.scale * expected:  # beyond: something else ran
            self.scale += _LEARN * (ms / expected - self.scale)
            for part in self.parts:  # slowly: what is more often than the others' scale is this number's own
                part[rows] *= min(max(ms / expected / self.scale, 0.8), 1.25) ** (0.2 * _LEARN)

    @property
    def plain_ms(self) -> float:
        """Of one token, now."""
        return self.scale * self.call(1)


@dataclass
class Exit:
    """What drafts of an exit brought of late."""

    tokens: float = 0.0
    cost: float = 0.0  # in calls of one token
    drafts: int = 0
    wait: int = _LEAST_WAIT

    def add(self, tokens: int, cost: float) -> None:
        self.drafts += 1
        self.tokens = 0.9 * self.tokens + tokens
        self.cost = 0.9 * self.cost + cost

    @property
    def gain(self) -> float:
        """Tokens for the cost of one."""
        return self.tokens / self.cost if self.cost else 1.0


@dataclass
class Adaptive:
    """Of a decoder that is open, for all its texts."""

    costs: Costs
    kinds: dict[str, tuple[Rate, Rate]] = field(default_factory=dict)  # of a guess's first token, of further ones
    exits: dict[int, Exit] = field(default_factory=dict)  # by how many parts lie below
    gain: float = 1.0  # tokens of late, for the cost of one
    _quiet: int = 0  # tokens until exits are tried again

    def rates(self, kind: str) -> tuple[Rate, Rate]:
        """Of a kind of guess, such as `text 4`: where the last four tokens or more were there before."""
        if kind not in self.kinds:
            first, further = _PRIORS[int(kind.partition(" ")[2])]
            self.kinds[kind] = Rate(_PRIOR * first), Rate(_PRIOR * further)
        return self.kinds[kind]

    def length(self, kind: str, most: int) -> int:
        """How many guesses of this kind to verify; 0: none."""
        first, further = (rate.value for rate in self.rates(kind))
        plain, expected, chance = self.costs.call(1), 1.0, first
        best, found = MARGIN / plain, 0
        count = 0
        for rows in self.costs.rows[1:]:
            if rows - 1 > most:
                break
            while count < rows - 1:
                expected += chance
                chance *= further
                count += 1
            if expected / self.costs.call(rows) > best:
                best, found = expected / self.costs.call(rows), count
        return found

    def called(self, tokens: int, cost: float) -> None:
        """A call gave so many tokens and took so long, in calls of one token."""
        self.gain += 0.05 * (tokens / cost - self.gain) if cost > 0 else 0.0

    def exit(self) -> int | None:
        """The exit to guess with now: parts that lie below it; None: none pays. To be asked once for each call."""
        for below, one in self.exits.items():
            if one.drafts < _TRIES:
                return below
        best = max(self.exits, key=lambda below: self.exits[below].gain, default=None)
        if best is None or self.exits[best].gain >= MARGIN:
            return best
        if self._quiet <= 0:
            self._quiet = self.exits[best].wait
        self._quiet -= 1
        if self._quiet == 0:  # the best is tried again, and each in its turn
            one = min(self.exits.values(), key=lambda exit: exit.wait)
            one.drafts, one.wait = _TRIES - 2, min(2 * one.wait, _MOST_WAIT)
        return None

    def worth(self, below: int, chance: float, rows: int) -> bool:
        """Whether one more token is to be guessed at this exit, whose chance to be right, all before it included, is this."""
        if rows >= self.costs.rows[-1]:
            return False
        above = [self.costs.call(n, below) for n in self.costs.rows]
        slope = (above[-1] - above[0]) / (self.costs.rows[-1] - 1)
        ms = self.costs.call(1, 0, below) + self.costs.head + slope
        return chance / ms > max(1.0, self.exits[below].gain) / self.costs.call(1)
