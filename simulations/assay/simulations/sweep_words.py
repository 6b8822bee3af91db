"""The sentences of a sweep's report, made of its numbers: what was gained, and what each picture shows."""

from __future__ import annotations

from collections.abc import Iterable

from assay.models.digits import count, percent, short
from assay.models.svg import clipped
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

_NAME = 40  # characters of a group's name in a sentence
# Probabilities that chance puts so many bounds above the claim: below the first it is a defect, below the
# second it may be one.
_DEFECT, _FEW = 0.001, 0.2
# The best and the worst of many groups are else those that are too small to tell.
_JUDGED = 100
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
    """Return a gain for a table: the number and what it means, and under them the interval."""
    if gain is None:
        return "–"
    if gain.sign is None:
        return signed(gain.mean), "one seed"
    return f"{signed(gain.mean)} {_SIGN[gain.sign]}", between(gain)


_SIGN = {1: "gain", 0: "unclear", -1: "loss"}


def verdict(sweep: Results) -> str:
    """Say whether federating gains anything, over all settings."""
    gains = [gain for setting in sweep.settings if (gain := sweep.gain(*setting)) is not None]
    if not gains:
        return "Not measured: no holder's own model was trained, so nobody knows what joining would add."
    total = count(len(gains), "combination") + " of holders and ε"
    if all(gain.sign is None for gain in gains):
        above = sum(gain.mean > _SAME for gain in gains)
        where = f" in {above} of {total}" if len(gains) > 1 else ""
        start = f"A gain was seen{where}" if above else "No gain was seen"
        return f"{start}, but with one seed: a small difference may be chance. Run more --seeds."
    won, lost = (sum(gain.sign == sign for gain in gains) for sign in (1, -1))
    unclear = len(gains) - won - lost
    if won == len(gains):
        return f"Yes: joining gains, clearly so in {'all ' * (won > 1)}{total}."
    if unclear == len(gains):
        return f"No gain: joining makes no clear difference in {'any of ' * (unclear > 1)}{total}."
    rest = [f"in {lost} it clearly loses"] * (lost > 0)
    rest += [f"in {unclear} there is no clear difference"] * (unclear > 0)
    start = "No gain" if not won else "Mostly" if 4 * won >= 3 * len(gains) and not lost else "It depends"
    return f"{start}: joining gains clearly in {won or 'none'} of {total}; {', '.join(rest)}."


def answers(sweep: Results) -> list[str]:
    """Say for each number of holders what joining gains, at the smallest epsilon that is about as good."""
    return [_answer(sweep, holders, sweep.enough(holders)) for holders in sweep.holders]


def _answer(sweep: Results, holders: int, epsilon: float) -> str:
    start = f"{count(holders, 'holder')}, {eps(epsilon)}: AUROC {sweep.joint(holders, epsilon).mean:.3f}"
    alone, gain = sweep.over(holders, epsilon, CURVES["local"][1]), sweep.gain(holders, epsilon)
    if alone is None or gain is None:
        return f"{start}; no holder's own model to compare with."
    change = f"{start} together instead of {alone.mean:.3f} for a holder alone on average"
    if gain.sign is None:
        return f"{change}, a difference of {signed(gain.mean)} (one seed, no interval)."
    moved = {1: "a gain of", 0: "no clear difference:", -1: "a loss of"}[gain.sign]
    amount = signed(gain.mean) if gain.sign == 0 else f"{abs(gain.mean):.3f}"
    return f"{change}, {moved} {amount} (95\u00a0% interval {between(gain)})."


def seeds_note(sweep: Results) -> str:
    """Say what the bands are, or why there are none."""
    seeds = {len(sweep.at(*setting)) for setting in sweep.settings}
    if seeds == {1}:
        return "One seed: no interval can be shown."
    some = f"{min(seeds)}" if len(seeds) == 1 else f"{min(seeds)} to {max(seeds)}"
    wide = " Two seeds give very wide ones; five are better." if min(seeds) == 2 else ""
    return f"Bands and bars: 95\u00a0% interval of the mean over {some} seeds.{wide}"


def read_curves(sweep: Results) -> str:
    """Say what happens along epsilon at the number of holders that is shown in detail."""
    holders, epsilon = sweep.shown
    ran = [e for h, e in sweep.settings if h == holders]
    words = f"With {count(holders, 'holder')}, the joint model's AUROC "
    if len(ran) > 1:
        first, last = (sweep.joint(holders, e).mean for e in (ran[0], ran[-1]))
        words += f"goes from {first:.3f} at {eps(ran[0])} to {last:.3f} at {eps(ran[-1])}; "
        near = f"from {eps(epsilon)} on it stays within 0.01 of its best"
        words += near if epsilon < ran[-1] else "a still larger ε might give more"
        words += f". At {eps(epsilon)} it "
    reached = f"is {sweep.joint(holders, epsilon).mean:.3f}"
    at = f" at {eps(epsilon)}" if len(ran) == 1 else ""
    return f"{words}{reached}{at}{_beside(sweep, holders, epsilon)}."


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
    return f": {', '.join(found)}" if found else "; there is nothing to compare it with"


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
    if len(ran) == 1:
        return "The same records are shared by more and more holders."
    ends = (ran[0], ran[-1])
    first, last = (sweep.joint(holders, epsilon).mean for holders in ends)
    words = f"the joint model's AUROC goes from {first:.3f} to {last:.3f}"
    alone = [sweep.over(holders, epsilon, CURVES["local"][1]) for holders in ends]
    if alone[0] is not None and alone[1] is not None:
        words += f", that of a holder alone from {alone[0].mean:.3f} to {alone[1].mean:.3f}"
    return f"From {ran[0]:,} to {ran[-1]:,} holders of the same records, at {eps(epsilon)}, {words}."


def read_gains(points: list[tuple[float, float]], epsilon: float) -> str:
    """Say how many holders gain, and whether small ones gain more than large ones."""
    gaining = sum(gain > 0 for _, gain in points)
    words = (
        f"At {eps(epsilon)} the joint model is better than {gaining:,} of "
        f"{count(len(points), 'model')} that holders trained alone"
    )
    ordered = sorted(points)
    third = len(ordered) // 3
    if third < 2 or ordered[third - 1][0] == ordered[-third][0]:
        return f"{words}. Above the line a holder gains by joining."
    small, large = (sum(gain for _, gain in part) / third for part in (ordered[:third], ordered[-third:]))
    return (
        f"{words}. The smallest third (up to {ordered[third - 1][0]:,.0f} records) gains {signed(small)} on "
        f"average, the largest (from {ordered[-third][0]:,.0f}) {signed(large)}."
    )


def read_groups(rows: list[GroupRow]) -> str:
    """Say where groups of :data:`_JUDGED` people or more differ most, and what privacy changes most."""
    rows, words = [row for row in rows if row.persons >= _JUDGED], []
    ranked = [(row.auroc.mean, clipped(row.group, _NAME)) for row in rows if row.auroc is not None]
    if len(ranked) > 1:
        (low, worst), (high, best) = min(ranked), max(ranked)
        words.append(f"Ranked best: “{best}” (AUROC {high:.3f}), worst: “{worst}” ({low:.3f}).")
    moved = _furthest((row.group, row.approval_rate, row.open_approval_rate) for row in rows)
    if moved is not None:
        group, private, free = moved
        words.append(f"Privacy changes the approval rate most for “{group}”: {private} instead of {free}.")
    missed = _furthest((row.group, row.predicted, row.observed) for row in rows)
    if missed is not None:
        group, predicted, observed = missed
        words.append(f"Furthest from the truth: “{group}”, {predicted} predicted, {observed} observed.")
    return " ".join(words) or "Every group is too small to say anything."


def _furthest(rows: Iterable[tuple[str, Band | None, Band | None]]) -> tuple[str, str, str] | None:
    """Return the group whose two rates lie furthest apart, with both in percent."""
    found = [
        (abs(one.mean - other.mean), (clipped(group, _NAME), percent(one.mean), percent(other.mean)))
        for group, one, other in rows
        if one is not None and other is not None
    ]
    return max(found)[1] if found else None


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


def read_audit(rows: list[AuditRow], *, runs: int, above: int, confidence: float) -> str:
    """Say whether canaries contradict the claim: more often than chance makes them do it.

    Args:
        rows: one for each setting.
        runs: how many were attacked.
        above: in how many of them the lower bound lies above the claim.
        confidence: of each bound.
    """
    from scipy.special import bdtrc

    top = max(rows, key=lambda row: row.lower_bound / row.claimed)
    fitted = " Diamond and line: estimate and interval if the noise is Gaussian."
    key = f"Bar: proved; upright mark: claimed.{fitted * any(row.estimate is not None for row in rows)}"
    if not above:
        share = percent(top.lower_bound / top.claimed)
        return f"No run proves more than was claimed; at most {share} of it is proved ({top.words}). {key}"
    often = f"In {above} of {count(runs, 'run')} the canaries prove more than was claimed"
    chance = f"{100 * (1 - confidence):.3g}\u00a0% of runs"
    # The runs' noise is independent, so that bounds above a claim that holds are at most binomial.
    by_chance = bdtrc(above - 1, runs, 1 - confidence)
    if by_chance < _DEFECT:
        return f"{often}. Chance does that in at most {chance}, and not so often: look for a defect. {key}"
    if by_chance < _FEW:
        return f"{often}; chance does that in up to {chance}. Run more --seeds before trusting it. {key}"
    return f"{often}, no more often than chance does: in up to {chance}. {key}"


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
