"""docs/secure-aggregation.md once more, in plain Python: written from the document alone, to check it.

It favours the document's order and words over speed, keeps everything in memory, and shares no line
with Assay. test_secagg_reference.py holds it against the golden vectors and lets it talk to Assay.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

ROUNDS = 32
ADVERT = 2144
CIPHERTEXT = 148
BOUND = 1 << 43
FIELD = 2**521 - 1
CURVE = 2**255 - 19
LOW_ORDER = {0, 1, CURVE - 1} | {
    int.from_bytes(bytes.fromhex(key), "little")
    for key in (
        "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
        "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
    )
}


class Refused(Exception):
    """The document says: no."""


def require(condition: bool, otherwise: str) -> None:
    if not condition:
        raise Refused(otherwise)


# Notation


def u32(value: int) -> bytes:
    return value.to_bytes(4, "big")


def frame(*parts: bytes) -> bytes:
    return b"".join(u32(len(part)) + part for part in parts)


def digest(message: bytes) -> bytes:
    return hashlib.sha256(message).digest()


def kdf(secret: bytes, *about: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=frame(*about)).derive(secret)


def stream(key: bytes) -> Any:
    return Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()


def sign(seed: bytes, context: str, message: bytes) -> bytes:
    return Ed25519PrivateKey.from_private_bytes(seed).sign(signed(context, message))


def require_signature(key: bytes, context: str, message: bytes, signature: bytes) -> None:
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, signed(context, message))
    except InvalidSignature:
        raise Refused(f"{context}: the signature does not verify") from None


def signed(context: str, message: bytes) -> bytes:
    tag = f"assay/{context}/v1".encode()
    return len(tag).to_bytes(2, "big") + tag + message


def exchange(private: bytes, public: bytes) -> bytes:
    return X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(public))


def public_of(private: bytes) -> bytes:
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def commitment(self_seed: bytes) -> bytes:
    return digest(b"assay/secagg-commitment/v1" + self_seed)


# Terms and adverts


@dataclass(frozen=True)
class Terms:
    federation: str
    run: str
    session: int
    study: str
    keys: Mapping[str, bytes]

    @property
    def digest(self) -> bytes:
        everybody = [part for name in sorted(self.keys) for part in (name.encode(), self.keys[name])]
        return digest(
            frame(
                b"assay/secagg-terms/v1",
                bytes.fromhex(self.federation),
                bytes.fromhex(self.run),
                u32(self.session),
                bytes.fromhex(self.study),
                *everybody,
            )
        )

    @property
    def rounds(self) -> range:
        return range(ROUNDS * self.session, ROUNDS * (self.session + 1))


class Session:
    """What adverts tell anybody: who takes part, under which keys, and at which threshold."""

    def __init__(self, terms: Terms, adverts: Mapping[str, bytes]) -> None:
        self.terms = terms
        self.adverts = dict(adverts)
        self.names = sorted(adverts)
        self.threshold = 2 * len(self.names) // 3 + 1
        self.check()
        sent = [part for name in self.names for part in (name.encode(), adverts[name])]
        self.id = digest(frame(b"assay/secagg-session/v1", terms.digest, *sent))

    def check(self) -> None:
        require(len(self.names) >= 3, "fewer than three adverts")
        for name, advert in self.adverts.items():
            require(name in self.terms.keys, "a name that is not in the terms")
            require(len(advert) == ADVERT, "an advert of another length")
            body, signature = advert[:-64], advert[-64:]
            message = frame(self.terms.digest, name.encode(), body)
            require_signature(self.terms.keys[name], "secagg-advert", message, signature)
        every = [(name, r) for name in self.names for r in self.terms.rounds]
        keys = [self.share_key(name) for name in self.names] + [self.mask_key(*one) for one in every]
        for key in keys:
            number = int.from_bytes(key, "little")
            require(
                number < CURVE and number not in LOW_ORDER, "a key that is not canonical, or of low order"
            )
        require(len(set(keys)) == len(keys), "a key that occurs twice")
        require(len({self.commitment(*one) for one in every}) == len(every), "a commitment that occurs twice")

    def share_key(self, name: str) -> bytes:
        return self.adverts[name][:32]

    def mask_key(self, name: str, r: int) -> bytes:
        return self.adverts[name][self.slot(r) : self.slot(r) + 32]

    def commitment(self, name: str, r: int) -> bytes:
        return self.adverts[name][self.slot(r) + 32 : self.slot(r) + 64]

    def slot(self, r: int) -> int:
        require(r in self.terms.rounds, "a round of another session")
        return 32 + 64 * (r - self.terms.rounds.start)

    def place(self, name: str) -> int:
        return 1 + self.names.index(name)

    def context(self, r: int, rounds: int, question: bytes, active: Sequence[str]) -> bytes:
        require(0 <= rounds < 2**32, "no number of rounds")
        names = [name.encode() for name in sorted(active)]
        head = (b"assay/secagg-context/v1", self.id, u32(r), u32(rounds), digest(question))
        return digest(frame(*head, *names))

    def require_quorum(self, names: Sequence[str], among: Sequence[str]) -> None:
        require(len(set(names)) == len(names) and set(names) <= set(among), "names that do not belong here")
        require(len(names) >= self.threshold, "fewer holders than the threshold")

    def sent_message(self, r: int, context: bytes) -> bytes:
        return frame(self.id, u32(r), context)

    def consent_message(self, r: int, context: bytes, survivors: Sequence[str]) -> bytes:
        return frame(self.id, u32(r), context, *(name.encode() for name in sorted(survivors)))

    def about(self, sender: str, receiver: str, r: int) -> tuple[bytes, bytes, bytes]:
        return sender.encode(), receiver.encode(), u32(r)


# Masks


def add_mask(values: Sequence[int], key: bytes, sign: int) -> list[int]:
    mask = stream(key).update(bytes(8 * len(values)))
    words = (int.from_bytes(mask[at : at + 8], "little") for at in range(0, len(mask), 8))
    return [(value + sign * word) % 2**64 for value, word in zip(values, words, strict=True)]


def add_pair_mask(values: Sequence[int], private: bytes, public: bytes, context: bytes, own: str, peer: str):
    """What ``own`` adds for ``peer``, whichever of the two private keys is at hand."""
    low, high = sorted((own, peer))
    label = (b"assay/secagg-pair-mask/v1", context, low.encode(), high.encode())
    return add_mask(values, kdf(exchange(private, public), *label), 1 if own == low else -1)


def self_mask_key(self_seed: bytes, context: bytes, name: str) -> bytes:
    return kdf(self_seed, b"assay/secagg-self-mask/v1", context, name.encode())


# Secret sharing


def polynomial(secret: bytes, key: bytes, threshold: int) -> list[int]:
    source = stream(key)
    coefficients = [int.from_bytes(secret, "big")]
    while len(coefficients) < threshold:
        draw = int.from_bytes(source.update(bytes(66)), "big") % 2**521
        if draw != FIELD:
            coefficients.append(draw)
    return coefficients


def share(coefficients: Sequence[int], x: int) -> bytes:
    return (sum(a * x**power for power, a in enumerate(coefficients)) % FIELD).to_bytes(66, "big")


def rebuild(shares: Mapping[int, int]) -> int:
    """f(0) by Lagrange's formula."""
    total = 0
    for x, y in shares.items():
        others = [other for other in shares if other != x]
        top = math.prod(others)
        bottom = math.prod(other - x for other in others)
        total += y * top * pow(bottom, -1, FIELD)
    return total % FIELD


def share_sets(openers: Sequence[int], threshold: int) -> Iterator[tuple[int, ...]]:
    if math.comb(len(openers), threshold) <= 1000:
        return itertools.combinations(openers, threshold)
    first = tuple(openers[:threshold])
    return itertools.chain([first], (tuple(random.sample(openers, threshold)) for _ in range(1000)))


# The two roles


class Holder:
    """A holder of one session."""

    def __init__(self, name: str, terms: Terms, seed: bytes, identity_seed: bytes) -> None:
        self.name, self.terms, self.seed, self.identity_seed = name, terms, seed, identity_seed
        self.session: Session
        self._only: dict[Any, Any] = {}
        self._made: dict[bytes, Any] = {}

    def once(self, what: Any, value: Any) -> None:
        require(self._only.setdefault(what, value) == value, f"{what}: another one before")

    def share_private(self) -> bytes:
        return kdf(self.seed, b"assay/secagg-share-key/v1", self.terms.digest)

    def mask_private(self, r: int) -> bytes:
        return kdf(self.seed, b"assay/secagg-mask-key/v1", self.terms.digest, u32(r))

    def self_seed(self, r: int) -> bytes:
        return kdf(self.seed, b"assay/secagg-self-seed/v1", self.terms.digest, u32(r))

    def advert(self) -> bytes:
        body = public_of(self.share_private())
        for r in self.terms.rounds:
            body += public_of(self.mask_private(r)) + commitment(self.self_seed(r))
        message = frame(self.terms.digest, self.name.encode(), body)
        return body + sign(self.identity_seed, "secagg-advert", message)

    def join(self, adverts: Mapping[str, bytes]) -> None:
        require(adverts.get(self.name) == self.advert(), "its own advert is missing or altered")
        session = Session(self.terms, adverts)
        self.once("adverts", dict(adverts))
        self.session = session

    def shares_for(self, receiver: str, r: int) -> bytes:
        """Both shares of round ``r``, of the mask key and of the self-mask seed, in the clear."""
        both = b""
        for which, secret in ((b"mask", self.mask_private(r)), (b"self", self.self_seed(r))):
            key = kdf(self.seed, b"assay/secagg-polynomial/v1", self.session.id, u32(r), which)
            both += share(polynomial(secret, key, self.session.threshold), self.session.place(receiver))
        return both

    def share_cipher(self, peer: str, about: Sequence[bytes]) -> ChaCha20Poly1305:
        secret = exchange(self.share_private(), self.session.share_key(peer))
        return ChaCha20Poly1305(kdf(secret, b"assay/secagg-share/v1", self.session.id, *about))

    def encrypted(self, receiver: str, r: int) -> bytes:
        about = self.session.about(self.name, receiver, r)
        cipher = self.share_cipher(receiver, about)
        return cipher.encrypt(bytes(12), self.shares_for(receiver, r), frame(*about))

    def shares(self) -> bytes:
        others = (name for name in self.session.names if name != self.name)
        return b"".join(self.encrypted(other, r) for other in others for r in self.terms.rounds)

    def context(self, r: int, rounds: int, question: bytes, active: Sequence[str]) -> bytes:
        made = self.session.context(r, rounds, question, active)
        self._made[made] = (r, sorted(active))
        return made

    def masked(self, values: Sequence[int], r: int, context: bytes, active: Sequence[str]) -> list[int]:
        require(self._made.get(context) == (r, sorted(active)), "a context it has not computed for these")
        self.session.require_quorum(active, self.session.names)
        require(self.name in active, "it is not active itself")
        require(all(abs(value) <= BOUND for value in values), "a value beyond the bound")
        self.once(("context", r), (context, sorted(active)))
        self.once(("values", r), list(values))
        total = add_mask(values, self_mask_key(self.self_seed(r), context, self.name), 1)
        for peer in set(active) - {self.name}:
            public = self.session.mask_key(peer, r)
            total = add_pair_mask(total, self.mask_private(r), public, context, self.name, peer)
        return total

    def sent(self, r: int, context: bytes) -> bytes:
        require(self._only.get(("context", r), [None])[0] == context, "it has not answered in this context")
        return sign(self.identity_seed, "secagg-sent", self.session.sent_message(r, context))

    def consent(self, r: int, context: bytes, survivors: Sequence[str]) -> bytes:
        self.require_list(r, context, survivors)
        self.once(("survivors", r), sorted(survivors))
        message = self.session.consent_message(r, context, survivors)
        return sign(self.identity_seed, "secagg-consent", message)

    def require_list(self, r: int, context: bytes, survivors: Sequence[str]) -> list[str]:
        answered, active = self._only.get(("context", r), (None, []))
        require(answered == context, "it has not answered in this context")
        self.session.require_quorum(survivors, active)
        require(self.name in survivors, "it does not survive itself")
        return active

    def open(
        self,
        r: int,
        context: bytes,
        survivors: Sequence[str],
        tolerated: int,
        proofs: Mapping[str, bytes],
        ciphertexts: Mapping[str, bytes],
    ) -> bytes:
        active = self.require_list(r, context, survivors)
        require(len(active) - len(survivors) <= tolerated, "more missing than tolerated")
        self.require_proofs(r, context, active, survivors, proofs)
        require(set(ciphertexts) == set(active) - {self.name}, "not the ciphertexts of the others")
        both = {sender: self.decrypted(sender, r, one) for sender, one in ciphertexts.items()}
        both[self.name] = self.shares_for(self.name, r)
        self.once(("survivors", r), sorted(survivors))
        return b"".join(both[name][66:] if name in survivors else both[name][:66] for name in active)

    def require_proofs(
        self,
        r: int,
        context: bytes,
        active: Sequence[str],
        survivors: Sequence[str],
        proofs: Mapping[str, bytes],
    ) -> None:
        if set(survivors) == set(active):
            kind, message = "secagg-sent", self.session.sent_message(r, context)
            enough = set(proofs) | {self.name} >= set(active)
        else:
            kind, message = "secagg-consent", self.session.consent_message(r, context, survivors)
            enough = len(proofs) >= self.session.threshold
        require(
            enough and set(proofs) <= set(survivors), "too few proofs, or of somebody who does not survive"
        )
        for name, signature in proofs.items():
            require_signature(self.terms.keys[name], kind, message, signature)

    def decrypted(self, sender: str, r: int, ciphertext: bytes) -> bytes:
        about = self.session.about(sender, self.name, r)
        require(len(ciphertext) == CIPHERTEXT, "a ciphertext of another length")
        try:
            return self.share_cipher(sender, about).decrypt(bytes(12), ciphertext, frame(*about))
        except InvalidTag:
            raise Refused(f"{sender}: its share does not decrypt") from None


class Coordinator:
    """The coordinator of one session."""

    def __init__(self, terms: Terms, adverts: Mapping[str, bytes]) -> None:
        self.session = Session(terms, adverts)
        self._blobs: dict[str, bytes] = {}

    def add_shares(self, name: str, blob: bytes) -> None:
        require(name in self.session.names, "an unknown holder")
        require(len(blob) == CIPHERTEXT * ROUNDS * (len(self.session.names) - 1), "another length")
        self._blobs[name] = blob

    def ciphertexts_for(self, receiver: str, r: int, active: Sequence[str]) -> dict[str, bytes]:
        return {sender: self.ciphertext(sender, receiver, r) for sender in active if sender != receiver}

    def ciphertext(self, sender: str, receiver: str, r: int) -> bytes:
        others = [name for name in self.session.names if name != sender]
        at = CIPHERTEXT * (ROUNDS * others.index(receiver) + self.session.terms.rounds.index(r))
        return self._blobs[sender][at : at + CIPHERTEXT]

    def unmask(
        self,
        r: int,
        context: bytes,
        active: Sequence[str],
        masked: Mapping[str, Sequence[int]],
        opened: Mapping[str, bytes],
    ) -> list[int]:
        active = sorted(active)
        require(len(opened) >= self.session.threshold, "fewer openers than the threshold")
        total = [sum(column) % 2**64 for column in zip(*masked.values(), strict=True)]
        for position, name in enumerate(active):
            wanted = self.session.commitment(name, r) if name in masked else self.session.mask_key(name, r)
            secret = self.secret(
                position, len(active), opened, commitment if name in masked else public_of, wanted
            )
            if name in masked:
                total = add_mask(total, self_mask_key(secret, context, name), -1)
                continue
            for survivor in masked:
                public = self.session.mask_key(survivor, r)
                total = add_pair_mask(total, secret, public, context, name, survivor)
        result = [value - 2**64 if value >= 2**63 else value for value in total]
        require(all(abs(value) <= len(masked) * BOUND for value in result), "a sum beyond its bound")
        return result

    def secret(
        self, position: int, length: int, opened: Mapping[str, bytes], image: Any, wanted: bytes
    ) -> bytes:
        """The secret of the active holder at ``position``: the one whose ``image`` was advertised."""
        shares = {}
        for name, shown in opened.items():
            number = int.from_bytes(shown[66 * position : 66 * (position + 1)], "big")
            if len(shown) == 66 * length and number < FIELD:
                shares[self.session.place(name)] = number
        require(len(shares) >= self.session.threshold, "too many openings are wrong")
        for chosen in share_sets(sorted(shares), self.session.threshold):
            number = rebuild({x: shares[x] for x in chosen})
            if number < 2**256 and image(number.to_bytes(32, "big")) == wanted:
                return number.to_bytes(32, "big")
        raise Refused("a secret cannot be rebuilt")
