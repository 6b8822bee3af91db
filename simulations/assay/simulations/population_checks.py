"""Checks that the parameters of a synthetic population share; all raise :class:`BadInput`."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterable, Iterator, Mapping

from assay.privacy.errors import BadInput

__all__ = [
    "check_choice",
    "check_number",
    "check_numbers",
    "check_shares",
    "check_texts",
    "check_whole",
    "inside",
    "nearest",
]


def nearest(word: str, known: Iterable[str]) -> str:
    """Return the known word that is most like ``word``."""
    return difflib.get_close_matches(word, list(known), n=1, cutoff=0.0)[0]


@contextlib.contextmanager
def inside(path: str) -> Iterator[None]:
    """Put ``path`` before the setting that a message names."""
    try:
        yield
    except BadInput as error:
        raise BadInput(
            f"{path}.{error.setting}", value=error.value, allowed=error.allowed, remedy=error.remedy
        ) from None


def check_number(setting: str, value: object, low: float, high: float) -> None:
    """Refuse anything but a number from ``low`` to ``high``; NaN is none."""
    known = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not known or not low <= value <= high:  # type: ignore[operator]
        raise BadInput(setting, value=value, allowed=f"a number from {low:g} to {high:g}")


def check_whole(setting: str, value: object, low: int, high: int) -> None:
    """Refuse anything but a whole number from ``low`` to ``high``."""
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise BadInput(setting, value=value, allowed=f"a whole number from {low} to {high}")


def check_choice(setting: str, value: object, choices: Iterable[str]) -> None:
    """Refuse anything but one of the choices; the nearest one is named."""
    known = tuple(choices)
    if value not in known:
        remedy = ""
        if isinstance(value, str) and known:
            remedy = f"Did you mean {nearest(value, known)!r}?"
        raise BadInput(setting, value=value, allowed=f"one of {', '.join(known)}", remedy=remedy)


def check_texts(setting: str, value: object) -> None:
    """Refuse anything but a list of non-empty strings."""
    if not isinstance(value, tuple) or not all(isinstance(text, str) and text for text in value):
        raise BadInput(setting, value=value, allowed='a list of strings such as ["a", "b"]')


def check_shares(setting: str, value: object, count: int | None = None) -> None:
    """Refuse anything but relative shares, none negative, not all 0."""
    if not isinstance(value, tuple) or not value or (count is not None and len(value) != count):
        size = "at least one number" if count is None else f"{count} numbers"
        raise BadInput(
            setting, value=list(value) if isinstance(value, tuple) else value, allowed=f"a list of {size}"
        )
    for share in value:
        check_number(setting, share, 0, 1e6)
    if not sum(value) > 0:
        raise BadInput(setting, value=list(value), allowed="numbers that are not all 0")


def check_numbers(setting: str, table: object, names: Iterable[str], bound: float) -> None:
    """Refuse anything but a table from known names to numbers of at most ``bound``."""
    if not isinstance(table, Mapping):
        raise BadInput(setting, value=table, allowed="a table such as { name = 0.5 }")
    for name, number in table.items():
        check_choice(setting, name, names)
        check_number(f"{setting}.{name}", number, -bound, bound)
