"""``assay server``: set up a federation, admit holders, serve, train."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from assay.privacy.errors import AssayError, BadInput, Refused, Unavailable
from assay.privacy.terminal import Json, command, emit, note

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True)

Directory = Annotated[Path, typer.Argument(metavar="DIR", help="The coordinator's directory.")]


@app.command()
@command
def init(
    directory: Directory,
    name: Annotated[str, typer.Option(help="Name of the federation, for people.")],
    host: Annotated[str, typer.Option(help="Name or address that holders connect to.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port that holders connect to.")] = 9443,
    as_json: Json = False,
) -> None:
    """Make a coordinator's directory: certificate authority, keys, settings, database.

    Example: assay server init coordinator --name "Card defaults" --host scoring.example.org
    """
    from assay.server.federation import Federation

    with Federation.init(directory, name, host, port) as federation:
        result = {
            "directory": str(directory),
            "fingerprint": federation.fingerprint,
            "address": federation.settings.address,
        }
    emit(
        result,
        as_json=as_json,
        text=f"Federation {name!r} at {result['address']}\nFingerprint {result['fingerprint']}\n"
        f"Read it out to every holder that joins. Next: assay server admit {directory} REQUEST.json",
    )


@app.command()
@command
def admit(
    directory: Directory,
    request: Annotated[Path, typer.Argument(metavar="REQUEST.json", help="What the holder sent.")],
    out: Annotated[
        Path | None, typer.Option(help="Join file to write (default: DIR/joins/NAME.toml).")
    ] = None,
    expect: Annotated[
        str | None, typer.Option(help="Refuse unless the holder's fingerprint is this one.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Admit a holder by its key: shows the fingerprint, signs the roster, writes the holder's join file.

    Compare the fingerprint with the one that `assay client init` showed at the holder.

    Example: assay server admit coordinator bank-a/REQUEST.json
    """
    from assay.privacy.enrolment import Request
    from assay.privacy.files import make_private_dir, write_durably
    from assay.privacy.keys import same_fingerprint
    from assay.server.federation import Federation

    asked = Request.read(request)
    if expect is not None and not same_fingerprint(expect, asked.fingerprint):
        raise BadInput(
            "fingerprint",
            where=request,
            value=expect,
            allowed=asked.fingerprint,
            remedy="Do not admit unless the holder confirms it",
        )
    with Federation(directory) as federation:
        join = federation.admit(asked)
        path = out or make_private_dir(directory / "joins") / f"{asked.name}.toml"
        write_durably(path, join.to_bytes())
        ours = federation.fingerprint
    result = {"holder": asked.name, "fingerprint": asked.fingerprint, "federation": ours, "join": str(path)}
    emit(
        result,
        as_json=as_json,
        text=f"Admitted {asked.name}\n"
        f"Holder's fingerprint     {asked.fingerprint}\nFederation's fingerprint {ours}\n"
        f"Send {path} to the holder, who runs: assay client join DIR {path.name}",
    )


@app.command()
@command
def revoke(
    directory: Directory,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The holder to shut out.")],
    as_json: Json = False,
) -> None:
    """End a holder's membership for good; a serving coordinator shuts it out within one round.

    Example: assay server revoke coordinator bank-a
    """
    from assay.server.federation import Federation

    with Federation(directory) as federation:
        member = federation.revoke(name)
    emit(
        {"holder": name, "fingerprint": member.fingerprint, "revoked": True},
        as_json=as_json,
        text=f"Revoked {name} (fingerprint {member.fingerprint}); its key is not admitted again",
    )


@app.command()
@command
def serve(directory: Directory) -> None:
    """Run the coordinator in the foreground; SIGTERM or Ctrl-C stops it and keeps a run at its checkpoint.

    Example: assay server serve coordinator
    """
    from assay.privacy.homes import directory_lock
    from assay.server.coordinator import Coordinator
    from assay.server.federation import Federation

    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s %(message)s")
    logging.getLogger("assay").setLevel(logging.INFO)
    with Federation(directory) as federation, directory_lock(directory):
        coordinator = Coordinator(federation)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: coordinator.stop())
        coordinator.serve()


@app.command()
@command
def train(
    directory: Directory,
    study: Annotated[Path, typer.Argument(metavar="STUDY", help="The study file.")],
    wait: Annotated[bool, typer.Option("--wait", help="Show progress and wait for the end.")] = False,
    timeout: Annotated[float, typer.Option(help="With --wait: seconds to wait at most.")] = 86400.0,
    as_json: Json = False,
) -> None:
    """Start a run at the serving coordinator; exit code 3 with --wait where a gate holds the model.

    Example: assay server train coordinator examples/taiwan/study.toml --wait
    """
    from assay.models.study import read_study
    from assay.server.admin import AdminClient

    checked = read_study(study)
    checked.require_trainable()
    run = AdminClient.call(directory, "train", {"study": checked.text})["run"]
    if not wait:
        emit({"run": run, "state": "queued"}, as_json=as_json, text=f"Run {run} is queued")
        return
    result = follow(directory, run, timeout=timeout, on_event=lambda event: note(progress_line(event)))
    emit(result, as_json=as_json, text=f"Run {run}: {result['state']} {result['message']}".rstrip())
    if result["held"]:
        raise Refused(
            f"the model is held back and must not be used: {'; '.join(result['held'])}. Its bundle says more:"
            f" assay model show {result['bundle']}",
            code="held",
        )


def follow(
    directory: Path, run: str, *, timeout: float, on_event: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Wait for a run's end.

    Args:
        directory: the coordinator's.
        run: identifier of the run.
        timeout: seconds to wait at most.
        on_event: called with each step of the run.

    Returns:
        ``run``, ``state`` (``"done"``), ``message``, ``bundle`` (a path), ``rounds``, ``holders``,
        ``epsilon``, ``held`` (why the model must not be used, normally empty).

    Raises:
        Refused: the run was refused; nothing was spent.
        AssayError: it failed or was aborted.
        Unavailable: it did not end in time, or the coordinator is gone for good.
    """
    from assay.server.admin import AdminClient

    end, seen, last, patience = time.monotonic() + timeout, 0, {}, 0.0
    while time.monotonic() < end:
        try:
            answer = AdminClient.call(directory, "events", {"run": run, "since": seen})
            patience = 0.0
        except Unavailable:
            # A coordinator that restarts goes on with the run; one that is gone for a minute does not.
            patience += 1.0
            if patience > 60.0:
                raise
            time.sleep(1.0)
            continue
        for event in answer["events"]:
            seen = event["seq"]
            if event["kind"] not in ("dropped", "ledger"):  # those are about one holder, not about the run
                last = event
            on_event(event)
        if answer["state"] not in ("queued", "running"):
            return _ended(directory, run, answer, last)
        time.sleep(0.2)
    raise Unavailable(f"run {run} did not end within {timeout:g} s; see: assay server status {directory}")


def progress_line(event: dict[str, Any]) -> str:
    """Return one step of a run as a line for people."""
    who = ", ".join(event["holders"])
    detail = f" ({event['detail']})" if event["detail"] else ""
    if event["kind"] == "offer":
        return f"offer     accepted by {who or 'nobody'}{detail}"
    if event["kind"] in ("dropped", "ledger"):
        return f"{event['kind']:<9} {who}{detail}"
    named = event["kind"] in ("counts", "calibration", "audit")
    step = event["kind"] if named else f"{event['round']}/{event['rounds']}"
    return f"round {step:<11} {len(event['holders'])} holders  epsilon spent {event['epsilon']:.4f}"


def _ended(directory: Path, run: str, answer: dict[str, Any], last: dict[str, Any]) -> dict[str, Any]:
    if answer["state"] == "refused":
        raise Refused(answer["message"], code="run")
    if answer["state"] != "done":
        raise AssayError(f"run {run} {answer['state']}: {answer['message']}")
    return {
        "run": run,
        "state": "done",
        "message": answer["message"],
        "bundle": str(directory / answer["message"]),
        "rounds": last.get("rounds"),
        "holders": last.get("holders"),
        "epsilon": last.get("epsilon"),
        "held": answer.get("held", []),
    }


@app.command()
@command
def status(directory: Directory, as_json: Json = False) -> None:
    """Show holders and runs, whether the coordinator serves or not.

    Example: assay server status coordinator
    """
    from assay.server.admin import AdminClient
    from assay.server.coordinator import run_summary
    from assay.server.federation import Federation
    from assay.server.witness import holder_summaries

    try:
        result = AdminClient.call(directory, "status", {}) | {"serving": True}
    except Unavailable:
        with Federation(directory) as federation:
            result = {
                "federation": federation.settings.name,
                "fingerprint": federation.fingerprint,
                "address": federation.settings.address,
                "holders": holder_summaries(federation, online=()),
                "runs": [run_summary(run) for run in federation.registry.runs()],
                "serving": False,
            }
    emit(result, as_json=as_json, text=_status_words(result))


def _status_words(status: dict[str, Any]) -> str:
    lines = [
        f"{status['federation']} at {status['address']}: {'serving' if status['serving'] else 'not serving'}",
        f"Fingerprint {status['fingerprint']}",
        "Holders",
    ]
    for holder in status["holders"]:
        state = "online" if holder["online"] else "offline"
        seen = "never heard" if holder["ledger_seq"] is None else f"ledger at row {holder['ledger_seq']}"
        lines.append(f"  {holder['name']:<24} {state:<8} {holder['fingerprint']}  {seen}")
    lines.append("Runs")
    lines += [
        f"  {run['run'][:8]}  {run['name']:<24} {run['state']:<8} {_progress(run)}  {run['message']}"
        for run in status["runs"]
    ]
    return "\n".join(lines)


def _progress(run: dict[str, Any]) -> str:
    """Say how far a run is; after its gradients come a calibration and an audit."""
    done, rounds = run["round"] or 0, run["rounds"]
    after = done - rounds if rounds else 0
    if after > 0:
        return f"round {rounds}/{rounds}, {'calibrated' if after == 1 else 'audited'}"
    return f"round {done}/{rounds or '?'}"


@app.command()
@command
def witness(
    directory: Directory,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The holder.")],
    output: Annotated[Path | None, typer.Option(help="File to write.")] = None,
    as_json: Json = False,
) -> None:
    """Sign where a holder's ledger and audit log were last seen, for the holder to check itself against.

    The holder runs: assay privacy audit DIR --witness FILE

    Example: assay server witness coordinator bank-a --output bank-a.witness.json
    """
    from assay.privacy.files import write_durably
    from assay.privacy.keys import canonical_json
    from assay.server.federation import Federation
    from assay.server.witness import witness as signed

    with Federation(directory) as federation:
        result = signed(federation, name)
    text = canonical_json(result).decode()
    if output is not None:
        write_durably(output, text.encode() + b"\n")
        text = f"Wrote {output}. {name} runs: assay privacy audit DIR --witness {output.name}"
    emit(result, as_json=as_json, text=text)


@app.command()
@command
def models(directory: Directory, as_json: Json = False) -> None:
    """List the registered models.

    Example: assay server models coordinator
    """
    from assay.server.federation import Federation

    with Federation(directory) as federation:
        found = [
            {
                "name": m.name,
                "version": m.version,
                "run": m.run,
                "bundle": str(directory / m.path),
                "sha256": m.sha256,
                "created": m.created,
                "expires": m.expires,
                "purpose": m.purpose,
                "epsilon": m.label["epsilon"],
                "held": m.label.get("held", []),
            }
            for m in federation.registry.models()
        ]
    lines = [
        f"{m['name']} v{m['version']}  {m['purpose']}  epsilon {m['epsilon']:g}  {m['bundle']}"
        + "".join(f"\n  HELD, must not be used: {reason}" for reason in m["held"])
        for m in found
    ]
    emit({"models": found}, as_json=as_json, text="\n".join(lines) or "no model yet")
