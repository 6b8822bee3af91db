"""``assay client``: set up a data holder, join a federation, check the data, run the daemon."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from assay.privacy.terminal import Json, command, emit, note

if TYPE_CHECKING:
    from assay.privacy.keys import Identity
    from assay.privacy.ledger import Limits

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True)

Directory = Annotated[Path, typer.Argument(metavar="DIR", help="The holder's directory.")]


@app.command()
@command
def init(
    directory: Directory,
    name: Annotated[str, typer.Option(help="Name in the federation: a-z, 0-9 and -.")],
    as_json: Json = False,
) -> None:
    """Make a holder's directory: keys, client.toml, and REQUEST.json for the coordinator.

    The private keys never leave the directory.

    Example: assay client init bank-a --name bank-a
    """
    from assay.client import enrol

    fingerprint = enrol.init(directory, name)
    request = directory / enrol.REQUEST_FILE
    emit(
        {"directory": str(directory), "fingerprint": fingerprint, "request": str(request)},
        as_json=as_json,
        text=f"Holder {name} in {directory}\nFingerprint {fingerprint}\n"
        f"Send {request} to the coordinator and read the fingerprint out to its operator.\n"
        f"Say where the records lie in {directory / enrol.CONFIG_FILE}.",
    )


@app.command()
@command
def join(
    directory: Directory,
    join_file: Annotated[Path, typer.Argument(metavar="JOIN.toml", help="What the coordinator sent back.")],
    expect: Annotated[
        str | None, typer.Option(help="Refuse unless the federation's fingerprint is this one.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Accept a federation; shows its fingerprint, to be compared with the one its operator reads out.

    Example: assay client join bank-a JOIN.toml --expect 1234-5678-90AB-CDEF-1234-5678-90AB-CDEF
    """
    from assay.client import enrol

    joined = enrol.join(directory, join_file, expect)
    emit(
        {"federation": joined.federation, "fingerprint": joined.fingerprint, "address": joined.address},
        as_json=as_json,
        text=f"Joined {joined.federation} at {joined.address}\n"
        f"Federation's fingerprint {joined.fingerprint}\n"
        f"Next: assay client run {directory}",
    )


@app.command()
@command
def check(
    directory: Directory,
    study: Annotated[Path, typer.Argument(metavar="STUDY", help="The study file.")],
    as_json: Json = False,
) -> None:
    """Check the records and the policy against a study; local only, nothing is sent or spent.

    Shows exactly what would be used and what would leave.

    Example: assay client check bank-a study.toml
    """
    from assay.client.config import HolderConfig
    from assay.client.daemon import records_for
    from assay.client.policy import admit, require_persons, require_same_person
    from assay.client.records import describe
    from assay.models.study import read_study
    from assay.privacy.cohort import fewest_holders

    config, checked = HolderConfig.load(directory), read_study(study)
    admit(checked, config.policy)
    config.require_data()
    require_same_person(checked, config.person)
    records = records_for(config, checked)
    require_persons(records, config.policy)
    result, lines = describe(records, checked)
    trust = _TRUST[checked.privacy.trust].format(
        tolerated=checked.privacy.tolerated,
        holders=max(config.policy.minimum_holders, fewest_holders(checked.privacy.tolerated)),
    )
    result |= {"trust": checked.privacy.trust, "trust_in_words": trust}
    if checked.privacy.trust == "distributed" and not config.policy.peers:
        result["warnings"].append(_UNPINNED)
        lines.append(f"warning: {_UNPINNED}")
    emit(result, as_json=as_json, text="\n".join([*lines, "", f"trust {checked.privacy.trust}: {trust}"]))


_UNPINNED = (
    "policy.peers is empty: a dishonest coordinator could invent the other holders and then read this one's"
    " sums with only its own share of the noise. Compare fingerprints with their operators and pin them"
)
_TRUST = {
    "distributed": "what leaves is masked; only the sum over at least {holders} holders can be read, and it"
    " keeps the promise while at most {tolerated} of them are curious, colluding or gone",
    "local": "what leaves can be read by the coordinator; this holder adds the full noise, so nobody else"
    " need be trusted",
}


@app.command()
@command
def run(directory: Directory) -> None:
    """Run the daemon in the foreground; SIGTERM or Ctrl-C stops it, a restart goes on where it was.

    Example: assay client run bank-a
    """
    from assay.client.daemon import run_daemon

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    run_daemon(directory, stop, _log)
    # Training that was under way is left to the journal; its thread must not hold up the end of the process.
    sys.stderr.flush()
    os._exit(0)


def _log(line: str) -> None:
    sys.stderr.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")
    sys.stderr.flush()


@app.command()
@command
def status(directory: Directory, as_json: Json = False) -> None:
    """Show the daemon's state, what is left of the privacy budget, and where ledger and audit log stand.

    Example: assay client status bank-a
    """
    from assay.client import enrol
    from assay.client.config import HolderConfig
    from assay.client.daemon import read_status

    config, keys = HolderConfig.load(directory), enrol.load_keys(directory)
    joined = (directory / enrol.JOIN_FILE).exists()
    result = {
        "name": config.name,
        "fingerprint": keys.identity.fingerprint,
        "joined": enrol.load_join(directory).federation if joined else None,
        "daemon": read_status(directory),
        **_books(directory, keys.identity, config.policy.limits),
    }
    daemon, ledger, log = result["daemon"], result["ledger_head"], result["audit_log"]
    emit(
        result,
        as_json=as_json,
        text=f"{config.name}  fingerprint {result['fingerprint']}\n"
        f"Federation  {result['joined'] or 'none joined yet'}\n"
        f"Daemon      {'running' if daemon['running'] else 'not running'}: {daemon['last']}\n"
        f"Privacy     epsilon {result['spent_epsilon']:.4g} of {result['limit_epsilon']:g} spent in a year,"
        f" room for a run of {result['left_epsilon']:.4g}, {len(result['open_runs'])} run(s) open\n"
        f"Ledger      {ledger['seq']} rows {ledger['hash'][:16]}\n"
        f"Audit log   {log['size']} entries {log['root'][:16]}",
    )


@app.command()
@command
def points(
    directory: Directory,
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="The model, a file that ends in .bundle.")],
    request: Annotated[
        Path, typer.Argument(metavar="REQUEST", help="The points-request.json that the recipient sent.")
    ],
    person: Annotated[
        str, typer.Option(help="Identifier in the person column; - reads it from standard input.")
    ],
    output: Annotated[Path, typer.Option("--output", help="The statement to write; a new file.")],
    expect: Annotated[
        str | None, typer.Option(help="Refuse unless the recipient's fingerprint is this one.")
    ] = None,
    column: Annotated[
        str | None, typer.Option(help="The person column, where client.toml names none.")
    ] = None,
    as_json: Json = False,
) -> None:
    """State one person's points, encrypted to the recipient in REQUEST; the audit log gets an entry.

    A request is not a proof that the person agreed. Have the person's authorisation, for this recipient and
    this purpose, before you run this.

    Example: assay client points bank-a card.bundle points-request.json --person - --output bank-a.points
    """
    from assay.client.points import state_points

    stated = state_points(
        directory,
        bundle,
        request,
        person=sys.stdin.readline().strip() if person == "-" else person,
        output=output,
        expect=expect,
        column=column,
    )
    if not stated.compared:
        note(f"The recipient's fingerprint is {stated.recipient}: compare it before the file leaves.")
    if stated.missing:
        note(f"no column here, counted as missing: {', '.join(stated.missing)}")
    emit(
        {
            "output": str(stated.output),
            "components": list(stated.components),
            "recipient": stated.recipient,
            "recipient_compared": stated.compared,
            "expires": stated.expires,
            "commitment": stated.commitment,
            "missing_features": list(stated.missing),
        },
        as_json=as_json,
        text=f"{stated.output}: points of {', '.join(stated.components)}, for {stated.recipient} only\n"
        f"Logged as {stated.commitment}",
    )


def _books(directory: Path, identity: Identity, limits: Limits) -> dict[str, Any]:
    """Return what ledger and audit log say; a holder that has never run has neither."""
    from assay.client.daemon import AUDIT_FILE, LEDGER_FILE
    from assay.privacy.auditlog import AuditLog
    from assay.privacy.ledger import Ledger

    path, log = directory / LEDGER_FILE, directory / AUDIT_FILE
    found: dict[str, Any] = {
        "spent_epsilon": 0.0,
        "left_epsilon": limits.epsilon_per_year,
        "limit_epsilon": limits.epsilon_per_year,
        "open_runs": [],
        "ledger_head": {"seq": 0, "hash": ""},
        "audit_log": {"size": 0, "root": ""},
    }
    if path.exists():
        with Ledger.open(path, identity, read_only=True) as ledger:
            summary = ledger.summary(limits)
            found["spent_epsilon"], found["left_epsilon"] = summary.spent_epsilon, ledger.remaining(limits)
            found["open_runs"] = list(summary.open_runs)
            found["ledger_head"] = dict(zip(("seq", "hash"), ledger.head(), strict=True))
    if log.exists():
        with AuditLog.open(log, identity, read_only=True) as audit:
            found["audit_log"] = {"size": audit.size, "root": audit.root}
    return found
