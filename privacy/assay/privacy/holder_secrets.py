"""A holder's secrets of one session of secure aggregation, all derived from one seed of 32 bytes.

==================  ======================================================================================
restart             the same seed and terms give the same bytes, so that nothing but the seed is stored
one seed, one use   the terms are in every derivation: a seed used for two sessions gives other keys
independent rounds  the round is in every derivation: what opening one round shows is worthless for another
==================  ======================================================================================
"""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from assay.privacy import shamir
from assay.privacy.cohort import Advert, Cohort, Terms
from assay.privacy.errors import BadInput
from assay.privacy.masking import commitment, derive, keystream, u32

__all__ = ["HolderSecrets"]

_SEED_BYTES = 32


class HolderSecrets:
    """What only the holder knows in a session.

    Attributes:
        share_key: decrypts the shares that others encrypt for this holder.
    """

    def __init__(self, seed: bytes, terms: Terms) -> None:
        """Derive the session's keys.

        Raises:
            BadInput: the seed is not 32 bytes.
        """
        if len(seed) != _SEED_BYTES:
            raise BadInput("seed", value=f"{len(seed)} bytes", allowed=f"{_SEED_BYTES} bytes")
        self._seed, self._terms, self._digest = seed, terms, terms.digest
        secret = derive(seed, b"assay/secagg-share-key/v1", self._digest)
        self.share_key = X25519PrivateKey.from_private_bytes(secret)

    def __repr__(self) -> str:
        return f"HolderSecrets(session {self._terms.session})"

    def _mask_secret(self, round: int) -> bytes:  # noqa: A002 - what it is called on the wire
        return derive(self._seed, b"assay/secagg-mask-key/v1", self._digest, u32(round))

    def mask_key(self, round: int) -> X25519PrivateKey:  # noqa: A002
        """Return the key of a round's pairwise masks."""
        return X25519PrivateKey.from_private_bytes(self._mask_secret(round))

    def self_seed(self, round: int) -> bytes:  # noqa: A002
        """Return the seed of the mask that the holder adds for itself in a round, 32 bytes."""
        return derive(self._seed, b"assay/secagg-self-seed/v1", self._digest, u32(round))

    def advert(self) -> Advert:
        """Return the public half of all of it."""
        served = self._terms.served
        return Advert(
            share_key=self.share_key.public_key().public_bytes_raw(),
            mask_keys=tuple(self.mask_key(number).public_key().public_bytes_raw() for number in served),
            commitments=tuple(commitment(self.self_seed(number)) for number in served),
        )

    def polynomials(self, cohort: Cohort, round: int) -> tuple[list[int], list[int]]:  # noqa: A002
        """Return the polynomials that share a round's mask key and self-mask seed among ``cohort``.

        Another cohort gets other coefficients: its holders stand at other places, and with the shares that
        somebody has of both sharings of one polynomial he would have more than the threshold counts on.
        """
        of_mask = self._polynomial(self._mask_secret(round), cohort, round, b"mask")
        return of_mask, self._polynomial(self.self_seed(round), cohort, round, b"self")

    def _polynomial(self, secret: bytes, cohort: Cohort, round: int, which: bytes) -> list[int]:  # noqa: A002
        key = derive(self._seed, b"assay/secagg-polynomial/v1", cohort.session_id, u32(round), which)
        return shamir.polynomial(secret, threshold=cohort.threshold, stream=keystream(key))
