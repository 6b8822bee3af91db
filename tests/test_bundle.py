"""A bundle is exactly what its signer wrote, or it is refused by naming what was changed."""

import io
import json
import zipfile

import numpy as np
import pytest
from typer.testing import CliRunner

from assay.models import bundle as bundles
from assay.models.bundle import read_bundle, write_bundle
from assay.models.cli import model_app
from assay.models.encoding import Grid
from assay.models.label import privacy_label
from assay.models.scorecard import Scorecard
from assay.models.study import parse_study
from assay.privacy.errors import BadInput, Refused, Tampered
from assay.privacy.keys import Identity, canonical_json

STUDY = parse_study("""
[study]
name = "card"
purpose = "consumer_credit"
contexts = ["card_application"]
[outcome]
column = "default"
meaning = "missed a payment"
[[features]]
name = "limit"
column = "LIMIT"
component = "third_party"
kind = "numeric"
domain = [10, 1000]
[[features]]
name = "status"
column = "PAY"
component = "payment_history"
kind = "integer"
domain = [-2, 8]
[privacy]
epsilon = 1
""")
MEMBERS = {
    "study.toml", "scorecard.json", "weights.safetensors", "label.json", "audit.json", "baseline.json",
    "metrics.json", "provenance.json", "manifest.json", "signature",
}  # fmt: skip
IDENTITY = Identity.generate()
GRID = Grid.of(STUDY)
THETA = np.linspace(-1, 1, GRID.width)
CARD = Scorecard.of(STUDY, GRID, THETA, np.ones(GRID.width))
HELD = ("fairness: SEX m: approval rate is 0.61 of the highest group's; allowed: at least 0.8",)


def write(path, identity=IDENTITY, **changed):
    arguments = {
        "study": STUDY,
        "theta": THETA,
        "scorecard": CARD,
        "label": privacy_label(STUDY, rounds=30, holders=3),
        "metrics": {"auroc": 0.75},
        "created": 1000.0,
        "expires": 2000.0,
    }
    write_bundle(path, identity=identity, **(arguments | changed))
    return path


@pytest.fixture
def path(tmp_path):
    return write(tmp_path / "card.bundle")


def members(path):
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def rewrite(path, content, compression=zipfile.ZIP_STORED):
    """Put other members into the file, in the bundle's own format so that only the content is wrong."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in content:
            info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            info.create_system, info.external_attr, info.compress_type = 3, 0o644 << 16, compression
            archive.writestr(info, data)
    path.write_bytes(buffer.getvalue())


def test_what_was_written_is_read(path, tmp_path):
    opened = read_bundle(path)
    assert opened.study == STUDY
    assert (opened.theta == THETA).all()
    assert opened.scorecard.to_json() == CARD.to_json()
    assert opened.label["epsilon"] == 1
    assert opened.metrics == {"auroc": 0.75}
    assert (opened.audit, opened.baseline, opened.held) == ({}, {}, ())
    audited = {"audit": {"persons": 900.0}, "baseline": {"counts": [1.0, 2.0]}}
    opened = read_bundle(write(tmp_path / "audited.bundle", **audited))
    assert {"audit": opened.audit, "baseline": opened.baseline} == audited
    assert (opened.created, opened.expires) == (1000.0, 2000.0)
    assert (opened.signer, opened.fingerprint) == (IDENTITY.public, IDENTITY.fingerprint)
    assert set(members(path)) == MEMBERS


def test_equal_content_gives_equal_bytes(path, tmp_path):
    assert write(tmp_path / "again.bundle").read_bytes() == path.read_bytes()


def test_nothing_in_it_is_a_pickle(path):
    for name, data in members(path).items():
        assert not data.startswith(b"\x80"), name


def test_any_changed_byte_is_noticed(path, tmp_path):
    data = path.read_bytes()
    other = tmp_path / "other.bundle"
    for place in range(0, len(data), 37):
        other.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises((Tampered, BadInput)):
            read_bundle(other)


@pytest.mark.parametrize("name", sorted(MEMBERS - {"signature"}))
def test_a_changed_member_is_named(path, name):
    content = members(path)
    content[name] = content[name] + b" "
    rewrite(path, content.items())
    with pytest.raises(Tampered, match=name):
        read_bundle(path)


@pytest.mark.parametrize("name", sorted(MEMBERS))
def test_a_missing_member_is_named(path, name):
    content = members(path)
    del content[name]
    rewrite(path, content.items())
    with pytest.raises(Tampered, match=name):
        read_bundle(path)


@pytest.mark.parametrize("name", ["extra.json", "../../evil", "/etc/passwd", "study.toml/", "STUDY.TOML"])
def test_a_member_that_does_not_belong_is_named(path, name):
    rewrite(path, [*members(path).items(), (name, b"{}")])
    with pytest.raises(Tampered, match="does not belong"):
        read_bundle(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_repeated_member_is_named(path):
    rewrite(path, [*members(path).items(), ("label.json", b"{}")])
    with pytest.raises(Tampered, match=r"'label\.json' occurs twice"):
        read_bundle(path)


def test_a_compressed_member_is_refused_before_it_grows(path):
    content = members(path) | {"label.json": b" " * 10_000_000}
    rewrite(path, content.items(), zipfile.ZIP_DEFLATED)
    with pytest.raises(Tampered, match="compressed"):
        read_bundle(path)


@pytest.mark.parametrize("place", ["before", "after"])
def test_bytes_around_the_members_are_refused(path, place):
    data = path.read_bytes()
    path.write_bytes(b"hidden" + data if place == "before" else data + b"hidden")
    with pytest.raises((Tampered, BadInput)):
        read_bundle(path)


def test_a_signature_by_another_key_is_refused(path):
    content = members(path)
    content["signature"] = Identity.generate().sign("bundle", content["manifest.json"])
    rewrite(path, content.items())
    with pytest.raises(Tampered, match="signature"):
        read_bundle(path)


def test_a_signature_made_for_something_else_is_refused(path):
    content = members(path)
    content["signature"] = IDENTITY.sign("ledger", content["manifest.json"])
    rewrite(path, content.items())
    with pytest.raises(Tampered, match="signature"):
        read_bundle(path)


def test_members_of_two_bundles_do_not_mix(path, tmp_path):
    mixed = members(path) | {
        "label.json": members(write(tmp_path / "b", label={"epsilon": 0.1}))["label.json"]
    }
    rewrite(path, mixed.items())
    with pytest.raises(Tampered, match=r"label\.json"):
        read_bundle(path)


@pytest.mark.parametrize(
    "changed",
    [
        {"theta": THETA[:-1]},
        {"theta": np.full_like(THETA, np.nan)},
        {"expires": 1000.0},
        {"expires": float("nan")},
        {"study": parse_study(STUDY.text + "#")},
    ],
)
def test_what_does_not_fit_together_is_not_signed(tmp_path, changed):
    with pytest.raises(BadInput):
        write(tmp_path / "b", **changed)
    assert list(tmp_path.iterdir()) == []


def test_a_signer_cannot_vouch_for_content_that_does_not_fit(path, monkeypatch):
    """A valid signature is no reason to trust the shape of what it covers."""
    monkeypatch.setattr(bundles, "_check_model", lambda *_: None)
    write(path, theta=np.append(THETA, 0.0))
    monkeypatch.undo()
    with pytest.raises(BadInput, match="theta"):
        read_bundle(path)


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04", b"not a zip at all", b"\x80\x04."])
def test_what_is_no_bundle_is_bad_input(tmp_path, data):
    (tmp_path / "x.bundle").write_bytes(data)
    with pytest.raises(BadInput, match="written by assay"):
        read_bundle(tmp_path / "x.bundle")


def test_a_file_that_is_absent_or_too_large_is_bad_input(tmp_path):
    with pytest.raises(BadInput, match="existing"):
        read_bundle(tmp_path / "none")
    with pytest.raises(BadInput):
        read_bundle(tmp_path)
    with (tmp_path / "large").open("wb") as file:
        file.truncate(bundles.MAX_BUNDLE_BYTES + 1)
    with pytest.raises(BadInput, match="at most"):
        read_bundle(tmp_path / "large")


def test_an_expired_bundle_is_refused(path):
    opened = read_bundle(path)
    opened.require_current(1999.0)
    with pytest.raises(Refused) as caught:
        opened.require_current(2000.0)
    assert caught.value.code == "expired"


def test_a_bundle_that_a_gate_holds_back_says_why_and_must_not_be_used(tmp_path, path):
    opened = read_bundle(write(tmp_path / "held.bundle", held=HELD))
    assert opened.held == HELD
    with pytest.raises(
        Refused, match=r"held back and must not be used: fairness: SEX m: .*train again"
    ) as no:
        opened.require_promoted()
    assert no.value.code == "held"
    read_bundle(path).require_promoted()


@pytest.mark.parametrize("held", [None, "fairness", {}, [1], 5])
def test_a_signer_cannot_vouch_for_a_bundle_that_does_not_say_whether_it_is_held(tmp_path, path, held):
    """What was signed is not what write_bundle makes: absent, or of another type."""
    content = members(path)
    provenance = json.loads(content["provenance.json"]) | {"held": held}
    if held is None:
        del provenance["held"]
    content["provenance.json"] = canonical_json(provenance)
    content["manifest.json"] = bundles._manifest(content)
    content["signature"] = IDENTITY.sign("bundle", content["manifest.json"])
    rewrite(path, content.items())
    with pytest.raises(Tampered, match=r"provenance\.json"):
        read_bundle(path)


def test_a_bundle_of_another_format_is_refused(path):
    content = members(path)
    manifest = json.loads(content["manifest.json"])
    assert manifest["version"] == 2
    content["manifest.json"] = canonical_json(manifest | {"version": 1})
    content["signature"] = IDENTITY.sign("bundle", content["manifest.json"])
    rewrite(path, content.items())
    with pytest.raises(Tampered, match=r"manifest\.json"):
        read_bundle(path)


def run(*arguments):
    return CliRunner().invoke(model_app, [str(argument) for argument in arguments])


def test_verify_compares_the_fingerprint(path):
    good = run("verify", path, "--fingerprint", IDENTITY.fingerprint.lower(), "--json")
    assert good.exit_code == 0
    assert json.loads(good.stdout)["verified"] is True
    bad = run("verify", path, "--fingerprint", Identity.generate().fingerprint)
    assert bad.exit_code == 1
    assert "not by" in bad.stderr


def test_verify_fails_on_a_changed_bundle(path):
    path.write_bytes(path.read_bytes().replace(b"0.75", b"0.95"))
    result = run("verify", path)
    assert result.exit_code == 1
    assert "metrics.json" in result.stderr
    assert result.stdout == ""


def test_show_names_purpose_privacy_and_points(path):
    text = run("show", path).stdout
    for part in ("consumer_credit", "epsilon 1", "missing", IDENTITY.fingerprint):
        assert part in text
    assert json.loads(run("show", path, "--json").stdout)["scorecard"]["base_points"] == CARD.base_points
