"""The privacy label: what a model's privacy guarantee says, for whom, and what it does not cover.

Computed from the study and the numbers of rounds and holders alone, all public. What a run releases is
described here once, for the holders that add the noise and the coordinator that reckons with it.
"""

from __future__ import annotations

import math
from typing import Any

from assay.models.encoding import Grid
from assay.models.schema import Study
from assay.models.tally import Tally, tally_of
from assay.privacy.accounting import Event, PrivacyTarget, RunCost, epsilon_of, epsilon_of_mu
from assay.privacy.mechanism import IntegerMechanism

__all__ = [
    "epsilon_of_share",
    "label_in_words",
    "mechanism_of",
    "privacy_label",
    "privacy_target",
]

_LARGEST_FACTOR = 20.0  # beyond this epsilon, a factor says nothing to anybody
NOT_COVERED = (
    "How many rounds a holder answered, when, and whether it took part at all.",
    "Anything a holder or the requesting party publishes by other means.",
    "What a score itself tells about the person it belongs to.",
    "A person known to more holders than holders_per_person says.",
    "Runs of other federations on the same records: a holder's ledger belongs to one federation.",
    "Whether records are true: a holder can shift the model by as much as its persons may count.",
    "How long a holder takes to answer.",
)
NOT_COVERED_BY_SUMS = (
    "More curious, colluding or absent holders than are tolerated, taken together: with each one more, the"
    " guarantee weakens towards the one stated for failed aggregation.",
    "One party that takes part under several names: each name counts as a holder of its own. Holders must"
    " know each other's keys, and pin them where enrolment is not trusted.",
)


def privacy_target(study: Study) -> PrivacyTarget:
    """Return the study's privacy target in the form that prices releases."""
    privacy = study.privacy
    return PrivacyTarget(
        epsilon=privacy.epsilon,
        delta=privacy.delta,
        holders_per_person=privacy.holders_per_person,
        trust=privacy.trust,
    )


def mechanism_of(
    study: Study, grid: Grid, *, number: int, rounds: int, contributors: int = 1
) -> IntegerMechanism:
    """Return the mechanism of one round's release, the same at holders and coordinator.

    Args:
        study: the study.
        grid: its cells.
        number: 0 for counts, 1 to ``rounds`` for gradients, then calibration and audit.
        rounds: gradient rounds of the run; not looked at in round 0.
        contributors: holders whose shares add up to the whole noise.

    Raises:
        BadInput: a number is out of range.
    """
    event = RunCost.of(privacy_target(study)).event(number, rounds)
    size, sensitivity = grid.width, grid.gradient_clip_norm if number else grid.sensitivity
    if study.training.model == "neural" and 0 < number <= rounds:
        from assay.models.neural import L2_CLIP_NORM, NeuralLayout  # late: it needs torch and Opacus

        size, sensitivity = NeuralLayout(grid=grid).width, L2_CLIP_NORM
    if number > rounds and number > 0:
        tally: Tally = tally_of(study, grid, number - rounds)
        size, sensitivity = tally.size, tally.sensitivity
    return IntegerMechanism(
        l2_clip_norm=sensitivity,
        noise_multiplier=event.noise_multiplier,
        size=size,
        contributors=contributors,
    )


def privacy_label(study: Study, *, rounds: int, holders: int) -> dict[str, Any]:
    """Describe what a run of ``rounds`` gradient rounds costs one person.

    Args:
        study: the study; its privacy target is taken as it is.
        rounds: gradient rounds, 1 to 1000.
        holders: holders that were asked in the round in which most were: noise shares are smallest there.
            More than the study tolerates.

    Returns:
        A JSON object. ``releases`` lists each kind of release with its size, noise and cost. The two
        ``..._if_aggregation_fails`` are null where every holder adds its full noise.

    Raises:
        BadInput: ``rounds`` or ``holders`` is out of range.
    """
    target, grid = privacy_target(study), Grid.of(study)
    cost = RunCost.of(target)
    summed = target.trust == "distributed"
    contributors = holders - study.privacy.tolerated if summed else 1
    return {
        "unit": "one person: all rows of that person at a holder" if study.person else "one person: one row",
        "adjacency": "one person more or less, with all rows; the exact number of persons is never used",
        "epsilon": target.epsilon,
        "delta": target.delta,
        "holders_per_person": target.holders_per_person,
        "epsilon_per_holder": epsilon_of(cost.total(rounds), target.delta),
        "trust": target.trust,
        "trust_in_words": _trust(holders, study.privacy.tolerated) if summed else _LOCAL,
        "holders": holders,
        "tolerated": study.privacy.tolerated if summed else None,
        **_if_aggregation_fails(target, contributors if summed else None),
        "accountant": "exact Gaussian composition (Dong, Roth, Su 2019, cor. 3.3; Balle, Wang 2018, thm 8);"
        " what whole-number noise adds is below its margin (Kairouz, Liu, Steinke 2021, thm 1)",
        "noise": "exact discrete Gaussian (Canonne, Kamath, Steinke 2020, alg. 3) from the operating"
        " system's entropy, on a public grid",
        "releases": [
            _release(
                what,
                times,
                mechanism_of(study, grid, number=number, rounds=rounds, contributors=contributors),
                target,
            )
            for what, times, number in (
                ("noisy counts of the public cells", 1, 0),
                ("noisy clipped gradient sum, one full pass over the records", rounds, 1),
                ("noisy histogram of outcomes by predicted log-odds", 1, rounds + 1),
                ("noisy counts for the audit of the scorecard", 1, rounds + 2),
            )
        ],
        "not_covered": [*(NOT_COVERED_BY_SUMS if summed else ()), *NOT_COVERED],
    }


_LOCAL = (
    "every holder adds its full noise to what it sends, so nobody outside a holder needs to be trusted:"
    " neither the coordinator nor other holders"
)


def _trust(holders: int, tolerated: int) -> str:
    return (
        f"each of {holders} holders adds a share of the noise, and secure aggregation shows nobody more than"
        f" their sum. The promise holds against the public, the coordinator and up to {tolerated} of the"
        " holders, counting together those that are curious, that collude and that are gone in a round; a"
        " coordinator that breaks the protocol decides who is gone"
    )


def _if_aggregation_fails(target: PrivacyTarget, contributors: int | None) -> dict[str, float | None]:
    """Return what is left if every holder's own message is read, at all holders of a person and at one."""
    names = "epsilon_if_aggregation_fails", "epsilon_per_holder_if_aggregation_fails"
    if contributors is None:
        return dict.fromkeys(names)
    counted = target.holders_per_person, 1
    return {
        name: epsilon_of_share(target, contributors, holders=holders)
        for name, holders in zip(names, counted, strict=True)
    }


def epsilon_of_share(target: PrivacyTarget, contributors: int, *, holders: int = 1) -> float:
    """Return the epsilon that remains for one person if a holder's own messages are read, one by one.

    A share has 1 / ``contributors`` of the whole noise's variance, so one holder's releases have
    ``sqrt(contributors)`` times the mu. Those of several holders of a person compose: ``sqrt(holders)``
    times that.

    Args:
        target: the study's promise.
        contributors: holders whose shares make up the whole noise, at least 1.
        holders: how many holders' messages are read, all of which know the person.
    """
    return epsilon_of_mu(target.mu * math.sqrt(contributors * holders), target.delta)


def _release(what: str, times: int, mechanism: IntegerMechanism, target: PrivacyTarget) -> dict[str, Any]:
    """Describe one kind of release; ``epsilon_alone`` is what one of them costs by itself."""
    event = Event(noise_multiplier=mechanism.noise_multiplier)
    return {
        "what": what,
        "times": times,
        "values": mechanism.size,
        "sensitivity": mechanism.l2_clip_norm,
        "noise_multiplier": mechanism.noise_multiplier,
        "noise_std": mechanism.std,
        "epsilon_alone": epsilon_of((event,), target.delta),
    }


def label_in_words(label: dict[str, Any]) -> str:
    """Say the label in sentences a privacy officer can check and sign."""
    releases = "\n".join(f"  - {_release_in_words(release)}" for release in label["releases"])
    uncovered = "\n".join(f"  - {line}" for line in label["not_covered"])
    seen = "a sum over all holders" if label["trust"] == "distributed" else "by each holder"
    several = f"at most {label['holders_per_person']} of the holders"
    return (
        f"Promise: epsilon {label['epsilon']:g}, delta {label['delta']:g} for {label['unit']}, over the whole"
        f" run: every release listed below, and the model.{_factor(label)}\n"
        f"Compared: {label['adjacency']}.\n"
        f"For whom: a person known to {'one holder' if label['holders_per_person'] == 1 else several}.\n"
        f"Trust: {label['trust']}. {_capital(label['trust_in_words'])}.\n"
        f"{_failure_in_words(label)}"
        f"Released, each {seen}:\n{releases}\n"
        f"Cost: together epsilon {label['epsilon_per_holder']:.4g} in each holder's ledger.\n"
        f"Noise: {label['noise']}.\n"
        f"Accountant: {label['accountant']}.\n"
        f"Not covered:\n{uncovered}"
    )


def _release_in_words(release: dict[str, Any]) -> str:
    times = "once" if release["times"] == 1 else f"{release['times']} times"
    return (
        f"{release['what']}: {times}, {release['values']} whole numbers, noise of standard deviation at least"
        f" {release['noise_std']:.4g} where one person counts up to {release['sensitivity']:.4g}"
        f" (noise multiplier {release['noise_multiplier']:.4g}); one alone costs epsilon"
        f" {release['epsilon_alone']:.3g}"
    )


def _factor(label: dict[str, Any]) -> str:
    if label["epsilon"] > _LARGEST_FACTOR:
        return ""
    return (
        " Whether that person's records were used changes the probability of anything that can be seen of"
        f" the run by a factor of at most {math.exp(label['epsilon']):.3g}, and by at most"
        f" {label['delta']:g} beyond that."
    )


def _failure_in_words(label: dict[str, Any]) -> str:
    whole, alone = label["epsilon_if_aggregation_fails"], label["epsilon_per_holder_if_aggregation_fails"]
    if whole is None:
        return ""
    shared = f", and epsilon {alone:.3g} for one known to a single holder"
    return (
        "If aggregation fails completely, so that every message of every holder is read: the noise in each"
        f" message alone still keeps epsilon {whole:.3g} at the same delta"
        f"{'' if label['holders_per_person'] == 1 else shared}.\n"
    )


def _capital(words: str) -> str:
    return words[0].upper() + words[1:]
