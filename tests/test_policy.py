"""A holder takes part only in what its own policy allows, and says no in one word."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay.client.policy import Policy, admit, require_persons
from assay.client.records import Records
from assay.models.study import Study, parse_study
from assay.privacy.errors import BadInput, Refused
from assay.privacy.wire import DECLINE_CODES

ALLOWED = {
    "purposes": ("consumer_credit", "microloan"),
    "components": ("identity", "spending"),
    "epsilon_per_run": 1.0,
    "epsilon_per_study": 3.0,
    "epsilon_per_year": 6.0,
    "delta": 1e-6,
    "minimum_persons": 100,
}


def study(
    *,
    purpose: str = "consumer_credit",
    component: str = "spending",
    epsilon: float = 1.0,
    delta: float = 1e-6,
    trust: str = "local",
    model: str = "additive",
) -> Study:
    return parse_study(
        f"""
        [study]
        name = "s"
        purpose = "{purpose}"
        contexts = ["loans"]
        [outcome]
        column = "bad"
        meaning = "late"
        [[features]]
        name = "limit"
        column = "limit"
        component = "identity"
        kind = "numeric"
        domain = [0, 1]
        label = "Limit"
        [[features]]
        name = "spent"
        column = "spent"
        component = "{component}"
        kind = "numeric"
        domain = [0, 1]
        label = "Spent"
        [training]
        model = "{model}"
        [privacy]
        epsilon = {epsilon}
        delta = {delta}
        trust = "{trust}"
        """
    )


def records(persons: int) -> Records:
    rows = np.arange(2 * persons)
    return Records(columns={"limit": rows / 1.0}, labels=rows % 2 / 1.0, persons=(rows // 2).astype(np.int64))


def test_a_study_within_the_policy_is_admitted() -> None:
    admit(study(), Policy(**ALLOWED))


@pytest.mark.parametrize(
    ("asked", "code"),
    [
        ({"purpose": "fraud_detection"}, "purpose"),
        ({"component": "third_party"}, "components"),
        ({"epsilon": 1.0000001}, "epsilon"),
        ({"epsilon": 5}, "epsilon"),
        ({"trust": "distributed"}, "trust"),
        ({"model": "neural"}, "model"),
    ],
)
def test_a_study_that_asks_for_more_is_refused(asked: dict[str, object], code: str) -> None:
    with pytest.raises(Refused) as caught:
        admit(study(**asked), Policy(**ALLOWED))  # type: ignore[arg-type]
    assert caught.value.code == code
    assert code in DECLINE_CODES
    assert caught.value.exit_code == 3
    assert "\n" not in str(caught.value)


def test_a_larger_delta_than_the_policy_allows_is_refused() -> None:
    with pytest.raises(Refused) as caught:
        admit(study(delta=1e-7), Policy(**{**ALLOWED, "delta": 5e-8}))
    assert caught.value.code == "delta"


@given(st.floats(min_value=1e-3, max_value=100), st.floats(min_value=1e-3, max_value=100))
def test_epsilon_is_admitted_exactly_up_to_the_limit(asked: float, limit: float) -> None:
    policy = Policy(
        **{**ALLOWED, "epsilon_per_run": limit, "epsilon_per_study": 100.0, "epsilon_per_year": 100.0}
    )
    if asked <= limit:
        admit(study(epsilon=asked), policy)
    else:
        with pytest.raises(Refused):
            admit(study(epsilon=asked), policy)


def test_persons_are_counted_and_not_rows() -> None:
    require_persons(records(100), Policy(**ALLOWED))
    with pytest.raises(Refused) as caught:
        require_persons(records(99), Policy(**ALLOWED))
    assert caught.value.code == "data"


@given(st.integers(min_value=1, max_value=99))
def test_a_refusal_for_too_few_persons_does_not_depend_on_their_number(persons: int) -> None:
    messages = set()
    for count in (persons, 50):
        with pytest.raises(Refused) as caught:
            require_persons(records(count), Policy(**ALLOWED))
        messages.add(str(caught.value))
    assert len(messages) == 1


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("purposes", ()),
        ("purposes", "consumer_credit"),
        ("purposes", ("consumer_credit", "consumer_credit")),
        ("purposes", (1,)),
        ("components", ()),
        ("components", ("identiy",)),
        ("epsilon_per_run", 0.0),
        ("epsilon_per_run", -1.0),
        ("epsilon_per_run", float("nan")),
        ("epsilon_per_run", float("inf")),
        ("epsilon_per_run", True),
        ("epsilon_per_run", "1"),
        ("epsilon_per_study", 0.5),
        ("epsilon_per_year", 2.0),
        ("epsilon_per_year", 1001),
        ("delta", 0.0),
        ("delta", 1e-5),
        ("delta", float("nan")),
        ("minimum_persons", 0),
        ("minimum_persons", 1.5),
        ("minimum_persons", True),
    ],
)
def test_a_policy_out_of_range_is_refused(setting: str, value: object) -> None:
    with pytest.raises(BadInput) as caught:
        Policy(**{**ALLOWED, setting: value})  # type: ignore[arg-type]
    assert caught.value.setting == setting


def test_a_purpose_that_nobody_may_have_cannot_be_allowed() -> None:
    with pytest.raises(Refused) as caught:
        Policy(**{**ALLOWED, "purposes": ("policing",)})
    assert caught.value.code == "D02"


def test_the_ledger_gets_the_limits_of_the_policy() -> None:
    limits = Policy(**ALLOWED).limits
    assert (limits.epsilon_per_study, limits.epsilon_per_year, limits.delta) == (3.0, 6.0, 1e-6)
