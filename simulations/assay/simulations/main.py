"""The ``assay`` command: each role folder brings its own group."""

from __future__ import annotations

import os
import sys
from importlib.metadata import version

import typer

# Before anything imports flwr: no report, no update check, no installation at run time.
os.environ.update(
    FLWR_TELEMETRY_ENABLED="0",
    FLWR_DISABLE_UPDATE_CHECK="1",
    FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION="1",
)

__all__ = ["build", "main"]

EPILOG = "Exit codes: 0 done, 1 failed, 2 wrong usage or bad input, 3 refused by policy or budget."


def build() -> typer.Typer:
    """Return the whole command line."""
    from assay.client.cli import app as client_app
    from assay.client.monitor_cli import compare as client_compare
    from assay.client.monitor_cli import monitor as client_monitor
    from assay.models.cli import model_app, study_app
    from assay.models.monitoring import compare, monitor
    from assay.models.plan import plan
    from assay.models.points_cli import assemble, request
    from assay.privacy.cli import app as privacy_app
    from assay.server.cli import app as server_app
    from assay.simulations.cli import demo, population, simulate

    app = typer.Typer(
        name="assay",
        help="Privacy-preserving federated scoring: records stay put, every point is explained.",
        epilog=EPILOG,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback(invoke_without_command=True)(_root)
    app.command()(demo)
    app.add_typer(study_app, name="study", help="Check a study: schema, purpose and policy.")
    app.add_typer(server_app, name="server", help="The coordinator: set up, admit holders, serve, train.")
    client_app.command(name="monitor")(client_monitor)
    client_app.command(name="compare")(client_compare)
    app.add_typer(client_app, name="client", help="A data holder: set up, join, check, run.")
    privacy_app.command()(plan)
    app.add_typer(privacy_app, name="privacy", help="What is spent, what is left, what a run would cost.")
    app.command()(population)
    app.command()(simulate)
    model_app.command()(request)
    model_app.command()(assemble)
    model_app.command()(monitor)
    model_app.command()(compare)
    app.add_typer(model_app, name="model", help="A finished bundle: show, verify, score, explain.")
    return app


def _root(
    show_version: bool = typer.Option(False, "--version", help="Show the version and exit."),
) -> None:
    """Privacy-preserving federated scoring."""
    if show_version:
        typer.echo(version("assay"))
        raise typer.Exit


def main() -> None:
    """Run the command line; Ctrl-C ends it with 130 and no traceback."""
    try:
        build()()
    except KeyboardInterrupt:
        typer.echo("assay: interrupted", err=True)
        sys.exit(130)


if __name__ == "__main__":
    main()
