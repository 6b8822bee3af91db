"""An audit in words: no number is told that could be anything."""

import numpy as np
import pytest
from toy_study import GRID, STUDY, records

from assay.models.audit import audit_of
from assay.models.auditwords import audit_in_words
from assay.models.scorecard import Scorecard
from assay.models.tally import AuditTally, ClippedTally

TALLY = AuditTally(study=STUDY, grid=GRID)


@pytest.mark.parametrize(("rows", "noise"), [(300, 0.0), (20_000, 60.0)])
def test_a_bad_rate_of_too_few_is_not_told(rows, noise):
    """Fewer than 50 persons, or an interval wider than a fifth of everything."""
    rng, held = np.random.default_rng(1), records(rows)
    theta = rng.normal(0, 0.3, GRID.width)
    theta[GRID.size :] = -3.0
    card = Scorecard.of(STUDY, GRID, theta, np.ones(GRID.width))
    exact = ClippedTally(TALLY, GRID.encode(held.columns), held.labels, None, held.groups)(card.theta)
    found = audit_of(TALLY, card, exact + rng.normal(0, noise, TALLY.size), noise)
    step = {"applied": False, "slope": 1.0, "intercept": 0.0}
    lines = audit_in_words({**found, "calibration_step": step, "patterns": []}).split("\n")
    told = {True: 0, False: 0}
    for row in found["cut_offs"]:
        rate, persons = row["bad_rate"], (row["approval_rate"]["value"] or 0.0) * found["persons"]
        known = rate["value"] is not None and persons >= 50 and rate["high"] - rate["low"] <= 0.2
        for line in lines:
            if line.strip().startswith(f"{row['score']} "):
                assert ("bad among them: too few to say" in line) != known
                told[known] += 1
    assert min(told.values()) >= 1
