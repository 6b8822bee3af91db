"""Numbers in words: with the digits that people want to read, and no zero that is not one."""

from __future__ import annotations

import math

__all__ = ["added", "count", "odds_factor", "percent", "short", "signed", "tenths"]


def short(value: float) -> str:
    """Return a number with three significant digits, as people write it: 1e-6, not 1e-06."""
    mantissa, _, power = f"{value:.3g}".partition("e")
    return f"{mantissa}e{int(power)}" if power else mantissa


def odds_factor(epsilon: float) -> str:
    """Return e^epsilon, rounded up to two digits; the bound on how much odds can change."""
    if epsilon > 14:
        return "over a million"
    factor = math.exp(epsilon)
    unit = 10.0 ** (math.floor(math.log10(factor)) - 1)
    rounded = math.ceil(factor / unit) * unit
    return f"{rounded:,.1f}" if unit < 1 else f"{rounded:,.0f}"


def percent(share: float) -> str:
    """Return a share for a sentence: whole percent from 10 % on, one decimal below."""
    number = f"{100 * share:.0f}" if share >= 0.0995 or share == 0 else tenths(share)
    return f"{number}\u00a0%"


def tenths(share: float) -> str:
    """Return a share in percent for a column: one decimal, and no zero that is not one."""
    return "< 0.1" if 0 < share < 0.0005 else f"{100 * share:.1f}"


def count(number: int, noun: str) -> str:
    """Return a number with its noun."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def added(points: int) -> str:
    """Return points as a term of a sum, with a true minus."""
    return f"− {-points}" if points < 0 else f"+ {points}"


def signed(points: int) -> str:
    """Return points with their sign, with a true minus."""
    return f"+{points}" if points > 0 else f"−{-points}" if points < 0 else "0"
