"""The study files of a synthetic population, from nothing but its public parameters."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

from assay.models.schema import COMPONENTS
from assay.models.study import parse_study
from assay.simulations.population_params import Parameters
from assay.simulations.population_trait import OUTCOMES, Trait

__all__ = ["HEADER", "study_text"]

HEADER = "# Made by `assay population`."
"""First words of every study file it writes; a file that does not begin so is not replaced."""

_PURPOSES = {
    "credit": ("consumer_credit", "consumer_loan_application", "did not pay back as agreed within 12 months"),
    "fraud": ("fraud_detection", "payment_authorisation", "the account was used for fraud within 12 months"),
}
_PRIVACY = {"epsilon": 1.0, "delta": 1e-6, "trust": "distributed", "holders_per_person": 1}


def study_text(params: Parameters, outcome: str) -> str:
    """Return a study file, already checked.

    Ranges, levels and trends come from the parameters, never from drawn people. A trend is stated only where
    the parameters state one for both outcomes.

    Args:
        params: names the features and protected groups.
        outcome: ``"credit"`` or ``"fraud"``.

    Raises:
        BadInput: the parameters make no valid study.
    """
    purpose, context, meaning = _PURPOSES[outcome]
    lines = [
        f"{HEADER} Ranges and levels are public parameters of the generator, not computed from people.",
        "# Everybody has one row in the data; raise holders_per_person where holders share people.",
        *_table("study", {"name": f"population-{outcome}", "purpose": purpose, "contexts": [context]}),
        *_table("outcome", {"column": OUTCOMES[outcome], "meaning": meaning}),
        *_table("person", {"column": "person_id"}),
    ]
    for component in COMPONENTS:
        for trait in params.features.values():
            if trait.component == component:
                lines += _feature(trait)
    if params.groups:
        lines += _table("fairness", {"columns": list(params.groups)})
        lines += _table(
            "fairness.groups", {name: list(group.levels) for name, group in params.groups.items()}
        )
    lines += _table("privacy", _PRIVACY)
    text = "\n".join(lines) + "\n"
    parse_study(text)
    return text


def _feature(trait: Trait) -> list[str]:
    values: dict[str, object] = {
        "name": trait.name,
        "column": trait.name,
        "component": trait.component,
        "kind": trait.kind,
    }
    if trait.levels:
        values["levels"] = list(trait.levels)
    else:
        values["domain"] = list(trait.domain or ())
    if trait.kind == "numeric":
        values["transform"] = trait.transform
    if trait.risk_trend is not None:
        values["risk_trend"] = trait.risk_trend
    values |= {"label": trait.label, "changeable": trait.changeable}
    return list(_table("[features]", values))


def _table(heading: str, values: Mapping[str, object]) -> Iterator[str]:
    """Yield the lines of a TOML table; strings, numbers, flags and lists of them are written as in JSON."""
    yield ""
    yield f"[{heading}]"
    for key, value in values.items():
        yield f"{key} = {json.dumps(value, ensure_ascii=False)}"
