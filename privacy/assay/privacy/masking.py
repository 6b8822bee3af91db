"""Keys and masks of secure aggregation: framing, derivation, key agreement, keystreams. No state, no I/O.

Everything secret is derived by HKDF-SHA256 (RFC 5869) under a tag of its own, so that no key has two uses.
``docs/secure-aggregation.md`` lists the tags and what is framed with each.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from assay.privacy.errors import Refused

__all__ = [
    "add_pair_mask",
    "agree",
    "commitment",
    "derive",
    "framed",
    "keystream",
    "mask",
    "refuse",
    "require_point",
    "self_mask",
    "u32",
]

KEY_BYTES = 32
_FIELD = 2**255 - 19
# u-coordinates of the points of order 1, 2, 4 and 8 on curve25519 and its twist (RFC 7748, section 6.1):
# whoever agrees on a key with one of them agrees on a key that everybody knows.
_LOW_ORDER = frozenset(
    {
        0,
        1,
        _FIELD - 1,
        325606250916557431795983626356110631294008115727848805560023387167927233504,
        39382357235489614581723060781553021112529911719440698176882885853963445705823,
    }
)
_COUNTER_BLOCK = bytes(16)  # a key gives one keystream, so the counter may start at zero


def refuse(text: str) -> Refused:
    """Return the refusal of a message of secure aggregation; ``text`` names who sent it."""
    return Refused(text, code="aggregation")


def u32(number: int) -> bytes:
    """Return ``number`` as four big-endian bytes."""
    return number.to_bytes(4, "big")


def framed(*parts: bytes) -> bytes:
    """Return the parts one after the other, each behind its length: different parts give different bytes."""
    return b"".join([len(part).to_bytes(4, "big") + part for part in parts])


def derive(secret: bytes, *info: bytes) -> bytes:
    """Return the 32-byte key that HKDF-SHA256 derives from ``secret``, no salt, info ``framed(*info)``."""
    return HKDF(algorithm=hashes.SHA256(), length=KEY_BYTES, salt=None, info=framed(*info)).derive(secret)


def keystream(key: bytes) -> Callable[[int], bytes]:
    """Return a function that gives the next so many bytes of the AES-256-CTR keystream of ``key``."""
    encryptor = Cipher(algorithms.AES(key), modes.CTR(_COUNTER_BLOCK)).encryptor()
    return lambda size: encryptor.update(bytes(size))


def mask(key: bytes, size: int) -> NDArray[np.uint64]:
    """Return ``size`` uniform numbers of Z_2^64: the keystream of ``key``, read little-endian."""
    return np.frombuffer(keystream(key)(8 * size), dtype="<u8")


def require_point(public: bytes, *, sender: str) -> None:
    """Refuse a public key that is not the one canonical encoding of a point of large order.

    X25519 ignores the highest bit and reduces the rest, so that every key has a second spelling; a copied key
    in other letters must not pass for a new one.

    Raises:
        Refused: naming ``sender`` (``"aggregation"``).
    """
    u = int.from_bytes(public, "little")
    if len(public) != KEY_BYTES or u >= _FIELD or u in _LOW_ORDER:
        raise refuse(f"{sender}: a public key of the session is no X25519 key of large order")


def agree(private: X25519PrivateKey, public: bytes, *, sender: str) -> bytes:
    """Return the 32 bytes that both ends of an X25519 exchange compute (RFC 7748).

    Raises:
        Refused: naming ``sender``: not a key, or the result is all zeros (``"aggregation"``).
    """
    try:
        return private.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError:  # wrong length, or a point of low order
        raise refuse(f"{sender}: X25519 gives no key with the one it sent") from None


def commitment(seed: bytes) -> bytes:
    """Return the hash by which a holder commits to its self-mask seed of a round, 32 bytes."""
    return hashlib.sha256(b"assay/secagg-commitment/v1" + seed).digest()


def self_mask(seed: bytes, *, owner: str, context: bytes, size: int) -> NDArray[np.uint64]:
    """Return the mask that ``owner`` adds and that opening its ``seed`` takes off again; uint64, ``size``."""
    return mask(derive(seed, b"assay/secagg-self-mask/v1", context, owner.encode()), size)


def add_pair_mask(
    total: NDArray[np.uint64],
    *,
    owner: str,
    private: X25519PrivateKey,
    peer: str,
    public: bytes,
    context: bytes,
) -> None:
    """Add to ``total`` what ``owner`` adds for ``peer``; what the peer adds for the owner is its negative.

    Both names are in the derivation: the peer may have sent another's key in other letters (the u-coordinate
    of the same point plus one of low order), and equal keys must not give equal masks.

    Args:
        total: uint64, changed in place modulo 2^64.
        owner: whose mask it is.
        private: the owner's mask key of the round.
        peer: the other holder.
        public: the peer's mask key of the round, 32 bytes.
        context: 32 bytes.

    Raises:
        Refused: the peer's key is of low order (``"aggregation"``).
    """
    low, high = sorted((owner, peer))
    secret = agree(private, public, sender=peer)
    words = mask(
        derive(secret, b"assay/secagg-pair-mask/v1", context, low.encode(), high.encode()), total.size
    )
    if owner == low:
        np.add(total, words, out=total)
    else:
        np.subtract(total, words, out=total)
