"""The rules are dated data: read strictly, shipped whole, and none of them can switch a refusal off."""

from __future__ import annotations

import copy
import datetime
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from federation_support import STUDY, assay, assay_json

from assay.client.policy import Policy, admit
from assay.models.study import parse_study
from assay.privacy import packfile
from assay.privacy.errors import BadInput, Refused
from assay.privacy.packfile import DEFAULT, load_pack, pack_names, parse_pack
from assay.privacy.policypack import CODES, FLOOR
from assay.privacy.purpose import PACK, check_context, check_input, check_purpose, check_use
from assay.server.publish import VALID_S, valid_s

CHINA = "cn-2022-01-01"
PACKS = Path(packfile.__file__).with_name("packs")
RAW = tomllib.loads((PACKS / f"{DEFAULT}.toml").read_text())
CHINESE = STUDY.replace('contexts = ["card"]', f'contexts = ["card"]\npack = "{CHINA}"')
POLICY = {
    "purposes": ("consumer_credit",),
    "components": ("identity", "spending", "payment_history"),
    "epsilon_per_run": 1.0,
    "epsilon_per_study": 1.0,
    "epsilon_per_year": 1.0,
    "delta": 1e-6,
    "minimum_persons": 10,
}
every_pack = pytest.mark.parametrize("name", pack_names())


def without(*path):
    """The default pack without one of its parts."""
    raw = copy.deepcopy(RAW)
    table = raw
    for key in path[:-1]:
        table = table[key]
    del table[path[-1]]
    return raw


def with_(value, *path):
    """The default pack with one part put in or replaced."""
    raw = copy.deepcopy(RAW)
    table = raw
    for key in path[:-1]:
        table = table[key]
    table[path[-1]] = value
    return raw


def refused(raw):
    with pytest.raises(BadInput) as caught:
        parse_pack(raw, DEFAULT, where="p.toml")
    assert str(caught.value).startswith("p.toml: ")
    return caught.value


@pytest.fixture
def short_pack(tmp_path, monkeypatch):
    """A pack of the same rules that keeps bundles for 30 days."""
    directory = tmp_path / "packs"
    directory.mkdir()
    text = (PACKS / f"{DEFAULT}.toml").read_text()
    text = text.replace(DEFAULT, "xx-2001-02-03").replace("as_of = 2026-11-20", "as_of = 2001-02-03")
    text = text.replace("days = 365 # people and economies change", "days = 30")
    (directory / "xx-2001-02-03.toml").write_text(text)
    (directory / f"{DEFAULT}.toml").write_bytes((PACKS / f"{DEFAULT}.toml").read_bytes())
    monkeypatch.setattr(packfile, "_DIRECTORY", directory)
    packfile._loaded.cache_clear()
    yield "xx-2001-02-03"
    packfile._loaded.cache_clear()


class TestWhatAPackIs:
    @every_pack
    def test_its_name_ends_in_the_day_it_describes(self, name):
        pack = load_pack(name)
        assert pack.name == name
        assert name.endswith(datetime.date.fromisoformat(pack.as_of).isoformat())
        assert pack.summary

    @every_pack
    def test_it_allows_nothing_that_the_default_does_not(self, name):
        # A holder's client.toml lists purposes of the default pack.
        assert set(load_pack(name).allowed) <= set(PACK.allowed)

    @every_pack
    def test_every_refusal_has_words_and_article_and_each_phrase_of_it_is_refused(self, name):
        pack = load_pack(name)
        assert tuple(refusal.code for refusal in pack.refusals) == CODES
        for named in pack.refusals:
            assert named.text
            assert named.phrases
            for phrase in named.phrases:
                for check in (check_purpose, check_context):
                    with pytest.raises(Refused) as caught:
                        check(phrase, pack)
                    assert caught.value.code == named.code
                    assert caught.value.article == named.article
                    assert f"[{named.article}]" in str(caught.value)
                    assert caught.value.pack == name

    @every_pack
    def test_every_input_that_it_forbids_is_refused_under_its_own_article(self, name):
        pack = load_pack(name)
        for protected in pack.protected:
            for word in protected.words:
                with pytest.raises(Refused) as caught:
                    check_input(word, pack=pack)
                assert (caught.value.code, caught.value.article) == (protected.refusal, protected.article)
                for harmless in protected.unless:
                    check_input(f"{harmless}_{word}", pack=pack)

    @every_pack
    def test_every_purpose_has_words_and_its_typical_contexts_may_be_declared(self, name):
        pack = load_pack(name)
        for purpose in pack.purposes:
            assert check_purpose(purpose.name, pack) == purpose.name
            assert purpose.words
            for context in purpose.contexts:
                assert check_context(context, pack) == context

    def test_the_two_packs_differ_where_the_law_does(self):
        china = load_pack(CHINA)
        assert china.refusal("D07").article == "PIPL Art. 24"
        assert "PIPL" not in PACK.refusal("D07").article
        assert china.retention["records"].days == 1826
        assert china.retention["records"].article.endswith("Credit Reporting Industry Art. 16")
        check_input("blood_type")
        with pytest.raises(Refused, match=r"D05.*Credit Reporting Industry Art\. 14"):
            check_input("blood_type", pack=china)

    def test_the_default_is_loaded_once_and_without_heavy_imports(self):
        assert PACK is load_pack(DEFAULT)
        heavy = "[name for name in ('numpy', 'torch', 'flwr', 'cryptography') if name in sys.modules]"
        code = f"import sys, assay.privacy.purpose; print({heavy})"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "[]"


class TestWhatNoPackMayBe:
    @pytest.mark.parametrize("code", CODES)
    def test_a_pack_without_one_of_the_eight_is_refused(self, code):
        assert "no pack switches a refusal off" in refused(without("refusals", code)).allowed

    @pytest.mark.parametrize("word", FLOOR)
    def test_a_pack_that_lets_a_protected_word_in_is_refused(self, word):
        inputs = [
            {**entry, "words": [known for known in entry["words"] if known != word] or ["other"]}
            for entry in RAW["inputs"]
        ]
        assert word in refused(with_(inputs, "inputs")).allowed

    @pytest.mark.parametrize(("purpose", "code"), [("voting", "D02"), ("social_score", "D01")])
    def test_a_pack_that_allows_what_it_refuses_is_refused(self, purpose, code):
        raw = with_({"words": "why not"}, "purposes", purpose)
        assert code in refused(raw).allowed

    @pytest.mark.parametrize(
        "path",
        [("extra",), ("purposes", "microloan", "extra"), ("refusals", "D01", "switch"),
         ("inputs", 0, "extra"), ("retention", "records", "years"), ("retention", "everything")],
    )  # fmt: skip
    def test_an_unknown_key_is_refused(self, path):
        value = {"days": 1, "article": "a"} if path[-1] == "everything" else 1
        assert path[-1] in str(refused(with_(value, *path)))

    @pytest.mark.parametrize(
        "path",
        [("name",), ("as_of",), ("summary",), ("purposes",), ("refusals",), ("inputs",), ("retention",),
         ("purposes", "microloan", "words"), ("refusals", "D01", "text"), ("refusals", "D01", "article"),
         ("refusals", "D01", "phrases"), ("inputs", 0, "words"), ("inputs", 0, "refusal"),
         ("inputs", 0, "article"), ("retention", "records"), ("retention", "refusals", "days"),
         ("retention", "refusals", "article")],
    )  # fmt: skip
    def test_a_missing_key_is_refused(self, path):
        refused(without(*path))

    @pytest.mark.parametrize(
        ("value", "path"),
        [("eu-2026-11-21", ("name",)), (7, ("name",)), ("2026-11-20", ("as_of",)),
         (datetime.date(2026, 11, 21), ("as_of",)), (datetime.datetime(2026, 11, 20), ("as_of",)),
         ("", ("summary",)), ("two\nlines", ("summary",)), ("x" * 513, ("summary",)), ([], ("purposes",)),
         ({}, ("purposes",)), ({"words": "w"}, ("purposes", "No Word")), (7, ("purposes", "microloan")),
         ("a", ("purposes", "microloan", "contexts")), ([7], ("purposes", "microloan", "contexts")),
         ([], ("refusals", "D01", "phrases")), (["a", "a"], ("refusals", "D01", "phrases")),
         (["Not Lower"], ("refusals", "D01", "phrases")), ("Art. 5 – 7", ("refusals", "D01", "article")),
         ({"text": "t", "article": "a", "phrases": ["p"]}, ("refusals", "D09")), ({}, ("inputs",)),
         ([], ("inputs",)), ([7], ("inputs",)), ("D09", ("inputs", 0, "refusal")),
         (0, ("retention", "records", "days")), (-1, ("retention", "records", "days")),
         (True, ("retention", "records", "days")), (1.5, ("retention", "records", "days")),
         (36_526, ("retention", "records", "days")), ("5", ("retention", "records", "days"))],
        ids=str,
    )  # fmt: skip
    def test_a_value_of_the_wrong_kind_is_refused(self, value, path):
        refused(with_(value, *path))

    @pytest.mark.parametrize("name", ["eu", "../packs/eu-2026-11-20", "", None, 7, ["eu-2026-11-20"]])
    def test_an_unknown_name_is_refused_with_the_known_ones(self, name):
        with pytest.raises(BadInput) as caught:
            load_pack(name)
        assert all(known in str(caught.value) for known in pack_names())


class TestAStudysPack:
    def test_a_study_that_names_none_has_the_default(self):
        assert parse_study(STUDY).rules is PACK

    def test_all_checks_of_a_study_are_those_of_its_pack(self):
        study = parse_study(CHINESE)
        assert study.rules is load_pack(CHINA)
        for old, new, code in (
            ('"consumer_credit"', '"policing"', "D02"),
            ('["card"]', '["differential_pricing"]', "D07"),
            ('column = "amount"', 'column = "blood_type"', "D05"),
            ('column = "bad"', 'column = "disease"', "D05"),
        ):
            text = CHINESE.replace(old, new, 1)
            line = text[: text.index(new)].count("\n") + 1
            with pytest.raises(Refused) as caught:
                parse_study(text, "s.toml")
            assert (caught.value.code, caught.value.pack) == (code, CHINA)
            assert str(caught.value).startswith(f"s.toml:{line}: ")
        parse_study(STUDY.replace('column = "amount"', 'column = "blood_type"'))

    @pytest.mark.parametrize("name", ['"cn"', "7", '["eu-2026-11-20"]', '"../x"'])
    def test_an_unknown_pack_is_refused_with_its_line_and_the_known_ones(self, name):
        with pytest.raises(BadInput) as caught:
            parse_study(CHINESE.replace(f'"{CHINA}"', name), "s.toml")
        assert str(caught.value).startswith("s.toml:5: study.pack is ")
        assert all(known in str(caught.value) for known in pack_names())

    def test_use_is_checked_by_its_pack(self):
        study = parse_study(CHINESE)
        with pytest.raises(Refused) as caught:
            check_use("microloan", study.purpose, study.rules)
        assert caught.value.article == load_pack(CHINA).refusal("D03").article

    def test_a_holder_says_which_packs_bind_it(self):
        admit(parse_study(STUDY), Policy(**POLICY))
        with pytest.raises(Refused, match=f"pack '{CHINA}' is not allowed here") as caught:
            admit(parse_study(CHINESE), Policy(**POLICY))
        assert caught.value.code == "purpose"
        admit(parse_study(CHINESE), Policy(**POLICY, packs=(CHINA,)))
        for wrong in ((), ("cn",), (CHINA, CHINA), (7,)):
            with pytest.raises(BadInput, match="packs"):
                Policy(**POLICY, packs=wrong)

    def test_a_bundle_is_good_for_as_long_as_its_pack_says_and_no_more_than_a_year(self, short_pack):
        assert valid_s(parse_study(STUDY)) == VALID_S
        assert valid_s(parse_study(CHINESE.replace(CHINA, short_pack))) == 30 * 86400


class TestCommand:
    def test_the_packs_are_listed_with_their_dates(self):
        listed = assay_json("study", "packs")
        assert [(pack["name"], pack["as_of"]) for pack in listed["packs"]] == [
            (name, load_pack(name).as_of) for name in pack_names()
        ]
        assert listed["default"] == DEFAULT
        assert re.search(rf"^{DEFAULT} .*\(default\)", assay("study", "packs"), re.MULTILINE)

    @every_pack
    def test_one_is_shown_whole(self, name):
        shown, text, pack = assay_json("study", "packs", name), assay("study", "packs", name), load_pack(name)
        assert [refusal["code"] for refusal in shown["refusals"]] == list(CODES)
        for refusal in pack.refusals:
            assert f"{refusal.code} {refusal.text} [{refusal.article}]" in text
        assert [purpose["name"] for purpose in shown["purposes"]] == list(pack.allowed)
        words = {word for entry in shown["inputs"] for word in entry["words"]}
        assert set(FLOOR) <= words
        assert all(word in text for word in words)
        assert shown["retention"]["records"]["days"] == pack.retention["records"].days

    def test_an_unknown_one_is_refused(self):
        assert CHINA in assay("study", "packs", "cn", code=2)

    def test_a_checked_study_names_its_pack(self, tmp_path):
        (tmp_path / "s.toml").write_text(CHINESE)
        assert assay_json("study", "check", tmp_path / "s.toml")["pack"] == CHINA
