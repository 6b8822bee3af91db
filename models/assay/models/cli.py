"""``assay study`` and ``assay model``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from assay.privacy.errors import Refused
from assay.privacy.terminal import Json, command, emit, note

if TYPE_CHECKING:
    from assay.models.bundle import Bundle
    from assay.models.study import Study

__all__ = ["model_app", "study_app"]

study_app = typer.Typer(no_args_is_help=True)
model_app = typer.Typer(no_args_is_help=True)

BundleFile = Annotated[Path, typer.Argument(metavar="BUNDLE", help="A file that ends in .bundle.")]


@study_app.callback()
def _study_group() -> None:
    """Check a study: schema, purpose and policy."""


@study_app.command()
@command
def check(
    study: Annotated[Path, typer.Argument(metavar="STUDY", help="A study.toml.")], as_json: Json = False
) -> None:
    """Check a study file: keys, ranges, purpose and inputs. Nothing is read but the file.

    Example: assay study check study.toml
    """
    from assay.models.study import read_study

    checked = read_study(study)
    result = _study_facts(checked)
    lines = [
        f"{study}: a valid study",
        f"  purpose     {checked.purpose}, in {', '.join(checked.contexts)}",
        f"  pack        {checked.pack}",
        f"  predicts    {checked.outcome.meaning}",
        f"  features    {len(checked.features)}: {', '.join(feature.name for feature in checked.features)}",
        *(f"  together    {pair['label']}: {pair['cells']} cells" for pair in result["interactions"]),
        f"  privacy     epsilon {checked.privacy.epsilon:g}, delta {checked.privacy.delta:g},"
        f" trust {checked.privacy.trust}"
        + (f", {checked.privacy.tolerated} tolerated" if checked.privacy.trust == "distributed" else ""),
        f"  digest      {checked.digest}",
    ]
    lines += [f"  note        {line}" for line in result["notes"]]
    emit(result, as_json=as_json, text="\n".join(lines))


@study_app.command()
@command
def packs(
    name: Annotated[str, typer.Argument(metavar="[NAME]", help="Show this one whole.")] = "",
    as_json: Json = False,
) -> None:
    """List the policy packs, the dated rules that a study may name as its pack, or show one whole.

    Example: assay study packs
    """
    from assay.models.packwords import pack_facts, pack_in_words
    from assay.privacy.packfile import DEFAULT, load_pack, pack_names

    if name:
        shown = load_pack(name)
        emit(pack_facts(shown), as_json=as_json, text=pack_in_words(shown))
        return
    known = [load_pack(each) for each in pack_names()]
    listed = [{"name": each.name, "as_of": each.as_of, "summary": each.summary} for each in known]
    lines = [
        f"{each.name}  as of {each.as_of}{' (default)' if each.name == DEFAULT else ''}: {each.summary}"
        for each in known
    ]
    emit({"packs": listed, "default": DEFAULT}, as_json=as_json, text="\n".join(lines))


@model_app.command()
@command
def show(bundle: BundleFile, as_json: Json = False) -> None:
    """Say in words what a bundle is for, what its privacy guarantee is and what its points are.

    Example: assay model show card-default.bundle
    """
    from assay.models.bundle import read_bundle

    opened = read_bundle(bundle)
    card = opened.scorecard.to_json()
    result = {**_bundle_facts(opened), "label": dict(opened.label), "metrics": dict(opened.metrics)}
    result["audit"] = dict(opened.audit)
    emit({**result, "scorecard": card}, as_json=as_json, text=_shown(opened, result, card))


@model_app.command()
@command
def verify(
    bundle: BundleFile,
    fingerprint: Annotated[
        str, typer.Option(help="The signer's fingerprint, as the federation gave it out.")
    ] = "",
    as_json: Json = False,
) -> None:
    """Check hashes and signature of a bundle, and with --fingerprint who signed it.

    Example: assay model verify card-default.bundle --fingerprint AB12-...
    """
    from assay.models.bundle import read_bundle
    from assay.privacy.errors import Tampered
    from assay.privacy.keys import same_fingerprint

    opened = read_bundle(bundle)
    if fingerprint and not same_fingerprint(fingerprint, opened.fingerprint):
        raise Tampered(f"{bundle} is signed by {opened.fingerprint}, not by {fingerprint}")
    result = {**_bundle_facts(opened), "verified": True, "signer_checked": bool(fingerprint)}
    text = f"{bundle}: unchanged since it was signed by {opened.fingerprint}"
    if not fingerprint:
        text += "\nCompare that fingerprint with the federation's, or give it with --fingerprint."
    emit(result, as_json=as_json, text=text)


@model_app.command()
@command
def score(
    bundle: BundleFile,
    source: Annotated[Path, typer.Option("--input", help="Records: .csv, .csv.gz or .parquet.")],
    output: Annotated[Path, typer.Option("--output", help="Scores: .csv or .parquet.")],
    purpose: Annotated[str, typer.Option("--purpose", help="What the scores are for; the bundle's purpose.")],
    context: Annotated[
        str | None, typer.Option(help="Where they are used; a context that the bundle declares.")
    ] = None,
    platform: Annotated[
        str | None, typer.Option(help="The platform they are used on: compliance counts only where it arose.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Score a file, one output row per input row, with points and reasons.

    Example: assay model score card.bundle --input people.csv --output scores.csv --purpose consumer_credit
    """
    from assay.models.bundle import read_bundle
    from assay.models.scoring import score_file

    done = score_file(
        read_bundle(bundle),
        source,
        output,
        purpose=purpose,
        context=context,
        platform=platform,
        step=_every_seconds("{:,} records scored"),
    )
    if done.absent:
        note(f"columns not in {source}: {', '.join(done.absent)}")
    if done.missing_components:
        note(f"not known, counted neither for nor against: {', '.join(done.missing_components)}")
    if done.other_platform:
        note(f"columns of another platform, treated as not there: {', '.join(done.other_platform)}")
    result = {
        "rows": done.rows,
        "absent_columns": list(done.absent),
        "missing_components": list(done.missing_components),
        "other_platform_columns": list(done.other_platform),
        "output": str(done.output),
    }
    emit(result, as_json=as_json, text=f"{done.rows:,} records scored: {done.output}")


@model_app.command()
@command
def explain(
    bundle: BundleFile,
    source: Annotated[Path, typer.Option("--input", help="Records: .csv, .csv.gz or .parquet.")],
    row: Annotated[int, typer.Option(min=1, help="Which record; 1 is the first.")] = 1,
    platform: Annotated[str | None, typer.Option(help="As for score.")] = None,
    what_if: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="What another value would do; several go together."),
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page for the person, an .html file.")] = None,
    purpose: Annotated[
        str | None, typer.Option(help="What the score is for; another than the bundle's is refused.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Explain one score: points, reasons, what changes would do. Nothing is stored but the page asked for.

    Example: assay model explain card.bundle --input people.csv --row 3 --what-if status_1=0 --html page.html
    """
    import time

    from assay.models.bundle import read_bundle
    from assay.models.explain import explain as explain_record
    from assay.models.explain import explanation_in_words
    from assay.models.person_page import require_page, write_person_page
    from assay.models.scoring import read_record
    from assay.models.whatif import parse_asked
    from assay.privacy.purpose import check_use

    asked = parse_asked(what_if or [])
    opened = read_bundle(bundle)
    if purpose is not None:
        check_use(purpose, opened.study.purpose, opened.study.rules)
    now = time.time()
    opened.require_current(now)
    opened.require_promoted()
    if html is not None:
        require_page(html)
    record = read_record(opened.scorecard.grid, source, row, platform)
    explained = explain_record(opened.scorecard, record, asked)
    result = {"row": row, **explained}
    if html is None:
        emit(result, as_json=as_json, text=explanation_in_words(explained))
        return
    write_person_page(html, opened, explained, now=now)
    emit(
        {**result, "html": str(html)},
        as_json=as_json,
        text=f"{html}: the page for the person. It holds personal data; only you can read the file.",
    )


@model_app.command()
@command
def export(
    bundle: BundleFile,
    form: Annotated[str, typer.Option("--format", help="json, csv, sql or onnx.")],
    output: Annotated[Path, typer.Option("--output", help="The file to write.")],
    purpose: Annotated[str, typer.Option("--purpose", help="What it is for; the bundle's purpose.")],
    context: Annotated[str | None, typer.Option(help="As for score.")] = None,
    platform: Annotated[str | None, typer.Option(help="sql, onnx: as for score.")] = None,
    table: Annotated[str | None, typer.Option(help="sql: the table; without it, records.")] = None,
    dialect: Annotated[str | None, typer.Option(help="sql: sqlite, or postgresql.")] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(help="sql, onnx: a column that the table has; repeatable. Without it, all features'."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write the scorecard for other programs: as JSON, a CSV table of points, SQL or ONNX.

    Example: assay model export card.bundle --format sql --output score.sql --purpose consumer_credit
    """
    from assay.models.bundle import read_bundle
    from assay.models.export import export_model

    opened = read_bundle(bundle)
    done = export_model(
        opened,
        output,
        form=form,
        purpose=purpose,
        context=context,
        platform=platform,
        columns=column,
        table=table,
        dialect=dialect,
    )
    if done.missing:
        note(f"columns that are not there, counted as missing: {', '.join(done.missing)}")
    if done.absent:
        note(f"components that are not there, counted neither for nor against: {', '.join(done.absent)}")
    result = {
        "format": done.form,
        "output": str(done.output),
        "columns": list(done.columns),
        "missing_columns": list(done.missing),
        "absent_components": list(done.absent),
        **_bundle_facts(opened),
    }
    emit(
        result, as_json=as_json, text=f"{output}: for {purpose} only. Whoever holds it can use it unchecked."
    )


def _every_seconds(words: str, seconds: float = 2.0) -> Callable[[int], None]:
    """Return what says ``words`` with a number on standard error, at most once in so many seconds."""
    import time

    last = time.monotonic()

    def step(number: int) -> None:
        nonlocal last
        if time.monotonic() - last >= seconds:
            last = time.monotonic()
            note(words.format(number))

    return step


def _study_facts(study: Study) -> dict[str, Any]:
    from assay.models.encoding import Grid

    notes = []
    try:
        study.require_trainable()
    except Refused as refused:
        notes.append(f"a run of this study is refused: {refused}")
    return {
        "valid": True,
        "name": study.name,
        "purpose": study.purpose,
        "contexts": list(study.contexts),
        "pack": study.pack,
        "features": [feature.name for feature in study.features],
        "interactions": [
            {"name": pair.name, "features": pair.pair, "label": pair.label, "cells": pair.cells}
            for pair in Grid.of(study).pairs
        ],
        "model": study.training.model,
        "epsilon": study.privacy.epsilon,
        "delta": study.privacy.delta,
        "trust": study.privacy.trust,
        "digest": study.digest,
        "notes": notes,
    }


def _bundle_facts(bundle: Bundle) -> dict[str, Any]:
    return {
        "study": bundle.study.name,
        "purpose": bundle.study.purpose,
        "contexts": list(bundle.study.contexts),
        "pack": bundle.study.pack,
        "created": bundle.created,
        "expires": bundle.expires,
        "fingerprint": bundle.fingerprint,
        "digest": bundle.digest,
        "question": bundle.study.question,
        "held": list(bundle.held),
    }


def _shown(bundle: Bundle, facts: dict[str, Any], card: dict[str, Any]) -> str:
    from datetime import UTC, datetime

    from assay.models.auditwords import audit_in_words
    from assay.models.label import label_in_words

    until = datetime.fromtimestamp(bundle.expires, tz=UTC).date().isoformat()
    lines = [
        f"{bundle.study.name} predicts: {bundle.study.outcome.meaning}",
        f"For {facts['purpose']} ({', '.join(facts['contexts'])}), until {until}",
        f"Answers: {_QUESTIONS[bundle.study.question]}",
        f"Signed by {bundle.fingerprint}",
        *(f"HELD, must not be used: {reason}" for reason in bundle.held),
        "",
        label_in_words(dict(bundle.label)),
        "",
        audit_in_words(bundle.audit),
        "",
    ]
    lines += [f"{name:12} {value:.4f}" for name, value in bundle.metrics.items() if isinstance(value, float)]
    lines.append(f"Points (everybody starts from {card['base_points']}):")
    others = [base["points"] for base in card["bases"][:-1]]
    if others:
        lines.append(f"  from {min(others)} to {max(others)} where some components are not known")
    for feature in card["features"]:
        points = [cell["points"] for cell in feature["cells"]]
        lines.append(f"  {feature['label']}: {min(points):+d} to {max(points):+d}")
        lines += [f"    {cell['points']:+5d}  {cell['value']}" for cell in feature["cells"]]
    return "\n".join(lines)


_QUESTIONS = {
    "authenticity": "is this a genuine person? It is no credit score and is refused as one",
    "credit": "does this person keep promises? It is no fraud score and is refused as one",
}
