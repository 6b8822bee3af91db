"""Synthetic people: what is promised of them, that their risk is the stated one, and that files are whole.

Statistical bounds are five standard errors: a correct generator fails such a test once in 1.7 million seeds.
Seeds are fixed, so a test that passes keeps passing.
"""

import itertools
import json
import re
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
from federation_support import assay, assay_json
from typer.testing import CliRunner

from assay.models.columns import typed_column
from assay.models.encoding import Grid
from assay.models.metrics import auroc
from assay.models.schema import COMPONENTS
from assay.models.study import parse_study, read_study
from assay.privacy.errors import BadData, BadInput, Refused
from assay.simulations.main import build
from assay.simulations.population import BLOCK, generate
from assay.simulations.population_file import write_population
from assay.simulations.population_read import read_parameters
from assay.simulations.population_risk import Ranking, place, true_risk
from assay.simulations.population_study import study_text
from assay.simulations.population_trait import OUTCOMES, Term

PEOPLE = 150_000
PARAMS = read_parameters()
KEYS = "people rows seed months file studies bayes_auroc recorded_auroc base_rate mislabelled seconds"


@pytest.fixture(scope="module")
def crowd():
    """Everybody: columns as numpy (NaN or None = missing), true risks, and which labels are wrong."""
    return together(generate(PARAMS, people=PEOPLE, seed=11))


def together(chunks):
    chunks = list(chunks)
    table = pa.concat_tables([chunk.table for chunk in chunks])
    columns = {name: table.column(name).to_numpy() for name in table.schema.names}
    risk = {o: np.concatenate([chunk.true_risk[o] for chunk in chunks]) for o in OUTCOMES}
    wrong = {o: np.concatenate([chunk.mislabelled[o] for chunk in chunks]) for o in OUTCOMES}
    return table, columns, risk, wrong


def changed(tmp_path, text):
    path = tmp_path / "change.toml"
    path.write_text(textwrap.dedent(text), encoding="utf-8")
    return path


def error_of_auroc(value, labels):
    """Return a bound of the standard error of an AUROC: the smaller class alone makes at most this."""
    return np.sqrt(value * (1 - value) / min(labels.sum(), (1 - labels).sum()))


# ── who they are ───────────────────────────────────────────────────────────────────────────────────────────


def test_five_components_have_three_to_six_features_each():
    counts = [sum(t.component == c for t in PARAMS.features.values()) for c in COMPONENTS]
    assert all(3 <= count <= 6 for count in counts)
    assert 18 <= sum(counts) <= 24


def test_base_rates_are_those_of_credit_and_fraud(crowd):
    _, columns, risk, _ = crowd
    assert 0.08 <= columns["default"].mean() <= 0.10
    assert 0.02 <= columns["fraud"].mean() <= 0.03
    for outcome in OUTCOMES:
        assert 0 < risk[outcome].min() < 0.01
        assert 0.3 < risk[outcome].max() < 1


def test_money_has_a_heavier_tail_than_a_lognormal(crowd):
    logs = np.log(crowd[1]["income"][crowd[1]["income"] > 0])
    scaled = (logs - np.median(logs)) / (np.quantile(logs, 0.841) - np.median(logs))
    assert np.quantile(scaled, 0.9999) > 4.5  # a normal number: 3.7
    assert np.nanmax(crowd[1]["income"]) > 20_000  # beyond the public range, to be clamped
    assert np.nanmin(crowd[1]["balance"]) < 0


@pytest.mark.parametrize("name", ["warnings", "late_payments", "enquiries", "overdraft_days"])
def test_counts_are_whole_and_overdispersed(crowd, name):
    values = crowd[1][name][~np.isnan(crowd[1][name])]
    assert np.array_equal(values, np.rint(values))
    assert values.min() == 0
    assert values.var() > 1.5 * values.mean()


def test_every_feature_stays_within_what_a_record_can_hold(crowd):
    for name, trait in PARAMS.features.items():
        values = crowd[1][name]
        if trait.levels:
            assert set(values) - {None} == set(trait.levels)
        else:
            assert (0 if trait.needs else trait.bounds[0]) <= np.nanmin(values)
            assert np.nanmax(values) <= trait.bounds[1]


def test_missing_cells_are_as_many_as_stated_and_not_at_random(crowd):
    table, columns, _, _ = crowd
    for name, trait in PARAMS.features.items():
        share = table.column(name).null_count / PEOPLE
        if trait.missing == 0:
            assert share == 0
        elif trait.missing_slope == 0:
            spread = np.sqrt(trait.missing * (1 - trait.missing) / PEOPLE)
            assert abs(share - trait.missing) < 5 * spread, name
        else:
            assert 0.5 * trait.missing < share < 2.5 * trait.missing, name
    hidden = np.isnan(columns["bureau_score"])
    debts = columns["utilisation"]
    assert np.nanmean(debts[hidden]) > 1.1 * np.nanmean(debts[~hidden])


def test_components_are_correlated_through_their_hidden_factors(crowd):
    pairs = [
        ("income", "bureau_score", 1),
        ("late_payments", "utilisation", 1),
        ("warnings", "full_share", -1),
    ]
    for one, two, sign in pairs:
        known = ~np.isnan(crowd[1][one]) & ~np.isnan(crowd[1][two])
        ranks = [np.argsort(np.argsort(crowd[1][name][known])) for name in (one, two)]
        assert sign * np.corrcoef(*ranks)[0, 1] > 0.04, (one, two)  # by chance: 0.003


def test_nobody_without_a_late_payment_has_a_delay(crowd):
    late, delay = crowd[1]["late_payments"], crowd[1]["worst_delay"]
    assert np.nanmax(delay[late == 0]) == 0
    assert np.nanmin(delay[late > 0]) >= 1


def test_regions_differ_in_covariates_and_base_rates(crowd):
    _, columns, _, _ = crowd
    total = sum(region.share for region in PARAMS.regions.values())
    rates, cash = {}, {}
    for name, region in PARAMS.regions.items():
        here = columns["region"] == name
        share = region.share / total
        assert abs(here.mean() - share) < 5 * np.sqrt(share * (1 - share) / PEOPLE)
        rates[name], cash[name] = columns["default"][here].mean(), columns["cash_share"][here].mean()
    assert max(rates.values()) > 1.5 * min(rates.values())
    assert cash["harbour"] > 1.5 * max(share for name, share in cash.items() if name != "harbour")


def test_a_feature_means_the_opposite_in_one_region(crowd):
    table, _, _, _ = crowd
    part = table.slice(0, 20_000)
    region, at = np.asarray(part["region"]), part.schema.names.index("cash_share")
    none, much = (
        true_risk(PARAMS, part.set_column(at, "cash_share", pa.array(np.full(len(part), share))))
        for share in (0.0, 0.6)
    )
    for outcome in OUTCOMES:
        assert ((much[outcome] < none[outcome]) == (region == "harbour")).all()


def test_that_meaning_shows_in_the_labels(crowd):
    """With everything else the same, by weights: what cash adds to the labels beyond the risk without it."""
    table, columns, _, _ = crowd
    at = table.schema.names.index("cash_share")
    without = true_risk(PARAMS, table.set_column(at, "cash_share", pa.array(np.zeros(PEOPLE))))["credit"]
    cash = columns["cash_share"] > 0.3
    for here, sign in ((columns["region"] == "harbour", -1), (columns["region"] != "harbour", 1)):
        rows = here & cash
        surplus = columns["default"][rows].sum() - without[rows].sum()
        assert sign * surplus > 5 * np.sqrt(np.sum(without[rows] * (1 - without[rows])))


def test_months_are_even_and_people_and_risk_drift(crowd):
    _, columns, _, _ = crowd
    counts = np.bincount(columns["month"], minlength=12)
    assert len(counts) == 12
    assert np.abs(counts - PEOPLE / 12).max() < 5 * np.sqrt(PEOPLE / 12)
    first, last = columns["month"] < 3, columns["month"] >= 9
    for name in ("enquiries", "devices", "income"):
        values = np.log1p(columns[name])
        error = np.nanstd(values) * np.sqrt(1 / first.sum() + 1 / last.sum())
        assert np.nanmean(values[last]) - np.nanmean(values[first]) > 5 * error, name
    assert columns["fraud"][last].mean() > 1.1 * columns["fraud"][first].mean()


def test_protected_groups_differ_but_are_no_part_of_risk(crowd):
    table, columns, risk, _ = crowd
    for name, group in PARAMS.groups.items():
        assert set(columns[name]) == set(group.levels)
    rates = [columns["default"][columns["age_group"] == level].mean() for level in ("18-24", "60+")]
    assert rates[0] > 1.3 * rates[1]
    alone = true_risk(PARAMS, table.select([*PARAMS.features, "region", "month"]))
    assert all(np.array_equal(alone[outcome], risk[outcome]) for outcome in OUTCOMES)


def test_people_are_known_to_one_to_five_holders(crowd):
    _, columns, _, _ = crowd
    known = [[int(number) for number in text.split()] for text in columns["known_to"]]
    assert [len(numbers) for numbers in known] == columns["holders"].tolist()
    assert all(sorted(set(numbers)) == numbers for numbers in known)
    counts = np.bincount(np.concatenate(known))
    assert len(counts) == 11
    assert counts[0] == 0
    assert (np.diff(counts[1:]) < 0).all()  # number 1 is the largest
    shares = np.array(PARAMS.people.known_to) / sum(PARAMS.people.known_to)
    found = np.bincount(columns["holders"], minlength=6)[1:] / PEOPLE
    assert len(found) == 5
    assert (np.abs(found - shares) < 5 * np.sqrt(shares * (1 - shares) / PEOPLE)).all()


# ── their risk ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_the_bayes_auroc_is_that_of_the_true_risk(crowd, outcome):
    _, columns, risk, wrong = crowd
    happened = columns[OUTCOMES[outcome]] ^ wrong[outcome]
    ranking = Ranking()
    for part in np.array_split(risk[outcome], 7):
        ranking.add(part)
    bound = 5 * error_of_auroc(ranking.auroc(), happened)
    assert abs(auroc(happened, risk[outcome]) - ranking.auroc()) < bound
    assert auroc(columns[OUTCOMES[outcome]], risk[outcome]) < ranking.auroc()
    # The control: another ranking is told apart.
    assert abs(auroc(happened, np.random.default_rng(1).permutation(risk[outcome])) - ranking.auroc()) > bound


def test_the_bayes_auroc_is_exact_up_to_its_bins(crowd):
    risk = crowd[2]["credit"][:3000]
    right = np.sum(np.outer(risk, 1 - risk) * ((risk[:, None] > risk) + 0.5 * (risk[:, None] == risk)))
    ranking = Ranking()
    ranking.add(risk)
    assert ranking.auroc() == pytest.approx(right / (risk.sum() * (1 - risk).sum()), abs=1e-4)
    assert Ranking().auroc() == 0.5


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_risks_are_probabilities_of_what_happens(crowd, outcome):
    """In ten groups from lowest to highest risk; one false alarm in 170,000 seeds."""
    _, columns, risk, wrong = crowd
    happened = columns[OUTCOMES[outcome]] ^ wrong[outcome]
    for rows in np.array_split(np.argsort(risk[outcome]), 10):
        p = risk[outcome][rows]
        assert abs(happened[rows].sum() - p.sum()) < 5 * np.sqrt(np.sum(p * (1 - p)))


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_the_numbers_told_are_those_of_the_people_written(tmp_path, outcome):
    told = write_population(PARAMS, tmp_path / "people.parquet", people=40_000, seed=6)
    _, columns, risk, wrong = together(generate(PARAMS, people=40_000, seed=6))
    ranking = Ranking()
    ranking.add(risk[outcome])
    assert told["bayes_auroc"][outcome] == pytest.approx(ranking.auroc(), abs=1e-12)
    recorded = columns[OUTCOMES[outcome]]
    assert told["base_rate"][outcome] == recorded.mean()
    assert told["mislabelled"][outcome] == wrong[outcome].mean()
    measured = auroc(recorded, risk[outcome])
    assert abs(measured - told["recorded_auroc"][outcome]) < 5 * error_of_auroc(measured, recorded)
    # Expected, as the true one is: between the true one and that of no information.
    assert 0.75 < told["recorded_auroc"][outcome] < ranking.auroc() - 0.004


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_labels_are_mistaken_as_often_as_stated(crowd, outcome):
    _, columns, _, wrong = crowd
    own, recorded = PARAMS.outcomes[outcome], columns[OUTCOMES[outcome]]
    happened = recorded ^ wrong[outcome]
    for value, rate in ((1, own.bad_as_good), (0, own.good_as_bad)):
        rows = happened == value
        assert abs(wrong[outcome][rows].mean() - rate) < 5 * np.sqrt(rate * (1 - rate) / rows.sum())
        assert wrong[outcome][rows].any()


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_the_true_risk_is_a_function_of_the_file(tmp_path, suffix):
    path = tmp_path / f"people{suffix}"
    write_population(PARAMS, path, people=5000, seed=4)
    table = pyarrow.parquet.read_table(path) if suffix == ".parquet" else pyarrow.csv.read_csv(path)
    _, _, risk, _ = together(generate(PARAMS, people=5000, seed=4))
    again = true_risk(PARAMS, table)
    assert all(np.array_equal(again[outcome], risk[outcome]) for outcome in OUTCOMES)


def test_a_table_that_the_generator_did_not_write_is_refused(crowd):
    table = crowd[0].slice(0, 10)
    with pytest.raises(BadData, match="column 'income'"):
        true_risk(PARAMS, table.drop_columns(["income"]))
    wrong = table.set_column(table.schema.names.index("region"), "region", pa.array(["nowhere"] * 10))
    with pytest.raises(BadData, match=r"'nowhere'.*harbour"):
        true_risk(PARAMS, wrong)


@pytest.mark.parametrize(
    ("shape", "places"),
    [
        ("line", [0, 0, 0.5, 1, 1]),
        ("curve", [0, 0, 0.8176, 1, 1]),
        ("step", [0, 0.0067, 0.5, 0.9933, 1]),
        ("valley", [1, 1, 0, 1, 1]),
    ],
)
def test_shapes_saturate_or_have_a_threshold(shape, places):
    trait = PARAMS.features["bureau_score"]
    term = Term(shape=shape, low=400, high=600, weight=1)
    found = place(trait, term, np.array([100.0, 400, 500, 600, 900, np.nan]))
    assert found[:5] == pytest.approx(places, abs=1e-3)
    assert np.isnan(found[5])


def log_odds_with(table, outcome, **values):
    """Return the log-odds of everybody in ``table`` with some columns the same for all."""
    for name, value in values.items():
        at = table.schema.names.index(name)
        table = table.set_column(at, name, pa.array(np.full(len(table), value)))
    risk = true_risk(PARAMS, table)[outcome]
    return np.log(risk / (1 - risk))


def test_the_weight_of_a_feature_drifts():
    table = next(generate(PARAMS, people=100, seed=3)).table
    term = PARAMS.features["bureau_score"].credit
    effect = {
        month: log_odds_with(table, "credit", month=month, bureau_score=term.high)
        - log_odds_with(table, "credit", month=month, bureau_score=term.low)
        for month in (0, 12)
    }
    assert effect[0] == pytest.approx(np.full(100, term.weight))
    assert effect[12] == pytest.approx(np.full(100, term.weight * (1 + term.drift)))
    assert term.drift


def test_two_features_together_add_more_than_each_alone():
    """On the log-odds, so that what is left over is the interaction's weight."""
    table = next(generate(PARAMS, people=100, seed=3)).table

    def odds(utilisation, late):
        return log_odds_with(table, "credit", utilisation=utilisation, late_payments=late)

    left = odds(5.0, 6) - odds(5.0, 0) - odds(-5.0, 6) + odds(-5.0, 0)
    assert left == pytest.approx(np.full(100, PARAMS.interactions["stretched"].weight), abs=1e-6)


# ── the same people ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_a_seed_gives_the_same_bytes(tmp_path, suffix):
    files = [tmp_path / f"{name}{suffix}" for name in ("one", "two", "other")]
    for path, seed in zip(files, (7, 7, 8), strict=True):
        write_population(PARAMS, path, people=6000, seed=seed)
    one, two, other = (path.read_bytes() for path in files)
    assert one == two
    assert one != other


@pytest.mark.parametrize("chunk", [1, 3 * BLOCK, 10**8])
def test_a_stream_gives_the_same_people_as_one_go(chunk):
    whole = together(generate(PARAMS, people=10_000, seed=5))
    parts = list(generate(PARAMS, people=10_000, seed=5, chunk=chunk))
    assert len(parts) == (3 if chunk == 1 else 1)
    pieces = together(parts)
    assert pieces[0].equals(whole[0])
    for outcome in OUTCOMES:
        assert np.array_equal(pieces[2][outcome], whole[2][outcome])
        assert np.array_equal(pieces[3][outcome], whole[3][outcome])


def test_a_person_does_not_depend_on_how_many_others_there_are():
    many = together(generate(PARAMS, people=9000, seed=5))[0]
    for people in (1, 100, BLOCK + 1):
        assert together(generate(PARAMS, people=people, seed=5))[0].equals(many.slice(0, people))


def test_nobody_is_there_twice(crowd):
    assert np.array_equal(crowd[1]["person_id"], np.arange(1, PEOPLE + 1))
    features = crowd[0].select(list(PARAMS.features)).slice(0, 3 * BLOCK)
    assert features.group_by(features.schema.names).aggregate([]).num_rows == 3 * BLOCK


def test_one_person_takes_milliseconds():
    list(generate(PARAMS, people=1))
    begin = time.perf_counter()
    for seed in range(10):
        assert next(generate(PARAMS, people=1, seed=seed)).table.num_rows == 1
    assert (time.perf_counter() - begin) / 10 < 0.1  # measured: 0.01


@pytest.mark.slow
def test_a_million_people_take_less_than_600_mb(tmp_path):
    # VmHWM is this process's own: ru_maxrss begins with what the process that forked it had.
    script = (
        "import re, sys; from assay.simulations.main import build\n"
        "build()(sys.argv[1:], standalone_mode=False)\n"
        "print(re.search('VmHWM:\\\\s+([0-9]+)', open('/proc/self/status').read())[1], file=sys.stderr)"
    )
    command = ["population", "--people", "1000000", "--out", str(tmp_path / "million.parquet"), "--json"]
    done = subprocess.run(
        [sys.executable, "-c", script, *command], capture_output=True, text=True, check=True
    )
    result = json.loads(done.stdout)
    assert result["rows"] == pyarrow.parquet.read_metadata(result["file"]).num_rows == 1_000_000
    assert int(done.stderr) < 600 * 1024  # measured: 232 MB


# ── the studies ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    out = tmp_path_factory.mktemp("population") / "people.parquet"
    return assay_json("population", "--people", 3000, "--seed", 3, "--out", out)


def test_the_promised_json_is_given(written):
    assert set(KEYS.split()) == set(written)
    assert (written["people"], written["rows"], written["seed"], written["months"]) == (3000, 3000, 3, 12)
    table = pyarrow.parquet.read_table(written["file"])
    for outcome, column in OUTCOMES.items():
        assert 0.75 < written["recorded_auroc"][outcome] < written["bayes_auroc"][outcome] < 0.95
        assert written["base_rate"][outcome] == pytest.approx(np.mean(np.asarray(table[column])))
        assert 0 < written["mislabelled"][outcome] < 0.01


@pytest.mark.parametrize(
    ("outcome", "purpose"), [("credit", "consumer_credit"), ("fraud", "fraud_detection")]
)
def test_studies_are_valid_and_the_file_has_their_columns(written, outcome, purpose):
    assay("study", "check", written["studies"][outcome])
    study = read_study(Path(written["studies"][outcome]))
    columns = set(pyarrow.parquet.read_schema(written["file"]).names)
    named = {feature.column for feature in study.features}
    assert study.purpose == purpose
    assert study.outcome.column == OUTCOMES[outcome]
    assert study.person == "person_id"
    assert study.fairness.groups == {name: group.levels for name, group in PARAMS.groups.items()}
    assert study.privacy.epsilon == 1
    assert named == set(PARAMS.features)
    assert named | {study.person, study.outcome.column, *study.fairness.columns} <= columns


def test_the_true_risk_is_in_no_file(written):
    named = {"person_id", "month", "region", "holders", "known_to", *PARAMS.groups, *PARAMS.features}
    assert set(pyarrow.parquet.read_schema(written["file"]).names) == named | set(OUTCOMES.values())


def test_records_are_what_the_study_says(written):
    table = pyarrow.parquet.read_table(written["file"])
    study = read_study(Path(written["studies"]["credit"]))
    kinds = {"numeric": "number", "integer": "integer", "categorical": "text"}
    columns = {
        feature.column: typed_column(table[feature.column], feature.column, kinds[feature.kind], where="file")
        for feature in study.features
    }
    encoded = Grid.of(study).encode(columns)
    assert len(encoded) == 3000
    assert len(np.unique(encoded.low)) > 150  # nearly every cell is somebody's


def test_stated_trends_are_true_everywhere(crowd):
    """Every value of the range, for people of every region: risk never moves against the trend."""
    part = crowd[0].slice(0, 2000)
    for trait in PARAMS.features.values():
        if trait.risk_trend is None:
            continue
        low, high = trait.domain
        at = part.schema.names.index(trait.name)
        risks = [
            true_risk(PARAMS, part.set_column(at, trait.name, pa.array(np.full(2000, value))))
            for value in np.rint(np.linspace(low, high, 12))
        ]
        sign = 1 if trait.risk_trend == "rises" else -1
        for before, after in itertools.pairwise(risks):
            for outcome in OUTCOMES:
                assert (sign * (after[outcome] - before[outcome]) >= -1e-12).all(), (trait.name, outcome)


def test_no_trend_is_stated_where_a_region_reverses_it():
    reversed_somewhere = {name for region in PARAMS.regions.values() for name in region.reversed}
    assert reversed_somewhere == {"cash_share"}
    stated = {f.name: f.risk_trend for f in parse_study(study_text(PARAMS, "credit")).features}
    assert stated == {name: trait.risk_trend for name, trait in PARAMS.features.items()}
    assert stated["cash_share"] is None
    assert stated["income"] == "falls"


# ── parameters ─────────────────────────────────────────────────────────────────────────────────────────────


def test_a_file_changes_what_it_names_and_nothing_else(tmp_path):
    path = changed(
        tmp_path,
        """
        [outcomes.fraud]
        intercept = 1.5
        [features.cash_share.credit]
        weight = 3.0
        [features.balance.fraud]
        missing = 0.5
        """,
    )
    params = read_parameters(path)
    assert params.outcomes["fraud"].intercept == 1.5
    assert params.features["cash_share"].credit.weight == 3
    assert params.features["cash_share"].credit.high == PARAMS.features["cash_share"].credit.high
    assert params.features["income"] == PARAMS.features["income"]
    out = tmp_path / "people.csv"
    result = assay_json("population", "--people", 2000, "--out", out, "--params", path, "--months", 3)
    assert result["base_rate"]["fraud"] > 0.1
    assert set(np.asarray(pyarrow.csv.read_csv(out)["month"])) == {0, 1, 2}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[outcome.credit]\nintercept = 1", "'outcome'; did you mean 'outcomes'"),
        ("[features.incom]\nmedian = 1", "features.incom.*did you mean 'income'"),
        ("[features.income]\nmedain = 1", "features.income.medain.*did you mean 'median'"),
        ("[features.income.credit]\nwheight = 1", "features.income.credit.wheight.*did you mean 'weight'"),
        ("[regions.nord]\nshare = 1", "did you mean 'north'"),
        ("[people]\nmonth = 1", "did you mean 'months'"),
        ("[people]\nmonths = 0", "people.months is 0; allowed: a whole number from 1 to 120"),
        ("[people]\nmonths = true", "people.months"),
        ("people = 3", "people is 3; allowed: a table"),
        ("[people]\nknown_to = [0, 0]", "not all 0"),
        ("[people]\nholders = 4", "people.known_to"),
        ("[outcomes.credit]\nintercept = nan", "outcomes.credit.intercept is nan; allowed: a number"),
        ("[outcomes.credit]\nbad_as_good = 0.6", "from 0 to 0.5"),
        ("[regions.north]\nreversed = ['cashshare']", "regions.north.reversed.*did you mean 'cash_share'"),
        ("[regions.north]\nreversed = 'cash_share'", "a list of strings"),
        ("[regions.north.moves]\nincom = 1", "regions.north.moves.*did you mean 'income'"),
        ("[regions.north.shift]\nspendings = 1", "regions.north.shift.*did you mean 'spending'"),
        ("[groups.sex]\nlevels = ['f', 'm', 'x']", "groups.sex.shares.*3 numbers"),
        ("[groups.sex.shift]\nspending = [1]", "groups.sex.shift.spending.*2 numbers"),
        ("[features.income]\nlaw = 'pareto'", "features.income.law is 'pareto'; allowed: one of lognormal"),
        ("[features.income]\nmedian = -5", "features.income.median"),
        ("[features.income]\nspread = inf", "features.income.spread"),
        ("[features.income]\nlimits = 3", "features.income.limits"),
        ("[features.income]\ndomain = [5, 1]", "features.income.domain"),
        ("[features.income.credit]\nlow = 9000", "features.income.credit.low.*below high"),
        ("[features.income.credit]\nlevels = { a = 1 }", "features.income.credit.levels"),
        ("[features.method.credit]\nweight = 1", "features.method.credit"),
        ("[features.method.credit.levels]\ncasch = 1", "did you mean 'cash'"),
        ("[features.method]\nshares = [1, 2]", "features.method.shares.*4 numbers"),
        ("[features.income]\nneeds = 'enquiries'", "features.income.needs"),
        ("[interactions.stretched]\nfirst = 'method'", "interactions.stretched.first"),
        ("[interactions.stretched]\nsecond = 'utilisation'", "interactions.stretched.second"),
        ("[people\n", "valid TOML"),
    ],
)
def test_a_parameter_that_is_unknown_or_out_of_range_is_named(tmp_path, text, words):
    path = tmp_path / "change.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(BadInput, match=f"(?i){words}") as caught:
        read_parameters(path)
    assert str(caught.value).startswith(str(path))


def test_a_feature_named_after_a_protected_attribute_is_refused(tmp_path):
    with pytest.raises(Refused, match="D05"):
        read_parameters(changed(tmp_path, '[features.income]\nlabel = "Gender"'))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"people": 0}, "people is 0"),
        ({"people": True}, "people is True"),
        ({"people": 2.5}, "people is 2.5"),
        ({"people": 5, "seed": -1}, "seed is -1"),
        ({"people": 5, "chunk": 0}, "chunk is 0"),
    ],
)
def test_numbers_out_of_range_are_refused_before_anybody_is_made(settings, words):
    with pytest.raises(BadInput, match=words):
        generate(PARAMS, **settings)


# ── the command ────────────────────────────────────────────────────────────────────────────────────────────


def fails(*arguments, code=2):
    """Run a command that must fail with ``code`` and one line; return the line."""
    result = CliRunner().invoke(build(), [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == code, (arguments, result.exit_code, result.output)
    assert result.stdout == ""
    lines = [line for line in result.stderr.splitlines() if line.startswith("assay: ")]
    assert len(lines) == 1, result.stderr
    return lines[0]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--people", "0"], "--people is 0; allowed: a whole number from 1 to 100000000"),
        (["--people", "-3"], "--people is -3"),
        (["--people", "100000001"], "--people is 100000001"),
        (["--people", "5", "--seed", "-1"], "--seed is -1"),
        (["--people", "5", "--seed", str(2**63)], "--seed"),
        (["--people", "5", "--months", "0"], "--months is 0"),
        (["--people", "5", "--months", "121"], "--months is 121"),
        (["--people", "5", "--params", "nowhere.toml"], "nowhere.toml"),
    ],
)
def test_numbers_out_of_range_exit_with_2_and_leave_nothing(tmp_path, options, words):
    assert words in fails("population", *options, "--out", tmp_path / "people.parquet")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("given", ["many", "1e6", "2.5", "nan", ""])
def test_a_number_of_people_that_is_no_whole_number_exits_with_2(tmp_path, given):
    result = CliRunner().invoke(
        build(), ["population", "--people", given, "--out", str(tmp_path / "people.csv")]
    )
    assert result.exit_code == 2
    assert "--people" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_to_exits_with_2(tmp_path):
    assert "existing directory" in fails("population", "--people", 5, "--out", tmp_path / "no" / "people.csv")
    for name in ("people", "people.txt", "people.csv.gz"):
        assert ".parquet or .csv" in fails("population", "--people", 5, "--out", tmp_path / name)
    (tmp_path / "folder.csv").mkdir()
    assert "folder.csv" in fails("population", "--people", 5, "--out", tmp_path / "folder.csv")
    assert [path.name for path in tmp_path.iterdir()] == ["folder.csv"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("people.csv", b"name,amount\na,1\n"),
        ("people.parquet", b"name,amount\na,1\n"),
        ("people-fraud.toml", b'[study]\nname = "mine"\n'),
    ],
)
def test_a_file_that_it_did_not_make_is_left_as_it_is(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    suffix = name.rpartition(".")[2].replace("toml", "csv")
    assert name in fails("population", "--people", 5, "--out", tmp_path / f"people.{suffix}")
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_bytes() == content


def test_a_parquet_file_of_something_else_and_a_link_are_left_as_they_are(tmp_path):
    other, link = tmp_path / "other.parquet", tmp_path / "link.parquet"
    pyarrow.parquet.write_table(pa.table({"amount": [1, 2]}), other)
    link.symlink_to(other)
    for path in (other, link):
        assert path.name in fails("population", "--people", 5, "--out", path)
    assert pyarrow.parquet.read_table(other).num_rows == 2


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_its_own_file_is_replaced(tmp_path, suffix):
    out = tmp_path / f"people{suffix}"
    out.touch()
    for people in (50, 20):
        assay("population", "--people", people, "--out", out)
    table = pyarrow.parquet.read_table(out) if suffix == ".parquet" else pyarrow.csv.read_csv(out)
    assert table.num_rows == 20
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"people{end}" for end in sorted(("-credit.toml", "-fraud.toml", "-parameters.toml", suffix))
    ]


def test_one_person_is_enough(tmp_path):
    result = assay_json("population", "--people", 1, "--out", tmp_path / "one.parquet")
    assert result["rows"] == pyarrow.parquet.read_table(result["file"]).num_rows == 1
    assert result["bayes_auroc"] == {"credit": 0.5, "fraud": 0.5}


@pytest.mark.parametrize("old", [True, False])
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_full_disk_leaves_what_was_there_and_no_more(tmp_path, suffix, old):
    """A limit on the size of a file stands for the disk; the process meets it in the middle of the data."""
    out = tmp_path / f"people{suffix}"
    if old:
        assay("population", "--people", 20, "--out", out)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    script = (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))\n"
        f"from assay.simulations.main import main; import sys; sys.argv[1:] = {['population']!r} + "
        f"['--people', '20000', '--out', {str(out)!r}]; main()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert re.fullmatch(r"assay: .*\n", done.stderr), done.stderr
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_people_are_told_what_was_made(tmp_path):
    text = assay("population", "--people", 1500, "--out", tmp_path / "people.parquet")
    assert re.search(r"1,500 people in .* s: .*people\.parquet", text)
    assert re.search(r"credit: .*% bad, AUROC of the true risk 0\.8\d+, study .*people-credit\.toml", text)
