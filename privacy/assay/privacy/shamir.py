"""Shamir's secret sharing (1979) over the field of 2^521 - 1 elements, with recovery from wrong shares.

A secret of 32 bytes is the constant term of a polynomial of degree ``threshold - 1`` whose other coefficients
are uniform; holder ``x`` (1, 2, ...) is given its value at ``x``. Any ``threshold`` shares give the secret,
fewer say nothing about it.

=====================  ====================================================================================
guarantee              holds if ``stream`` gives uniform bytes that nobody else knows
wrong shares           :func:`combine` cannot tell; :func:`recover` finds them where the secret can be checked
timing                 not constant; nothing is computed here for a party that could measure it
=====================  ====================================================================================
"""

from __future__ import annotations

import itertools
import math
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache

from assay.privacy.errors import BadInput, Refused

__all__ = ["ELEMENT_BYTES", "MAX_TRIES", "PRIME", "combine", "evaluate", "polynomial", "recover", "split"]

PRIME = 2**521 - 1
ELEMENT_BYTES = 66
SECRET_BYTES = 32
MAX_TRIES = 1000
"""Sets of shares that :func:`recover` tries before it gives up."""


def polynomial(secret: bytes, *, threshold: int, stream: Callable[[int], bytes]) -> list[int]:
    """Return the coefficients of a random polynomial whose value at 0 is ``secret``.

    Args:
        secret: 32 bytes, read as a big-endian number.
        threshold: shares needed to rebuild it, at least 1; the number of coefficients.
        stream: returns that many uniform bytes, each time the next ones. The same bytes give the same
            polynomial.

    Returns:
        ``threshold`` numbers in [0, PRIME), constant term first.

    Raises:
        BadInput: the secret is not 32 bytes, or the threshold below 1.
    """
    if len(secret) != SECRET_BYTES:
        raise BadInput("secret", value=f"{len(secret)} bytes", allowed=f"{SECRET_BYTES} bytes")
    if threshold < 1:
        raise BadInput("threshold", value=threshold, allowed="at least 1")
    return [int.from_bytes(secret, "big"), *(_element(stream) for _ in range(threshold - 1))]


def _element(stream: Callable[[int], bytes]) -> int:
    """Return a uniform field element: 521 bits, the one pattern that is no element drawn again."""
    while True:
        value = int.from_bytes(stream(ELEMENT_BYTES), "big") & PRIME  # 2^521 - 1 is also the mask of 521 bits
        if value != PRIME:
            return value


def evaluate(coefficients: Sequence[int], x: int) -> int:
    """Return the value at ``x``: the share of holder ``x``, in [0, PRIME)."""
    value = 0
    for coefficient in reversed(coefficients):
        value = value * x + coefficient  # x is small: reducing once, at the end, is faster
    return value % PRIME


def split(secret: bytes, *, threshold: int, holders: int, stream: Callable[[int], bytes]) -> list[int]:
    """Return one share of ``secret`` for each of the holders 1, 2, ..., ``holders``.

    Args:
        secret: 32 bytes.
        threshold: shares that rebuild it, 1..holders.
        holders: how many shares.
        stream: as for :func:`polynomial`.

    Returns:
        Shares in [0, PRIME), in order of x = 1..holders.

    Raises:
        BadInput: a secret of another length, or a threshold outside 1..holders.
    """
    if not 1 <= threshold <= holders:
        raise BadInput("threshold", value=threshold, allowed=f"1..{holders}, the number of holders")
    coefficients = polynomial(secret, threshold=threshold, stream=stream)
    return [evaluate(coefficients, x) for x in range(1, holders + 1)]


def combine(shares: Mapping[int, int]) -> bytes:
    """Return the secret whose shares these are; all of them are used and must be right.

    Args:
        shares: x to value; as many as the threshold, or more.

    Raises:
        BadInput: no share, an x below 1 or twice the same modulo PRIME, or a value outside [0, PRIME).
        Refused: the shares do not belong together (``"aggregation"``): their secret has over 32 bytes.
    """
    xs = tuple(shares)
    if not xs or not all(0 < x < PRIME for x in xs):
        raise BadInput("shares", allowed="at least one, each at an x in 1..PRIME-1")
    if not all(0 <= value < PRIME for value in shares.values()):
        raise BadInput("shares", allowed="values in 0..PRIME-1")
    secret = _secret([shares[x] for x in xs], _weights(xs, 0))
    if secret is None:
        raise Refused("the shares do not belong together", code="aggregation")
    return secret


def recover(
    shares: Mapping[int, int], *, threshold: int, accept: Callable[[bytes], bool]
) -> tuple[bytes, frozenset[int]]:
    """Return the secret that ``accept`` knows to be right, although some shares may be wrong.

    The first ``threshold`` shares are tried first. If they do not give it, other sets of that size follow:
    all of them where there are at most :data:`MAX_TRIES`, otherwise that many random ones.

    Args:
        shares: x to value, x in 1..PRIME-1, value in [0, PRIME).
        threshold: how many shares rebuild the secret.
        accept: says whether 32 bytes are the secret; it must be right about it, e.g. compare with a hash.

    Returns:
        The secret, which is certain; and the xs whose shares do not fit the set that gave it: empty where the
        first set was right, for then the others are not looked at. A single wrong share is always the one
        named; two or more whose errors were chosen to cancel can make right ones look wrong.

    Raises:
        Refused: fewer shares than the threshold, or no set that was tried gives the secret
            (``"aggregation"``).
    """
    if len(shares) < threshold:
        raise Refused(f"{len(shares)} shares, {threshold} are needed", code="aggregation")
    for number, xs in enumerate(_candidates(tuple(shares), threshold)):
        values = [shares[x] for x in xs]
        secret = _secret(values, _weights(xs, 0))
        if secret is None or not accept(secret):
            continue
        others = [x for x in shares if x not in xs] if number else []
        return secret, frozenset(x for x in others if shares[x] != _value(values, _weights(xs, x)))
    raise Refused("the shares do not give the secret; too many are wrong", code="aggregation")


def _candidates(xs: tuple[int, ...], threshold: int) -> Iterator[tuple[int, ...]]:
    """Yield sets of ``threshold`` xs, the first ones first."""
    if math.comb(len(xs), threshold) <= MAX_TRIES:
        yield from itertools.combinations(xs, threshold)
        return
    yield xs[:threshold]
    # Unpredictable, so that nobody can place wrong shares where an order would look last.
    draw = secrets.SystemRandom().sample
    for _ in range(MAX_TRIES - 1):
        yield tuple(draw(xs, threshold))


@lru_cache(maxsize=64)  # one set of holders opens hundreds of secrets
def _weights(xs: tuple[int, ...], at: int) -> list[int]:
    """Return Lagrange's coefficients: the value at ``at`` is the sum of weight * share (Shamir 1979)."""
    weights = []
    for x in xs:
        above = math.prod(at - other for other in xs if other != x)
        below = math.prod(x - other for other in xs if other != x)
        weights.append(above * pow(below, -1, PRIME) % PRIME)
    return weights


def _value(values: Sequence[int], weights: Sequence[int]) -> int:
    return sum(weight * value for weight, value in zip(weights, values, strict=True)) % PRIME


def _secret(values: Sequence[int], weights: Sequence[int]) -> bytes | None:
    value = _value(values, weights)
    return value.to_bytes(SECRET_BYTES, "big") if value < 1 << (8 * SECRET_BYTES) else None
