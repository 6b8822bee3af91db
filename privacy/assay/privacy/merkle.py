"""The Merkle tree of RFC 6962, section 2.1: one hash that stands for a list of entries and their order.

A leaf is hashed behind the byte 0x00 and a node behind 0x01, so that no leaf can pass for a node. Only the
roots of the full subtrees are kept, one for every 1 bit of the size: an append costs a few hashes, whatever
the size.
"""

from __future__ import annotations

import hashlib

__all__ = ["MerkleTree"]


class MerkleTree:
    """A tree that grows one leaf at a time and knows its root.

    Attributes:
        size: number of leaves.
    """

    def __init__(self) -> None:
        self.size = 0
        self._full: list[bytes] = []  # roots of full subtrees, the largest (leftmost) first

    def copy(self) -> MerkleTree:
        """Return a tree that grows on its own."""
        other = MerkleTree()
        other.size, other._full = self.size, list(self._full)
        return other

    def append(self, leaf: bytes) -> None:
        """Add ``leaf`` (any bytes) as the last one."""
        root = hashlib.sha256(b"\x00" + leaf).digest()
        merged = self.size
        while merged & 1:  # two full subtrees of equal size are one of twice the size
            root = _node(self._full.pop(), root)
            merged >>= 1
        self._full.append(root)
        self.size += 1

    @property
    def root(self) -> str:
        """The Merkle tree hash, 64 hexadecimal digits; SHA-256 of nothing where there is no leaf."""
        if not self._full:
            return hashlib.sha256().hexdigest()
        root = self._full[-1]
        for left in reversed(self._full[:-1]):
            root = _node(left, root)
        return root.hex()


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()
