"""What a ledger's rows amount to, and whether another run fits: composition across runs is exact.

mu^2 adds over the releases of all runs (``accounting``); epsilons are never added. An open run counts with
its whole plan, a closed one with what it was charged.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from sqlite3 import Row
from typing import Any

from assay.privacy.accounting import Event, epsilon_of, epsilon_of_mu, mu2_of, mu_of
from assay.privacy.errors import BadInput, Refused

__all__ = ["Limits", "RunAccount", "committed", "left_of", "priced", "replay", "require_open", "require_room"]

# Caps are met by plans that use them up exactly; float64 rounding must not turn one away.
_TOLERANCE = 1 + 1e-9


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The caps a holder sets in ``client.toml`` under ``[policy]``.

    Attributes:
        epsilon_per_study: for one person over all runs of one study, for ever; above 0, at most 1000.
        epsilon_per_year: for one person over all studies within any 365 days; above 0, at most 1000.
        delta: the delta both are stated at; above 0, below 1.
    """

    epsilon_per_study: float
    epsilon_per_year: float
    delta: float

    def __post_init__(self) -> None:
        for setting in ("epsilon_per_study", "epsilon_per_year"):
            value = getattr(self, setting)
            if not 0 < value <= 1000:
                raise BadInput(setting, value=value, allowed="a number above 0, at most 1000")
        if not 0 < self.delta < 1:
            raise BadInput("delta", value=self.delta, allowed="a number above 0 and below 1")


@dataclass(kw_only=True)
class RunAccount:
    """What the rows of one run amount to."""

    study: str
    planned: list[Event] = field(default_factory=list)
    charged: list[tuple[float, Event]] = field(default_factory=list)
    rounds: dict[int, Event] = field(default_factory=dict)
    closed: bool = False

    def events(self, since: float) -> list[Event]:
        """Return what the run costs or may still cost: its plan while open, its charges once closed."""
        if not self.closed:
            return self.planned
        return [event for when, event in self.charged if when > since]

    def has_room_for(self, event: Event) -> bool:
        """Say whether what is charged and ``event`` fit in what was reserved."""
        wanted = [*(charged for _, charged in self.charged), event]
        if event.sample_rate == 1:
            return mu2_of(_full(wanted)) <= mu2_of(_full(self.planned)) * _TOLERANCE
        planned, asked = _sampled_steps(self.planned), _sampled_steps(wanted)
        return all(steps <= planned[kind] for kind, steps in asked.items())


def _full(events: Sequence[Event]) -> list[Event]:
    return [event for event in events if event.sample_rate == 1]


def _sampled_steps(events: Sequence[Event]) -> Counter[tuple[float, float]]:
    steps: Counter[tuple[float, float]] = Counter()
    for event in events:
        if event.sample_rate < 1:
            steps[event.noise_multiplier, event.sample_rate] += event.steps
    return steps


def replay(rows: Iterable[Row], runs: dict[str, RunAccount]) -> None:
    """Add what the rows amount to, run by run, in the order the runs were reserved."""
    for row in rows:
        state = runs.setdefault(row["run"], RunAccount(study=row["study"]))
        if row["kind"] == "reserve":
            state.planned.append(_event(row))
        elif row["kind"] == "charge":
            state.charged.append((row["time"], _event(row)))
            state.rounds[row["round"]] = state.charged[-1][1]
        elif row["kind"] == "close":
            state.closed = True


def committed(runs: Iterable[RunAccount], since: float = -math.inf) -> list[Event]:
    """Return what the runs cost or may still cost: open ones their whole plan, closed ones their charges."""
    return [event for state in runs for event in state.events(since)]


def require_open(run: str, state: RunAccount) -> None:
    """Refuse anything more for a run that is closed."""
    if state.closed:
        raise Refused(f"run {run} is closed; nothing more is released for it", code="closed")


def require_room(
    period: str, committed: Sequence[Event], planned: Sequence[Event], cap: float, delta: float
) -> None:
    """Refuse a plan that would bring the privacy loss of a ``period`` (study or year) above its cap."""
    total = epsilon_of([*committed, *planned], delta)
    if total <= cap * _TOLERANCE:
        return
    raise Refused(
        f"the run (epsilon {epsilon_of(planned, delta):.4g}) would bring this {period}'s privacy loss from "
        f"epsilon {epsilon_of(committed, delta):.4g} to {total:.4g} at delta {delta:g}; allowed: {cap:g}, "
        f"which leaves room for a run of epsilon {_floor(left_of(committed, cap, delta))}. "
        f"Lower the study's epsilon, or raise policy.epsilon_per_{period} in client.toml",
        code="budget",
    )


def left_of(committed: Sequence[Event], cap: float, delta: float) -> float:
    """Return the epsilon of the largest run that still fits: in mu^2, where costs add."""
    spent = epsilon_of(committed, delta)
    if spent >= cap:
        return 0.0
    used = mu_of(spent, delta) if spent > 0 else 0.0
    return epsilon_of_mu(math.sqrt(mu_of(cap, delta) ** 2 - used**2), delta)


def _floor(epsilon: float) -> str:
    """Write an epsilon with four decimals, rounded down so that a run of the number shown is accepted."""
    return f"{math.floor(epsilon * _TOLERANCE * 1e4) / 1e4:g}"


def _event(row: Row) -> Event:
    return Event(noise_multiplier=row["noise_multiplier"], sample_rate=row["sample_rate"], steps=row["steps"])


def priced(event: Event) -> dict[str, Any]:
    """Return the columns of a row that say what ``event`` costs."""
    return {
        "noise_multiplier": float(event.noise_multiplier),
        "sample_rate": float(event.sample_rate),
        "steps": event.steps,
    }
