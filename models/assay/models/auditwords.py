"""The audit of a scorecard in words and columns, for whoever decides about its use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["audit_in_words"]

_RATES = (("approved", "approval_rate"), ("of good", "tpr"), ("of bad", "fpr"))
_TOO_FEW = "too few to say"
_FEWEST, _WIDEST = 50, 0.2  # persons; width of an interval that still says something
_CALIBRATED = (("predicted", "predicted"), ("observed", "observed"))


def audit_in_words(audit: Mapping[str, Any]) -> str:
    """Lay an audit out for people.

    Args:
        audit: as :func:`assay.models.audit.audit_of` gives it, with ``calibration_step`` and ``patterns``.

    Returns:
        Several lines; shares are in percent with their 95 % interval.
    """
    if not audit:
        return "Audit: none; the bundle does not say how good its scores are."
    error = audit["calibration_error"]
    lines = [
        f"Audit, from noisy sums over about {audit['persons']:,.0f} persons the model was trained on"
        " (shares in %, 95 % intervals hold the noise):",
        f"  bad rate {_share(audit['bad_rate'])}, AUROC {_number(audit['auroc'])},"
        f" KS {_number(audit['ks'])}"
        + ("" if error is None else f", calibration error {100 * error:.1f} points"),
        f"  calibration step: {_step(audit['calibration_step'])}",
        f"  components held: {_patterns(audit['patterns'])}",
        f"  approved from {audit['cut_off']} on. What another cut-off would mean:",
        *(_cut_off(row, audit["persons"]) for row in audit["cut_offs"] if _tells(row)),
        "  bands: share of persons, bad rate",
        *(_band(row, audit["persons"]) for row in audit["bands"]),
    ]
    for column in audit["groups"]:
        lines.append(f"  groups by {column['column']}:")
        lines += [_group(group) for group in column["groups"] if _shown(group)]
    return "\n".join([*lines, *_verdict(audit["fairness"])])


def _share(rate: Mapping[str, Any]) -> str:
    if rate["value"] is None:
        return "not known"
    return f"{100 * rate['value']:.1f} ({100 * rate['low']:.1f} to {100 * rate['high']:.1f})"


def _number(rate: Mapping[str, Any]) -> str:
    if rate["value"] is None:
        return "not known"
    return f"{rate['value']:.3f} ({rate['low']:.3f} to {rate['high']:.3f})"


def _step(step: Mapping[str, Any]) -> str:
    if not step["applied"]:
        return "none needed"
    return f"log-odds times {step['slope']:.3f} plus {step['intercept']:+.3f}"


def _patterns(patterns: list[Mapping[str, Any]]) -> str:
    return "; ".join(f"{row['holders']} holder(s) with {', '.join(row['components'])}" for row in patterns)


def _tells(row: Mapping[str, Any]) -> bool:
    """Leave out cut-offs at which hardly anybody, or everybody, is approved."""
    rate = row["approval_rate"]
    return rate["value"] is not None and rate["low"] > 0 and rate["value"] < 1


def _cut_off(row: Mapping[str, Any], persons: float) -> str:
    share = row["approval_rate"]
    return (
        f"    {row['score']:>6}  approved {_share(share):<22}"
        f"  bad among them: {_bad_rate(row['bad_rate'], share, persons)}"
    )


def _band(row: Mapping[str, Any], persons: float) -> str:
    share = row["share"]
    words = _bad_rate(row["bad_rate"], share, persons)
    return f"    {row['band']:<15} from {row['from']:>4}  {_share(share):<22}  {words}"


def _bad_rate(rate: Mapping[str, Any], share: Mapping[str, Any], persons: float) -> str:
    """Say a bad rate of a share of all persons, unless these are so few that it could be anything."""
    if rate["value"] is None or not (share["value"] or 0.0) * persons >= _FEWEST:
        return _TOO_FEW
    return _TOO_FEW if rate["high"] - rate["low"] > _WIDEST else _share(rate)


def _shown(group: Mapping[str, Any]) -> bool:
    return bool(group["declared"]) or not group["too_small"]


def _group(group: Mapping[str, Any]) -> str:
    if group["too_small"]:
        return f"    {group['group']:<18} n too small, which counts as not passed"
    rates = ", ".join(f"{words} {_share(group[name])}" for words, name in (*_RATES, *_CALIBRATED))
    return f"    {group['group']:<18} {group['persons']:>9,.0f} persons: {rates}"


def _verdict(fairness: Mapping[str, Any]) -> list[str]:
    if fairness["passed"] is None:
        return ["  fairness gate: none set by the study"]
    if fairness["passed"]:
        return ["  fairness gate: passed"]
    reasons = (*fairness["failures"], *fairness["too_small"])
    return ["  fairness gate: NOT PASSED, the model is held", *(f"    {words}" for words in reasons)]
