"""A small synthetic study and holders for tests: four features, a risk that depends on three of them."""

from __future__ import annotations

import time

import numpy as np

from assay.client.holder import Holder
from assay.client.policy import Policy
from assay.client.records import Records
from assay.models.encoding import Grid
from assay.models.study import parse_study
from assay.models.tally import AuditTally, CalibrationTally
from assay.privacy.accounting import TALLIES
from assay.privacy.auditlog import AuditLog
from assay.privacy.keys import Identity
from assay.privacy.ledger import Ledger
from assay.privacy.messages import CountsRequest, GradientRequest, Offer
from assay.privacy.names import federation_id

TEXT = """\
[study]
name = "toy"
purpose = "consumer_credit"
contexts = ["credit_card_application"]

[outcome]
column = "bad"
meaning = "missed a payment"

[[features]]
name = "income"
column = "INCOME"
component = "spending"
kind = "numeric"
domain = [0, 10]

[[features]]
name = "delay"
column = "DELAY"
component = "payment_history"
kind = "integer"
domain = [0, 4]

[[features]]
name = "balance"
column = "BALANCE"
component = "spending"
kind = "numeric"
domain = [-1000, 1000]
transform = "signed_log"

[[features]]
name = "house"
column = "HOUSE"
component = "identity"
kind = "categorical"
levels = ["own", "rent"]

[fairness]
columns = ["SEX"]
groups = { SEX = ["f", "m"] }

[training]
rounds = 4

[privacy]
epsilon = 2.0
delta = 1e-6
trust = "local"
"""
# The same, summed with other holders.
SUMMED = TEXT.replace('trust = "local"', 'trust = "distributed"')
STUDY = parse_study(TEXT)
GRID = Grid.of(STUDY)
FEATURES = len(STUDY.features)
ROUNDS = 4
LAST = ROUNDS + TALLIES  # counts, gradients, calibration, audit
RUN = "00112233445566778899aabbccddeeff"
OTHER_RUN = "ff" * 16
COORDINATOR = Identity.generate()
FEDERATION = federation_id(COORDINATOR.public)


def policy(**changes):
    """A policy that allows the toy study once a year, unless changed."""
    allowed = {
        "purposes": ("consumer_credit",),
        "components": ("spending", "payment_history", "identity"),
        "epsilon_per_run": 2.0,
        "epsilon_per_study": 2.0,
        "epsilon_per_year": 2.0,
        "delta": 1e-6,
        "minimum_persons": 10,
    }
    return Policy(**(allowed | changes))


def records(rows=600, seed=0, *, persons=None):
    """Synthetic records; some values are missing, and some are of another sex or of none that is known."""
    rng = np.random.default_rng(seed)
    income, delay = rng.uniform(0, 10, rows), rng.integers(0, 5, rows).astype(np.float64)
    house = rng.choice(["own", "rent", "boat"], rows).astype(object)
    logit = -1.0 - 0.4 * (income - 5) + 0.8 * (delay - 2) + 0.7 * (house == "rent")
    labels = (rng.random(rows) < 1 / (1 + np.exp(-logit))).astype(np.float64)
    income[rng.random(rows) < 0.05] = np.nan
    house[rng.random(rows) < 0.05] = None
    columns = {
        "INCOME": income,
        "DELAY": delay,
        "BALANCE": rng.normal(0, 300, rows),
        "HOUSE": house,
    }
    groups = {"SEX": np.random.default_rng([seed, 1]).choice(4, rows, p=[0.45, 0.45, 0.05, 0.05])}
    return Records(columns=columns, labels=labels, persons=persons, groups=groups)


def holder(
    tmp_path,
    *,
    ledger=None,
    audit=None,
    data=None,
    rules=None,
    name="north",
    identity=None,
    coordinator=COORDINATOR,
    load=None,
    person=None,
    clock=time.time,
):
    """A holder as the daemon builds it, with ledger and audit log in memory unless they are given."""
    held = records() if data is None else data
    own = Identity.generate() if identity is None else identity
    log = AuditLog.open(None, own) if audit is None else audit
    return Holder(
        name=name,
        identity=own,
        federation=federation_id(coordinator.public),
        coordinator_key=coordinator.public,
        policy=policy() if rules is None else rules,
        ledger=Ledger.open(":memory:", own, log_head=log.head) if ledger is None else ledger,
        audit=log,
        load=(lambda _: held) if load is None else load,
        person=person,
        directory=tmp_path / f"home-{name}",
        clock=clock,
    )


def offer(text=TEXT, run=RUN):
    return Offer(run=run, study=text)


def sizes(rounds=ROUNDS):
    """How many integers each round of a run releases."""
    audit = AuditTally(study=STUDY, grid=GRID).size
    return [GRID.width] * (rounds + 1) + [CalibrationTally(grid=GRID).size, audit]


def counts(run=RUN):
    return CountsRequest(run=run)


def gradient(number=1, *, rounds=ROUNDS, theta=None, run=RUN):
    values = np.zeros(GRID.width) if theta is None else theta
    return GradientRequest(run=run, round=number, rounds=rounds, theta=values)
