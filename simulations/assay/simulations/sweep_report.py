"""The report of a sweep: one HTML file that needs no network, with PNG and CSV beside it.

It answers, before anyone spends real privacy: what would be gained by federating, at which epsilon, with how
many holders? Every number comes from the cells of the sweep; a section without data is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from assay.models.digits import count, short
from assay.models.page import items, paragraph
from assay.models.svg import safe
from assay.privacy.files import PRIVATE_FILE, write_durably
from assay.simulations import sweep_details, sweep_sections
from assay.simulations import sweep_words as words
from assay.simulations.page import page
from assay.simulations.picture import png
from assay.simulations.sweep_cells import CURVES, Cell, Results, band
from assay.simulations.sweep_faults import faults
from assay.simulations.sweep_page import Section, span
from assay.simulations.sweep_tables import groups_csv, holders_csv, results_csv
from assay.simulations.wording import SIMULATED

__all__ = ["write_sweep_report"]

_SECTIONS: tuple[Callable[[Results], Section | None], ...] = (
    sweep_sections.gain,
    sweep_sections.by_epsilon,
    sweep_sections.sizes,
    sweep_sections.by_holders,
    sweep_details.groups,
    sweep_details.calibration,
    sweep_details.privacy,
    faults,
    sweep_sections.time,
    sweep_sections.reading,
)


def write_sweep_report(
    out: Path, cells: Sequence[Cell], title: str, *, failed: Sequence[Cell] = ()
) -> dict[str, str]:
    """Write ``report.html``, ``results.csv``, ``holders.csv``, ``groups.csv`` and the pictures as PNG.

    Each file is whole or absent, even after a power cut, and readable by its owner only, because its numbers
    are exact. Those of an earlier call are replaced.

    Args:
        out: an existing directory.
        cells: finished runs, see ``docs/simulations.md`` for their keys.
        title: headline of the page, plain text.
        failed: runs that ended without a model: ``holders``, ``epsilon``, ``seed``, ``error``, ``faults``.

    Returns:
        Paths: ``html``, ``csv``, ``holders_csv``, ``groups_csv``, and one per picture under its file name
        without ``.png``.

    Raises:
        BadInput: no cell is given, a key is missing or has a value that cannot be, cells repeat each other
            or belong to several studies. Nothing is written.
        OSError: a file cannot be written.
    """
    sweep = Results.of(cells, failed)
    sections = [section for build in _SECTIONS if (section := build(sweep)) is not None]
    html = page(
        title=title,
        header=_header(sweep, title),
        sections=[(each.key, each.heading, each.inner) for each in sections],
    )
    source = (
        f"Study {sweep.cells[0]['study']}, simulated: {count(len(sweep.cells), 'run')}, "
        f"{count(len(sweep.seeds), 'seed')}."
    )
    files: dict[str, tuple[Path, bytes]] = {
        "html": (out / "report.html", html.encode("utf-8")),
        "csv": (out / "results.csv", results_csv(sweep)),
        "holders_csv": (out / "holders.csv", holders_csv(sweep)),
        "groups_csv": (out / "groups.csv", groups_csv(sweep)),
    }
    for picture in (picture for section in sections for picture in section.pictures):
        drawn = png(picture.charts, heading=picture.heading, source=f"{picture.caption} {source}")
        files[picture.name] = out / f"{picture.name}.png", drawn
    for path, data in files.values():
        write_durably(path, data, mode=PRIVATE_FILE)
    return {name: str(path) for name, (path, _) in files.items()}


def _header(sweep: Results, title: str) -> str:
    first = sweep.cells[0]
    bayes = band(CURVES["limit"][1](cell) for cell in sweep.cells)
    tiles = [
        ("Runs", f"{len(sweep.cells):,}" + (f", {len(sweep.failed):,} failed" if sweep.failed else "")),
        ("Holders", ", ".join(f"{holders:,}" for holders in sweep.holders)),
        ("Privacy, ε", ", ".join(short(epsilon) for epsilon in sweep.epsilons)),
        ("Seeds", f"{len(sweep.seeds):,}"),
        ("Records", span(f"{cell['rows']:,}" for cell in sweep.cells)),
        ("Held out", span(f"{cell['test_rows']:,}" for cell in sweep.cells)),
    ]
    if bayes is not None:
        tiles.append(("AUROC of the true risk", f"{bayes.mean:.3f}"))
    facts = "".join(f"<div><dt>{safe(name)}</dt><dd>{safe(value)}</dd></div>" for name, value in tiles)
    question = "What would be gained by federating, at which ε, with how many holders?"
    return (
        f"{paragraph('Study ' + first['study'] + ', simulated', 'study')}<h1>{safe(title)}</h1>"
        f"{paragraph(question, 'question')}{paragraph(words.verdict(sweep), 'lead')}"
        f'{items(words.answers(sweep))}<dl class="tiles">{facts}</dl>{paragraph(SIMULATED, "callout")}'
    )
