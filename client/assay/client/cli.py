"""``assay client``: set up a data holder, join a federation, check the data, run the daemon."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Annotated

import typer

from assay.privacy.terminal import Json, command, emit

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

    config, checked = HolderConfig.load(directory), read_study(study)
    admit(checked, config.policy)
    config.require_data()
    require_same_person(checked, config.person)
    records = records_for(config, checked)
    require_persons(records, config.policy)
    result, lines = describe(records, checked)
    emit(result, as_json=as_json, text="\n".join(lines))


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
    """Show the daemon's state and what is left of the privacy budget.

    Example: assay client status bank-a
    """
    from assay.client import enrol
    from assay.client.config import HolderConfig
    from assay.client.daemon import LEDGER_FILE, read_status
    from assay.privacy.ledger import Ledger

    config, keys = HolderConfig.load(directory), enrol.load_keys(directory)
    limits, path = config.policy.limits, directory / LEDGER_FILE
    spent, left, open_runs = 0.0, limits.epsilon_per_year, list[str]()
    if path.exists():
        with Ledger.open(path, keys.identity, read_only=True) as ledger:
            summary = ledger.summary(limits)
            spent, left, open_runs = summary.spent_epsilon, ledger.remaining(limits), list(summary.open_runs)
    joined = (directory / enrol.JOIN_FILE).exists()
    daemon = read_status(directory)
    result = {
        "name": config.name,
        "fingerprint": keys.identity.fingerprint,
        "joined": enrol.load_join(directory).federation if joined else None,
        "daemon": daemon,
        "spent_epsilon": spent,
        "left_epsilon": left,
        "limit_epsilon": limits.epsilon_per_year,
        "open_runs": open_runs,
    }
    emit(
        result,
        as_json=as_json,
        text=f"{config.name}  fingerprint {result['fingerprint']}\n"
        f"Federation  {result['joined'] or 'none joined yet'}\n"
        f"Daemon      {'running' if daemon['running'] else 'not running'}: {daemon['last']}\n"
        f"Privacy     epsilon {spent:.4g} of {limits.epsilon_per_year:g} spent within a year,"
        f" room for a run of {left:.4g}, {len(open_runs)} run(s) open",
    )
