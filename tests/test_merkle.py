"""The Merkle tree of RFC 6962, against Certificate Transparency's vectors and a second implementation."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay.privacy.merkle import MerkleTree

LEAVES = [
    bytes.fromhex(text)
    for text in (
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]
ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]


def grown(leaves):
    tree = MerkleTree()
    for leaf in leaves:
        tree.append(leaf)
    return tree


def by_definition(leaves):
    """RFC 6962, section 2.1, word for word."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return hashlib.sha256(b"\x00" + leaves[0]).digest()
    half = 1
    while half * 2 < len(leaves):
        half *= 2
    both = by_definition(leaves[:half]) + by_definition(leaves[half:])
    return hashlib.sha256(b"\x01" + both).digest()


@pytest.mark.parametrize("size", range(9))
def test_known_roots(size):
    tree = grown(LEAVES[:size])
    assert (tree.size, tree.root) == (size, ROOTS[size])


@given(st.lists(st.binary(max_size=40), max_size=70))
def test_the_root_is_the_one_of_the_definition(leaves):
    assert grown(leaves).root == by_definition(leaves).hex()


def test_a_leaf_cannot_pass_for_a_node():
    node = bytes.fromhex(ROOTS[1]) + hashlib.sha256(b"\x00" + LEAVES[1]).digest()
    assert grown([node]).root != ROOTS[2]


def test_order_and_number_of_leaves_are_bound():
    roots = {grown(leaves).root for leaves in ([b"a", b"b"], [b"b", b"a"], [b"a"], [b"a", b"b", b"b"])}
    assert len(roots) == 4


def test_a_copy_grows_on_its_own():
    tree = grown(LEAVES[:3])
    copy = tree.copy()
    copy.append(LEAVES[3])
    assert (tree.root, copy.root) == (ROOTS[3], ROOTS[4])
