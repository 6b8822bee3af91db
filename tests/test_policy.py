"""A holder takes part only in what its own policy allows, and says no in one word."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay.client.policy import Policy, admit, require_circle, require_count, require_persons
from assay.client.records import Records
from assay.models.label import epsilon_of_share, privacy_target
from assay.models.study import Study, parse_study
from assay.privacy.errors import BadInput, Refused
from assay.privacy.keys import Identity, fingerprint
from assay.privacy.messages import (
    DECLINE_CODES,
)

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


@pytest.mark.parametrize(("asked", "allowed"), [("distributed", "local"), ("local", "distributed")])
def test_a_study_under_another_trust_is_refused(asked: str, allowed: str) -> None:
    with pytest.raises(Refused, match=f"policy.trust.*{allowed}|{allowed}.*policy.trust") as caught:
        admit(study(trust=asked), Policy(**{**ALLOWED, "trust": (allowed,)}))
    assert caught.value.code == "trust"
    admit(study(trust=asked), Policy(**ALLOWED))
    admit(study(trust=asked), Policy(**{**ALLOWED, "trust": (asked,)}))


KEYS = {name: Identity.generate().public for name in ("east", "north", "south", "west")}


def circle(*names: str, **rules: object) -> None:
    policy = Policy(**{**ALLOWED, **rules})  # type: ignore[arg-type]
    keys = {name: KEYS[name] for name in names}
    require_circle(study(trust="distributed"), policy, keys, name="north", public=KEYS["north"])


def refusal_of_circle(*names: str, **rules: object) -> str:
    with pytest.raises(Refused) as caught:
        circle(*names, **rules)
    assert caught.value.code == "holders"
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_three_holders_are_enough_and_two_are_not() -> None:
    circle("east", "north", "south")
    refusal_of_circle("north", "south")


def test_the_holders_own_minimum_is_respected() -> None:
    assert "policy.minimum_holders" in refusal_of_circle("east", "north", "south", minimum_holders=4)
    circle(*KEYS, minimum_holders=4)
    with pytest.raises(Refused):
        require_count(study(trust="distributed"), Policy(**{**ALLOWED, "minimum_holders": 5}), 4)


def test_invented_holders_cannot_thin_out_this_holders_own_noise() -> None:
    """Whoever names a hundred holders leaves each a hundredth of the noise: that is bounded."""
    target = privacy_target(study(trust="distributed"))
    most = epsilon_of_share(target, len(KEYS) - 2)
    message = refusal_of_circle(*KEYS, epsilon_if_aggregation_fails=most)
    assert "policy.epsilon_if_aggregation_fails" in message
    circle("east", "north", "south", epsilon_if_aggregation_fails=most)
    circle(*KEYS, epsilon_if_aggregation_fails=None)


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf"), 1001, True, "25"])
def test_a_bound_on_the_own_share_out_of_range_is_refused(value: object) -> None:
    with pytest.raises(BadInput, match="epsilon_if_aggregation_fails"):
        Policy(**{**ALLOWED, "epsilon_if_aggregation_fails": value})  # type: ignore[arg-type]


def test_a_circle_without_this_holder_or_with_another_key_for_it_is_refused() -> None:
    refusal_of_circle("east", "south", "west")
    with pytest.raises(Refused):
        require_circle(
            study(trust="distributed"), Policy(**ALLOWED), KEYS, name="north", public=KEYS["south"]
        )


def test_one_key_under_two_names_counts_once() -> None:
    keys = {**KEYS, "west": KEYS["east"]}
    with pytest.raises(Refused, match="several names"):
        require_circle(
            study(trust="distributed"), Policy(**ALLOWED), keys, name="north", public=KEYS["north"]
        )


def test_with_pins_nobody_else_takes_part() -> None:
    pins = {name: fingerprint(KEYS[name]).lower().replace("-", " ") for name in ("east", "south", "west")}
    circle(*KEYS, peers=pins)
    circle("east", "north", "south", peers=pins)
    message = refusal_of_circle(*KEYS, peers={name: pins[name] for name in ("east", "south")})
    assert "'west'" in message
    assert fingerprint(KEYS["west"]) in message
    assert "'east'" in refusal_of_circle(*KEYS, peers={**pins, "east": pins["west"]})


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
        ("trust", ()),
        ("trust", ("blind",)),
        ("trust", ("local", "local")),
        ("trust", "local"),
        ("minimum_holders", 2),
        ("minimum_holders", 1001),
        ("minimum_holders", 3.0),
        ("minimum_holders", True),
        ("peers", "east"),
        ("peers", ["east"]),
    ],
)
def test_a_policy_out_of_range_is_refused(setting: str, value: object) -> None:
    with pytest.raises(BadInput) as caught:
        Policy(**{**ALLOWED, setting: value})  # type: ignore[arg-type]
    assert caught.value.setting == setting


@pytest.mark.parametrize(
    ("peers", "setting"),
    [
        ({"East": "0" * 32}, "peers.East"),
        ({"coordinator": "0" * 32}, "peers.coordinator"),
        ({"east": "0" * 31}, "peers.east"),
        ({"east": "g" * 32}, "peers.east"),
        ({"east": 7}, "peers.east"),
        ({"east": ""}, "peers.east"),
    ],
)
def test_a_pin_that_pins_nobody_is_refused(peers: dict[str, object], setting: str) -> None:
    with pytest.raises(BadInput) as caught:
        Policy(**{**ALLOWED, "peers": peers})  # type: ignore[arg-type]
    assert caught.value.setting == setting


def test_a_purpose_that_nobody_may_have_cannot_be_allowed() -> None:
    with pytest.raises(Refused) as caught:
        Policy(**{**ALLOWED, "purposes": ("policing",)})
    assert caught.value.code == "D02"


def test_the_ledger_gets_the_limits_of_the_policy() -> None:
    limits = Policy(**ALLOWED).limits
    assert (limits.epsilon_per_study, limits.epsilon_per_year, limits.delta) == (3.0, 6.0, 1e-6)
