"""``assay client monitor`` and ``assay client compare``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from assay.privacy.errors import BadInput
from assay.privacy.terminal import Json, command, emit

__all__ = ["compare", "monitor"]

Directory = Annotated[Path, typer.Argument(metavar="DIR", help="The holder's directory.")]


@command
def monitor(
    directory: Directory,
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A file that ends in .bundle.")],
    epsilon: Annotated[
        float | None, typer.Option(help="Privacy loss of one person that a report may cost; with --output.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Write a signed report of noisy counts, which may leave.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Say whether this holder's population moved since training, by feature and score.

    Exact and local: nothing is sent or spent. With --epsilon and --output, counts with this holder's own
    noise are paid for in its ledger and written to a file that may leave; stop the daemon meanwhile.

    Example: assay client monitor bank-a card.bundle
    """
    from assay.client.config import HolderConfig
    from assay.client.daemon import records_for
    from assay.client.monitor import population_at, require_current
    from assay.client.policy import require_same_person
    from assay.models.bundle import read_bundle
    from assay.models.drift import drift_in_words, drift_of
    from assay.models.monitoring import KEPT_HERE

    if (epsilon is None) != (output is None):
        raise BadInput("--epsilon and --output", allowed="both or neither")
    config, opened = HolderConfig.load(directory), read_bundle(bundle)
    require_current(opened, time.time())
    config.require_data()
    if epsilon is not None and output is not None:
        result, text = _release(config, opened, epsilon, output)
        emit(result, as_json=as_json, text=text)
        return
    require_same_person(opened.study, config.person)
    records = records_for(config, opened.study)
    found = drift_of(opened, population_at(opened, records), tuple(records.columns))
    result = {"rows": records.rows, "persons": records.persons_count, "exact": True, **found}
    head = f"{records.persons_count:,} persons here against the training of {opened.study.name}\n{KEPT_HERE}"
    emit(result, as_json=as_json, text=f"{head}\n\n{drift_in_words(result)}")


def _release(config: Any, opened: Any, epsilon: float, output: Path) -> tuple[dict[str, Any], str]:
    from assay.client import enrol
    from assay.client.daemon import LEDGER_FILE, records_for
    from assay.client.monitor import release_population
    from assay.privacy.ledger import Ledger

    keys = enrol.load_keys(config.directory)
    report = release_population(
        config,
        keys,
        opened,
        epsilon=epsilon,
        output=output,
        load=lambda study: records_for(config, study),
        clock=time.time,
    )
    limits = config.policy.limits
    with Ledger.open(config.directory / LEDGER_FILE, keys.identity, read_only=True) as ledger:
        left = ledger.remaining(limits, opened.study.name)
    result = {
        "output": str(output),
        "run": report.run,
        "epsilon": report.epsilon,
        "delta": report.delta,
        "noise_std": report.noise_std,
        "left_epsilon": left,
        "exact": False,
    }
    text = (
        f"{output}: {len(report.counts)} counts and {len(report.scores)} score bins, noise of standard"
        f" deviation {report.noise_std:.4g} in each, signed\nCharged epsilon {report.epsilon:g} at delta"
        f" {report.delta:g}; room for another {left:.4g} in study {opened.study.name}\nThis file may leave."
    )
    return result, text


@command
def compare(
    directory: Directory,
    champion: Annotated[Path, typer.Argument(metavar="CHAMPION", help="The bundle in use.")],
    challenger: Annotated[
        Path, typer.Argument(metavar="CHALLENGER", help="The bundle that might replace it.")
    ],
    as_json: Json = False,
) -> None:
    """Compare two models of one purpose and outcome on this holder's own records. Nothing leaves.

    Ranking with the interval of the difference, calibration, bad rate by band, and whom only one of them
    would approve. Lift and bad rates are secrets between competitors: they stay at this terminal.

    Example: assay client compare bank-a old.bundle new.bundle
    """
    from assay.client.config import HolderConfig
    from assay.client.daemon import records_for
    from assay.client.monitor import both_scored
    from assay.client.policy import require_same_person
    from assay.models.bundle import read_bundle
    from assay.models.compare import compare as compare_both
    from assay.models.compare import compared_in_words, require_comparable
    from assay.models.monitoring import KEPT_HERE

    config = HolderConfig.load(directory)
    first, second = read_bundle(champion), read_bundle(challenger)
    require_comparable(first, second, time.time())
    config.require_data()
    require_same_person(first.study, config.person)
    one, other, records = both_scored(first, second, lambda study: records_for(config, study))
    result = compare_both(one, other, records.labels, records.persons)
    result["too_old_rows"] = records.too_old
    emit(result, as_json=as_json, text=f"{KEPT_HERE}\n{compared_in_words(result)}")
