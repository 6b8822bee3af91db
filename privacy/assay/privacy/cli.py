"""``assay privacy ledger``, ``audit``, ``refusals``: what was spent and refused, and are the books whole."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from assay.privacy.errors import AssayError, BadInput, Tampered
from assay.privacy.files import read_toml
from assay.privacy.terminal import Json, command, emit

if TYPE_CHECKING:
    from assay.privacy.audit import Audit
    from assay.privacy.ledger import LedgerSummary, Limits

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True)


@app.callback()
def _group() -> None:
    """What is spent, what is left, what a run would cost."""


@app.command()
@command
def ledger(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A holder's directory.")],
    verify: Annotated[
        bool, typer.Option("--verify", help="Say whether the ledger is intact, without listing it.")
    ] = False,
    as_json: Json = False,
) -> None:
    """List every charge, what is left, and check that nobody changed it; exit code 1 if somebody did.

    May be used while the holder's daemon runs.

    Example: assay privacy ledger north-bank --verify
    """
    from assay.privacy.keys import Identity

    limits = _limits(directory / "client.toml")
    identity = Identity.load(directory / "keys" / "identity.key")
    summary, left, damage = _read(directory / "ledger.sqlite", identity, limits)
    entries = list(summary.entries) if summary else []
    result: dict[str, Any] = {
        "entries": entries,
        "spent_epsilon": summary.spent_epsilon if summary else None,
        "reserved_epsilon": summary.reserved_epsilon if summary else None,
        "remaining_epsilon": left,
        "limit_epsilon": limits.epsilon_per_year,
        "limit_epsilon_per_study": limits.epsilon_per_study,
        "delta": limits.delta,
        "studies": summary.studies if summary else {},
        "open_runs": list(summary.open_runs) if summary else [],
        "verified": damage is None,
    }
    listed = "" if verify or summary is None else f"{_table(summary)}\n{_account(summary, left, limits)}\n"
    verdict = "verified" if damage is None else "NOT VERIFIED: do not rely on it"
    emit(result, as_json=as_json, text=f"{listed}{len(entries)} entries, {verdict}")
    if damage is not None:
        raise damage


@app.command()
@command
def audit(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A holder's directory.")],
    witness: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="What the coordinator saw of this holder; it writes the file with assay server witness.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Check audit log, ledger and that they agree, offline; exit code 1 and the first bad entry if not.

    Only with --witness is it noticed that the whole directory is an older copy. May be used while the
    holder's daemon runs.

    Example: assay privacy audit north-bank --witness north-bank.witness.json
    """
    from assay.privacy.audit import Witness
    from assay.privacy.audit import audit as check

    seen = None if witness is None else Witness.read(witness)
    try:
        found = check(directory, seen)
    except Tampered as damage:
        emit(
            {"verified": False, "problem": str(damage)},
            as_json=as_json,
            text="NOT VERIFIED: do not rely on it",
        )
        raise
    result = {
        "verified": True,
        "problem": None,
        "entries": found.entries,
        "rows": found.rows,
        "countersigned": found.countersigned,
        "unfinished": list(found.unfinished),
        "witnessed": found.witnessed is not None,
    }
    emit(result, as_json=as_json, text=_verdict(found))


@app.command()
@command
def refusals(as_json: Json = False) -> None:
    """Show what was refused by policy at this command line, and drop what is older than its pack keeps it.

    Example: assay privacy refusals --json
    """
    from assay.privacy.refusals import log_file, prune, read

    dropped, log = prune(), read()
    lines = [
        f"{entry['time']}  {entry['code']:7}  {entry['command']}: {entry['subject']}"
        + (f" [{entry['article']}]" if entry["article"] else "")
        for entry in log.entries
    ]
    lines.append(f"{len(log.entries)} refusals in {log_file()}; {dropped} older ones dropped")
    if log.unreadable:
        lines.append(f"{log.unreadable} lines are no entries; a crash can cut one off")
    result = {
        "entries": list(log.entries),
        "dropped": dropped,
        "unreadable": log.unreadable,
        "file": str(log_file()),
    }
    emit(result, as_json=as_json, text="\n".join(lines))


def _verdict(found: Audit) -> str:
    lines = [f"unfinished: {line}" for line in found.unfinished]
    against = "no witness: an older copy of the whole directory would look the same"
    if found.witnessed is not None:
        row, entry = found.witnessed
        against = f"contains row {row} and entry {entry}, which the coordinator saw"
    lines.append(f"{found.entries} audit log entries and {found.rows} ledger rows, verified; {against}")
    return "\n".join(lines)


def _read(
    path: Path, identity: Any, limits: Limits
) -> tuple[LedgerSummary | None, float | None, Tampered | None]:
    """Return the account, what is left of it and what is wrong with it, as far as each can be told."""
    from assay.privacy.ledger import Ledger

    # A holder that has not taken part in anything has no file yet.
    exists = path.exists()
    try:
        opened = Ledger.open(path if exists else ":memory:", identity, read_only=exists)
    except Tampered as unreadable:
        return None, None, unreadable
    with opened as account:
        damage = _damage(account.verify)
        try:
            summary = account.summary(limits)
            json.dumps(summary.entries, allow_nan=False)
            return summary, account.remaining(limits), damage
        except (AssayError, AttributeError, TypeError, ValueError):
            if damage is None:
                raise
            return None, None, damage  # a damaged row may hold anything, also what cannot be shown


def _damage(verify: Any) -> Tampered | None:
    try:
        verify()
    except Tampered as damage:
        return damage
    return None


def _limits(path: Path) -> Limits:
    """Read the caps from the ``[policy]`` section of a holder's ``client.toml``."""
    from assay.privacy.ledger import Limits

    policy = read_toml(path).get("policy")
    values: dict[str, float] = {}
    for key in ("epsilon_per_study", "epsilon_per_year", "delta"):
        value = policy.get(key) if isinstance(policy, dict) else None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise BadInput(f"policy.{key}", value=value, allowed="a number above 0", where=path)
        values[key] = float(value)
    return Limits(**values)


def _table(summary: LedgerSummary) -> str:
    """Lay the entries out for people, as wide as the terminal allows."""
    from datetime import UTC, datetime

    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("seq", "time (UTC)", "what", "study", "run", "round", "sensitivity", "noise", "steps"):
        table.add_column(heading, justify="right" if heading in ("seq", "round", "steps") else "left")
    for entry in summary.entries:
        when = datetime.fromtimestamp(entry["time"], UTC).strftime("%Y-%m-%d %H:%M:%S")
        numbers = (entry["round"], entry["sensitivity"], entry["noise_multiplier"], entry["steps"])
        shown = ["" if number is None else f"{number:.6g}" for number in numbers]
        what = entry["kind"] if entry["outcome"] is None else f"{entry['kind']} ({entry['outcome']})"
        table.add_row(
            str(entry["seq"]), when, what, escape(entry["study"]), escape(entry["run"][:12]), *shown
        )
    console = Console(width=None if sys.stdout.isatty() else 160)
    with console.capture() as text:
        console.print(table)
    return text.get()


def _account(summary: LedgerSummary, left: float | None, limits: Limits) -> str:
    lines = [
        f"study {study}: epsilon {spent:.4g} of {limits.epsilon_per_study:g}"
        for study, spent in summary.studies.items()
    ]
    lines.append(
        f"within a year: epsilon {summary.spent_epsilon:.4g} spent, {summary.reserved_epsilon:.4g} with what "
        f"open runs reserved, of {summary.limit_epsilon:g}; room for a run of {left or 0:.4g} "
        f"(delta {limits.delta:g})"
    )
    return "\n".join(lines)
