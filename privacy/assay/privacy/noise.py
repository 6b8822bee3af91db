"""Noise that nobody can predict, repeat or subtract.

The only source of randomness for a release. Global generators (torch, numpy, ``random``) are never
used: whoever seeds them can subtract the noise.

==================  =============================================================================
source              AES-256-CTR keystream under a key of 32 bytes of operating-system entropy,
                    one key per call: a fork, a restart or a copied machine repeats nothing
what leaves         :func:`discrete_gaussian`: integers, from an exact sampler. No rounding of a
                    float decides a sample, so no low-order bit says what it was added to
what stays          :func:`gaussian`: floats for training on one machine; four Box-Muller draws are
                    added and halved, so that the floating-point values that can occur reveal
                    nothing (Holohan & Braghin 2021, section 5.1; Opacus' secure mode)
not covered         how long sampling takes: it depends on the noise, never on the records
==================  =============================================================================
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from decimal import Context, Decimal, localcontext
from fractions import Fraction

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from assay.privacy.errors import BadInput

__all__ = ["MAX_VARIANCE", "Entropy", "discrete_gaussian", "gaussian", "uniforms"]

Entropy = Callable[[int], bytes]
"""Returns that many unpredictable bytes, as ``os.urandom`` does."""

MAX_VARIANCE = 1 << 80
"""Largest variance of :func:`discrete_gaussian`: every integer that occurs is then exact in float64."""

_KEY_BYTES = 32
_COUNTER_BLOCK = bytes(16)  # a key is used once, so the counter may start at zero
_ADDED = 4
# Candidates worked on at a time: their arrays stay in the processor's cache.
_CHUNK = 1 << 15
# A uniform real starts as the top 63 bits of a word; the last bit of the word is a sign.
_FRACTION_BITS = 63
# Bound on the error of a logarithm, relative to 1 + its value: numpy's are within 4 units in the last place,
# rounding a fraction to float64 moves its argument by half of one, and the rest is reserve.
_LOG_ERROR = 2.0**-47
# The same for the acceptance exponent, whose three float64 operations add a few units.
_EXPONENT_ERROR = 2.0**-49


class _Keystream:
    """An endless stream of 64-bit words under one fresh key."""

    def __init__(self, entropy: Entropy) -> None:
        key = entropy(_KEY_BYTES)
        if len(key) != _KEY_BYTES:
            raise BadInput("entropy", value=f"{len(key)} bytes", allowed=f"{_KEY_BYTES} bytes")
        self._encryptor = Cipher(algorithms.AES(key), modes.CTR(_COUNTER_BLOCK)).encryptor()

    def words(self, count: int) -> NDArray[np.uint64]:
        """Return the next ``count`` words."""
        return np.frombuffer(self._encryptor.update(bytes(8 * count)), dtype="<u8")


def _words(count: int, entropy: Entropy) -> NDArray[np.uint64]:
    """Return ``count`` 64-bit words of a fresh keystream."""
    return _Keystream(entropy).words(count)


def discrete_gaussian(size: int, variance: int, entropy: Entropy = os.urandom) -> NDArray[np.int64]:
    """Return independent integers x, each with probability proportional to exp(-x^2 / (2 variance)).

    Guarantee: the distribution is exact (Canonne, Kamath & Steinke 2020, algorithm 3), given unpredictable
    bits. Every comparison is one of a uniform *real* number with an irrational one. It is decided in
    float64 where a bound on the rounding error leaves no doubt; the few others draw further bits of the
    same real number and are decided in arithmetic of growing precision.

    =====================  ====================================================================
    size 0                 an empty array
    variance below 1       refused: a release without noise is never meant
    not whole numbers      refused
    =====================  ====================================================================

    Args:
        size: how many, at least 0.
        variance: 1 to :data:`MAX_VARIANCE`; the variance of the result is below it by less than 1e-6 at 1,
            and by nothing measurable from 2 on.
        entropy: where the key comes from; anything but the default is for tests.

    Returns:
        int64, ``[size]``.

    Raises:
        BadInput: as in the table.
    """
    for setting, value, low, high in (("size", size, 0, 1 << 40), ("variance", variance, 1, MAX_VARIANCE)):
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise BadInput(setting, value=value, allowed=f"a whole number, {low} to {high}")
    stream = _Keystream(entropy)
    noise = np.empty(size, dtype=np.int64)
    filled = 0
    while filled < size:
        # Two of three candidates are accepted; what is too many is drawn for nothing.
        count = min(_CHUNK, (size - filled) * 3 // 2 + 16)
        accepted = _accepted(stream, count, variance)[: size - filled]
        noise[filled : filled + accepted.size] = accepted
        filled += accepted.size
    return noise


def _accepted(stream: _Keystream, count: int, variance: int) -> NDArray[np.int64]:
    """Return what is accepted of ``count`` discrete Laplace candidates (CKS 2020, algorithms 2 and 3)."""
    scale = math.isqrt(variance) + 1
    first, second = stream.words(2 * count).reshape(2, count)
    magnitude = _laplace(first >> np.uint64(1), scale, stream)
    negative = (first & np.uint64(1)).astype(np.bool_)
    keep = _passes(second >> np.uint64(1), magnitude, scale, variance, stream)
    keep &= ~(negative & (magnitude == 0))  # there is one zero, not two
    return np.where(negative, -magnitude, magnitude)[keep]


def _exponential(fractions: NDArray[np.uint64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return -ln of the uniform reals that begin with ``fractions``, and how far off it may be."""
    bits = fractions.astype(np.float64)
    with np.errstate(divide="ignore"):  # a fraction of zero: infinite, and infinitely uncertain
        value = -np.log(bits * 2.0**-_FRACTION_BITS)
        # The real is in [fraction, fraction + 1), a relative width of 1 / fraction.
        return value, 2.0 / bits + _LOG_ERROR * (1.0 + value)


def _laplace(fractions: NDArray[np.uint64], scale: int, stream: _Keystream) -> NDArray[np.int64]:
    """Return floor(-scale ln U): x with probability proportional to exp(-x / scale), int64."""
    value, error = _exponential(fractions)
    with np.errstate(invalid="ignore"):  # infinity - infinity: NaN, which equals nothing
        low, high = np.floor(scale * (value - error)), np.floor(scale * (value + error))
    decided = low == high
    magnitude = np.where(decided, low, 0.0).astype(np.int64)
    for lane in np.flatnonzero(~decided):
        magnitude[lane] = _exact_floor(int(fractions[lane]), scale, stream)
    return magnitude


def _passes(
    fractions: NDArray[np.uint64],
    magnitude: NDArray[np.int64],
    scale: int,
    variance: int,
    stream: _Keystream,
) -> NDArray[np.bool_]:
    """Return true with probability exp(-(magnitude - variance/scale)^2 / (2 variance)), bool."""
    value, error = _exponential(fractions)
    centre = variance / scale
    exponent = np.square(magnitude - centre) / (2.0 * variance)
    error += _EXPONENT_ERROR * np.square(magnitude + centre) / variance
    difference = value - exponent
    passes: NDArray[np.bool_] = difference > error
    for lane in np.flatnonzero(~(np.abs(difference) > error)):
        passes[lane] = _exact_passes(int(fractions[lane]), int(magnitude[lane]), scale, variance, stream)
    return passes


def _exact_floor(fraction: int, scale: int, stream: _Keystream) -> int:
    """Return floor(-scale ln U), exactly."""
    bounds = _narrowing(fraction, stream)
    while True:
        low, high = next(bounds)
        if math.floor(low * scale) == math.floor(high * scale):
            return math.floor(low * scale)


def _exact_passes(fraction: int, magnitude: int, scale: int, variance: int, stream: _Keystream) -> bool:
    """Return whether -ln U is above (magnitude - variance/scale)^2 / (2 variance), exactly."""
    exponent = (magnitude - Fraction(variance, scale)) ** 2 / (2 * variance)
    bounds = _narrowing(fraction, stream)
    while True:
        low, high = next(bounds)
        if low > exponent:
            return True
        if high < exponent:
            return False


def _narrowing(fraction: int, stream: _Keystream) -> Iterator[tuple[Fraction, Fraction]]:
    """Yield ever closer bounds of -ln U, where the uniform real U begins with the bits of ``fraction``."""
    bits = _FRACTION_BITS
    while True:
        if fraction > 0:
            # decimal rounds every logarithm correctly; the slack is 10^10 times the last of these digits.
            digits = bits // 3 + 40
            with localcontext(Context(prec=digits)):
                whole, slack = bits * Decimal(2).ln(), Decimal(10) ** (10 - digits)
                low = whole - Decimal(fraction + 1).ln() - slack
                high = whole - Decimal(fraction).ln() + slack
            yield Fraction(low), Fraction(high)
        fraction = fraction << 64 | int(stream.words(1)[0])
        bits += 64


def uniforms(count: int, entropy: Entropy = os.urandom) -> NDArray[np.float64]:
    """Return ``count`` independent float64 numbers, uniform on the multiples of 2^-53 in (0, 1].

    Zero never occurs, so that a logarithm may follow.
    """
    top = (_words(count, entropy) >> np.uint64(11)) + np.uint64(1)
    return top.astype(np.float64) * 2.0**-53


def gaussian(shape: int | tuple[int, ...], std: float, entropy: Entropy = os.urandom) -> NDArray[np.float64]:
    """Return independent normal numbers of mean 0 and standard deviation ``std``.

    Args:
        shape: of the result; a size of 0 gives an empty array.
        std: above 0, finite.
        entropy: where the key comes from; anything but the default is for tests.

    Returns:
        float64, ``shape``.

    Raises:
        BadInput: ``std`` is zero, negative, infinite or NaN: a release without noise is never meant.
    """
    if not 0 < std < math.inf:
        raise BadInput("std", value=std, allowed="a finite number above 0")
    size = math.prod(shape) if isinstance(shape, tuple) else shape
    uniform = uniforms(_ADDED * size, entropy).reshape(_ADDED, size)
    # Box & Muller 1958: a pair of uniforms is a radius and an angle, and gives two normals.
    radius = np.sqrt(-2.0 * np.log(uniform[: _ADDED // 2]))
    angle = (2 * math.pi) * uniform[_ADDED // 2 :]
    total: NDArray[np.float64] = (radius * (np.cos(angle) + np.sin(angle))).sum(axis=0)
    return (total * (std / math.sqrt(_ADDED))).reshape(shape)
