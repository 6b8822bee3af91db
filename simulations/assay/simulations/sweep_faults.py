"""Faults and attacks in a sweep's report: what was injected, what was caught, and what was not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from assay.models.digits import count
from assay.models.page import paragraph, table
from assay.simulations.sweep_cells import Results, band
from assay.simulations.sweep_marks import AttackRow, attacks_chart
from assay.simulations.sweep_page import Picture, Section, drawn

__all__ = ["faults"]

_ATTACKS = {
    "flip": "Labels turned round",
    "scale": "Sums multiplied",
    "garbage": "Unreadable or forged answers",
    "replay": "Books restored from an older copy",
}
_OTHERS = {"slow": "Slow answers"}
_DROP = "drop-"

Block = Mapping[str, Any]


def faults(sweep: Results) -> Section | None:
    """Return the section, None where no run had faults."""
    if not _blocks(sweep):
        return None
    heading, caption, inner = "Faults and attacks", _read(sweep), _tables(sweep)
    rows = _attacks(sweep)
    if not rows:
        return Section(key="faults", heading=heading, inner=paragraph(caption) + inner)
    picture = Picture(name="attacks", heading=heading, charts=(attacks_chart(rows),), caption=caption)
    return drawn("faults", picture, inner)


def _blocks(sweep: Results) -> list[Block]:
    return [run["faults"] for run in (*sweep.cells, *sweep.failed) if run["faults"]]


def _attacks(sweep: Results) -> list[AttackRow]:
    """Count attacks by holders, one for each run and holder, and those whose numbers are in a model."""
    made: Counter[str] = Counter()
    believed: Counter[str] = Counter()
    for block in _blocks(sweep):
        made.update({kind: len(each["holders"]) for kind, each in block["injected"].items()})
        for each in block["not_caught"]:
            believed[each["kind"]] += len(each["holders"])
    return [
        AttackRow(words=words, made=made[kind], believed=min(believed[kind], made[kind]))
        for kind, words in _ATTACKS.items()
        if made[kind]
    ]


def _read(sweep: Results) -> str:
    """Say how much was kept out of the models."""
    blocks, rows = _blocks(sweep), _attacks(sweep)
    made, believed = sum(row.made for row in rows), sum(row.believed for row in rows)
    lies = [each["what"] for block in blocks for each in block["not_caught"] if not each["holders"]]
    ended = sum(bool(run["faults"]) for run in sweep.failed)
    words = [f"{count(len(blocks) - ended, 'run')} with faults came to a model."]
    if ended:
        words.append(f"{count(ended, 'run')} ended without one.")
    if made:
        words.append(
            f"Of {count(made, 'attack')} by holders (one holder in one run), {made - believed:,} were "
            "stopped: refused, or the holder or the run was gone before the end. "
            f"{believed:,} went on to the end."
        )
    if any(block.get("lie") for block in blocks):
        words.append(
            f"The lying coordinator was believed in {count(len(lies), 'run')}."
            if lies
            else "The lying coordinator learned nothing that it should not."
        )
    changes = band((block.get("effect") or {}).get("auroc_change") for block in blocks)
    if changes is not None:
        change = f"{changes.mean:+.3f}".replace("-", "−")
        words.append(f"On average the faults changed AUROC by {change}.")
    return " ".join(words)


def _tables(sweep: Results) -> str:
    """Return what was injected, caught and not caught as tables, counted over all runs."""
    blocks = _blocks(sweep)
    options = ", ".join(dict.fromkeys(option for block in blocks for option in block.get("options", ())))
    intro = paragraph(
        f"Asked for: {options or 'nothing by name'}. What stands against the faults is the live system's own "
        "code. A run that ends without a model lets no attack into one, but costs what it has spent by then."
    )
    return intro + "".join(
        table(caption, heads, rows)
        for caption, heads, rows in (
            ("Injected", ("What", "Times", "Holders, over all runs"), _injected(blocks)),
            ("Caught", ("What", "Times"), _caught(blocks)),
            ("Questions of a lying coordinator", ("Question", "Answer", "Holders"), _lies(blocks)),
            ("Ended without a model", ("Why", "Runs"), _ended(sweep)),
            ("Not caught", ("What", "Holders, over all runs"), _not_caught(blocks)),
        )
        if rows
    )


def _named(kind: str) -> str:
    if kind.startswith(_DROP):
        return f"Answers lost: {kind.removeprefix(_DROP)}"
    return _ATTACKS.get(kind) or _OTHERS.get(kind) or kind


def _injected(blocks: Sequence[Block]) -> list[tuple[str, str, str]]:
    times: Counter[str] = Counter()
    holders: Counter[str] = Counter()
    for block in blocks:
        for kind, each in block["injected"].items():
            times[kind] += each["times"]
            holders[kind] += len(each["holders"])
    return [(_named(kind), f"{times[kind]:,}", f"{holders[kind]:,}") for kind in sorted(times)]


def _caught(blocks: Sequence[Block]) -> list[tuple[str, str]]:
    found: Counter[str] = Counter()
    for block in blocks:
        caught = block["caught"]
        found["Holders that did not accept the study"] += len(caught.get("not_accepted", ()))
        found["Multiplied sums that the holder's own bound cut"] += caught.get("cut", {}).get("times", 0)
        found.update(f"Gone on without, {_reason(each)}" for each in caught.get("dropped", ()))
        found.update(f"Refused for its books, {_reason(each)}" for each in caught.get("ledger", ()))
        for each in caught.get("refused", ()):
            found[f"Refused by holders: {each['question']}, {each['code']}"] += each["times"]
    return _listed(found)


def _reason(step: Mapping[str, Any]) -> str:
    """Return why, without the holder's name, so that the same reason counts once."""
    reason: str = step["reason"]
    return reason.replace(step["holder"], "it") if step.get("holder") else reason


def _ended(sweep: Results) -> list[tuple[str, str]]:
    return _listed(Counter(run["error"] for run in sweep.failed if run["faults"]))


def _not_caught(blocks: Sequence[Block]) -> list[tuple[str, str]]:
    found: Counter[str] = Counter()
    for block in blocks:
        for each in block["not_caught"]:
            found[f"{_named(each['kind'])}: {each['what']}"] += max(1, len(each["holders"]))
    return _listed(found)


def _lies(blocks: Sequence[Block]) -> list[tuple[str, str, str]]:
    found: Counter[tuple[str, str]] = Counter()
    for block in blocks:
        for each in (block.get("lie") or {}).get("answers", ()):
            found[str(each["question"]), str(each["answer"])] += _many(each["holders"])
    return [(question, answer, f"{times:,}") for (question, answer), times in found.most_common()]


def _many(holders: int | Iterable[str]) -> int:
    return holders if isinstance(holders, int) else len(list(holders))


def _listed(found: Counter[str]) -> list[tuple[str, str]]:
    return [(words, f"{times:,}") for words, times in found.most_common() if times]
