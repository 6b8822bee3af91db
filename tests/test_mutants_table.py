"""The table of planted bugs fits the tree: run for real by ``make mutants``, kept from rotting here."""

import ast
import functools
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / ".ci"))

import mutants  # noqa: E402 - it is no package

TABLE = mutants.read_table()


@functools.cache
def nodes_of(path):
    """Return the node identifiers, without parameters, that a test file holds."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    found = {path}
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            found.add(f"{path}::{node.name}")
            found |= {f"{path}::{node.name}::{inner.name}" for inner in functions(node)}
    return found | {f"{path}::{node.name}" for node in functions(tree)}


def functions(node):
    return [
        inner for inner in node.body if isinstance(inner, ast.FunctionDef) and inner.name.startswith("test")
    ]


@pytest.mark.parametrize("mutant", TABLE, ids=lambda mutant: mutant.name)
class TestEntry:
    def test_its_text_stands_once_in_the_tree_and_is_replaced_by_code(self, mutant, tmp_path):
        copy = tmp_path / mutant.file
        copy.parent.mkdir(parents=True)
        copy.write_text((ROOT / mutant.file).read_text(encoding="utf-8"), encoding="utf-8")
        before = mutant.apply(tmp_path)
        after = copy.read_text(encoding="utf-8")
        assert after != before
        compile(after, mutant.file, "exec")

    def test_the_tests_that_must_catch_it_exist(self, mutant):
        assert mutant.tests
        for test in mutant.tests:
            assert test in nodes_of(test.partition("::")[0])

    def test_it_says_in_a_sentence_what_it_breaks(self, mutant):
        assert mutant.breaks.endswith(".")


def test_the_table_is_large_enough_and_begins_with_the_harness_itself():
    assert TABLE[0].name == "harness"
    assert len(TABLE) >= 30


def test_a_text_that_is_gone_or_stands_twice_is_an_error(tmp_path):
    (tmp_path / "code.py").write_text("x = 1\nx = 1\n")
    for old in ("x = 2", "x = 1"):
        entry = {"name": "n", "breaks": "b.", "file": "code.py", "old": old, "new": "", "tests": ("t",)}
        with pytest.raises(ValueError, match="times"):
            mutants.Mutant(**entry).apply(tmp_path)
    assert (tmp_path / "code.py").read_text() == "x = 1\nx = 1\n"
