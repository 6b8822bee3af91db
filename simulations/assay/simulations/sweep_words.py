"""The sentences of a sweep's report, made of its numbers: what was gained, and what each picture shows."""

from __future__ import annotations

from assay.models.digits import count, percent, short
from assay.simulations.sweep_cells import CURVES, Band, Results
from assay.simulations.sweep_marks import AuditRow, GroupRow
from assay.simulations.tallies import CalibrationRow
from assay.simulations.wording import duration

__all__ = [
    "answers",
    "between",
    "eps",
    "gain_cell",
    "notes",
    "read_audit",
    "read_calibration",
    "read_curves",
    "read_gains",
    "read_groups",
    "read_holders",
    "read_seconds",
    "seeds_note",
    "signed",
    "verdict",
]

_SAME = 0.0005  # of AUROC: what rounds to nothing at three digits


def signed(value: float) -> str:
    """Return a change of AUROC with its sign and a true minus."""
    return f"{value:+.3f}".replace("-", "−")


def between(each: Band) -> str:
    """Return the interval of a change in words, empty where there is none."""
    return "" if each.low is None or each.high is None else f"{signed(each.low)} to {signed(each.high)}"


def eps(epsilon: float) -> str:
    """Return an epsilon with its letter."""
    return f"ε\u00a0{short(epsilon)}"


def gain_cell(gain: Band | None) -> str | tuple[str, str]:
    """Return a gain for a table: the number, and under it the interval and what it means."""
    if gain is None:
        return "–"
    if gain.sign is None:
        return signed(gain.mean), "one seed"
    return signed(gain.mean), f"{between(gain)}: {_SIGN[gain.sign]}"


_SIGN = {1: "gain", 0: "unclear", -1: "loss"}


def verdict(sweep: Results) -> str:
    """Say whether federating gains anything, over all settings."""
    gains = [gain for setting in sweep.settings if (gain := sweep.gain(*setting)) is not None]
    total = count(len(sweep.settings), "combination") + " of holders and ε"
    if not gains:
        return "Not measured: no holder's own model was trained, so nobody knows what joining would add."
    if all(gain.sign is None for gain in gains):
        above = sum(gain.mean > _SAME for gain in gains)
        start = "No gain was seen" if not above else f"A gain was seen in {above} of {total}"
        return f"{start}, but each was run with one seed: a small difference may be chance. Run more --seeds."
    won, lost = (sum(gain.sign == sign for gain in gains) for sign in (1, -1))
    rest = f"{lost} show a clear loss and {len(gains) - won - lost} no clear difference"
    if won == len(sweep.settings):
        return f"Yes: joining gains, clearly so in {'all ' * (won > 1)}{total}."
    if won:
        return f"It depends: joining gains clearly in {won} of {total}; {rest}."
    return f"No gain: in none of {total} does joining gain clearly; {rest}."


def answers(sweep: Results) -> list[str]:
    """Say for each number of holders what joining gains, at the smallest epsilon that is about as good."""
    return [_answer(sweep, holders, sweep.enough(holders)) for holders in sweep.holders]


def _answer(sweep: Results, holders: int, epsilon: float) -> str:
    read = {key: sweep.over(holders, epsilon, find) for key, (_, find) in CURVES.items()}
    together, alone, gain = read["federated"], read["local"], sweep.gain(holders, epsilon)
    start = f"{count(holders, 'holder')}, {eps(epsilon)}: AUROC {together.mean:.3f}" if together else ""
    if alone is None or gain is None:
        return f"{start}; no holder's own model to compare with."
    change = f"{start} together instead of {alone.mean:.3f} for a holder alone on average"
    if gain.sign is None:
        return f"{change}, a difference of {signed(gain.mean)} (one seed, no interval)."
    words = {1: "a gain", 0: "no clear difference", -1: "a loss"}[gain.sign]
    return f"{change}, {words} of {signed(gain.mean)} (95\u00a0% interval {between(gain)})."


def seeds_note(sweep: Results) -> str:
    """Say what the bands are, or why there are none."""
    seeds = {len(sweep.at(*setting)) for setting in sweep.settings}
    if seeds == {1}:
        return "One seed: no interval can be shown."
    some = f"{min(seeds)}" if len(seeds) == 1 else f"{min(seeds)} to {max(seeds)}"
    wide = " Two seeds give very wide ones; five are better." if min(seeds) == 2 else ""
    return f"Shaded: 95\u00a0% interval of the mean over {some} seeds.{wide}"


def read_curves(sweep: Results) -> str:
    """Say what happens along epsilon at the number of holders that is shown in detail."""
    holders, epsilon = sweep.shown
    ran = [e for h, e in sweep.settings if h == holders]
    first, last = (sweep.over(holders, e, CURVES["federated"][1]) for e in (ran[0], ran[-1]))
    words = ""
    if first is not None and last is not None and len(ran) > 1:
        words = (
            f"With {count(holders, 'holder')}, the joint model goes from {first.mean:.3f} at {eps(ran[0])} "
            f"to {last.mean:.3f} at {eps(ran[-1])}; "
        )
        near = f"from {eps(epsilon)} on it stays within 0.01 of its best. "
        words += near if epsilon < ran[-1] else "a still larger ε might give more. "
    words += f"At {eps(epsilon)} with {count(holders, 'holder')} it is {_beside(sweep, holders, epsilon)}."
    return words


def _beside(sweep: Results, holders: int, epsilon: float) -> str:
    """Compare the joint model with each baseline that was measured, differences taken within a seed."""
    found = []
    for key, words in (
        ("local", "the average holder alone"),
        ("pooled", "pooling all records at the same ε"),
        ("open", "pooling without privacy"),
        ("limit", "the true risk, which nothing can beat"),
    ):
        read = CURVES[key][1]
        change = sweep.over(holders, epsilon, lambda c, read=read: _less(c["auroc"], read(c)))  # type: ignore[misc]
        if change is not None:
            found.append(f"{_apart(change.mean)} {words}")
    return ", ".join(found) if found else "compared with nothing: no baseline was measured"


def _apart(change: float) -> str:
    if abs(change) < _SAME:
        return "level with"
    return f"{abs(change):.3f} {'above' if change > 0 else 'below'}"


def _less(value: float, other: float | None) -> float | None:
    return None if other is None else value - other


def read_holders(sweep: Results) -> str:
    """Say what more holders change, at the epsilon that is shown in detail."""
    epsilon = sweep.shown[1]
    ran = [h for h, e in sweep.settings if e == epsilon]
    ends = [
        [sweep.over(holders, epsilon, CURVES[key][1]) for holders in (ran[0], ran[-1])]
        for key in ("federated", "local")
    ]
    words = []
    for name, (first, last) in zip(("the joint model", "a holder alone"), ends, strict=True):
        if first is not None and last is not None and len(ran) > 1:
            words.append(f"{name} goes from {first.mean:.3f} to {last.mean:.3f}")
    if not words:
        return "More holders share the same records."
    return (
        f"The same records with {ran[0]:,} and with {ran[-1]:,} holders, at {eps(epsilon)}: "
        f"{' and '.join(words)}."
    )


def read_gains(points: list[tuple[float, float]], epsilon: float) -> str:
    """Say how many holders gain, and whether small ones gain more than large ones."""
    gaining = sum(gain > 0 for _, gain in points)
    words = (
        f"At {eps(epsilon)} the joint model is better than {gaining:,} of "
        f"{count(len(points), 'model')} that holders trained alone"
    )
    ordered = sorted(points)
    third = len(ordered) // 3
    if third < 2 or ordered[0][0] == ordered[-1][0]:
        return f"{words}. Above the line a holder gains by joining."
    small, large = (sum(gain for _, gain in part) / third for part in (ordered[:third], ordered[-third:]))
    return (
        f"{words}. The smallest third (up to {ordered[third - 1][0]:,.0f} records) gains {signed(small)} on "
        f"average, the largest (from {ordered[-third][0]:,.0f}) {signed(large)}."
    )


def read_groups(rows: list[GroupRow]) -> str:
    """Say where groups differ most, and what privacy changes most."""
    words = []
    ranked = [(row.auroc.mean, row.group) for row in rows if row.auroc is not None]
    if len(ranked) > 1:
        (low, worst), (high, best) = min(ranked), max(ranked)
        words.append(f"Ranked best: “{best}” (AUROC {high:.3f}), worst: “{worst}” ({low:.3f}).")
    moved = [
        (abs(row.approval_rate.mean - row.open_approval_rate.mean), row)
        for row in rows
        if row.approval_rate is not None and row.open_approval_rate is not None
    ]
    if moved:
        row = max(moved, key=lambda pair: pair[0])[1]
        if row.approval_rate is not None and row.open_approval_rate is not None:
            words.append(
                f"Privacy changes the approval rate most for “{row.group}”: "
                f"{percent(row.approval_rate.mean)} instead of {percent(row.open_approval_rate.mean)}."
            )
    missed = [
        (abs(row.predicted.mean - row.observed.mean), row)
        for row in rows
        if row.predicted is not None and row.observed is not None
    ]
    if missed:
        row = max(missed, key=lambda pair: pair[0])[1]
        if row.predicted is not None and row.observed is not None:
            words.append(
                f"Furthest from the truth: “{row.group}”, {percent(row.predicted.mean)} predicted, "
                f"{percent(row.observed.mean)} observed."
            )
    return " ".join(words) or "Every group is too small to say anything."


def read_calibration(rows: list[CalibrationRow], error: Band | None, seed: int) -> str:
    """Say how often the stated chance is the one that comes true."""
    holding = sum(row.holds for row in rows)
    words = (
        "Points on the diagonal mean that a stated chance is the chance that comes true; here it passes "
        f"through {holding} of {count(len(rows), 'interval')} (seed {seed}). "
    )
    if error is not None:
        words += f"On average prediction and observation differ by {100 * error.mean:.1f} percentage points."
    return words.rstrip()


def read_audit(rows: list[AuditRow], confidence: float) -> str:
    """Say whether canaries contradict the claim."""
    beyond = [row for row in rows if row.lower_bound > row.claimed]
    if beyond:
        return (
            f"In {len(beyond)} of {count(len(rows), 'setting')} the canaries prove more than was claimed "
            f"({beyond[0].words}). By chance that happens in at most {percent(1 - confidence)} of runs: look "
            "for a defect before trusting any promise here."
        )
    top = max(rows, key=lambda row: row.lower_bound / row.claimed)
    share = percent(top.lower_bound / top.claimed)
    estimated = any(row.estimate is not None for row in rows)
    fitted = " Diamond and line: an estimate with its interval, if the noise is Gaussian." * estimated
    return (
        f"Nowhere do the canaries prove more than was claimed; at most they prove {share} of it "
        f"({top.words}). Bar: proved; upright mark: claimed.{fitted}"
    )


def read_seconds(points: list[tuple[float, float]], noun: str) -> str:
    """Say how run time grows."""
    places = sorted({x for x, _ in points})
    means = []
    for place in (places[0], places[-1]):
        mine = [y for x, y in points if x == place]
        means.append(sum(mine) / len(mine))
    if len(places) == 1:
        return f"Training took {duration(means[0])} on average with {places[0]:,.0f} {noun}."
    return (
        f"Training took {duration(means[0])} on average with {places[0]:,.0f} {noun} and "
        f"{duration(means[1])} with {places[-1]:,.0f}: {means[1] / max(means[0], 1e-9):.2g} times the time "
        f"for {places[-1] / places[0]:.2g} times the {noun}."
    )


def notes(sweep: Results) -> list[str]:
    """Say where the numbers come from and what they do not say."""
    found = [
        "“Alone” is a model that a holder trains on its own records through the same code, at the same ε. A "
        "holder that keeps its model to itself might train it without privacy; that is not measured.",
        "The gain is the joint model's AUROC minus the average of the holders' own, on the same held-out "
        "records, averaged over seeds.",
        "Seeds draw the held-out records and the layout over holders anew, and noise never has a seed; the "
        "intervals cover these three. They do not cover other people than those in the file.",
    ]
    intervals = sum(
        gain is not None and gain.sign is not None
        for gain in map(sweep.gain, *zip(*sweep.settings, strict=True))
    )
    if intervals > 1:
        found.append(
            f"Each interval misses the truth in about 1 of 20 sweeps. Of the {intervals} gains here, one or "
            "another may therefore be off: trust a pattern over neighbours more than a single number."
        )
    tried = [own["auroc"] is not None for cell in sweep.cells for own in cell["local"]]
    if tried and not all(tried):
        found.append(
            f"Own models were trained for {sum(tried):,} of {len(tried):,} holders: not for those whose "
            "records have a single outcome, and of many holders only for a sample. Averages are over these."
        )
    return found
