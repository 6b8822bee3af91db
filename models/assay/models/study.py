"""Reading ``study.toml``: strict about keys, and every message names file and line.

The types and their ranges are in :mod:`assay.models.schema`; they are re-exported here.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from assay.models.fairness import Fairness, Gate
from assay.models.schema import (
    COMPONENTS,
    MAX_TEXT_BYTES,
    Contact,
    Feature,
    Interaction,
    Outcome,
    Privacy,
    Scale,
    Study,
    Training,
    transformed,
)
from assay.privacy.errors import BadInput, Refused
from assay.privacy.purpose import PACK

__all__ = [
    "COMPONENTS",
    "Feature",
    "Interaction",
    "Outcome",
    "Privacy",
    "Scale",
    "Study",
    "Training",
    "parse_study",
    "read_study",
    "transformed",
]

_KEYS: dict[str, tuple[str, ...]] = {
    "study": ("name", "purpose", "contexts", "pack"),
    "outcome": ("column", "meaning", "observed"),
    "person": ("column",),
    "features": (
        "name",
        "column",
        "component",
        "kind",
        "domain",
        "levels",
        "transform",
        "risk_trend",
        "label",
        "changeable",
        "platform",
        "description",
    ),
    "interactions": ("features", "cuts", "description"),
    "fairness": ("columns", "groups", "gate", "smallest_group"),
    "training": ("model", "rounds"),
    "privacy": ("epsilon", "delta", "trust", "tolerated", "holders_per_person"),
    "scale": ("low", "high", "anchor_score", "anchor_odds", "pdo", "cut_off"),
    "contact": ("ask", "contest"),
}
_REQUIRED: dict[str, tuple[str, ...]] = {
    "study": ("name", "purpose", "contexts"),
    "outcome": ("column", "meaning"),
    "person": ("column",),
    "features": ("name", "column", "component", "kind"),
    "interactions": ("features",),
    "fairness": ("columns",),
    "privacy": ("epsilon",),
}
_HEADER = re.compile(r"\s*(\[\[?)\s*([A-Za-z0-9_.-]+)\s*\]")
_KEY = re.compile(r"\s*[\"']?([A-Za-z0-9_-]+)[\"']?\s*=")
_INDEXED = re.compile(r"(features|interactions)\[(\d+)\](?:\.(\w+))?")


def read_study(path: Path) -> Study:
    """Read and check a study file.

    Raises:
        BadInput: the file is missing, not UTF-8, or anything in it is not as documented.
        Refused: its purpose, a context or an input is not allowed.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise BadInput("file", value=str(path), allowed="an existing study.toml") from None
    except OSError as error:
        raise BadInput("file", value=str(path), allowed=f"a readable study.toml ({error.strerror})") from None
    try:
        return parse_study(data.decode("utf-8"), str(path))
    except UnicodeDecodeError:
        raise BadInput("file", value=str(path), allowed="UTF-8 text") from None


def parse_study(text: str, where: str = "study.toml") -> Study:
    """Check the text of a study file and return the study.

    Args:
        text: TOML, at most 512 KiB in UTF-8.
        where: what messages call the file.

    Raises:
        BadInput: a key is unknown, missing or out of range; the message names file, line and remedy.
        Refused: its purpose, a context or an input is not allowed.
    """
    if not 0 < len(text.encode("utf-8", errors="replace")) <= MAX_TEXT_BYTES:
        raise BadInput("study", where=where, allowed=f"1 to {MAX_TEXT_BYTES} bytes of TOML")
    try:
        raw = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: also a number of thousands of digits
        raise BadInput("file", where=where, allowed=f"valid TOML ({error})") from None
    return _Parser(raw, text, where).study()


class _Parser:
    """One pass over the decoded TOML; ``lines`` knows where each key stands."""

    def __init__(self, raw: dict[str, Any], text: str, where: str) -> None:
        self.raw, self.text, self.where = raw, text, where
        self.lines = _lines(text)

    def study(self) -> Study:
        for name in self.raw:
            if name not in _KEYS:
                raise self._unknown(name, name, tuple(_KEYS))
        study, person = self._section("study"), self._section("person", optional=True)
        with self._located(""):
            return Study(
                name=study["name"],
                purpose=study["purpose"],
                contexts=self._strings("study.contexts", study["contexts"]),
                outcome=self._build(Outcome, "outcome"),
                person=person.get("column"),
                features=self._features(),
                fairness=self._fairness(),
                training=self._build(Training, "training", optional=True),
                privacy=self._build(Privacy, "privacy"),
                scale=self._build(Scale, "scale", optional=True),
                text=self.text,
                pack=study.get("pack", PACK.name),
                contact=self._build(Contact, "contact", optional=True),
                interactions=self._interactions(),
            )

    def _section(self, name: str, *, optional: bool = False) -> dict[str, Any]:
        if optional and name not in self.raw:
            return {}
        table = self.raw.get(name)
        if not isinstance(table, dict):
            raise self._error(name, value=table, allowed=f"a table [{name}]")
        return self._checked(table, name, name)

    def _checked(self, table: dict[str, Any], kind: str, path: str) -> dict[str, Any]:
        for key in table:
            if key not in _KEYS[kind]:
                raise self._unknown(key, f"{path}.{key}", _KEYS[kind])
        for key in _REQUIRED.get(kind, ()):
            if key not in table:
                raise self._error(
                    f"{path}.{key}", allowed="a value, it is missing", remedy=f"Add {key} = ..."
                )
        return table

    def _build(self, made: Any, name: str, *, optional: bool = False) -> Any:
        table = self._section(name, optional=optional)
        with self._located(f"{name}."):
            return made(**table)

    def _features(self) -> tuple[Feature, ...]:
        tables = self.raw.get("features")
        if not isinstance(tables, list) or not tables or not all(isinstance(table, dict) for table in tables):
            raise self._error("features", allowed="at least one [[features]] table")
        return tuple(self._feature(index, table) for index, table in enumerate(tables))

    def _feature(self, index: int, raw: dict[str, Any]) -> Feature:
        path = f"features[{index}]"
        table = dict(self._checked(raw, "features", path))
        if "levels" in table:
            table["levels"] = self._strings(f"{path}.levels", table["levels"])
        if isinstance(table.get("domain"), list):
            table["domain"] = tuple(table["domain"])
        if isinstance(table["name"], str):
            table.setdefault("label", table["name"].replace("_", " ").capitalize())
        else:
            table.setdefault("label", "feature")
        with self._located(f"{path}."):
            return Feature(**table)

    def _interactions(self) -> tuple[Interaction, ...]:
        tables = self.raw.get("interactions", [])
        if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
            raise self._error("interactions", allowed="[[interactions]] tables")
        return tuple(self._interaction(index, table) for index, table in enumerate(tables))

    def _interaction(self, index: int, raw: dict[str, Any]) -> Interaction:
        path = f"interactions[{index}]"
        table = dict(self._checked(raw, "interactions", path))
        table["features"] = self._strings(f"{path}.features", table["features"])
        if isinstance(cuts := table.get("cuts"), dict):
            table["cuts"] = {name: tuple(c) if isinstance(c, list) else c for name, c in cuts.items()}
        with self._located(f"{path}."):
            return Interaction(**table)

    def _fairness(self) -> Fairness:
        table = dict(self._section("fairness", optional=True))
        if not table:
            return Fairness()
        table["columns"] = self._strings("fairness.columns", table["columns"])
        groups, gate = table.get("groups", {}), table.pop("gate", {})
        for name, value in (("groups", groups), ("gate", gate)):
            if not isinstance(value, dict):
                raise self._error(f"fairness.{name}", value=value, allowed=f"a table [fairness.{name}]")
        table["groups"] = {c: tuple(v) if isinstance(v, list) else v for c, v in groups.items()}
        limits = tuple(each.name for each in fields(Gate))
        for key in gate:
            if key not in limits:
                raise self._unknown(key, f"fairness.gate.{key}", limits)
        with self._located("fairness."):
            return Fairness(**table, gate=Gate(**gate))

    def _strings(self, path: str, value: object) -> tuple[str, ...]:
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self._error(path, value=value, allowed='a list of strings such as ["a", "b"]')
        return tuple(value)

    @contextmanager
    def _located(self, prefix: str) -> Iterator[None]:
        """Add file and line to errors of the types, which know only the name of the setting."""
        try:
            yield
        except BadInput as error:
            if error.where:
                raise
            raise self._error(
                prefix + error.setting, value=error.value, allowed=error.allowed, remedy=error.remedy
            ) from None
        except Refused as error:
            if str(error).startswith(self.where):
                raise
            raise error.at(f"{self.where}:{self._line(self._path_of(error.subject))}") from None

    def _path_of(self, subject: str) -> str:
        """The key that holds what a refusal is about, e.g. ``"input 'AGE'"``."""
        kind, _, name = subject.partition(" ")
        if kind != "input":
            return "study.contexts" if kind == "context" else "study.purpose"
        for index, table in enumerate(self.raw["features"]):
            for key in ("name", "column", "label"):
                if repr(table.get(key)) == name:
                    return f"features[{index}].{key}"
        return "outcome.column" if repr(self.raw["outcome"]["column"]) == name else "outcome.observed"

    def _unknown(self, key: str, path: str, known: tuple[str, ...]) -> BadInput:
        nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.0)[0]
        return self._error(
            path, allowed=", ".join(known), remedy=f"Unknown key {key!r}; did you mean {nearest!r}?"
        )

    def _error(self, path: str, *, value: object = None, allowed: str, remedy: str = "") -> BadInput:
        if path in ("purpose", "contexts", "pack"):
            path = f"study.{path}"
        shown, match = path, _INDEXED.fullmatch(path)
        if match is not None:
            shown = f"{match[3] or 'table'} of {self._named(match[1], int(match[2]))}"
        return BadInput(
            shown, value=value, allowed=allowed, remedy=remedy, where=f"{self.where}:{self._line(path)}"
        )

    def _named(self, kind: str, index: int) -> str:
        """Say which table is meant: a feature by its name where it has one."""
        if kind == "interactions":
            return f"interaction {index + 1}"
        name = self.raw["features"][index].get("name")
        return f"feature {name if isinstance(name, str) else index + 1}"

    def _line(self, path: str) -> int:
        """The line of a key; of its table where the key itself is absent."""
        return self.lines.get(path) or self.lines.get(path.rpartition(".")[0]) or 1


def _lines(text: str) -> dict[str, int]:
    """Map ``study.name``, ``features[2].column`` and so on to line numbers; tomllib does not tell them."""
    lines: dict[str, int] = {}
    table, counts = "", Counter[str]()
    for number, line in enumerate(text.split("\n"), start=1):
        if header := _HEADER.match(line):
            table = header[2]
            if header[1] == "[[":
                counts[table] += 1
                table = f"{table}[{counts[table] - 1}]"
            lines.setdefault(table, number)
        elif key := _KEY.match(line):
            lines.setdefault(f"{table}.{key[1]}" if table else key[1], number)
    return lines
