"""Gaussian noise that nobody can predict, repeat or subtract.

The only source of randomness for a release. Global generators (torch, numpy, ``random``) are never
used: whoever seeds them can subtract the noise.

==================  =============================================================================
source              AES-256-CTR keystream under a key of 32 bytes of operating-system entropy,
                    one key per call: a fork, a restart or a copied machine repeats nothing
shape of the bits   53-bit uniforms -> Box-Muller; four draws are added and halved, so that the
                    floating-point values that can occur reveal nothing (Holohan & Braghin 2021,
                    section 5.1; the formula of Opacus' secure mode)
what is released    integers on a public grid of std / 2^20: rounding after the noise is
                    post-processing, and no low-order bit of a float leaves
==================  =============================================================================
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from assay.privacy.errors import BadInput

__all__ = ["Entropy", "gaussian", "grid_unit", "to_grid", "uniforms"]

Entropy = Callable[[int], bytes]
"""Returns that many unpredictable bytes, as ``os.urandom`` does."""

_KEY_BYTES = 32
_COUNTER_BLOCK = bytes(16)  # a key is used once, so the counter may start at zero
_ADDED = 4
# Integers up to 2^53 are exact in float64, which the receiver decodes to.
_MAX_UNITS = float(1 << 53)


def _words(count: int, entropy: Entropy) -> NDArray[np.uint64]:
    """Return ``count`` 64-bit words of a fresh keystream."""
    key = entropy(_KEY_BYTES)
    if len(key) != _KEY_BYTES:
        raise BadInput("entropy", value=f"{len(key)} bytes", allowed=f"{_KEY_BYTES} bytes")
    stream = Cipher(algorithms.AES(key), modes.CTR(_COUNTER_BLOCK)).encryptor().update(bytes(8 * count))
    return np.frombuffer(stream, dtype="<u8")


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


def grid_unit(std: float) -> float:
    """Return the spacing of the released grid, std / 2^20: a public number, exact in float64.

    At this spacing rounding adds a variance of 2^-40 / 12 of the noise's own.
    """
    if not 0 < std < math.inf:
        raise BadInput("std", value=std, allowed="a finite number above 0")
    return std / 2**20


def to_grid(values: NDArray[np.float64], unit: float) -> NDArray[np.int64]:
    """Return noisy ``values`` as whole multiples of ``unit``, rounded to the nearest.

    Args:
        values: float64, any shape, noise already added.
        unit: what :func:`grid_unit` gave.

    Returns:
        int64, the same shape.

    Raises:
        BadInput: a value is NaN or infinite, or 2^53 units or more; nothing must be released then.
    """
    scaled = np.rint(values / unit)
    if not bool(np.all(np.abs(scaled) < _MAX_UNITS)):
        raise BadInput("noisy values", allowed="finite, and below 2^53 grid units", where="release")
    return scaled.astype(np.int64)
