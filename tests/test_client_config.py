"""client.toml is read strictly: file, line and key in every message, and nobody else may read the secrets."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from assay.client.config import CONFIG_FILE, HolderConfig, template
from assay.privacy.errors import AssayError, BadInput, Refused

DATA = '\n[data]\nkind = "csv"\npath = "records.csv"\none_row_per_person = true\n'


@pytest.fixture
def home(tmp_path: Path) -> Path:
    directory = tmp_path / "bank-a"
    (directory / "keys").mkdir(parents=True, mode=0o700)
    directory.chmod(0o700)
    write(directory, template("bank-a") + DATA)
    (directory / "keys" / "identity.pem").write_text("secret")
    (directory / "keys" / "identity.pem").chmod(0o600)
    return directory


def write(directory: Path, text: str) -> None:
    (directory / CONFIG_FILE).write_text(text)
    (directory / CONFIG_FILE).chmod(0o600)


def refuse(directory: Path) -> str:
    with pytest.raises(BadInput) as caught:
        HolderConfig.load(directory)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def line_of(directory: Path, text: str) -> int:
    lines = (directory / CONFIG_FILE).read_text().splitlines()
    return next(number for number, line in enumerate(lines, start=1) if line.startswith(text))


def test_the_template_is_valid_and_has_no_data_yet(home: Path) -> None:
    write(home, template("bank-a"))
    config = HolderConfig.load(home)
    assert config.name == "bank-a"
    assert config.policy.epsilon_per_run == 1.0
    assert config.policy.minimum_persons == 1000
    with pytest.raises(BadInput, match=r"client\.toml: \[data\]"):
        config.require_data()


def test_every_example_in_the_template_is_valid(home: Path) -> None:
    examples = re.split(r"^# \[data\]$", template("bank-a"), flags=re.MULTILINE)[1:]
    assert len(examples) == 4
    kinds = []
    for example in examples:
        block = example.split("\n\n")[0]
        keys = [
            line[2:]
            for line in block.splitlines()
            if re.match(r"# \w+ = ", line) and not line.startswith("# url =")
        ]
        write(home, template("bank-a") + "\n[data]\n" + "\n".join(keys))
        kinds.append(HolderConfig.load(home).require_data().kind)
    assert kinds == ["csv", "parquet", "sqlite", "postgres"]


def test_a_relative_path_is_relative_to_the_directory(home: Path) -> None:
    assert HolderConfig.load(home).require_data().file == home / "records.csv"


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ("epsilon_per_run = 1.0", "epsilon_per_rn = 1.0", "epsilon_per_rn", "'epsilon_per_run'"),
        ("epsilon_per_run = 1.0", "epsilon_per_run = nan", "epsilon_per_run", "policy.epsilon_per_run"),
        ("epsilon_per_run = 1.0", "epsilon_per_run = 0", "epsilon_per_run", "above 0"),
        ("epsilon_per_run = 1.0", 'epsilon_per_run = "1"', "epsilon_per_run", "above 0"),
        ("epsilon_per_study = 3.0", "epsilon_per_study = 0.5", "epsilon_per_study", "epsilon_per_run"),
        ("delta = 1e-6", "delta = 1e-3", "delta", "1e-06"),
        ('kind = "csv"', 'kind = "xlsx"', "kind", "csv, parquet"),
        ('path = "records.csv"', 'pth = "records.csv"', "pth", "'path'"),
        ('name = "bank-a"', 'name = "Bank A"', "name", "holder.name"),
        ('name = "bank-a"', 'name = "coordinator"', "name", "coordinator"),
        ("[data]", "[dat]", "[dat]", "'data'"),
        ('purposes = ["consumer_credit"]', 'purposes = "consumer_credit"', "purposes", "a list"),
        ('components = ["identity"', 'components = ["identitty"', "components", "identity"),
        ("minimum_persons = 1000", "minimum_persons = 1000.5", "minimum_persons", "whole number"),
        ("minimum_holders = 3", "minimum_holders = 2", "minimum_holders", "3 to 1000"),
        ("minimum_holders = 3", "minimum_holder = 3", "minimum_holder", "'minimum_holders'"),
        (
            "epsilon_if_aggregation_fails = 25.0",
            "epsilon_if_aggregation_fails = 0",
            "epsilon_if_aggregation_fails",
            "above 0",
        ),
        ('trust = ["distributed", "local"]', 'trust = "local"', "trust", "a list"),
        ('trust = ["distributed", "local"]', 'trust = ["blind"]', "trust", "distributed, local"),
        ('trust = ["distributed", "local"]', "trust = []", "trust", "at least one"),
    ],
)
def test_a_wrong_key_or_value_is_named_with_its_line(
    old: str, new: str, line: str, words: str, home: Path
) -> None:
    text = (home / CONFIG_FILE).read_text()
    assert text.count(f"\n{old}") == 1
    write(home, text.replace(f"\n{old}", f"\n{new}"))
    message = refuse(home)
    assert f"{CONFIG_FILE}:{line_of(home, line)}: " in message
    assert words in message


def test_the_example_of_pinned_peers_is_valid(home: Path) -> None:
    text = (home / CONFIG_FILE).read_text()
    write(home, re.sub(r"(?m)^# (\[policy\.peers\]|bank-[bc] = )", r"\1", text))
    peers = HolderConfig.load(home).policy.peers
    assert sorted(peers) == ["bank-b", "bank-c"]
    write(home, text)
    assert HolderConfig.load(home).policy.peers == {}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('bank-b = "1234"', "fingerprint"),
        ("bank-b = 1234", "fingerprint"),
        ('Bank_B = "0123-4567-89AB-CDEF-0123-4567-89AB-CDEF"', "a holder's name"),
    ],
)
def test_a_wrong_pin_is_named_with_its_line(line: str, words: str, home: Path) -> None:
    write(home, (home / CONFIG_FILE).read_text() + f"\n[policy.peers]\n{line}\n")
    message = refuse(home)
    assert f"{CONFIG_FILE}:{line_of(home, line)}: policy.peers." in message
    assert words in message


@pytest.mark.parametrize("value", ['"bank-b"', "7", '["bank-b"]'])
def test_peers_that_are_no_table_are_refused(value: str, home: Path) -> None:
    write(
        home,
        (home / CONFIG_FILE).read_text().replace("\nminimum_holders", f"\npeers = {value}\nminimum_holders"),
    )
    assert f"{CONFIG_FILE}:{line_of(home, 'peers')}: policy.peers" in refuse(home)


@pytest.mark.parametrize("section", ["holder", "policy"])
def test_a_missing_section_is_named(section: str, home: Path) -> None:
    text = (home / CONFIG_FILE).read_text()
    write(home, re.sub(rf"(?ms)^\[{section}\].*?(?=^\[|\Z)", "", text))
    assert f"[{section}]" in refuse(home)


def test_a_missing_key_is_named(home: Path) -> None:
    write(home, (home / CONFIG_FILE).read_text().replace("\ndelta = 1e-6", ""))
    assert "policy.delta" in refuse(home)


def test_a_section_that_is_a_value_is_refused(home: Path) -> None:
    write(home, 'holder = "bank-a"\n')
    assert f"{CONFIG_FILE}:1: holder" in refuse(home)


def test_a_refused_purpose_keeps_its_code_and_gets_its_line(home: Path) -> None:
    write(home, (home / CONFIG_FILE).read_text().replace('["consumer_credit"]', '["policing"]'))
    with pytest.raises(Refused, match=rf"{CONFIG_FILE}:{line_of(home, 'purposes')}: ") as caught:
        HolderConfig.load(home)
    assert caught.value.code == "D02"


def test_a_file_that_is_not_toml_is_refused_with_its_line(home: Path) -> None:
    write(home, '[holder]\nname = "bank-a\n')
    assert "line 2" in refuse(home)


def test_a_directory_without_configuration_says_what_to_run(tmp_path: Path) -> None:
    assert "assay client init" in refuse(tmp_path)


@pytest.mark.parametrize("mode", [0o750, 0o705, 0o701, 0o770])
def test_a_directory_that_others_can_read_is_refused(mode: int, home: Path) -> None:
    home.chmod(mode)
    assert "chmod 700" in refuse(home)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644])
def test_a_key_that_others_can_read_is_refused(mode: int, home: Path) -> None:
    (home / "keys" / "identity.pem").chmod(mode)
    assert "chmod 600" in refuse(home)


def test_a_configuration_that_may_hold_a_password_must_be_private(home: Path) -> None:
    text = (
        template("bank-a")
        + '\n[data]\nkind = "postgres"\nurl = "postgresql://u:hunter2@h/d"\ntable = "t"\n'
        + "one_row_per_person = true\n"
    )
    write(home, text)
    config = HolderConfig.load(home)
    assert "hunter2" not in repr(config)
    (home / CONFIG_FILE).chmod(0o644)
    message = refuse(home)
    assert "chmod 600" in message
    assert "hunter2" not in message


@pytest.mark.parametrize("url", ['"mysql://u:hunter2@h/d"', '["hunter2"]', '""'])
def test_a_wrong_address_is_not_shown(url: str, home: Path) -> None:
    write(
        home,
        template("bank-a")
        + f'\n[data]\nkind = "postgres"\nurl = {url}\ntable = "t"\none_row_per_person = true\n',
    )
    assert "hunter2" not in refuse(home)


@pytest.mark.parametrize("name", ["", "-a", "a b", "A", "a" * 64, "coordinator", 'x"\n[policy]', "é"])
def test_the_template_refuses_a_name_that_a_holder_may_not_have(name: str) -> None:
    with pytest.raises(BadInput):
        template(name)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    key=st.from_regex(r"[a-z_]{1,20}", fullmatch=True),
    value=st.sampled_from(["1", '"x"', "[]", "{}", "true", "nan"]),
)
@pytest.mark.parametrize("section", ["holder", "data", "policy"])
def test_no_key_is_ignored(section: str, key: str, value: str, home: Path) -> None:
    good = template("bank-a") + DATA
    write(home, re.sub(rf"(?m)^\[{section}\]$", f"[{section}]\n{key} = {value}", good))
    accepted = section == "data" and key in ("query_timeout_s", "query")
    if not accepted:
        with pytest.raises(AssayError):
            HolderConfig.load(home)


@pytest.mark.parametrize(
    ("lines", "person"),
    [("one_row_per_person = true", None), ('person_column = "PERSON"', "PERSON")],
)
def test_the_holder_says_who_a_person_is(lines: str, person: str | None, home: Path) -> None:
    write(home, template("bank-a") + DATA.replace("one_row_per_person = true", lines))
    assert HolderConfig.load(home).person == person


@pytest.mark.parametrize(
    "lines",
    [
        "",
        "one_row_per_person = false",
        'one_row_per_person = "yes"',
        'person_column = ""',
        "person_column = 3",
        'person_column = "PERSON"\none_row_per_person = true',
    ],
)
def test_there_is_no_default_for_whose_privacy_is_counted(lines: str, home: Path) -> None:
    write(home, template("bank-a") + DATA.replace("one_row_per_person = true", lines))
    assert "person_column" in refuse(home)
