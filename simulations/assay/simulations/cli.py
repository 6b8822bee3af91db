"""``assay demo``, ``assay population`` and ``assay simulate``."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from assay.privacy.errors import BadInput
from assay.privacy.terminal import Json, command, emit

__all__ = ["demo", "population", "simulate"]

Say = Callable[[str], None]


@contextlib.contextmanager
def _progress() -> Iterator[Say]:
    """Show what is being done: one changing line on a terminal, plain lines elsewhere."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda words: console.print(words, markup=False, highlight=False, soft_wrap=True)
        return
    with console.status("") as status:
        yield status.update


def _default_out(stem: str) -> Path:
    """Return the first of ``stem``, ``stem-2``, ``stem-3``, ... that does not exist."""
    number, path = 1, Path(stem)
    while path.exists():
        number += 1
        path = Path(f"{stem}-{number}")
    return path


@command
def demo(
    holders: Annotated[int, typer.Option(help="Holder processes to start, 3 to 10.")] = 3,
    epsilon: Annotated[float, typer.Option(help="Privacy target of one person over the run.")] = 1.0,
    out: Annotated[
        Path | None,
        typer.Option(help="Directory for everything (default: ./assay-demo, or the next free name)."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Run a whole federation on this machine: coordinator, holders, training on real records, report.

    Example: assay demo --holders 3 --epsilon 1
    """
    from assay.server.cli import progress_line
    from assay.simulations.demo import Demo

    plan = Demo(holders=holders, epsilon=epsilon, out=out or _default_out("assay-demo"))
    with _progress() as say:

        def on_event(event: dict[str, Any]) -> None:
            say(progress_line(event))

        result, text = plan.run(say, on_event)
    emit(result, as_json=as_json, text=text)


@command
def population(
    people: Annotated[int, typer.Option(help="How many, 1 to 100 million; one row each.")],
    out: Annotated[
        Path, typer.Option(help="File to write: .parquet or .csv. Two study files are put beside it.")
    ],
    seed: Annotated[int, typer.Option(help="Decides everything about the people.")] = 0,
    params: Annotated[
        Path | None, typer.Option(help="TOML file with the parameters to change (default: none).")
    ] = None,
    months: Annotated[
        int | None, typer.Option(help="Months that applications are spread over, 1 to 120 (default: 12).")
    ] = None,
    as_json: Json = False,
) -> None:
    """Make synthetic people whose true risk is known, and the two studies that ask about it.

    Example: assay population --people 100000 --out people.parquet
    """
    from assay.simulations.population import MAX_PEOPLE
    from assay.simulations.population_file import write_population
    from assay.simulations.population_params import MAX_MONTHS
    from assay.simulations.population_read import read_parameters

    for option, value, low, high in (
        ("--people", people, 1, MAX_PEOPLE),
        ("--seed", seed, 0, 2**63 - 1),
        ("--months", 1 if months is None else months, 1, MAX_MONTHS),
    ):
        if not low <= value <= high:
            raise BadInput(option, value=value, allowed=f"a whole number from {low} to {high}")
    parameters = read_parameters(params)
    if months is not None:
        parameters = parameters.with_months(months)
    result = write_population(parameters, out, people=people, seed=seed)
    emit(result, as_json=as_json, text=_population_text(result))


def _population_text(result: dict[str, Any]) -> str:
    lines = [f"{result['people']:,} people in {result['seconds']:.1f} s: {result['file']}"]
    lines += [
        f"  {outcome}: {result['base_rate'][outcome]:.2%} bad, AUROC of the true risk"
        f" {result['bayes_auroc'][outcome]:.4f}, study {path}"
        for outcome, path in result["studies"].items()
    ]
    return "\n".join(lines)


@command
def simulate(
    study: Annotated[Path, typer.Argument(metavar="STUDY", help="The study file.")],
    data: Annotated[
        Path, typer.Option(help="Records to spread over the holders: .csv, .csv.gz or .parquet.")
    ],
    out: Annotated[Path, typer.Option(help="New directory for bundles and reports.")],
    test: Annotated[Path | None, typer.Option(help="Held-out records (default: a share of --data).")] = None,
    test_fraction: Annotated[float, typer.Option(help="That share.")] = 0.2,
    holders: Annotated[
        int, typer.Option(help="Number of holders; at least 3 unless the study's trust is local.")
    ] = 3,
    partition: Annotated[
        str, typer.Option(help="iid, quantity, label, or a column whose values stay together.")
    ] = "iid",
    epsilon: Annotated[
        list[float] | None,
        typer.Option(help="Privacy target; may be given several times (default: the study's)."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Decides hold-out and partition, never noise.")] = 0,
    as_json: Json = False,
) -> None:
    """Train one study with many holders in one process, through the live system's own code.

    Example: assay simulate examples/taiwan/study.toml --data examples/taiwan/taiwan_credit.csv.gz --out sim
    """
    from assay.simulations.simulate import Simulation

    if not 0 <= seed < 2**63:
        raise BadInput("--seed", value=seed, allowed="0 to 2^63 - 1")
    epsilons = tuple(epsilon or ())
    if len(set(epsilons)) < len(epsilons):
        raise BadInput("--epsilon", value=list(epsilons), allowed="each value once")
    plan = Simulation(
        study=study,
        data=data,
        test=test,
        test_fraction=test_fraction,
        holders=holders,
        partition=partition,
        epsilons=epsilons,
        seed=seed,
        out=out,
    )
    with _progress() as say:
        result = plan.run(say)
    lines = [_simulation_line(each) for each in result.get("results", [result])]
    emit(result, as_json=as_json, text="\n".join(lines))


def _simulation_line(result: dict[str, Any]) -> str:
    base = result["baselines"]
    return (
        f"epsilon {result['epsilon']:g}, trust {result['trust']}: AUROC local-only"
        f" {base['local_only_auroc']:.4f}, federated {result['auroc']:.4f}, pooled {base['pooled_auroc']:.4f}"
        f"  ({result['rounds']} rounds, {result['holders']} holders, {result['seconds']:.1f} s)\n"
        f"  {result['bundle']}\n  {result['report']}"
    )
