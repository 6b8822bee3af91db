"""What the cells of a sweep are compared with, and how a model is kept so that no cell trains it twice.

Pooled means one holder that has every training record once, with every column, and adds its noise itself: it
depends on the seed and on epsilon, not on how many holders there are. Without privacy nothing depends on
epsilon either. Both are therefore trained once per seed (and epsilon) and read by every cell that needs them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from assay.client.records import Records
from assay.models.scorecard import Scorecard
from assay.models.study import parse_study
from assay.privacy.errors import BadInput
from assay.privacy.files import PRIVATE_FILE, write_durably
from assay.simulations.comparison import Evaluation, evaluate, scorecard_of
from assay.simulations.engine import federate, with_model, with_trust
from assay.simulations.unprotected import train_unprotected

__all__ = ["MOST_ALONE", "alone", "pooled_card", "read_card", "train_alone", "unprotected_card", "write_card"]

MOST_ALONE = 30
"""Holders of one cell that are trained alone at most."""


def unprotected_card(text: str, kept: Records) -> Scorecard:
    """Train the study's model on all training records without privacy."""
    return train_unprotected(parse_study(_plain(text)), kept)


def pooled_card(text: str, kept: Records) -> Scorecard:
    """Train the study's model at its epsilon with one holder that has all training records.

    That holder knows everybody once, however many holders share a person in the federation.
    """
    return scorecard_of(federate(_plain(_one_holder_per_person(text)), {"pooled": kept}, engine="fast"))


def alone(holders: Mapping[str, Records], seed: int) -> tuple[str, ...]:
    """Return which holders are trained alone: all with both outcomes, or 30 of them spread over the sizes.

    Args:
        holders: everybody's records by name.
        seed: decides who is drawn: one of each of 30 classes of sizes with equally many holders.
    """
    able = [name for name, own in holders.items() if own.labels.min() < own.labels.max()]
    if len(able) <= MOST_ALONE:
        return tuple(able)
    rng = np.random.default_rng(seed)
    by_size = sorted(able, key=lambda name: (holders[name].rows, name))
    drawn = {part[rng.integers(len(part))] for part in np.array_split(np.array(by_size), MOST_ALONE)}
    return tuple(name for name in able if name in drawn)


def train_alone(
    text: str,
    holders: Mapping[str, Records],
    test: Records,
    *,
    seed: int,
    step: Callable[[str], None] = lambda _: None,
) -> dict[str, Evaluation]:
    """Train holders alone at the study's epsilon, see :func:`alone`, and measure them on the same records."""
    own_text, found = _plain(text), {}
    for name in alone(holders, seed):
        step(f"local-only model of {name}")
        done = federate(own_text, {name: holders[name]}, engine="fast")
        found[name] = evaluate(scorecard_of(done), test)
    return found


def write_card(path: Path, card: Scorecard) -> None:
    """Keep a card with its study, durably; it scores the same when it is read."""
    data = {"study": card.study.text, "scorecard": card.to_json()}
    write_durably(path, json.dumps(data, allow_nan=False).encode(), mode=PRIVATE_FILE)


def read_card(path: Path) -> Scorecard:
    """Read what :func:`write_card` wrote.

    Raises:
        BadInput: it is not there or something else.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return Scorecard.from_json(data["scorecard"], parse_study(data["study"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(
            "baseline",
            where=path,
            allowed=f"a file that a simulation wrote ({type(error).__name__})",
            remedy="Remove it: it is then trained again",
        ) from None


def _plain(text: str) -> str:
    """The study for one holder that trains alone: a scorecard, with all of its own noise."""
    return with_model(with_trust(text, "local"), "additive")


def _one_holder_per_person(text: str) -> str:
    changed = re.sub(r"^(\s*holders_per_person\s*=\s*)\d+", r"\g<1>1", text, flags=re.MULTILINE)
    if parse_study(changed).privacy.holders_per_person != 1:
        raise BadInput(
            "privacy.holders_per_person", where="study", allowed="a line `holders_per_person = ...`"
        )
    return changed
