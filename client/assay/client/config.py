"""``client.toml``: what a holder is called, where its records lie and what it agrees to.

Every key is checked, an unknown one is refused with the nearest known one, and every message names
file, line and key.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from assay.client.policy import Policy
from assay.client.sources import DataSource
from assay.privacy.errors import BadInput, Refused
from assay.privacy.files import read_toml, require_private
from assay.privacy.names import check_holder_name
from assay.privacy.packfile import DEFAULT

__all__ = ["CONFIG_FILE", "HolderConfig", "Policy", "template"]

CONFIG_FILE = "client.toml"
_SECTIONS = ("holder", "data", "policy")

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class HolderConfig:
    """A holder's directory, checked.

    Attributes:
        directory: where ``client.toml``, ``keys/`` and the ledger lie; mode 0700.
        name: the holder's name in the federation.
        policy: what the holder agrees to.
        data: where the records lie, or None until the holder has written ``[data]``.
        person: column that names the person; None: every row is a different person.
    """

    directory: Path
    name: str
    policy: Policy
    data: DataSource | None = None
    person: str | None = None

    @classmethod
    def load(cls, directory: Path) -> HolderConfig:
        """Read and check ``directory/client.toml``; refuse a directory or secret that others could read.

        Raises:
            BadInput: the directory is missing or readable by others, a file below ``keys/`` is, or a
                key of ``client.toml`` is unknown, missing or out of range.
            Refused: a purpose that no holder may allow.
        """
        path = directory / CONFIG_FILE
        if not path.is_file():
            raise BadInput(
                "file",
                value=str(path),
                allowed="an existing client.toml",
                remedy=f"Run: assay client init {directory} --name NAME",
            )
        require_private(directory)
        for secret in sorted((directory / "keys").rglob("*")):
            require_private(secret)
        reader = _Reader(path)
        reader.refuse_unknown("", reader.tables, _SECTIONS)
        holder = reader.table("holder", required=True)
        reader.refuse_unknown("holder", holder, ("name",))
        name = reader.build("holder", lambda: check_holder_name(holder.get("name")))
        data = reader.table("data")
        if data.get("url") is not None:
            require_private(path)  # a database address may hold a password
        return cls(
            directory=directory,
            name=name,
            policy=reader.read("policy", Policy, reader.table("policy", required=True)),
            person=_take_person(reader, data) if data else None,
            data=reader.read("data", DataSource, data, directory=directory) if data else None,
        )

    def require_data(self) -> DataSource:
        """Return where the records lie.

        Raises:
            BadInput: ``client.toml`` has no ``[data]`` yet.
        """
        if self.data is None:
            raise BadInput(
                "[data]",
                where=self.directory / CONFIG_FILE,
                allowed="a section that says where the records lie",
                remedy="Remove the # in front of one of the examples in the file and adapt it",
            )
        return self.data


def _take_person(reader: _Reader, data: dict[str, Any]) -> str | None:
    """Take out of ``[data]`` who a person is: the column that names it, or None where every row is one.

    Raises:
        BadInput: it does not say, or says both. There is no default: the privacy promise rests on it.
    """
    column, one_row = data.pop("person_column", None), data.pop("one_row_per_person", None)
    named = isinstance(column, str) and column.strip() != ""
    if named == (one_row is True) or (column is not None and not named) or one_row not in (None, True):
        raise reader.error(
            "data",
            "person_column",
            allowed='person_column = "COLUMN" or one_row_per_person = true, exactly one of them',
            remedy="It says whose privacy is counted: name the column if a person can have several rows",
        )
    return column if named else None


class _Reader:
    """One TOML file; its errors name the line of the key."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tables = read_toml(path)
        self._lines = path.read_text(encoding="utf-8").splitlines()

    def table(self, section: str, *, required: bool = False) -> dict[str, Any]:
        value = self.tables.get(section, {})
        if not isinstance(value, dict):
            raise BadInput(section, where=self._place("", section), allowed=f"a section [{section}]")
        if required and not value:
            raise BadInput(f"[{section}]", where=self.path, allowed="this section, which is missing")
        return value

    def error(self, section: str, key: str, *, allowed: str, remedy: str) -> BadInput:
        """Return an error about a key, with its place."""
        return BadInput(f"{section}.{key}", where=self._place(section, key), allowed=allowed, remedy=remedy)

    def refuse_unknown(self, section: str, given: Iterable[str], known: tuple[str, ...]) -> None:
        for key in given:
            if key not in known:
                nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.0)[0]
                raise BadInput(
                    f"{section}.{key}" if section else f"[{key}]",
                    where=self._place(section, key),
                    allowed=", ".join(known),
                    remedy=f"It is unknown; the nearest known one is {nearest!r}",
                )

    def read(self, section: str, kind: type[T], given: dict[str, Any], **known_here: Path) -> T:
        """Build the dataclass ``kind`` from a section (lists become tuples) and from what is known here."""
        known = [f for f in fields(kind) if f.name not in known_here]  # type: ignore[arg-type]
        self.refuse_unknown(section, given, tuple(f.name for f in known))
        for field in known:
            optional = field.default is not MISSING or field.default_factory is not MISSING
            if not optional and field.name not in given:
                raise BadInput(
                    f"{section}.{field.name}", where=self.path, allowed="a value; the key is missing"
                )
        values = {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}
        return self.build(section, lambda: kind(**values, **known_here))

    def build(self, section: str, make: Callable[[], T]) -> T:
        """Call ``make``; its errors get the place of the key they are about."""
        try:
            return make()
        except BadInput as error:
            raise BadInput(
                f"{section}.{error.setting}",
                value=error.value,
                allowed=error.allowed,
                remedy=error.remedy,
                where=self._place(section, error.setting),
            ) from None
        except Refused as error:
            raise error.at(self._place(section, "purposes")) from None

    def _place(self, section: str, key: str) -> str:
        """Return file and line of a key; a dot in it stands for a table inside the section."""
        if section:
            section, _, key = f"{section}.{key}".rpartition(".")
        current = ""
        pattern = re.compile(rf"\s*[\"']?{re.escape(key)}[\"']?\s*=")
        for number, line in enumerate(self._lines, start=1):
            if header := re.match(r"\s*\[+\s*[\"']?([^\]\"']+)", line):
                current = header[1].strip()
                if not section and current == key:
                    return f"{self.path}:{number}"
            elif current == section and pattern.match(line):
                return f"{self.path}:{number}"
        return str(self.path)


def template(name: str) -> str:
    """Return the ``client.toml`` of a new holder: conservative limits, every key explained.

    Raises:
        BadInput: a holder may not have this name.
    """
    return _TEMPLATE.replace("NAME", check_holder_name(name)).replace("PACK", DEFAULT)


_TEMPLATE = """\
# A holder of records. The directory of this file stays readable by its owner only (mode 0700).

[holder]
# Name in the federation. It is signed into the roster: do not change it after joining.
name = "NAME"

# Where the records lie: one row per record, one of the four kinds below. They are only ever read.
# Remove the "#" in front of one example and adapt it, then run: assay client check DIR STUDY
# A query, table or view must work row by row, each row from the data of one person: the privacy accounting
# assumes it. No aggregate, window, DISTINCT, LIMIT or UNION, nothing that depends on the order of rows, no
# subquery over other persons. A filter, an expression or a join with data of the same person is fine.

# [data]
# kind = "csv"                 # comma separated, UTF-8, names in the first line; .csv or .csv.gz
# path = "records.csv"         # relative to this directory, or absolute
# one_row_per_person = true    # or: person_column = "person_id"; every kind needs one of the two
# query = "select * from records where CLOSED = 0"   # optional; csv and parquet: the table is "records"

# [data]
# kind = "parquet"
# path = "records.parquet"
# one_row_per_person = true

# [data]
# kind = "sqlite"              # opened read-only
# path = "records.sqlite"
# one_row_per_person = true
# table = "accounts"           # or: query = "select ..."

# [data]
# kind = "postgres"            # needs: pip install 'assay[postgres]'
# url_env = "ASSAY_PG_URL"     # environment variable that holds the address, so that no password lies here,
#                              # e.g. postgresql://reader:PASSWORD@db.internal/bank?sslmode=verify-full
# url = "postgresql://reader@db.internal/bank"       # instead of url_env; then this file must have mode 0600
# one_row_per_person = true
# table = "public.accounts"    # or: query = "select ..."
# query_timeout_s = 600        # longest time a query may take, in seconds

# What this holder agrees to. A study that asks for more is declined before anything is computed.
[policy]
# Purposes a study may have.
purposes = ["consumer_credit"]
# Dated rules that a study may be checked against (assay study packs).
packs = ["PACK"]
# Groups of features that may be used.
components = ["identity", "spending", "compliance", "payment_history", "third_party"]
# Most privacy loss (epsilon) of one person: in one run, over all runs of a study, over all studies in a year.
epsilon_per_run = 1.0
epsilon_per_study = 3.0
epsilon_per_year = 6.0
# Chance that the promise above does not hold: at most 1e-6, and below 0.1 / (number of persons).
delta = 1e-6
# With fewer persons than this in the records, no run takes place.
minimum_persons = 1000
# Whether a study fits the records tells a little about them: most different studies tried on them in a day.
new_studies_per_day = 8
# Whom a study may ask this holder to trust. "distributed": the coordinator learns the noisy sum of several
# holders and nothing else, as long as no more of them misbehave than the study tolerates. "local": nobody;
# this holder's own sums leave, with their full noise. One of the two may be left out.
trust = ["distributed", "local"]
# Under "distributed": no sum of fewer holders than this one, 3 or more.
minimum_holders = 3
# Under "distributed": most privacy loss of one person in one run if all masks fell and only this holder's own
# share of the noise were left. The more holders are said to take part, the smaller the share.
epsilon_if_aggregation_fails = 25.0
# Under "distributed", whose numbers may be summed with this holder's. Without this table, those whom the
# coordinator names: a dishonest one could name itself several times. With it, only the holders in it, with
# these keys. Their operators read their fingerprints out (assay client status).
# [policy.peers]
# bank-b = "0123-4567-89AB-CDEF-0123-4567-89AB-CDEF"
# bank-c = "FEDC-BA98-7654-3210-FEDC-BA98-7654-3210"
"""
