"""Many holders at once: the same model, bit for bit, as by the full protocol; and what it refuses."""

from dataclasses import replace

import numpy as np
import pytest
from toy_study import GRID, STUDY, SUMMED, TEXT, records

from assay.client.books import Books
from assay.client.records import Records
from assay.models.study import parse_study
from assay.privacy import mechanism
from assay.privacy.auditlog import AuditLog
from assay.privacy.errors import AssayError, BadInput, Refused
from assay.privacy.keys import Identity
from assay.privacy.ledger import Ledger
from assay.privacy.messages import CountsRequest
from assay.simulations import engine
from assay.simulations.crowd import Crowd, CrowdTraining
from assay.simulations.engine import federate

RUN = "00112233445566778899aabbccddeeff"


def without(held, column, feature):
    columns = {name: values for name, values in held.columns.items() if name != column}
    return replace(held, columns=columns, absent=(feature,))


def holders():
    """Return nine holders, each with what could make its sums differ from those of its neighbours."""
    held = {f"h{i}": records(150 + 13 * i, seed=i) for i in range(9)}
    held["h1"] = replace(held["h1"], groups={})  # no fairness column
    held["h3"] = replace(held["h3"], persons=np.arange(held["h3"].rows) // 3)  # three rows each
    held["h4"] = replace(held["h4"], persons=np.arange(held["h4"].rows))
    held["h5"] = records(8300, seed=77)  # more than one block of rows
    held["h6"] = without(held["h6"], "DELAY", "delay")  # a whole component
    held["h7"] = without(held["h7"], "HOUSE", "house")
    held["h8"] = replace(held["h8"], patterns=np.where(np.arange(held["h8"].rows) % 2, 7, 3).astype(np.int32))
    return held


def train(text, held, name, monkeypatch, *, seed=5):
    """Train with noise that follows from ``seed``: drawn in the same order by both engines."""
    rng = np.random.default_rng(seed)

    def drawn(size, variance, entropy=None):
        return np.rint(rng.standard_normal(size) * variance**0.5).astype(np.int64)

    monkeypatch.setattr(mechanism, "discrete_gaussian", drawn)
    return federate(text, held, engine=name)


class TestSameModel:
    @pytest.mark.parametrize("text", [TEXT, SUMMED], ids=["local", "distributed"])
    def test_it_is_that_of_the_full_protocol_bit_for_bit(self, text, monkeypatch):
        held = holders()
        full, fast = (train(text, held, name, monkeypatch) for name in ("full", "fast"))
        for name in ("theta", "counts"):
            assert getattr(full.trained, name).tobytes() == getattr(fast.trained, name).tobytes()
        assert full.trained.card.points.tobytes() == fast.trained.card.points.tobytes()
        for name in ("audit", "baseline", "patterns", "holders", "rounds", "most_asked", "platt"):
            assert getattr(full.trained, name) == getattr(fast.trained, name)
        assert full.spent == fast.spent
        other = train(text, held, "fast", monkeypatch, seed=6)  # control: other noise is another model
        assert not np.array_equal(other.trained.theta, fast.trained.theta)

    def test_every_sum_of_every_holder_is_its_own(self):
        """Without noise, and where a holder's sums could run into those of the next."""
        from assay.client.training import LocalTraining

        held = list(holders().values())
        crowd, theta = CrowdTraining(STUDY, held), np.linspace(-1, 1, GRID.width)
        for number in (0, 1, 5):  # counts, gradients, calibration
            together = crowd.summed(number, 4)(theta)
            for place, one in enumerate(held):
                assert (
                    together[place].tobytes() == LocalTraining(STUDY, one).summed(number, 4)(theta).tobytes()
                )


class TestNoise:
    def test_every_holder_draws_its_own(self):
        """One share copied to all would leave a sum of 25 times the variance, and differences without any."""
        shares = mechanism.IntegerMechanism(
            l2_clip_norm=1.0, noise_multiplier=2.0, size=4000, contributors=25
        )
        noisy = shares.noisy(np.zeros((25, 4000))) * shares.unit
        # 25 x 4,000 draws: the standard error of both variances is below 2.3 %; 12 % is 5 of them and more.
        assert abs(noisy.sum(axis=0).var() / shares.std**2 - 1) < 0.12
        assert abs((noisy[0] - noisy[1]).var() / (2 * shares.std**2 / 25) - 1) < 0.12

    def test_the_ledger_has_paid_for_every_release(self):
        done = federate(SUMMED, holders(), engine="fast")
        for spent in done.spent.values():
            assert 2.0 * (1 - 1e-6) <= spent <= 2.0


class TestRefusals:
    def test_another_engine(self):
        with pytest.raises(BadInput, match="engine is 'quick'; allowed: fast, full"):
            federate(TEXT, holders(), engine="quick")

    def test_too_few_holders_for_the_trust(self):
        held = holders()
        with pytest.raises(Refused) as caught:
            federate(SUMMED, {name: held[name] for name in ("h0", "h2")}, engine="fast")
        assert caught.value.code == "holders"

    def test_a_holder_with_too_few_persons_ends_it(self, monkeypatch):
        allowed = engine._policy_for
        monkeypatch.setattr(engine, "_policy_for", lambda study: replace(allowed(study), minimum_persons=160))
        with pytest.raises(Refused, match=r"7 holder\(s\) accept .*\(h0: declined \(data\); h3: declined"):
            federate(TEXT, holders(), engine="fast")

    def test_more_holders_than_a_live_run_can_mask(self):
        one = records(1200, seed=1)
        held = {
            f"h{i:04d}": Records(
                columns={name: values[i : i + 1] for name, values in one.columns.items()},
                labels=one.labels[i : i + 1],
            )
            for i in range(1200)
        }
        assert federate(SUMMED, held, engine="fast").trained.most_asked == 1200
        with pytest.raises(Refused, match="3 to 1000"):  # what a full run asks first
            parse_study(SUMMED).require_holders(1200)

    def test_a_question_that_it_does_not_answer(self):
        identity = Identity.generate()
        with AuditLog.open(None, identity) as audit, Ledger.open(":memory:", identity, log_head="") as ledger:
            crowd = Crowd(
                STUDY, holders(), books=Books(ledger=ledger, audit=audit), policy=engine._policy_for(STUDY)
            )
            with pytest.raises(AssayError, match="offers and closes"):
                crowd.ask({"h0": CountsRequest(run=RUN)}, timeout=1.0)
