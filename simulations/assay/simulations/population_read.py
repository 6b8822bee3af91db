"""Reading the parameters of a synthetic population: strict about keys, the nearest known one in the message.

The file that ships with the package, ``population.toml``, holds all of them with their meaning; another file
may change some.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from assay.privacy.errors import BadInput, Refused
from assay.privacy.files import read_toml
from assay.simulations.population_checks import inside, nearest
from assay.simulations.population_params import Group, Interaction, Outcome, Parameters, People, Region
from assay.simulations.population_trait import OUTCOMES, Term, Trait

__all__ = ["read_parameters"]

_DEFAULTS = Path(__file__).with_name("population.toml")
# Tables of things with names; no names can be added to those of the package.
_NAMED: dict[str, Callable[..., Any]] = {
    "outcomes": Outcome,
    "regions": Region,
    "groups": Group,
    "features": Trait,
    "interactions": Interaction,
}


def read_parameters(path: Path | None = None) -> Parameters:
    """Return the parameters that ship with the package, changed as a file says.

    Args:
        path: a TOML file with the keys that change; tables are merged, lists replaced. None: no changes.

    Raises:
        BadInput: the file cannot be read, or a key is unknown (the nearest one is named) or out of range.
        Refused: a feature is named after a protected attribute.
    """
    raw = read_toml(_DEFAULTS)
    where = str(_DEFAULTS.name)
    if path is not None:
        where = str(path)
        _merge(raw, read_toml(path), "", where)
    try:
        return _parameters(raw)
    except BadInput as error:
        raise BadInput(
            error.setting, value=error.value, allowed=error.allowed, remedy=error.remedy, where=where
        ) from None
    except Refused as error:
        raise Refused(f"{where}: {error}", code=error.code) from None


def _merge(base: dict[str, Any], change: dict[str, Any], path: str, where: str) -> None:
    """Write ``change`` into ``base``; the tables of things with names take no new names."""
    for key, value in change.items():
        place = f"{path}.{key}" if path else key
        if key not in base and path in ("", *_NAMED):
            raise _unknown(place, key, base, where)
        if isinstance(base.get(key), dict) and isinstance(value, dict):
            _merge(base[key], value, place, where)
        elif isinstance(base.get(key), dict):
            raise BadInput(place, value=value, allowed="a table", where=where)
        else:
            base[key] = value


def _parameters(raw: dict[str, Any]) -> Parameters:
    named: dict[str, Any] = {
        section: {
            name: _built(made, table, f"{section}.{name}", name) for name, table in raw[section].items()
        }
        for section, made in _NAMED.items()
    }
    return Parameters(people=_built(People, raw["people"], "people"), **named)


def _built(made: Callable[..., Any], raw: object, path: str, name: str = "") -> Any:
    """Make one of the types above from a table, refusing keys it does not have."""
    if not isinstance(raw, dict):
        raise BadInput(path, value=raw, allowed="a table")
    known = {each.name: each for each in dataclasses.fields(made)}  # type: ignore[arg-type]
    given = {"name": name} if "name" in known else {}
    keys = [key for key in known if key not in given]
    for key in raw:
        if key not in keys:
            raise _unknown(f"{path}.{key}", key, keys)
    for key in keys:
        needed = known[key].default is known[key].default_factory is dataclasses.MISSING
        if needed and key not in raw:
            raise BadInput(f"{path}.{key}", allowed="a value, it is missing", remedy=f"Add {key} = ...")
    values = {key: _value(made, key, value, path) for key, value in raw.items()}
    with inside(path):
        return made(**given, **values)


def _value(made: Callable[..., Any], key: str, value: object, path: str) -> Any:
    if made is Trait and key in OUTCOMES:
        return _built(Term, value, f"{path}.{key}")
    return _frozen(value)


def _frozen(value: object) -> Any:
    """Lists become tuples, at every depth."""
    if isinstance(value, list):
        return tuple(_frozen(item) for item in value)
    if isinstance(value, dict):
        return {key: _frozen(item) for key, item in value.items()}
    return value


def _unknown(path: str, key: str, known: Iterable[str], where: str = "") -> BadInput:
    names = list(known)
    return BadInput(
        path,
        allowed=", ".join(names),
        remedy=f"Unknown key {key!r}; did you mean {nearest(key, names)!r}?",
        where=where,
    )
