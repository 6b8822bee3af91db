"""``assay model monitor`` and ``assay model compare``: is a model still right, and is another one better?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from assay.privacy.errors import BadInput
from assay.privacy.terminal import Json, command, emit

__all__ = ["KEPT_HERE", "compare", "monitor"]

KEPT_HERE = (
    "Exact numbers from records, for your eyes: nothing of it is sent, and it carries no privacy promise."
)

BundleFile = Annotated[Path, typer.Argument(metavar="BUNDLE", help="A file that ends in .bundle.")]
Platform = Annotated[
    str | None, typer.Option(help="The platform it is used on: compliance counts only where it arose.")
]


@command
def monitor(
    bundle: BundleFile,
    reports: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[FILE]...", help="What `assay client monitor --output` wrote."),
    ] = None,
    source: Annotated[
        Path | None, typer.Option("--input", help="Your own records instead: .csv, .csv.gz or .parquet.")
    ] = None,
    platform: Platform = None,
    as_json: Json = False,
) -> None:
    """Say whether the population moved since training, by feature and score.

    Adds up the noisy reports of several holders, or looks at a file of your own. Features that moved come
    first; where noise could look like drift, it says so.

    Example: assay model monitor card.bundle bank-a.json bank-b.json
    """
    import time

    from assay.models.bundle import read_bundle
    from assay.models.drift import Baseline, count_file, drift_in_words, drift_of
    from assay.models.driftreport import add_reports, read_report

    if bool(reports) == (source is not None):
        raise BadInput("reports", allowed="reports of holders, or --input FILE; exactly one of the two")
    opened = read_bundle(bundle)
    opened.require_current(time.time())
    opened.require_promoted()
    result: dict[str, Any]
    if source is not None:
        bins = len(Baseline.of(opened).scores)
        now, columns, rows = count_file(opened, source, bins=bins, platform=platform)
        result = {"rows": rows, "exact": True, **drift_of(opened, now, columns)}
        head = f"{rows:,} rows of {source} against the training of {opened.study.name}\n{KEPT_HERE}"
    else:
        read = [read_report(path) for path in reports or ()]
        result = {"exact": False, **drift_of(opened, add_reports(opened, read))}
        result["reports"] = [
            {
                "holder": each.holder,
                "fingerprint": each.fingerprint,
                "created": each.created,
                "epsilon": each.epsilon,
                "delta": each.delta,
                "noise_std": each.noise_std,
            }
            for each in read
        ]
        signed = "\n".join(f"  {each.holder}  {each.fingerprint}" for each in read)
        head = (
            f"Noisy reports of {len(read)} holder(s) against the training of {opened.study.name}, signed by"
            f"\n{signed}\nCompare the fingerprints with those that the holders' operators read out."
        )
    emit(result, as_json=as_json, text=f"{head}\n\n{drift_in_words(result)}")


@command
def compare(
    champion: Annotated[Path, typer.Argument(metavar="CHAMPION", help="The bundle in use.")],
    challenger: Annotated[
        Path, typer.Argument(metavar="CHALLENGER", help="The bundle that might replace it.")
    ],
    source: Annotated[
        Path, typer.Option("--input", help="Records with the outcome: .csv, .csv.gz or .parquet.")
    ],
    platform: Platform = None,
    as_json: Json = False,
) -> None:
    """Compare two models of one purpose and outcome on labelled records of your own. Nothing leaves.

    Ranking with the interval of the difference, calibration, bad rate by band, and whom only one of them
    would approve. Bad rates are business secrets: the result is for whoever holds the records, not sent.

    Example: assay model compare old.bundle new.bundle --input outcomes.csv
    """
    import time

    from assay.models.bundle import read_bundle
    from assay.models.compare import compare as compare_both
    from assay.models.compare import compared_in_words, require_comparable, score_labelled

    first, second = read_bundle(champion), read_bundle(challenger)
    require_comparable(first, second, time.time())
    one, other, labels = score_labelled((first, second), source, platform)
    result = compare_both(one, other, labels)
    emit(result, as_json=as_json, text=f"{KEPT_HERE}\n{compared_in_words(result)}")
