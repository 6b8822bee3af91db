"""``assay demo``, ``assay population`` and ``assay simulate``."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from assay.privacy.errors import AssayError, BadInput
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
        Path,
        typer.Option(
            help="File to write: .parquet or .csv. Two studies and the parameters are put beside it."
        ),
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
    out: Annotated[
        Path, typer.Option(help="Directory for results, bundles and reports; new, or with --resume.")
    ],
    test: Annotated[Path | None, typer.Option(help="Held-out records (default: a share of --data).")] = None,
    test_fraction: Annotated[float, typer.Option(help="That share.")] = 0.2,
    holders: Annotated[
        str,
        typer.Option(
            metavar="N[,N...]",
            help="Numbers of holders, such as 3,10,100; at least 3 unless the study's trust is local.",
        ),
    ] = "3",
    partition: Annotated[
        str,
        typer.Option(
            help="Who holds whom: iid, quantity, label, component, component:A+B,C, feature:COLUMN, or a"
            " column whose values stay together."
        ),
    ] = "iid",
    skew: Annotated[
        float | None,
        typer.Option(help="Dirichlet concentration of label and feature, small is skewed (default: 0.5)."),
    ] = None,
    overlap: Annotated[
        str | None,
        typer.Option(
            metavar="SHARE[:HOLDERS]",
            help="Share of the people known to several holders, such as 0.2 (to 2) or 0.2:3 (to 2 or 3).",
        ),
    ] = None,
    epsilon: Annotated[
        list[float] | None,
        typer.Option(help="Privacy target; may be given several times (default: the study's)."),
    ] = None,
    seed: Annotated[int, typer.Option(help="The first seed. Decides hold-out and layout, never noise.")] = 0,
    seeds: Annotated[
        int, typer.Option(help="How many seeds from there on; each is one more of every run.")
    ] = 1,
    engine: Annotated[
        str,
        typer.Option(
            help="fast: sums without masks; full: every message of a live run; flower: Flower's own engine"
            " (Ray). All give the same model."
        ),
    ] = "fast",
    fault: Annotated[
        list[str] | None,
        typer.Option(metavar="KIND=VALUE", help="What goes wrong; may be given several times. See the docs."),
    ] = None,
    canaries: Annotated[
        int, typer.Option(help="Made-up persons for an attack on a second run of each cell; 0: no attack.")
    ] = 0,
    jobs: Annotated[int | None, typer.Option(help="Worker processes (default: the cores there are).")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the sweep that is in --out.")] = False,
    as_json: Json = False,
) -> None:
    """Train one study with many holders on one machine, through the live system's own code.

    Several numbers of holders, epsilons or seeds make a sweep. What is finished is kept; --resume goes on.

    Example: assay simulate examples/taiwan/study.toml --data examples/taiwan/taiwan_credit.csv.gz --out sim
    """
    from assay.simulations.progress import shown
    from assay.simulations.simulate import Simulation
    from assay.simulations.sweep import Sweep

    plan = Simulation(
        study=study,
        data=data,
        out=out,
        test=test,
        test_fraction=test_fraction,
        holders=_numbers(holders),
        partition=partition,
        skew=skew,
        overlap=overlap,
        epsilons=tuple(epsilon or ()),
        seed=seed,
        seeds=seeds,
        engine=engine,
        faults=tuple(fault or ()),
        canaries=canaries,
        jobs=jobs,
        resume=resume,
    )
    with _saying_how_to_go_on(out), shown() as tell:
        result = Sweep(plan).run(tell)
    emit(result, as_json=as_json, text=_simulated(result))
    if result.get("failed"):
        raise typer.Exit(1)


def _numbers(text: str) -> tuple[int, ...]:
    """Read ``3,10,100``."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise BadInput(
            "--holders",
            value=text,
            allowed="whole numbers with commas, such as 3,10,100",
            remedy="Correct the list",
        ) from None


class _Stopped(AssayError):
    """A sweep that was stopped by Ctrl-C or a full disk, and how to go on."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@contextlib.contextmanager
def _saying_how_to_go_on(out: Path) -> Iterator[None]:
    """Say in one line that finished cells are kept, and how to go on, when a sweep is stopped."""
    try:
        yield
    except KeyboardInterrupt:
        raise _Stopped(f"interrupted; {_going_on(out)}", 130) from None
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        raise _Stopped(f"{error.strerror or error}{where}; free some space; {_going_on(out)}", 1) from None


def _going_on(out: Path) -> str:
    if not (out / "sweep.json").is_file():
        return "nothing was written"
    return f"what is finished is kept in {out}: run the same command with --resume to go on"


def _simulated(result: dict[str, Any]) -> str:
    if "results" not in result:
        return f"{_simulation_line(result)}\n  {result['bundle']}\n  {result['report']}"
    lines = [_simulation_line(each) for each in result["results"]]
    for each in result["failed"]:
        where = f"{each['holders']} holders, epsilon {each['epsilon']:g}, seed {each['seed']}"
        lines.append(f"{where}: failed: {each['error']}")
    return "\n".join([*lines, f"  {result['report']}", f"  {result['csv']}"])


def _simulation_line(result: dict[str, Any]) -> str:
    base = result["baselines"]
    alone = base["local_only_auroc"]
    return (
        f"{result['holders']} holders, epsilon {result['epsilon']:g}, trust {result['trust']}, seed"
        f" {result['seed']}: AUROC local-only {'-' if alone is None else f'{alone:.4f}'}, federated"
        f" {result['auroc']:.4f}, pooled {base['pooled_auroc']:.4f}"
        f"  ({result['rounds']} rounds, {result['seconds']:.1f} s)"
    )
