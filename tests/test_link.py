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


@pytest.mark.parametrize("back", [timedelta(milliseconds=300), timedelta(seconds=10), timedelta(minutes=4)])
def test_a_time_that_comes_twice_does_not_bring_a_stamp_twice(signer, back):
    used = [stamp(signer) for _ in range(3)]
    Clock.at += back
    used.append(stamp(signer))
    Clock.at -= back
    used += [stamp(signer) for _ in range(3)]
    assert len(set(used)) == len(used)


def test_stamps_are_kept_only_while_the_coordinator_may_know_them(signer, monkeypatch):
    monkeypatch.setattr(link, "REMEMBERED_S", 0.0)
    for _ in range(100):
        Clock.at += timedelta(seconds=1)
        stamp(signer)
    assert len(signer._used) < 100
