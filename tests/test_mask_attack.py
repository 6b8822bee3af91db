"""What a curious or dishonest coordinator can do to take one holder's vector out of the sum: nothing.

Each attack has a control: the same code, on a build that is weakened on purpose inside the test, recovers the
victim's vector to the last bit. An attack that cannot succeed anywhere would prove nothing.
"""

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from proof_support import RUN, Coordinator
from toy_study import ROUNDS, SUMMED, records

from assay.privacy import masking, shamir
from assay.privacy.errors import Refused
from assay.privacy.keys import Identity
from assay.privacy.ledger import Ledger
from assay.privacy.messages import (
    KeysRequest,
    SharesRequest,
)
from assay.privacy.secagg import VALUE_BOUND, Member, Tally, Terms

NAMES = ("east", "north", "south")
VICTIM = "east"
SIZE = 16
CANDIDATE_BITS = 16


class Transcript:
    """One round of three holders as the coordinator sees it, and the victim's secret for comparison."""

    def __init__(self):
        identities = {name: Identity.generate() for name in NAMES}
        keys = {name: identity.public for name, identity in identities.items()}
        terms = Terms(federation="1" * 64, run="2" * 32, session=0, study="3" * 64, keys=keys)
        rng = np.random.default_rng(4)
        members = {
            name: Member(name=name, terms=terms, seed=rng.bytes(32), identity=identities[name])
            for name in NAMES
        }
        adverts = {name: member.advert() for name, member in members.items()}
        tally = Tally(terms, adverts)
        for name, member in members.items():
            member.join(adverts)
            tally.add_shares(name, member.shares())
        question = {"round": 1, "rounds": ROUNDS, "question": b"theta", "active": NAMES}
        self.context = tally.context(**question)
        assert {member.context(**question) for member in members.values()} == {self.context}
        self.vectors = {name: rng.integers(-(2**42), 2**42, SIZE) for name in NAMES}
        asked = {"round": 1, "context": self.context, "active": NAMES}
        self.masked = {name: members[name].masked(self.vectors[name], **asked) for name in NAMES}
        proofs = {name: members[name].sent(1, self.context) for name in NAMES}
        self.opened = {
            name: members[name].open(
                **asked,
                survivors=NAMES,
                tolerated=0,
                proofs={peer: proof for peer, proof in proofs.items() if peer != name},
                ciphertexts=_by_sender(tally.ciphertexts_for(name, 1, NAMES), name),
            )
            for name in NAMES
        }
        total, _ = tally.unmask(**asked, masked=self.masked, opened=self.opened)
        assert np.array_equal(total, sum(self.vectors.values()))

    def without_self_mask(self):
        """Take off the mask whose seed every opening gives away: the vector under its pair masks alone."""
        place = NAMES.index(VICTIM) * shamir.ELEMENT_BYTES
        shares = {
            x: int.from_bytes(self.opened[name][place : place + shamir.ELEMENT_BYTES], "big")
            for x, name in enumerate(NAMES, start=1)
        }
        seed = shamir.combine(shares)
        return self.masked[VICTIM] - masking.self_mask(seed, owner=VICTIM, context=self.context, size=SIZE)

    def search(self):
        """Try every pair of candidate keys for one in which all values are as small as values must be.

        The seed search that breaks Flower's SecAgg+ (32-bit seeds), as meeting in the middle: 2^16 candidates
        for each of the two peers are 2^32 pairs. A wrong pair passes one value with probability 2^-20, all
        sixteen with 2^-320.

        Returns:
            The different vectors that some pair explains.
        """
        keys = [
            number.to_bytes(CANDIDATE_BITS // 8, "big") + bytes(30) for number in range(1 << CANDIDATE_BITS)
        ]
        words = np.stack([masking.mask(key, 4) for key in keys])
        left = self.without_self_mask()
        order = np.argsort(words[:, 0])
        first = words[order, 0]
        # The victim stands first among the names: it adds both masks. left[0] - second is the first mask
        # plus a number below VALUE_BOUND in size.
        low = left[0] - words[:, 0] - np.uint64(VALUE_BOUND)
        begin = np.searchsorted(first, low)
        end = np.searchsorted(first, low + np.uint64(2 * VALUE_BOUND), side="right")
        found = {}
        for second in np.flatnonzero(end > begin):
            for one in order[begin[second] : end[second]]:
                rest = (left[:4] - words[one] - words[second]).view(np.int64)
                if (np.abs(rest) <= VALUE_BOUND).all():
                    masks = masking.mask(keys[one], SIZE) + masking.mask(keys[second], SIZE)
                    vector = (left - masks).view(np.int64)
                    found[vector.tobytes()] = vector
        return list(found.values())


def _by_sender(blob, receiver):
    peers = [name for name in NAMES if name != receiver]
    width = len(blob) // len(peers)
    return {name: blob[i * width : (i + 1) * width] for i, name in enumerate(peers)}


def weaken_pair_keys(monkeypatch):
    """Leave 16 bits of every pair-mask key, as a generator with a small seed would."""
    derive = masking.derive

    def weak(secret, *info):
        key = derive(secret, *info)
        return key[: CANDIDATE_BITS // 8] + bytes(30) if info[0] == b"assay/secagg-pair-mask/v1" else key

    monkeypatch.setattr(masking, "derive", weak)


class TestSeedSearch:
    def test_it_explains_nothing_of_the_victims_masked_vector(self):
        assert Transcript().search() == []

    def test_control_with_keys_of_16_bits_it_recovers_the_victims_vector_exactly(self, monkeypatch):
        weaken_pair_keys(monkeypatch)
        transcript = Transcript()
        (recovered,) = transcript.search()
        assert np.array_equal(recovered, transcript.vectors[VICTIM])


class TestEntropyOfKeys:
    @pytest.mark.slow
    def test_a_hundred_thousand_derived_mask_keys_have_no_constant_bit_and_no_collision(self, monkeypatch):
        """False alarm: 256 bits, each at 7 standard deviations, 7e-10; a collision of 64 bits, 3e-10."""
        keys = derived_keys(monkeypatch)
        assert len(keys) >= 100_000
        assert len(np.unique(keys[:, :8].copy().view("<u8"))) == len(keys)
        share = np.unpackbits(keys, axis=1).mean(axis=0)
        assert np.abs(share - 0.5).max() < 7 * 0.5 / np.sqrt(len(keys))

    def test_control_keys_of_16_bits_fail_it(self, monkeypatch):
        weaken_pair_keys(monkeypatch)
        keys = derived_keys(monkeypatch, owners=20)
        share = np.unpackbits(keys, axis=1).mean(axis=0)
        assert (share == 0).sum() == 256 - CANDIDATE_BITS


def derived_keys(monkeypatch, *, owners=450):
    """Derive the keys of the pair masks between ``owners`` holders and return them, uint8 ``[pairs, 32]``."""
    keys, mask = [], masking.mask

    def spy(key, size):
        keys.append(key)
        return mask(key, size)

    monkeypatch.setattr(masking, "mask", spy)
    privates = [X25519PrivateKey.generate() for _ in range(owners)]
    publics = [private.public_key().public_bytes_raw() for private in privates]
    for i, private in enumerate(privates):
        for j in range(i):
            masking.add_pair_mask(
                np.zeros(1, dtype=np.uint64),
                owner=f"h{i}",
                private=private,
                peer=f"h{j}",
                public=publics[j],
                context=bytes(32),
            )
    return np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(-1, 32)


class TestEveryBitCounts:
    def test_a_mask_depends_on_every_bit_of_its_key(self):
        key = bytes(range(32))
        flipped = [(int.from_bytes(key, "big") ^ (1 << bit)).to_bytes(32, "big") for bit in range(256)]
        assert len({masking.mask(each, 2).tobytes() for each in (key, *flipped)}) == 257

    def test_no_two_rounds_and_no_two_sessions_share_a_key(self):
        """From one seed: 2 x 32 mask keys, 2 x 32 self-mask seeds and 2 keys for shares, all different."""
        identities = {name: Identity.generate() for name in NAMES}
        keys = {name: identity.public for name, identity in identities.items()}
        words = []
        for session in (0, 1):
            terms = Terms(federation="1" * 64, run="2" * 32, session=session, study="3" * 64, keys=keys)
            member = Member(name=VICTIM, terms=terms, seed=bytes(32), identity=identities[VICTIM])
            advert = member.advert()[:-64]
            words += [advert[at : at + 32] for at in range(0, len(advert), 32)]
        assert len(words) == 2 * (1 + 2 * 32)
        assert len(set(words)) == len(words)


class TestTwoSums:
    """Two sums of one round that differ by one holder are that holder's own values."""

    FOUR = ("east", "north", "south", "west")
    THREE = ("east", "north", "south")
    VICTIM = "west"

    @pytest.fixture
    def coordinator(self, tmp_path, monkeypatch):
        """Four holders that have accepted; what each of them sends is kept for comparison."""
        self.sent = {}
        release = Ledger.release

        def spy(ledger, *, run, round, payload):  # noqa: A002
            self.sent[round, id(ledger)] = np.frombuffer(payload, dtype="<i8")
            return release(ledger, run=run, round=round, payload=payload)

        monkeypatch.setattr(Ledger, "release", spy)
        data = {name: records(40, seed) for seed, name in enumerate(self.FOUR)}
        return Coordinator(tmp_path, SUMMED, data).accept()

    def secret(self, coordinator, number=0):
        """Return the integers that the victim put under its masks."""
        return self.sent[number, id(coordinator.ledgers[self.VICTIM])]

    def two_survivor_lists(self, coordinator, *, restart):
        """Open a round for everybody, then for everybody but the victim, and subtract."""
        question = coordinator.question(0, rounds=4)
        masked = coordinator.masked(question)
        proofs = {name: bytes.fromhex(answer.sent) for name, answer in masked.items()}
        whole = coordinator.unmask(question, masked, coordinator.open(question, self.FOUR, proofs))
        if restart:
            coordinator.restart()
        consents = coordinator.consents(question, self.THREE)
        opened = coordinator.open(question, self.THREE, consents)
        return whole - coordinator.unmask(question, {name: masked[name] for name in self.THREE}, opened)

    def two_active_lists(self, coordinator, *, restart):
        """Ask everybody for a round, then everybody but the victim for the same round, and subtract."""
        whole = coordinator.sum(0)
        if restart:
            coordinator.restart()
        return whole - coordinator.sum(0, active=self.THREE)

    @pytest.mark.parametrize("restart", [False, True])
    @pytest.mark.parametrize("attack", ["two_survivor_lists", "two_active_lists"])
    def test_a_round_has_one_sum(self, coordinator, attack, restart):
        with pytest.raises(Refused) as refusal:
            getattr(self, attack)(coordinator, restart=restart)
        assert refusal.value.code == "changed"

    def test_control_without_the_one_list_the_difference_is_the_victims_vector(
        self, coordinator, monkeypatch
    ):
        monkeypatch.setattr(Ledger, "open_round", lambda *_, **__: None)
        difference = self.two_survivor_lists(coordinator, restart=True)
        assert np.array_equal(difference, self.secret(coordinator))

    def test_control_without_the_one_question_the_difference_is_the_victims_vector(
        self, coordinator, monkeypatch
    ):
        charge = Ledger.charge

        def whatever_is_asked(ledger, **cost):
            return charge(ledger, **(cost | {"question": "", "noise_share": 1.0}))

        monkeypatch.setattr(Ledger, "charge", whatever_is_asked)
        monkeypatch.setattr(Ledger, "open_round", lambda *_, **__: None)
        difference = self.two_active_lists(coordinator, restart=True)
        assert np.array_equal(difference, self.secret(coordinator))


class TestLies:
    """A coordinator that follows the protocol in all but one message, and three real holders."""

    @pytest.fixture
    def coordinator(self, tmp_path):
        data = {name: records(40, seed) for seed, name in enumerate(NAMES)}
        return Coordinator(tmp_path, SUMMED, data).accept()

    def refused(self, code):
        return pytest.raises(Refused, check=lambda refusal: refusal.code == code)

    def test_a_sum_over_holders_that_were_given_different_models_never_comes_out(self, coordinator):
        """Pasquini et al. 2022: a model for one holder at which the others' gradients vanish."""
        question = coordinator.question(1, rounds=4)
        other = coordinator.question(1, rounds=4, theta=np.full(question.theta.size, 0.5))
        masked = coordinator.masked(question, missing=(VICTIM,))
        masked[VICTIM] = coordinator.ask(VICTIM, other)
        proofs = {name: bytes.fromhex(answer.sent) for name, answer in masked.items()}
        with pytest.raises(Refused):
            coordinator.open(question, NAMES, proofs)

    @pytest.mark.parametrize("at", [0, 32, 64], ids=["share key", "mask key", "commitment"])
    def test_keys_that_their_holder_did_not_sign_get_no_shares(self, coordinator, at):
        holders = {name: identity.public.hex() for name, identity in coordinator.identities.items()}
        asked = KeysRequest(run=RUN, session=0, holders=holders)
        adverts = {name: coordinator.ask(name, asked).advert for name in NAMES}
        mine = X25519PrivateKey.generate().public_key().public_bytes_raw()
        adverts["south"] = adverts["south"][:at] + mine + adverts["south"][at + 32 :]
        everybodys = b"".join(adverts[name] for name in NAMES)
        with self.refused("aggregation"):
            coordinator.ask("east", SharesRequest(run=RUN, session=0, names=list(NAMES), adverts=everybodys))

    @pytest.mark.parametrize("proof", [bytes(64), "of another round", "of consent"])
    def test_nothing_is_opened_without_everybodys_signature_of_this_round(self, coordinator, proof):
        question, earlier = coordinator.question(1, rounds=4), coordinator.question(0, rounds=4)
        before, masked = coordinator.masked(earlier), coordinator.masked(question)
        proofs = {name: bytes.fromhex(answer.sent) for name, answer in masked.items()}
        if proof == "of another round":
            proof = bytes.fromhex(before["south"].sent)
        elif proof == "of consent":
            proof = coordinator.consents(question, NAMES)["south"]
        with self.refused("aggregation"):
            coordinator.open(question, NAMES, proofs | {"south": proof})


def test_a_consent_to_one_list_of_survivors_opens_no_other(tmp_path):
    """Two of the three signatures that the fourth holder is shown were made for a list without it."""
    data = {name: records(40, seed) for seed, name in enumerate((*NAMES, "west"))}
    coordinator = Coordinator(tmp_path, SUMMED, data).accept()
    question = coordinator.question(0, rounds=4)
    coordinator.masked(question)
    others = coordinator.consents(question, NAMES)
    survivors = ("east", "north", "west")
    own = coordinator.consent("west", question, survivors)
    proofs = {"east": others["east"], "north": others["north"], "west": own}
    with pytest.raises(Refused, match="east") as refusal:
        coordinator.open_one("west", question, survivors, proofs)
    assert refusal.value.code == "aggregation"
