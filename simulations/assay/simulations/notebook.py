"""The five functions of :mod:`assay.simulations`; what they return goes into ``pandas.DataFrame`` as it is.

Nothing is printed unless ``progress=True``. Wrong input raises :class:`assay.privacy.errors.BadInput` or
:class:`~assay.privacy.errors.Refused` with the words of the command line. Ctrl-C, or a notebook's stop
button, keeps what is finished: call the same again with ``resume=True``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import assay.simulations.main  # noqa: F401 - before anything imports flwr: it sends no report
from assay.models.study import read_study
from assay.privacy.errors import BadInput
from assay.simulations.dataset import Dataset
from assay.simulations.partition import Partition
from assay.simulations.population_file import write_population
from assay.simulations.population_read import read_parameters
from assay.simulations.progress import shown
from assay.simulations.simulate import Simulation
from assay.simulations.sweep import Event, Sweep, finished, report_of

__all__ = ["make_population", "run_simulation", "run_sweep", "split_records", "write_report"]

File = str | PathLike[str]


def make_population(
    file: File, *, people: int, seed: int = 0, params: File | None = None, months: int | None = None
) -> dict[str, Any]:
    """Write people whose true risk is known to a file, and beside it a study for each outcome.

    Args:
        file: name ending in ``.parquet`` or ``.csv``.
        people: 1..100,000,000; one row each.
        seed: 0 or more; decides everything about the people.
        params: TOML file with the parameters to change.
        months: that applications are spread over, 1..120; None: as the parameters say.

    Returns:
        ``file``, ``studies`` (paths by ``"credit"`` and ``"fraud"``), ``bayes_auroc`` (how good a model could
        be at most, by outcome), ``base_rate`` and more; see :func:`.population_file.write_population`.

    Example:
        >>> people = make_population("people.parquet", people=20_000)
        >>> people["studies"]["credit"]
        'people-credit.toml'
    """
    parameters = read_parameters(None if params is None else Path(params))
    if months is not None:
        parameters = parameters.with_months(months)
    return write_population(parameters, Path(file), people=people, seed=seed)


def split_records(
    study: File,
    data: File,
    *,
    holders: int = 3,
    partition: str = "iid",
    skew: float | None = None,
    overlap: str | None = None,
    seed: int = 0,
    test: File | None = None,
    test_fraction: float = 0.2,
) -> list[dict[str, Any]]:
    """Say who would hold what, without training anything. Exact numbers: no live system shows them.

    Args:
        study: study file.
        data: records, ``.csv``, ``.csv.gz`` or ``.parquet``.
        holders: how many, 1..10,000.
        partition: ``"iid"``, ``"quantity"``, ``"label"``, ``"component"``, ``"feature:COLUMN"`` or a column.
        skew: Dirichlet concentration of ``"label"`` and ``"feature"``; small is skewed.
        overlap: ``"SHARE"`` or ``"SHARE:HOLDERS"``: people known to several holders.
        seed: decides hold-out and layout.
        test: file of held-out records; None: a share of ``data``.
        test_fraction: that share.

    Returns:
        One row per holder: ``name``, ``rows``, ``persons``, ``base_rate`` (share of bad outcomes),
        ``components`` and ``known_to``, see :func:`assay.simulations.holding.describe`.

    Example:
        >>> pandas.DataFrame(split_records("people-credit.toml", "people.parquet", partition="quantity"))
    """
    plan = Partition.parse(partition, skew=skew, overlap=overlap)
    checked = read_study(Path(study))
    plan.require(checked, holders)
    held_out = None if test is None else Path(test)
    return Dataset(checked, Path(data), held_out, test_fraction, plan).describe(holders, seed)


def run_simulation(
    study: File,
    data: File,
    out: File,
    *,
    holders: int = 3,
    epsilon: float | None = None,
    seed: int = 0,
    progress: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """Train one study with many holders, and compare it with each holder alone and with all records pooled.

    Args:
        study: study file.
        data: records to spread over the holders, ``.csv``, ``.csv.gz`` or ``.parquet``.
        out: new or empty directory for the signed bundle and the HTML report.
        holders: how many.
        epsilon: privacy target; None: the study's.
        seed: decides hold-out and layout, never noise: two calls differ a little.
        progress: whether to show what is being done.
        options: others of :class:`assay.simulations.simulate.Simulation`: ``partition``, ``skew``,
            ``overlap``, ``test``, ``test_fraction``, ``engine``, ``faults``, ``canaries``.

    Returns:
        What ``assay simulate --json`` prints: ``auroc``, ``ks``, ``gini``, ``log_loss``, ``brier``, ``ece``,
        ``epsilon``, ``rounds``, ``seconds``, ``baselines``, ``local`` (a row per holder), ``groups`` (a row
        per group), ``calibration``, ``bundle``, ``report`` and more.

    Example:
        >>> run = run_simulation("people-credit.toml", "people.parquet", "one-run", holders=10)
        >>> run["auroc"], run["baselines"]["local_only_auroc"]
    """
    plan = _plan(
        study,
        data,
        out,
        options,
        holders=(holders,),
        epsilons=() if epsilon is None else (epsilon,),
        seed=seed,
    )
    with _telling(progress) as tell:
        return Sweep(plan).run(tell)


def run_sweep(
    study: File,
    data: File,
    out: File,
    *,
    holders: Sequence[int] = (3,),
    epsilons: Sequence[float] = (),
    seeds: int = 1,
    seed: int = 0,
    jobs: int | None = None,
    resume: bool = False,
    progress: bool = False,
    **options: Any,
) -> list[dict[str, Any]]:
    """Run every number of holders at every epsilon for every seed, side by side, and write a report.

    Args:
        study: study file.
        data: records to spread over the holders, ``.csv``, ``.csv.gz`` or ``.parquet``.
        out: new or empty directory; with ``resume`` that of a sweep with the same settings.
        holders: numbers of holders, each once.
        epsilons: privacy targets, each once; empty: the study's own.
        seeds: how many seeds from ``seed`` on.
        seed: the first one.
        jobs: worker processes; None: as many as there are usable cores.
        resume: go on with what is not finished yet.
        progress: whether to show how far it is.
        options: as in :func:`run_simulation`.

    Returns:
        A row for each finished run, as :func:`run_simulation` returns it, by holders, epsilon and seed.

    Example:
        >>> rows = run_sweep("people-credit.toml", "people.parquet", "sweep", epsilons=[0.5, 1, 4])
        >>> pandas.DataFrame(rows)[["holders", "epsilon", "auroc"]]
    """
    plan = _plan(
        study,
        data,
        out,
        {**options, "seeds": seeds, "jobs": jobs, "resume": resume},
        holders=tuple(holders),
        epsilons=tuple(float(epsilon) for epsilon in epsilons),
        seed=seed,
    )
    with _telling(progress) as tell:
        result = Sweep(plan).run(tell)
    rows: list[dict[str, Any]] = result.get("results", [result])
    return rows


def write_report(out: File) -> dict[str, str]:
    """Write the report of all finished runs of a sweep again, from their files alone.

    Args:
        out: directory of a sweep or a single simulation, finished or not.

    Returns:
        Paths: ``html`` (one file that needs no network), ``csv`` and one per picture.

    Example:
        >>> write_report("sweep")["html"]
        'sweep/report.html'

    Raises:
        BadInput: there is no sweep, or none of its runs is finished.
    """
    folder = Path(out)
    results, failed = finished(folder)
    if not results:
        raise BadInput(
            "out",
            value=str(folder),
            allowed="a directory with a sweep in which a run is finished",
            remedy="Call run_sweep first",
        )
    return report_of(folder, results, failed)


def _plan(study: File, data: File, out: File, options: dict[str, Any], **settings: Any) -> Simulation:
    changed = dict(options)
    if changed.get("test") is not None:
        changed["test"] = Path(changed["test"])
    if "faults" in changed:
        changed["faults"] = tuple(changed["faults"])
    return Simulation(study=Path(study), data=Path(data), out=Path(out), **settings, **changed)


@contextlib.contextmanager
def _telling(progress: bool) -> Iterator[Callable[[Event], None]]:
    if not progress:
        yield lambda _: None
        return
    with shown() as tell:
        yield tell
