"""Reading policy packs, strictly: an unknown, missing or mistyped key is refused.

A pack is ``packs/<name>.toml`` beside this module; ``docs/purposes.md`` describes the format and
:mod:`assay.privacy.policypack` what it may say.
"""

from __future__ import annotations

import datetime
import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from assay.privacy.errors import BadInput
from assay.privacy.files import read_toml
from assay.privacy.policypack import CODES, KINDS, PolicyPack, Protected, Purpose, Refusal, Retention

__all__ = ["DEFAULT", "load_pack", "pack_names", "parse_pack"]

DEFAULT = "eu-2026-11-20"
_DIRECTORY = Path(__file__).with_name("packs")
_NAME = re.compile(r"[a-z]{2,16}-[0-9]{4}-[0-9]{2}-[0-9]{2}")
_IDENTIFIER = re.compile(r"[a-z][a-z0-9_]{0,63}")
_LINE = re.compile(r"[ -~]{1,512}")  # what a leaf of the audit log can hold
_MAX_DAYS = 36_525
_KEYS = {
    "": ("name", "as_of", "summary", "purposes", "refusals", "inputs", "retention"),
    "purposes": ("words", "contexts"),
    "refusals": ("text", "article", "phrases"),
    "inputs": ("words", "unless", "refusal", "article"),
    "retention": ("days", "article"),
}
_OPTIONAL = ("contexts", "unless")


def pack_names() -> tuple[str, ...]:
    """Return the names of the packs there are, in alphabetical order."""
    return tuple(sorted(path.stem for path in _DIRECTORY.glob("*.toml")))


def load_pack(name: object) -> PolicyPack:
    """Return a pack by its name.

    Raises:
        BadInput: there is no such pack, or its file is not what a pack must be.
    """
    # Only a name from the list becomes a path.
    if not isinstance(name, str) or name not in pack_names():
        raise BadInput("pack", value=name, allowed=f"one of {', '.join(pack_names())}")
    return _loaded(name)


@functools.cache
def _loaded(name: str) -> PolicyPack:
    path = _DIRECTORY / f"{name}.toml"
    return parse_pack(read_toml(path), name, where=path)


def parse_pack(raw: Mapping[str, Any], name: str, *, where: str | Path = "") -> PolicyPack:
    """Check the decoded TOML of a pack and return it.

    Args:
        raw: the whole file.
        name: what the file is called.
        where: what messages call it.

    Raises:
        BadInput: a key is unknown, missing or of the wrong type, a code is missing, or a refused use is
            allowed.
    """
    try:
        table = _table(raw, "", "pack")
        if table["name"] != name or not _NAME.fullmatch(name) or not name.endswith(_date(table["as_of"])):
            raise BadInput("name", value=table["name"], allowed="the file's name: letters, then as_of")
        return PolicyPack(
            name=name,
            as_of=_date(table["as_of"]),
            summary=_line("summary", table["summary"]),
            purposes=tuple(_purpose(*pair) for pair in _tables(table, "purposes").items()),
            refusals=tuple(_refusal(name, *pair) for pair in sorted(_tables(table, "refusals").items())),
            protected=_inputs(table["inputs"]),
            retention=_retention(table),
        )
    except BadInput as error:
        if error.where:
            raise
        raise BadInput(
            error.setting, value=error.value, allowed=error.allowed, remedy=error.remedy, where=where
        ) from None


def _purpose(name: str, table: Mapping[str, Any]) -> Purpose:
    if not _IDENTIFIER.fullmatch(name):
        raise BadInput("purposes", value=name, allowed="lower-case letters, digits and _")
    path = f"purposes.{name}"
    return Purpose(
        name=name,
        words=_line(f"{path}.words", table["words"]),
        contexts=_identifiers(f"{path}.contexts", table.get("contexts", [])),
    )


def _refusal(pack: str, code: str, table: Mapping[str, Any]) -> Refusal:
    path = f"refusals.{code}"
    return Refusal(
        code=code,
        text=_line(f"{path}.text", table["text"]),
        article=_line(f"{path}.article", table["article"]),
        phrases=_identifiers(f"{path}.phrases", table["phrases"], least=1),
        pack=pack,
    )


def _inputs(raw: object) -> tuple[Protected, ...]:
    if not isinstance(raw, list) or not raw:
        raise BadInput("inputs", allowed="at least one [[inputs]] table")
    made = []
    for position, entry in enumerate(raw):
        path = f"inputs[{position}]"
        table = _table(entry, "inputs", path)
        if table["refusal"] not in CODES:
            raise BadInput(f"{path}.refusal", value=table["refusal"], allowed=f"one of {', '.join(CODES)}")
        made.append(
            Protected(
                words=_identifiers(f"{path}.words", table["words"], least=1),
                unless=_identifiers(f"{path}.unless", table.get("unless", [])),
                refusal=table["refusal"],
                article=_line(f"{path}.article", table["article"]),
            )
        )
    return tuple(made)


def _retention(table: Mapping[str, Any]) -> dict[str, Retention]:
    tables = _tables(table, "retention")
    if set(tables) != set(KINDS):
        raise BadInput("retention", value=sorted(tables), allowed=f"all of {', '.join(KINDS)}, nothing else")
    made = {}
    for kind in KINDS:
        days = tables[kind]["days"]
        if not isinstance(days, int) or isinstance(days, bool) or not 1 <= days <= _MAX_DAYS:
            raise BadInput(
                f"retention.{kind}.days", value=days, allowed=f"a whole number from 1 to {_MAX_DAYS}"
            )
        made[kind] = Retention(days=days, article=_line(f"retention.{kind}.article", tables[kind]["article"]))
    return made


def _tables(table: Mapping[str, Any], kind: str) -> dict[str, Mapping[str, Any]]:
    raw = table[kind]
    if not isinstance(raw, dict) or not raw:
        raise BadInput(kind, allowed=f"tables [{kind}.NAME]")
    return {name: _table(entry, kind, f"{kind}.{name}") for name, entry in raw.items()}


def _table(raw: object, kind: str, path: str) -> Mapping[str, Any]:
    """Return a table with exactly the keys of its kind."""
    known = _KEYS[kind]
    if not isinstance(raw, Mapping):
        raise BadInput(path, allowed=f"a table with {', '.join(known)}")
    for key in raw:
        if key not in known:
            raise BadInput(f"{path}.{key}", allowed=f"only {', '.join(known)}; this key is unknown")
    for key in known:
        if key not in raw and key not in _OPTIONAL:
            raise BadInput(f"{path}.{key}", allowed="a value, it is missing", remedy=f"Add {key} = ...")
    return raw


def _line(setting: str, value: object) -> str:
    if not isinstance(value, str) or not _LINE.fullmatch(value) or not value.strip():
        raise BadInput(setting, value=value, allowed="one line of 1 to 512 printable ASCII characters")
    return value


def _identifiers(setting: str, value: object, *, least: int = 0) -> tuple[str, ...]:
    good = isinstance(value, list) and all(isinstance(x, str) and _IDENTIFIER.fullmatch(x) for x in value)
    if not isinstance(value, list) or not good or not len(value) >= least or len(set(value)) < len(value):
        raise BadInput(
            setting, value=value, allowed=f"a list of {least} or more different words such as ['a', 'b_c']"
        )
    return tuple(value)


def _date(value: object) -> str:
    if not isinstance(value, datetime.date) or isinstance(value, datetime.datetime):
        raise BadInput("as_of", value=value, allowed="a date such as 2026-11-20, without quotes")
    return value.isoformat()
