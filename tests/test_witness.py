"""What the coordinator says of a holder's ledger: signed, and only of those it has heard from."""

import json

import pytest
from federation_support import assay, assay_json
from rounds_support import Federation as InProcess
from toy_study import SUMMED

from assay.privacy.audit import Witness
from assay.privacy.errors import BadInput
from assay.privacy.heads import Heads, verify_countersignature
from assay.server.federation import Federation
from assay.server.witness import holder_summaries, witness

HEADS = Heads(ledger_seq=7, ledger_hash="a" * 64, log_size=12, log_root="b" * 64)


@pytest.fixture
def coordinator(tmp_path):
    """A coordinator with two holders, of which it has heard from bank-a."""
    directory = tmp_path / "coordinator"
    assay("server", "init", directory, "--name", "Tests")
    for name in ("bank-a", "bank-b"):
        shown = assay_json("client", "init", tmp_path / name, "--name", name)
        assay("server", "admit", directory, shown["request"])
    with Federation(directory) as federation:
        key = federation.roster.members()[0].identity_public
        federation.registry.save_heads({key: HEADS.text})
    return directory


def test_it_is_signed_by_the_federation_and_read_by_the_holder(coordinator, tmp_path):
    path = tmp_path / "bank-a.witness.json"
    told = assay_json("server", "witness", coordinator, "bank-a", "--output", path)
    assert json.loads(path.read_text()) == told
    assert set(told) == {"format", "federation", "holder", "heads", "signature", "coordinator_public"}
    assert (told["holder"], told["heads"]) == ("bank-a", HEADS.text)
    verify_countersignature(
        bytes.fromhex(told["coordinator_public"]),
        federation=told["federation"],
        holder="bank-a",
        heads=HEADS,
        signature=told["signature"],
    )
    read = Witness.read(path)
    assert (read.holder, read.heads) == ("bank-a", HEADS)


def test_without_a_file_it_is_shown_and_with_one_the_holder_is_told_what_to_run(coordinator, tmp_path):
    assert json.loads(assay("server", "witness", coordinator, "bank-a"))["heads"] == HEADS.text
    path = tmp_path / "w.json"
    words = assay("server", "witness", coordinator, "bank-a", "--output", path)
    assert "bank-a runs: assay privacy audit DIR --witness w.json" in words


def test_nobody_is_vouched_for_who_was_never_heard(coordinator):
    assert "has answered in a run" in assay("server", "witness", coordinator, "bank-b", code=2)
    assert "a member of the roster" in assay("server", "witness", coordinator, "bank-c", code=2)


def test_the_status_shows_how_far_each_ledger_has_come(coordinator):
    holders = assay_json("server", "status", coordinator)["holders"]
    assert [(h["name"], h["ledger_seq"], h["log_size"]) for h in holders] == [
        ("bank-a", 7, 12),
        ("bank-b", None, None),
    ]
    words = assay("server", "status", coordinator)
    assert "ledger at row 7" in words
    assert "never heard" in words


def test_a_holder_that_begins_anew_under_its_old_name_is_not_held_to_its_old_ledger(coordinator, tmp_path):
    assay("server", "revoke", coordinator, "bank-a")
    shown = assay_json("client", "init", tmp_path / "again", "--name", "bank-a")
    assay("server", "admit", coordinator, shown["request"])
    with Federation(coordinator) as federation:
        assert [h["ledger_seq"] for h in holder_summaries(federation, online=())] == [None, None]
        with pytest.raises(BadInput, match="has answered"):
            witness(federation, "bank-a")


def test_after_a_run_the_coordinator_knows_where_every_ledger_stands(tmp_path):
    federation = InProcess(tmp_path, text=SUMMED)
    run = federation.run()
    run.train(list(federation.names))
    run.close("done")
    for name in federation.names:
        heads, (seq, digest) = Heads.parse(federation.heads[name]), federation.ledgers[name].head()
        assert (heads.ledger_seq, heads.ledger_hash) == (seq, digest)
        assert (heads.log_size, heads.log_root) == (
            federation.audits[name].size,
            federation.audits[name].root,
        )
