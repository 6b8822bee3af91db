"""Holders with their directories on disk, and a coordinator that asks them what a test wants."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import numpy as np
from toy_study import COORDINATOR, FEDERATION, GRID, ROUNDS, RUN, SUMMED, holder, offer, policy, records

from assay.models.study import parse_study
from assay.privacy.auditlog import AuditLog
from assay.privacy.heads import Heads, countersign
from assay.privacy.keys import Identity
from assay.privacy.ledger import Ledger
from assay.privacy.messages import (
    Close,
    KeysRequest,
    MaskRequest,
    OpenRequest,
    SharesRequest,
    SurvivorsRequest,
)
from assay.privacy.secagg import SESSION_ROUNDS, Tally, Terms

NAMES = ("east", "north", "south")
FOUR = (*NAMES, "west")
SEVEN = (*FOUR, "xena", "yan", "zoe")
IDENTITIES = {name: Identity.generate() for name in SEVEN}
LIMITS = policy().limits
START = np.zeros(GRID.width)


class Killed(BaseException):
    """The process ends here."""


def kill(*args, **settings):
    """End the process before a step."""
    raise Killed


def killed_after(real):
    """End the process after a step."""

    def wrapper(*args, **settings):
        real(*args, **settings)
        raise Killed

    return wrapper


class Home:
    """One holder's directory, as its daemon opens it; everything it does goes through the disk."""

    def __init__(self, folder, name, *, seed=0, rules=None):
        self.folder, self.name, self.rules = folder, name, rules or policy()
        self.directory = folder / f"home-{name}"
        self.directory.mkdir(mode=0o700, exist_ok=True)
        self.data = records(300, seed)
        self.start()

    def start(self):
        identity = IDENTITIES[self.name]
        self.audit = AuditLog.open(self.directory / "audit.log", identity)
        self.ledger = Ledger.open(self.directory / "ledger.sqlite", identity, log_head=self.audit.head)
        self.holder = holder(
            self.folder,
            name=self.name,
            identity=identity,
            ledger=self.ledger,
            audit=self.audit,
            data=self.data,
            rules=self.rules,
        )

    def stop(self):
        self.ledger.close()
        self.audit.close()

    def restart(self):
        self.stop()
        self.start()

    def sessions(self):
        return sorted(path.name for path in (self.directory / "sessions").iterdir())

    def session_file(self, session=0):
        return self.directory / "sessions" / f"{RUN}-{session}.json"

    def rows(self, kind=None):
        return [row for row in self.ledger.summary(LIMITS).entries if kind in (None, row["kind"])]

    def leaves(self):
        lines = (self.directory / "audit.log").read_text().splitlines()
        return [json.loads(line)["leaf"] for line in lines]

    def log(self, kind):
        return [leaf["data"] for leaf in self.leaves() if leaf["kind"] == kind]

    def integers(self, number):
        """What the ledger says has left in a round."""
        with self.ledger._store.transaction(write=False):
            payload = self.ledger._store.row(RUN, number, "release")["payload"]
        return np.frombuffer(payload, dtype="<i8")


class Federation:
    """Holders, and a coordinator that keeps to the protocol unless a test asks something else.

    ``twice`` puts every question again after a restart of the holder and wants the same answer.
    """

    def __init__(self, folder, names=NAMES, *, text=SUMMED, twice=False, rules=None):
        self.names, self.text, self.twice = names, text, twice
        rules = rules or {}
        self.homes = {
            name: Home(folder, name, seed=seed, rules=rules.get(name)) for seed, name in enumerate(names)
        }
        self.heads = dict.fromkeys(names, "")
        self.study = parse_study(text)
        self.tallies = {}

    def stop(self):
        for home in self.homes.values():
            home.stop()

    def ask(self, name, question):
        answer = self.homes[name].holder.answer(question)
        if self.twice:
            self.homes[name].restart()
            assert bare(self.homes[name].holder.answer(question)) == bare(answer)
        self.heads[name] = getattr(answer, "heads", self.heads[name])
        return answer

    def ask_all(self, names, make):
        return {name: self.ask(name, make(name)) for name in names}

    # Setting up ---------------------------------------------------------------------------------------

    def countersigned(self, name):
        """What an offer and a close say about a holder's heads."""
        heads = self.heads[name]
        if not heads:
            return {}
        parsed = Heads.parse(heads)
        signature = countersign(COORDINATOR, federation=FEDERATION, holder=name, heads=parsed)
        return {"heads": heads, "countersignature": signature}

    def offer(self, run=RUN):
        message = offer(self.text, run)
        return self.ask_all(self.names, lambda name: replace(message, **self.countersigned(name)))

    def keys_request(self, names=None, *, run=RUN, session=0):
        holders = {name: IDENTITIES[name].public.hex() for name in names or self.names}
        return KeysRequest(run=run, session=session, holders=holders)

    def adverts(self, *, run=RUN, session=0):
        request = self.keys_request(run=run, session=session)
        return {name: answer.advert for name, answer in self.ask_all(self.names, lambda _: request).items()}

    def terms(self, run=RUN, session=0):
        keys = {name: IDENTITIES[name].public for name in self.names}
        return Terms(federation=FEDERATION, run=run, session=session, study=self.study.digest, keys=keys)

    def set_up(self, *, run=RUN, session=0):
        adverts = self.adverts(run=run, session=session)
        tally = Tally(self.terms(run, session), adverts)
        request = shares_request(adverts, run=run, session=session)
        for name, answer in self.ask_all(self.names, lambda _: request).items():
            tally.add_shares(name, answer.shares)
        self.tallies[run, session] = tally
        return tally

    def begin(self, run=RUN):
        self.offer(run)
        self.set_up(run=run)
        return self

    # One round ----------------------------------------------------------------------------------------

    def mask(self, name, number=0, *, active=None, theta=None, rounds=ROUNDS, run=RUN):
        return MaskRequest(
            run=run,
            session=number // SESSION_ROUNDS,
            round=number,
            rounds=rounds if number else 0,
            active=sorted(active or self.names),
            theta=parameters(number, theta),
            heads=self.heads[name],
        )

    def masked(self, number=0, *, names=None, **asked):
        return self.ask_all(names or self.names, lambda name: self.mask(name, number, **asked))

    def about(self, number, survivors, *, active=None, theta=None, rounds=ROUNDS, run=RUN):
        """The fields by which the questions after the masks say which round they mean."""
        return {
            "run": run,
            "session": number // SESSION_ROUNDS,
            "round": number,
            "rounds": rounds if number else 0,
            "active": sorted(active or self.names),
            "theta_sha256": hashlib.sha256(parameters(number, theta).tobytes()).hexdigest(),
            "survivors": sorted(survivors),
        }

    def survivors_request(self, survivors, number=0, **asked):
        return SurvivorsRequest(**self.about(number, survivors, **asked))

    def open_request(self, name, number, *, survivors, proofs, active=None, **asked):
        asked_of = sorted(active or self.names)
        tally, signers = self.tallies[asked.get("run", RUN), number // SESSION_ROUNDS], sorted(proofs)
        about = self.about(number, survivors, active=asked_of, **asked)
        blob = b"".join(proofs[signer] for signer in signers) + tally.ciphertexts_for(name, number, asked_of)
        return OpenRequest(**about, signers=signers, blob=blob)

    def open_all(self, name, masked, number=0):
        """The question that opens a round which everybody has answered."""
        return self.open_request(name, number, survivors=self.names, proofs=proofs_of(masked))

    def consents(self, number, survivors, **asked):
        request = self.survivors_request(survivors, number, **asked)
        answers = self.ask_all(survivors, lambda _: request)
        return {name: bytes.fromhex(answer.signature) for name, answer in answers.items()}

    def context(self, number, *, active=None, theta=None, rounds=ROUNDS, run=RUN):
        return self.tallies[run, number // SESSION_ROUNDS].context(
            round=number,
            rounds=rounds if number else 0,
            question=hashlib.sha256(parameters(number, theta).tobytes()).digest(),
            active=sorted(active or self.names),
        )

    def total(self, number, masked, *, active=None, theta=None, rounds=ROUNDS, run=RUN):
        """Open a round for those that have answered; return the sum."""
        asked = {"active": sorted(active or self.names), "theta": theta, "rounds": rounds, "run": run}
        survivors = sorted(masked)
        whole = survivors == asked["active"]
        proofs = proofs_of(masked) if whole else self.consents(number, survivors, **asked)
        opened = self.ask_all(
            survivors,
            lambda name: self.open_request(name, number, survivors=survivors, proofs=proofs, **asked),
        )
        total, liars = self.tallies[run, number // SESSION_ROUNDS].unmask(
            round=number,
            context=self.context(number, **asked),
            active=asked["active"],
            masked={name: answer.values for name, answer in masked.items()},
            opened={name: answer.shares for name, answer in opened.items()},
        )
        assert liars == ()
        return total

    def stored(self, number, names=None):
        """The integers that the holders' ledgers say have left, added up."""
        return np.sum([self.homes[name].integers(number) for name in names or self.names], axis=0)

    def close(self, outcome="done", run=RUN):
        return self.ask_all(
            self.names, lambda name: Close(run=run, outcome=outcome, **self.countersigned(name))
        )


def parameters(number, theta=None):
    """The parameters that a round is asked at; the counts are asked at one zero."""
    if number == 0:
        return np.zeros(1)
    return START if theta is None else theta


def proofs_of(masked):
    """The signatures that came with masked values."""
    return {name: bytes.fromhex(answer.sent) for name, answer in masked.items()}


def bare(answer):
    """An answer without the heads, which a restart moves on."""
    fields = {key: value for key, value in vars(answer).items() if key != "heads"}
    return {key: value.tobytes() if isinstance(value, np.ndarray) else value for key, value in fields.items()}


def shares_request(adverts, *, run=RUN, session=0):
    """The question for shares, to be asked of everybody."""
    blob = b"".join(adverts[name] for name in sorted(adverts))
    return SharesRequest(run=run, session=session, names=sorted(adverts), adverts=blob)
