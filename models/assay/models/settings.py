"""Checks of single settings of a study: each names the setting, its value and what is allowed."""

from __future__ import annotations

import sys

from assay.privacy.errors import BadInput

__all__ = ["choice", "is_int", "is_number", "positive", "whole", "words"]


def words(setting: str, value: object, longest: int = 200) -> None:
    """Refuse what is no line of text of 1 to ``longest`` characters.

    Raises:
        BadInput: see above.
    """
    if not isinstance(value, str) or not 0 < len(value.strip()) <= longest or not value.isprintable():
        raise BadInput(setting, value=value, allowed=f"one line of text, 1 to {longest} characters")


def choice(setting: str, value: object, choices: tuple[str, ...]) -> None:
    """Refuse what is none of ``choices``.

    Raises:
        BadInput: see above.
    """
    if not isinstance(value, str) or value not in choices:
        raise BadInput(setting, value=value, allowed=f"one of {', '.join(choices)}")


def whole(setting: str, value: object, low: int, high: int) -> None:
    """Refuse what is no whole number from ``low`` to ``high``.

    Raises:
        BadInput: see above.
    """
    if not is_int(value) or not low <= value <= high:  # type: ignore[operator]
        raise BadInput(setting, value=value, allowed=f"a whole number from {low} to {high}")


def positive(setting: str, value: object, remedy: str = "") -> None:
    """Refuse what is no positive finite number.

    Raises:
        BadInput: see above.
    """
    if not is_number(value) or not value > 0:  # type: ignore[operator]
        raise BadInput(setting, value=value, allowed="a positive finite number", remedy=remedy)


def is_int(value: object) -> bool:
    """True for a whole number; a truth value is none."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """True for a finite number that float64 can hold; TOML whole numbers have no upper end."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    return abs(value) <= sys.float_info.max
