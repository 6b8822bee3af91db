"""``assay privacy plan``: what a study would cost and give, from public numbers only."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import typer

from assay.models.schema import Study
from assay.privacy.errors import BadInput
from assay.privacy.terminal import Json, command, emit

__all__ = ["plan", "plan_run"]

MAX_HOLDERS = 10_000
# Noise of the mean gradient in one coordinate. Measured on the Taiwan records: below the first the loss
# against no noise stays under about .02 AUROC, above the second nothing useful is learned.
_COMFORTABLE, _HOPELESS = 0.01, 0.1


def plan_run(study: Study, *, holders: int, rows: int) -> dict[str, Any]:
    """Work out noise, rounds and cost of a run before anything is spent.

    Args:
        study: the study; its privacy target is taken as it is.
        holders: number of holders that take part.
        rows: persons at each holder, as publicly guessed.

    Returns:
        A JSON object; nothing in it depends on records.

    Raises:
        BadInput: ``holders`` or ``rows`` is out of range.
    """
    # Late, so that other commands do not wait for what only a plan needs.
    from assay.models.encoding import Grid
    from assay.models.fitting import default_rounds
    from assay.models.label import privacy_target
    from assay.privacy.accounting import RunCost, epsilon_of

    if not 1 <= holders <= MAX_HOLDERS:
        raise BadInput("--holders", value=holders, allowed=f"1 to {MAX_HOLDERS}")
    if not 1 <= rows <= 10**12:
        raise BadInput("--rows", value=rows, allowed="1 to 10^12 persons per holder")
    grid, target = Grid.of(study), privacy_target(study)
    cost, persons = RunCost.of(target), holders * rows
    rounds = study.training.rounds or default_rounds(epsilon=target.epsilon, persons=persons, holders=holders)
    gradient = cost.gradient(rounds)
    sensitivity = grid.gradient_sensitivity
    noise = gradient.noise_multiplier * sensitivity * math.sqrt(holders) / persons
    outlook = "good" if noise <= _COMFORTABLE else "weak" if noise <= _HOPELESS else "hopeless"
    return {
        "study": study.name,
        "epsilon": target.epsilon,
        "delta": target.delta,
        "trust": target.trust,
        "holders": holders,
        "rows": rows,
        "rounds": rounds,
        "cells": grid.size,
        "sensitivity": sensitivity,
        "noise_multiplier": gradient.noise_multiplier,
        "counts_noise_multiplier": cost.counts.noise_multiplier,
        "epsilon_per_holder": epsilon_of(cost.total(rounds), target.delta),
        "noise_of_mean_gradient": noise,
        "outlook": outlook,
    }


_OUTLOOK = {
    "good": "The noise is small against what there is to learn.",
    "weak": "The noise will cost accuracy: more persons, more holders or a larger epsilon would help.",
    "hopeless": "Too few persons for this epsilon: nothing useful can be learned. Do not spend the budget.",
}


@command
def plan(
    study: Annotated[Path, typer.Argument(metavar="STUDY", help="The study file.")],
    holders: Annotated[int, typer.Option(help="Holders that would take part.")] = 3,
    rows: Annotated[int, typer.Option(help="Persons at each holder, roughly.")] = 10_000,
    as_json: Json = False,
) -> None:
    """Show noise, rounds and cost of a run before anything is spent; reads no records.

    Example: assay privacy plan examples/taiwan/study.toml --holders 3 --rows 8000
    """
    from assay.models.study import read_study

    checked = read_study(study)
    result = plan_run(checked, holders=holders, rows=rows)
    emit(result, as_json=as_json, text=_words(result))


def _words(plan: dict[str, Any]) -> str:
    cells, rounds = plan["cells"], plan["rounds"]
    return (
        f"{plan['study']}: epsilon {plan['epsilon']:g} at delta {plan['delta']:g}, "
        f"{plan['holders']} holder(s) of about {plan['rows']:,} persons, trust {plan['trust']}\n"
        f"  rounds            {rounds}, plus one release of noisy counts\n"
        f"  released          {cells} + {rounds} x {cells + 1} noisy integers by each holder\n"
        f"  noise multiplier  {plan['noise_multiplier']:.4g} (counts {plan['counts_noise_multiplier']:.4g}),"
        f" sensitivity {plan['sensitivity']:.4g}\n"
        f"  cost              epsilon {plan['epsilon_per_holder']:.6g} in each holder's ledger\n"
        f"  noise of the mean gradient {plan['noise_of_mean_gradient']:.2g}: {plan['outlook']}. "
        f"{_OUTLOOK[plan['outlook']]}"
    )
