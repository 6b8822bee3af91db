"""A study file is either exactly what it should be, or refused with the line to correct."""

import contextlib
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from assay.models.cli import study_app
from assay.models.study import Feature, Privacy, parse_study, read_study
from assay.privacy.cohort import fewest_holders, threshold
from assay.privacy.errors import BadInput, Refused
from assay.privacy.purpose import PACK, check_input, check_purpose, check_use

EXAMPLE = Path(__file__).parent.parent / "examples" / "taiwan" / "study.toml"

STUDY = """\
[study]
name = "card"
purpose = "consumer_credit"
contexts = ["card_application"]

[outcome]
column = "default"
meaning = "missed a payment"

[person]
column = "person_id"

[[features]]
name = "limit"
column = "LIMIT"
component = "third_party"
kind = "numeric"
domain = [10_000, 1_000_000]
transform = "log"
risk_trend = "falls"
label = "Credit limit"
changeable = true

[[features]]
name = "status"
column = "PAY"
component = "payment_history"
kind = "integer"
domain = [-2, 8]

[[features]]
name = "education"
column = "EDU"
component = "identity"
kind = "categorical"
levels = ["1", "2"]

[fairness]
columns = ["SEX"]

[training]
model = "additive"
rounds = 30

[privacy]
epsilon = 1
delta = 1e-6
tolerated = 1
holders_per_person = 1

[scale]
low = 350
high = 950
anchor_score = 650
anchor_odds = 30
pdo = 40
"""


def changed(old: str, new: str) -> str:
    assert STUDY.count(old) >= 1, old
    return STUDY.replace(old, new, 1)


def line_of(text: str, part: str) -> int:
    return next(number for number, line in enumerate(text.splitlines(), 1) if part in line)


def refusal(text: str) -> BadInput:
    with pytest.raises(BadInput) as caught:
        parse_study(text, "s.toml")
    return caught.value


def test_a_good_study_is_read_whole():
    study = parse_study(STUDY)
    assert (study.name, study.purpose, study.person) == ("card", "consumer_credit", "person_id")
    assert [feature.name for feature in study.features] == ["limit", "status", "education"]
    limit, status, education = study.features
    assert limit.domain == (10_000, 1_000_000)
    assert (limit.risk_trend, limit.changeable, limit.transform) == ("falls", True, "log")
    assert status.label == "Status"
    assert education.levels == ("1", "2")
    assert not education.ordered
    assert study.fairness.columns == ("SEX",)
    assert (study.training.rounds, study.privacy.epsilon, study.scale.pdo) == (30, 1, 40)


def test_trust_is_distributed_unless_the_study_says_otherwise():
    assert parse_study(STUDY).privacy.trust == "distributed"
    assert parse_study(changed("tolerated", 'trust = "local"\ntolerated')).privacy.trust == "local"


def test_both_kinds_of_trust_can_be_trained():
    for trust in ("local", "distributed"):
        parse_study(changed("tolerated", f'trust = "{trust}"\ntolerated')).require_trainable()


@pytest.mark.parametrize(("tolerated", "fewest"), [(1, 3), (2, 5), (3, 8), (7, 20)])
def test_a_sum_needs_three_holders_and_few_tolerated_ones_among_them(tolerated, fewest):
    study = parse_study(changed("tolerated = 1", f"tolerated = {tolerated}"))
    for enough in (fewest, 1000):
        study.require_holders(enough)
    for wrong in (0, 2, fewest - 1, 1001):
        with pytest.raises(Refused, match=f"holders is {wrong}; allowed: {fewest} to 1000") as caught:
            study.require_holders(wrong)
        assert caught.value.code == "holders"
        assert 'trust = "local"' in str(caught.value)


def test_no_number_of_holders_that_is_allowed_lets_the_tolerated_ones_open_two_lists():
    """With c colluding holders, two lists can be opened in one round from 2 * threshold - n of them on."""
    for tolerated in range(1, 40):
        study = parse_study(changed("tolerated = 1", f"tolerated = {tolerated}"))
        for holders in range(fewest_holders(tolerated), 200):
            study.require_holders(holders)
            assert 2 * threshold(holders) - holders > tolerated
            assert holders - tolerated >= 2
    # One fewer would let them: the bound is not wider than it must be.
    assert all(2 * threshold(3 * t - 2) - (3 * t - 2) <= t for t in range(2, 40))


def test_full_noise_needs_no_company():
    study = parse_study(changed("tolerated", 'trust = "local"\ntolerated'))
    for holders in (1, 2, 10_000):
        study.require_holders(holders)


def test_optional_tables_may_be_left_out():
    text = STUDY.split("[fairness]")[0] + "[privacy]\nepsilon = 1\n"
    study = parse_study(text.replace('[person]\ncolumn = "person_id"\n', ""))
    assert (study.person, study.fairness.columns, study.training.rounds) == (None, (), None)
    assert (study.scale.low, study.scale.high) == (350, 950)


def test_the_digest_is_that_of_the_text():
    assert parse_study(STUDY).digest == parse_study(STUDY).digest
    assert parse_study(STUDY).digest != parse_study(STUDY + "\n").digest


def test_the_example_is_valid():
    study = read_study(EXAMPLE)
    assert len(study.features) == 20
    assert set(study.fairness.columns) == {"SEX", "MARRIAGE", "AGE"}


@pytest.mark.parametrize(
    ("old", "new", "nearest"),
    [
        ("epsilon", "epsilom", "epsilon"),
        ("[fairness]", "[fairnes]", "fairness"),
        ("risk_trend", "risk_trends", "risk_trend"),
        ("pdo", "pdos", "pdo"),
        ("meaning", "meening", "meaning"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_known_one(old, new, nearest):
    text = changed(old, new)
    message = str(refusal(text))
    assert message.startswith(f"s.toml:{line_of(text, new)}: ")
    assert f"did you mean '{nearest}'?" in message


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("epsilon = 1", "epsilon = 0"),
        ("epsilon = 1", "epsilon = -1"),
        ("epsilon = 1", "epsilon = nan"),
        ("epsilon = 1", "epsilon = inf"),
        ("epsilon = 1", "epsilon = true"),
        ("epsilon = 1", 'epsilon = "1"'),
        ("delta = 1e-6", "delta = 0"),
        ("delta = 1e-6", "delta = 2e-6"),
        ("delta = 1e-6", "delta = nan"),
        ("delta = 1e-6", "delta = true"),
        ("tolerated = 1", "tolerated = 0"),
        ("tolerated = 1", "tolerated = 1.0"),
        ("holders_per_person = 1", "holders_per_person = 0"),
        ("rounds = 30", "rounds = 0"),
        ("rounds = 30", "rounds = 1001"),
        ("rounds = 30", "rounds = true"),
        ('model = "additive"', 'model = "forest"'),
        ("domain = [10_000, 1_000_000]", "domain = [1, 1]"),
        ("domain = [10_000, 1_000_000]", "domain = [2, 1]"),
        ("domain = [10_000, 1_000_000]", "domain = [1, inf]"),
        ("domain = [10_000, 1_000_000]", "domain = [nan, 1]"),
        ("domain = [10_000, 1_000_000]", "domain = [1, 2, 3]"),
        ("domain = [10_000, 1_000_000]", "domain = 7"),
        ("domain = [10_000, 1_000_000]", f"domain = [0, 1{'0' * 400}]"),
        ("epsilon = 1", f"epsilon = 1{'0' * 400}"),
        ("domain = [10_000, 1_000_000]", "domain = [-1, 10]"),
        ("domain = [10_000, 1_000_000]", "domain = [1e300, 1.0000000000000002e300]"),
        ("domain = [-2, 8]", "domain = [-2.5, 8]"),
        ("domain = [-2, 8]", "domain = [0, 256]"),
        ("domain = [-2, 8]", 'domain = [-2, 8]\ntransform = "log"'),
        ("domain = [-2, 8]", 'domain = [-2, 8]\nlevels = ["a"]'),
        ('transform = "log"', 'transform = "sqrt"'),
        ('risk_trend = "falls"', 'risk_trend = "down"'),
        ("changeable = true", "changeable = 1"),
        ('kind = "numeric"', 'kind = "number"'),
        ('component = "third_party"', 'component = "third party"'),
        ('levels = ["1", "2"]', "levels = []"),
        ('levels = ["1", "2"]', 'levels = ["1", "1"]'),
        ('levels = ["1", "2"]', "levels = [1, 2]"),
        ('levels = ["1", "2"]', 'levels = ["1", " 2"]'),
        ('levels = ["1", "2"]', 'levels = ["1", ""]'),
        ('levels = ["1", "2"]', 'levels = ["1"]\ndomain = [1, 2]'),
        ('levels = ["1", "2"]', 'levels = ["1"]\nrisk_trend = "falls"'),
        ('name = "limit"', 'name = "Limit"'),
        ('name = "limit"', 'name = "1limit"'),
        ('name = "limit"', "name = 7"),
        ('name = "limit"', 'name = "status"'),
        ('column = "PAY"', 'column = "LIMIT"'),
        ('column = "PAY"', 'column = "default"'),
        ('column = "PAY"', 'column = "person_id"'),
        ('column = "PAY"', 'column = ""'),
        ('columns = ["SEX"]', 'columns = ["PAY"]'),
        ('columns = ["SEX"]', 'columns = ["default"]'),
        ('columns = ["SEX"]', 'columns = ["SEX", "SEX"]'),
        ('columns = ["SEX"]', 'columns = "SEX"'),
        ('column = "person_id"', 'column = "default"'),
        ('column = "person_id"', 'column = "score"'),
        ('contexts = ["card_application"]', "contexts = []"),
        ('contexts = ["card_application"]', 'contexts = [""]'),
        ('contexts = ["card_application"]', 'contexts = ["a", "a"]'),
        ('contexts = ["card_application"]', 'contexts = "a"'),
        ('purpose = "consumer_credit"', 'purpose = ""'),
        ('purpose = "consumer_credit"', "purpose = 3"),
        ('name = "card"', 'name = "../card"'),
        ("low = 350", "low = 650"),
        ("high = 950", "high = 650"),
        ("anchor_odds = 30", "anchor_odds = 0"),
        ("pdo = 40", "pdo = 0"),
        ("pdo = 40", "pdo = nan"),
        ("low = 350", "low = 350.5"),
    ],
)
def test_a_value_out_of_range_is_refused_with_its_line_and_what_is_allowed(old, new):
    text = changed(old, new)
    message = str(refusal(text))
    place = re.match(r"s\.toml:(\d+): ", message)
    assert place, message
    assert "allowed: " in message
    assert "\n" not in message
    named = text.splitlines()[int(place[1]) - 1]
    # The line named is the one that was changed, or the other half of a pair that does not fit.
    assert named in new.splitlines() or "only once" in message or "between low" in message, message


@pytest.mark.parametrize(
    "lost",
    ['name = "card"\n', 'purpose = "consumer_credit"\n', "epsilon = 1\n", 'meaning = "missed a payment"\n'],
)
def test_a_missing_key_is_named(lost):
    assert "missing" in str(refusal(changed(lost, "")))


@pytest.mark.parametrize("lost", ["domain = [-2, 8]\n", 'levels = ["1", "2"]\n', 'kind = "integer"\n'])
def test_a_feature_without_its_range_is_refused(lost):
    refusal(changed(lost, ""))


@pytest.mark.parametrize(
    "text", ["", "[study", "a = 1\na = 2", "features = 3", "[[study]]\nname='a'", "\x00", f"a = {'1' * 5000}"]
)
def test_what_is_no_study_is_refused(text):
    refusal(text)


def test_a_wide_integer_range_comes_with_the_remedy():
    assert 'kind = "numeric"' in str(refusal(changed("[-2, 8]", "[0, 1000]")))


def test_a_study_larger_than_an_offer_is_refused():
    refusal(STUDY + "#" * (1 << 19))


@given(st.text(max_size=60))
def test_any_text_in_place_of_a_value_is_refused_or_read_but_never_a_crash(text):
    with contextlib.suppress(BadInput, Refused):
        parse_study(changed("domain = [-2, 8]", f"domain = {text}"))


@pytest.mark.parametrize(
    ("purpose", "code"),
    [
        ('"general_trustworthiness"', "D01"),
        ('["consumer_credit", "microloan"]', "D01"),
        ('"travel_visa"', "D02"),
        ('"voting"', "D02"),
        ('"policing"', "D02"),
        ('"predictive_policing"', "D04"),
        ('"blacklist"', "D06"),
        ('"something_else"', "purpose"),
        ('"Consumer_Credit"', "purpose"),
    ],
)
def test_a_purpose_that_is_not_allowed_is_refused_with_its_code_and_line(purpose, code):
    text = changed('"consumer_credit"', purpose)
    with pytest.raises(Refused) as caught:
        parse_study(text, "s.toml")
    assert caught.value.code == code
    assert caught.value.exit_code == 3
    assert str(caught.value).startswith("s.toml:3: ")


@pytest.mark.parametrize("purpose", PACK.allowed)
def test_every_allowed_purpose_is_allowed(purpose):
    assert check_purpose(purpose) == purpose


def test_an_unknown_purpose_is_refused_with_the_nearest_allowed_one():
    with pytest.raises(Refused, match="nearest is 'consumer_credit'"):
        check_purpose("consumer_credits")


def test_a_refused_use_does_not_pass_as_a_context():
    with pytest.raises(Refused, match="D02"):
        parse_study(changed("card_application", "travel-visa"))


def test_every_named_refusal_has_text_article_and_a_test_word():
    assert [refusal.code for refusal in PACK.refusals] == [f"D0{i}" for i in range(1, 9)]
    for named in PACK.refusals:
        assert named.text
        assert named.article
        for phrase in named.phrases:
            with pytest.raises(Refused) as caught:
                check_purpose(phrase)
            assert caught.value.code == named.code


@pytest.mark.parametrize(
    "name",
    ["sex", "GENDER", "ApplicantAge", "marital_status", "MARRIAGE", "race", "Religion", "health_index",
     "contacts_count", "social", "biometricScore", "NATIONALITY", "political_view", "birth_year"],
)  # fmt: skip
@pytest.mark.parametrize("part", ["name", "column", "label"])
def test_a_protected_attribute_is_no_input_whatever_part_names_it(name, part):
    good = Feature(name="x", column="X", component="identity", kind="integer", label="X", domain=(0, 1))
    value = (
        re.sub(r"[^a-z_]", "", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()) if part == "name" else name
    )
    with pytest.raises(Refused, match="D05"):
        replace(parse_study(STUDY), features=(replace(good, **{part: value}),))


@pytest.mark.parametrize(
    "name", ["usage", "mileage", "average_bill", "account_age", "essex", "contactless", "PAY_AMT1"]
)
def test_words_that_only_contain_a_protected_one_are_inputs(name):
    check_input(name)


def test_a_protected_input_is_refused_with_its_line():
    text = changed('column = "PAY"', 'column = "AGE"')
    with pytest.raises(Refused) as caught:
        parse_study(text, "s.toml")
    assert str(caught.value).startswith(f"s.toml:{line_of(text, 'AGE')}: ")


def test_a_model_is_used_for_its_own_purpose_only():
    assert check_use("consumer_credit", "consumer_credit") == "consumer_credit"
    with pytest.raises(Refused) as other:
        check_use("microloan", "consumer_credit")
    with pytest.raises(Refused) as fraud:
        check_use("fraud_detection", "consumer_credit")
    assert (other.value.code, fraud.value.code) == ("D03", "D08")


def test_types_made_in_code_are_as_strict_as_a_file():
    with pytest.raises(BadInput, match="epsilon"):
        Privacy(epsilon=float("nan"))
    with pytest.raises(Refused):
        replace(parse_study(STUDY), purpose="voting")


def test_study_check_says_that_a_neural_model_cannot_be_trained(tmp_path):
    path = tmp_path / "s.toml"
    path.write_text(changed('"additive"', '"neural"'))
    result = CliRunner().invoke(study_app, ["check", str(path), "--json"])
    assert result.exit_code == 0
    assert "no points that could be explained" in json.loads(result.stdout)["notes"][0]
    with pytest.raises(Refused, match="no points that could be explained"):
        read_study(path).require_trainable()


@pytest.mark.parametrize(
    ("old", "new", "code"), [("epsilon = 1", "epsilon = -1", 2), ("consumer_credit", "voting", 3)]
)
def test_study_check_ends_with_one_line_and_the_documented_code(tmp_path, old, new, code):
    path = tmp_path / "s.toml"
    path.write_text(changed(old, new))
    result = CliRunner().invoke(study_app, ["check", str(path)])
    assert result.exit_code == code
    assert result.stdout == ""
    assert len(result.stderr.strip().splitlines()) == 1


def test_a_file_that_is_absent_or_not_text_is_refused(tmp_path):
    with pytest.raises(BadInput, match="existing"):
        read_study(tmp_path / "none.toml")
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadInput, match="UTF-8"):
        read_study(tmp_path / "bytes.toml")
    with pytest.raises(BadInput):
        read_study(tmp_path)
