"""``assay privacy plan``: what a study would cost and give, from public numbers only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from assay.models.schema import Study
from assay.privacy.errors import BadInput
from assay.privacy.terminal import Json, command, emit, note

if TYPE_CHECKING:  # late where it runs: other commands do not wait for what only a plan needs
    from assay.models.encoding import Grid
    from assay.models.forecast import Forecast

__all__ = ["EPSILONS", "forecast_of", "plan", "plan_run"]

MAX_HOLDERS = 10_000
EPSILONS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""What a plan compares beside the epsilons it is asked for."""
# Noise of the mean gradient in one coordinate. Measured on the Taiwan records: below the first the loss
# against no noise stays under about .02 AUROC, above the second nothing useful is learned.
_COMFORTABLE, _HOPELESS = 0.01, 0.1
# AUROC that is asked about by key, and the loss from which a plan warns.
_ASKED, _TOO_MUCH = {"001": 0.01, "002": 0.02}, 0.02
_LEAST_EPSILON = 0.001  # what is needed is said from here on
_FEWEST_ROUNDS = 15  # fewer are never chosen by default, and the forecast was not measured with them


def plan_run(
    study: Study,
    *,
    holders: int,
    rows: int,
    base_rate: float | None = None,
    epsilons: Sequence[float] = (),
) -> dict[str, Any]:
    """Work out noise, rounds, cost and expected loss of a run before anything is spent.

    Args:
        study: the study.
        holders: number of holders that take part; every one is taken to have all features.
        rows: persons at each holder, as publicly guessed.
        base_rate: share of bad outcomes as publicly known, 1e-6 to 1 - 1e-6; None: nobody says.
        epsilons: the first takes the place of the study's, and all of them are compared.

    Returns:
        A JSON object; nothing in it depends on records. ``expected_auroc_loss`` is against the same model
        without privacy, see :class:`assay.models.forecast.Forecast`. ``persons_for_loss_001`` are the
        persons, over all holders, that would keep it at .01 with this epsilon; ``epsilon_for_loss_001`` is
        the epsilon that would with these persons, null where it is above 1000.

    Raises:
        BadInput: a number is out of range or NaN.
        Refused: too few holders for the study's trust (code ``"holders"``).
    """
    from assay.models.encoding import Grid
    from assay.models.label import privacy_label

    if not 1 <= holders <= MAX_HOLDERS:
        raise BadInput("--holders", value=holders, allowed=f"1 to {MAX_HOLDERS}")
    if not 1 <= rows <= 10**12:
        raise BadInput("--rows", value=rows, allowed="1 to 10^12 persons per holder")
    study.require_holders(holders)
    wanted = [_at(study, epsilon) for epsilon in epsilons] or [study]
    planned, grid = wanted[0], Grid.of(study)
    outlines = {
        each.privacy.epsilon: _outline(each, grid, holders, rows, base_rate)
        for each in [*wanted, *(_at(study, epsilon) for epsilon in EPSILONS)]
    }
    outline = outlines[planned.privacy.epsilon]
    label = privacy_label(planned, rounds=outline["rounds"], holders=holders)
    persons, forecast = holders * rows, forecast_of(planned, holders=holders, base_rate=base_rate)
    result = {
        "study": study.name,
        "epsilon": outline["epsilon"],
        "delta": study.privacy.delta,
        "trust": study.privacy.trust,
        "holders": holders,
        "rows": rows,
        "rounds": outline["rounds"],
        "cells": grid.width,
        "audited": sum(release["values"] for release in label["releases"][2:]),
        "sensitivity": label["releases"][1]["sensitivity"],
        "noise_multiplier": label["releases"][1]["noise_multiplier"],
        "counts_noise_multiplier": label["releases"][0]["noise_multiplier"],
        "epsilon_per_holder": label["epsilon_per_holder"],
        "epsilon_if_aggregation_fails": label["epsilon_if_aggregation_fails"],
        "noise_of_mean_gradient": outline["noise_of_mean_gradient"],
        "outlook": outline["outlook"],
        "persons": persons,
        "base_rate": base_rate,
        "expected_auroc_loss": outline["expected_auroc_loss"],
        "expected_auroc_loss_range": outline["expected_auroc_loss_range"],
        **_needed(planned, forecast, persons),
        "by_epsilon": [outlines[epsilon] for epsilon in sorted(outlines)],
    }
    return {**result, "warnings": _warnings(result, planned, forecast.lost_to_chance(persons))}


def _at(study: Study, epsilon: float) -> Study:
    """Return the study with another epsilon, one that can be priced."""
    from assay.models.label import privacy_target

    try:
        changed = replace(study, privacy=replace(study.privacy, epsilon=epsilon))
        privacy_target(changed)
        return changed
    except BadInput as error:
        raise BadInput("--epsilon", value=epsilon, allowed=error.allowed, remedy=error.remedy) from None


def _noises(study: Study, holders: int) -> tuple[int, int]:
    """Return how many holders' shares make up one noise, and how many noises are in the sum of all."""
    summed = study.privacy.trust == "distributed"
    return (holders - study.privacy.tolerated, 1) if summed else (1, holders)


def _outline(study: Study, grid: Grid, holders: int, rows: int, base_rate: float | None) -> dict[str, Any]:
    """Return what a plan compares between epsilons."""
    from assay.models.fitting import default_rounds
    from assay.models.label import mechanism_of

    persons, (contributors, noises) = holders * rows, _noises(study, holders)
    epsilon = study.privacy.epsilon
    rounds = study.training.rounds or default_rounds(epsilon=epsilon, persons=persons, holders=noises)
    gradient = mechanism_of(study, grid, number=1, rounds=rounds, contributors=contributors)
    noise = gradient.std * math.sqrt(holders / contributors) / persons
    forecast = forecast_of(study, holders=holders, base_rate=base_rate)
    return {
        "epsilon": epsilon,
        "rounds": rounds,
        "noise_of_mean_gradient": noise,
        "outlook": "good" if noise <= _COMFORTABLE else "weak" if noise <= _HOPELESS else "hopeless",
        "expected_auroc_loss": round(forecast.loss(persons), 4),
        "expected_auroc_loss_range": [round(end, 4) for end in forecast.loss_range(persons)],
    }


def forecast_of(study: Study, *, holders: int, base_rate: float | None = None) -> Forecast:
    """Return what foretells the loss of a study's scorecard; arguments as for :func:`plan_run`."""
    from assay.models.encoding import Grid
    from assay.models.forecast import Forecast
    from assay.models.label import privacy_target
    from assay.privacy.accounting import RunCost

    # Rounds share the budget, and average again: one says as much as all of them.
    one, grid = RunCost.of(privacy_target(study)).gradient(1).noise_multiplier, Grid.of(study)
    contributors, _ = _noises(study, holders)
    return Forecast(
        noise=one * grid.gradient_clip_norm * math.sqrt(holders / contributors),
        cells=grid.size,
        base_rate=base_rate,
    )


def _needed(study: Study, forecast: Forecast, persons: int) -> dict[str, float | None]:
    """Return what would keep the loss small: persons at this epsilon, or epsilon with these persons."""
    from assay.privacy.accounting import MAX_EPSILON, epsilon_of_mu, mu_of

    mu, found = mu_of(study.privacy.epsilon, study.privacy.delta), dict[str, float | None]()
    for name, loss in _ASKED.items():
        found[f"persons_for_loss_{name}"] = int(_rounded_up(max(1.0, forecast.persons_for(loss))))
        # Noise is in proportion to 1 / mu, whatever the trust and whoever shares persons.
        epsilon = epsilon_of_mu(mu * forecast.noise / forecast.noise_for(loss, persons), study.privacy.delta)
        found[f"epsilon_for_loss_{name}"] = (
            None if epsilon > MAX_EPSILON else _rounded_up(max(_LEAST_EPSILON, epsilon))
        )
    return found


def _rounded_up(value: float) -> float:
    """Round up to two significant digits: a forecast knows no more."""
    step = 10.0 ** (math.floor(math.log10(value)) - 1)
    return float(f"{math.ceil(value / step * (1 - 1e-12)) * step:.6g}")


def _warnings(plan: dict[str, Any], study: Study, chance: float) -> list[str]:
    """Say what speaks against spending the budget."""
    loss, persons, found = plan["expected_auroc_loss"], plan["persons"], []
    if plan["outlook"] == "hopeless" or loss > _TOO_MUCH:
        epsilon = plan["epsilon_for_loss_002"]
        found.append(
            f"{persons:,} persons are too few for epsilon {plan['epsilon']:g}: the noise is expected to cost"
            f" {loss:.3f} AUROC; staying under .02 takes {plan['persons_for_loss_002']:,} persons"
            f"{'' if epsilon is None else f' or epsilon {epsilon:g}'}"
        )
    if chance > _TOO_MUCH:
        found.append(
            f"{persons:,} persons are few for {plan['cells']} cells: for want of persons a model without"
            f" privacy would lose {chance:.3f} AUROC; take fewer features, or ones with fewer values"
        )
    if plan["rounds"] < _FEWEST_ROUNDS:
        found.append(
            f"training.rounds is {plan['rounds']}: a run so short may not get there, which is not in the"
            f" expected loss; leave it out, or set {_FEWEST_ROUNDS} or more"
        )
    if study.training.model != "additive":
        found.append("the expected loss is that of the scorecard, not of the network beside it")
    return found


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
    base_rate: Annotated[
        float | None,
        typer.Option(
            help="Share of bad outcomes, as publicly known; never counted from records. Default: .05 to .5."
        ),
    ] = None,
    epsilon: Annotated[
        list[float] | None,
        typer.Option(help="In place of the study's; may be given several times, to compare."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show noise, rounds, cost and expected loss of a run before anything is spent; reads no records.

    Example: assay privacy plan examples/taiwan/study.toml --holders 3 --rows 8000 --base-rate 0.2
    """
    from assay.models.study import read_study

    checked = read_study(study)
    result = plan_run(checked, holders=holders, rows=rows, base_rate=base_rate, epsilons=epsilon or ())
    emit(result, as_json=as_json, text=_words(result))
    if not as_json:
        for warning in result["warnings"]:
            note(f"warning: {warning}")


def _words(plan: dict[str, Any]) -> str:
    cells, rounds, fails = plan["cells"], plan["rounds"], plan["epsilon_if_aggregation_fails"]
    left = "" if fails is None else f"; epsilon {fails:.3g} if secure aggregation fails"
    seen = "by each holder" if fails is None else "as a sum over the holders"
    return (
        f"{plan['study']}: epsilon {plan['epsilon']:g} at delta {plan['delta']:g}, "
        f"{plan['holders']} holder(s) of about {plan['rows']:,} persons, trust {plan['trust']}\n"
        f"  rounds            {rounds}, plus noisy counts before and two audits of the result after\n"
        f"  released          {rounds + 1} x {cells} + {plan['audited']} noisy integers {seen}\n"
        f"  noise multiplier  {plan['noise_multiplier']:.4g} (counts {plan['counts_noise_multiplier']:.4g}),"
        f" sensitivity {plan['sensitivity']:.4g}\n"
        f"  cost              epsilon {plan['epsilon_per_holder']:.6g} in each holder's ledger{left}\n"
        f"{_loss_in_words(plan)}\n"
        f"  noise of the mean gradient {plan['noise_of_mean_gradient']:.2g}: {plan['outlook']}. "
        f"{_OUTLOOK[plan['outlook']]}"
    )


def _loss_in_words(plan: dict[str, Any]) -> str:
    rate, (low, high) = plan["base_rate"], plan["expected_auroc_loss_range"]
    known = "from 0.05 to 0.5, nobody says" if rate is None else f"{rate:g}"
    lines = [
        f"  AUROC lost        {plan['expected_auroc_loss']:.3f} expected, {low:.3f} to {high:.3f} likely,"
        f" against no privacy (base rate {known})"
    ]
    for name, loss in _ASKED.items():
        persons, epsilon = plan[f"persons_for_loss_{name}"], plan[f"epsilon_for_loss_{name}"]
        large = "no epsilon up to 1000" if epsilon is None else f"epsilon {epsilon:g}"
        lines.append(
            f"    at most {loss:g}     {persons:,} persons at this epsilon, or {large} with these persons"
        )
    lines.append("    epsilon    rounds  expected          likely")
    for row in plan["by_epsilon"]:
        low, high = row["expected_auroc_loss_range"]
        spread = f"{low:.3f} to {high:.3f}"
        lines.append(
            f"    {row['epsilon']:>7g}{row['rounds']:>10}{row['expected_auroc_loss']:>10.3f}{spread:>19}"
        )
    return "\n".join(lines)
