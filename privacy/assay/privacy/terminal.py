"""What every command has in common: errors become one line and an exit code, results become text or JSON."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from typing import Annotated, Any, ParamSpec, TypeVar

import click
import typer

from assay.privacy.errors import AssayError, Refused

__all__ = ["Json", "command", "emit", "note"]

Json = Annotated[
    bool, typer.Option("--json", help="One JSON object on standard output; notes on standard error.")
]

P = ParamSpec("P")
R = TypeVar("R")


def note(text: str) -> None:
    """Say something to the person at the terminal, on standard error, so that ``--json`` stays clean."""
    typer.echo(text, err=True)


def emit(result: dict[str, Any], *, as_json: bool, text: str) -> None:
    """Print the result of a command: one JSON object for machines, ``text`` for people."""
    typer.echo(json.dumps(result, allow_nan=False) if as_json else text)


def command(function: Callable[P, R]) -> Callable[P, R]:
    """Turn the errors of a command into one line on standard error and the documented exit code.

    Anything that is not an :class:`AssayError` is a defect of ours and keeps its traceback. A full
    disk or a file without permission is the machine's state, so it is reported in one line too. What a
    policy pack refuses goes into the log of refusals before the command ends.
    """

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except AssayError as error:
            line = " ".join(str(error).splitlines())
            typer.secho(f"assay: {line}", err=True, fg="red" if sys.stderr.isatty() else None)
            if isinstance(error, Refused):
                _log(error, function.__name__)
            raise typer.Exit(error.exit_code) from None
        except OSError as error:
            where = f" {error.filename}" if error.filename else ""
            typer.echo(f"assay: {error.strerror or error}{where}", err=True)
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            typer.echo("assay: interrupted", err=True)
            raise typer.Exit(130) from None

    return run


def _log(refused: Refused, name: str) -> None:
    """Log what a policy pack refused. A log that cannot be written is said, and changes nothing else."""
    from assay.privacy.refusals import by_policy, record  # late: few commands are refused

    if not by_policy(refused):
        return
    context = click.get_current_context(silent=True)
    try:
        record(refused, context.command_path if context is not None else name)
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        note(f"this refusal is missing from the log of refusals: {error.strerror or error}{where}")
