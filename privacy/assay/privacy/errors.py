"""The errors Assay raises, and the exit code each one ends a command with.

    AssayError            1  the work could not be done
    ├── Unavailable       1  a peer or a service did not answer in time
    ├── Tampered          1  a signature, hash or chain does not hold
    └── BadInput          2  a setting, file or message is not what it must be
        └── BadData       2  the same, for a holder's records: knows how to leave the cell out
    Refused               3  a policy, a purpose or a privacy budget forbids it  (an AssayError too)

A message is one line: setting, value, allowed range, remedy. No message carries a number computed
from records.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["AssayError", "BadData", "BadInput", "Refused", "Tampered", "Unavailable"]


class AssayError(Exception):
    """Base of every error that Assay raises on purpose."""

    exit_code = 1


class Unavailable(AssayError):
    """A peer, a file or a service did not answer within its finite time-out."""


class Tampered(AssayError):
    """Something signed or hash-chained does not verify."""


class Refused(AssayError):
    """A policy, a purpose or a privacy budget forbids the request.

    Attributes:
        code: short machine-readable reason, e.g. ``"D01"``, ``"budget"``, ``"purpose"``.
        article: the rule it rests on, where a policy pack names one.
        subject: what was asked for, e.g. ``"purpose 'voting'"`` (never anything from records).
        pack: the policy pack that refuses it.
    """

    exit_code = 3

    def __init__(
        self, message: str, *, code: str = "policy", article: str = "", subject: str = "", pack: str = ""
    ) -> None:
        super().__init__(message)
        self.code, self.article, self.subject, self.pack = code, article, subject, pack

    def at(self, place: str) -> Refused:
        """Return the same refusal with the place it is about, e.g. ``study.toml:3``, in front."""
        return Refused(
            f"{place}: {self}", code=self.code, article=self.article, subject=self.subject, pack=self.pack
        )


class BadInput(AssayError):
    """A setting, argument, file or message that is not what it must be.

    Attributes:
        where: file (and line) or option the setting stands in.
        setting: name of the setting, key, column or option.
        value: what was given (never a value computed from records).
        allowed: what would be accepted.
        remedy: what to do about it.
    """

    exit_code = 2

    def __init__(
        self,
        setting: str,
        *,
        value: object = None,
        allowed: str,
        remedy: str = "",
        where: str | Path = "",
    ) -> None:
        self.where, self.setting, self.value = str(where), setting, value
        self.allowed, self.remedy = allowed, remedy
        super().__init__(self._line(with_value=True))

    def _line(self, *, with_value: bool) -> str:
        place = f"{self.where}: " if self.where else ""
        given = f" is {_short(self.value)}" if with_value and self.value is not None else ""
        remedy = f". {self.remedy}" if self.remedy else ""
        text = f"{place}{self.setting}{given}; allowed: {self.allowed}{remedy}"
        return " ".join(text.split())


class BadData(BadInput):
    """A record file that is not what the study says. ``value`` is a single cell as it stands in the file.

    The cell is shown to the person at the holder's own terminal and nowhere else: logs and
    everything that is sent use :meth:`without_cell`.
    """

    def without_cell(self) -> str:
        """Return the same one-line message with the cell left out."""
        return self._line(with_value=False)


def _short(value: object, limit: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"
