"""Flower's timestamps: each used once, and none of the future after the clock has been set right."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from assay.client import link


class Clock(datetime):
    """The wall clock, under the test's control."""

    at = datetime(2030, 1, 1, tzinfo=UTC)

    @classmethod
    def now(cls, tz=None):
        return cls.at


@pytest.fixture
def signer(monkeypatch):
    made = link.Signer(ec.generate_private_key(ec.SECP384R1()))
    monkeypatch.setattr(link, "datetime", Clock)
    monkeypatch.setattr(Clock, "at", datetime(2030, 1, 1, tzinfo=UTC))
    return made


def stamp(signer):
    return datetime.fromisoformat(signer.headers()["flwr-timestamp"])


def test_no_stamp_is_used_twice_while_the_clock_stands_still(signer):
    assert len({stamp(signer) for _ in range(100)}) == 100


def test_a_clock_that_was_ahead_and_is_set_right_locks_nobody_out(signer):
    right = Clock.at
    Clock.at = right + timedelta(hours=1)
    stamp(signer)
    Clock.at = right + timedelta(seconds=5)
    assert stamp(signer) == right + timedelta(seconds=5)


def test_a_small_step_back_keeps_the_stamps_apart(signer):
    first = stamp(signer)
    Clock.at -= timedelta(milliseconds=300)
    assert stamp(signer) > first
