"""A policy pack for machines and in words, whole: what a study that names it may ask and may not."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from assay.privacy.policypack import PolicyPack

__all__ = ["pack_facts", "pack_in_words"]


def pack_facts(pack: PolicyPack) -> dict[str, Any]:
    """Return everything a pack says, as JSON holds it."""
    return {
        "name": pack.name,
        "as_of": pack.as_of,
        "summary": pack.summary,
        "purposes": [asdict(purpose) for purpose in pack.purposes],
        "refusals": [
            {key: value for key, value in asdict(refusal).items() if key != "pack"}
            for refusal in pack.refusals
        ],
        "inputs": [asdict(protected) for protected in pack.protected],
        "retention": {kind: asdict(kept) for kind, kept in pack.retention.items()},
    }


def pack_in_words(pack: PolicyPack) -> str:
    """Return the same for people."""
    lines = [
        f"{pack.name}, as of {pack.as_of}: {pack.summary}",
        "",
        "allowed purposes, exactly one per study:",
    ]
    for purpose in pack.purposes:
        contexts = f" (e.g. in {', '.join(purpose.contexts)})" if purpose.contexts else ""
        lines.append(f"  {purpose.name}: {purpose.words}{contexts}")
    lines += ["", "refused:"]
    for refusal in pack.refusals:
        lines += [
            f"  {refusal.code} {refusal.text} [{refusal.article}]",
            f"      by name: {', '.join(refusal.phrases)}",
        ]
    lines += ["", "never inputs, by a word in their name:"]
    for protected in pack.protected:
        unless = f", unless beside {', '.join(protected.unless)}" if protected.unless else ""
        words = ", ".join(protected.words)
        lines.append(f"  {protected.refusal} {words}{unless} [{protected.article}]")
    lines += ["", "kept at most:"]
    lines += [f"  {kind}: {kept.days} days [{kept.article}]" for kind, kept in pack.retention.items()]
    return "\n".join(lines)
