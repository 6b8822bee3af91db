"""A bundle whose population is known, and holders with records beside it, for tests of monitoring."""

from __future__ import annotations

import math
import time

import numpy as np
from federation_support import LOCAL

from assay.client import enrol
from assay.models.bundle import read_bundle, write_bundle
from assay.models.drift import counted
from assay.models.encoding import Grid
from assay.models.label import mechanism_of, privacy_label
from assay.models.scorecard import Scorecard
from assay.models.study import parse_study
from assay.models.tally import SCORE_BINS
from assay.privacy.keys import Identity

SIGNER = Identity.generate()
ROUNDS = 30


def people(rows, seed=0, *, later=0, missing=0.0, north=0.5):
    """Columns and labels of the study of ``federation_support``; ``later`` late payments more than usual."""
    rng = np.random.default_rng(seed)
    amount, late = rng.uniform(0, 1000, rows), rng.integers(0, 7, rows).astype(np.float64)
    late = np.minimum(late + later, 6)
    region = np.where(rng.random(rows) < north, "north", "south").astype(object)
    risk = 1 / (1 + np.exp(-(0.6 * late + amount / 500 - 3.5)))
    labels = (rng.random(rows) < risk).astype(np.float64)
    amount[rng.random(rows) < missing] = np.nan
    return {"amount": amount, "late": late, "region": region}, labels


def card_of(text=LOCAL, *, late=0.6, amount=2.0):
    """A scorecard made by hand: log-odds rise with late payments and with the amount."""
    study = parse_study(text)
    grid, parts = Grid.of(study), []
    slopes = {"late": (late, 3.0), "amount": (amount / 7, 3.5)}
    for each in grid.features:
        slope, middle = slopes.get(each.name, (0.0, 0.0))
        parts.append(
            np.where(np.arange(each.cells) < each.ordered, slope * (np.arange(each.cells) - middle), 0)
        )
    theta = np.concatenate([*parts, np.full(grid.patterns, -1.0)])
    return Scorecard.of(study, grid, theta, np.ones(grid.width)), theta


def noise_of(study, holders=3):
    """Standard deviation of the noise in a count and in a score bin, as a run of this study has it."""
    grid, each = Grid.of(study), math.sqrt(holders)
    counts = mechanism_of(study, grid, number=0, rounds=ROUNDS).std * each
    return counts, mechanism_of(study, grid, number=ROUNDS + 2, rounds=ROUNDS).std * each * math.sqrt(2)


def baseline_of(card, columns, seed=0, holders=3):
    """What a run on these records would have put into the bundle."""
    rng, found = np.random.default_rng(seed), counted(card, card.grid.encode(columns), SCORE_BINS)
    counts, scores = noise_of(card.study, holders)
    return {
        "counts": (found.counts + rng.normal(0, counts, len(found.counts))).tolist(),
        "counts_noise_std": counts,
        "scores": (found.scores + rng.normal(0, scores, SCORE_BINS)).tolist(),
        "scores_noise_std": scores,
    }


def write_card(path, *, text=LOCAL, trained=None, identity=SIGNER, late=0.6, amount=2.0, **changed):
    """Write a signed bundle and return its path; ``trained``: columns of the population at training."""
    card, theta = card_of(text, late=late, amount=amount)
    columns = people(20_000, seed=99)[0] if trained is None else trained
    arguments = {
        "study": card.study,
        "theta": theta,
        "scorecard": card,
        "label": privacy_label(card.study, rounds=ROUNDS, holders=3),
        "baseline": baseline_of(card, columns),
        "created": time.time(),
        "expires": time.time() + 86400,
    }
    write_bundle(path, identity=identity, **(arguments | changed))
    return path


def read_card(path):
    return read_bundle(write_card(path))


def write_csv(path, columns, labels=None, persons=None):
    """Write records; a missing number is an empty cell."""
    named = dict(columns)
    if labels is not None:
        named["bad"] = labels.astype(int)
    if persons is not None:
        named["person"] = persons
    rows = zip(*(values.tolist() for values in named.values()), strict=True)
    lines = [",".join("" if value != value or value is None else str(value) for value in row) for row in rows]
    path.write_text("\n".join([",".join(named), *lines]) + "\n", encoding="utf-8")
    return path


def holder_home(root, name, columns, labels, *, persons=None, policy=()):
    """Make a holder's directory with these records; ``policy``: pairs of texts to replace in client.toml."""
    home = root / name
    enrol.init(home, name)
    write_csv(home / "records.csv", columns, labels, persons)
    person = "one_row_per_person = true" if persons is None else 'person_column = "person"'
    settings = home / "client.toml"
    text = settings.read_text().replace(
        "[policy]", f'[data]\nkind = "csv"\npath = "records.csv"\n{person}\n\n[policy]', 1
    )
    for old, new in policy:
        if old not in text:
            raise ValueError(old)
        text = text.replace(old, new)
    settings.write_text(text)
    return home
