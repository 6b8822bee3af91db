"""What the documents name exists: tests, files, folders, modules and headings."""

import ast
import functools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCS = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
LAYERS = ("privacy", "models", "client", "server", "simulations")
TOP = (*LAYERS, "tests", "docs", "examples", "benchmarks", "deploy", ".ci")

TEST = re.compile(r"\btest_[a-z0-9_]+\b(?!\.py)")
CODE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
PATH = re.compile(r"[\w.-]+(?:/[\w.-]+)*/?")
MODULE = re.compile(r"assay\.(?!sqlite)\w+(?:\.\w+)*")

documents = pytest.mark.parametrize("document", DOCS, ids=lambda path: path.name)


def prose(document):
    """Return the text without its blocks of commands and bytes."""
    return re.sub(r"^```.*?^```", "", document.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


@functools.cache
def existing_tests():
    found = set()
    for path in (ROOT / "tests").glob("test_*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found |= {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    return {name for name in found if name.startswith("test_")}


def missing_paths(text):
    """Return what looks like a path of this repository and is none.

    A path begins with a folder of the root, or is the name of a Python file anywhere in it. (Paths of a
    holder's or coordinator's directory begin otherwise, or hold a wildcard.)
    """
    packages = [ROOT / layer / "assay" / layer for layer in LAYERS]
    folders = [*packages, ROOT / "tests", ROOT / "benchmarks", ROOT / ".ci"]
    for found in CODE.findall(text):
        if not PATH.fullmatch(found):
            continue
        first, slash, _ = found.partition("/")
        if slash and first in TOP:
            exists = (ROOT / found).exists()
        else:
            exists = not found.endswith(".py") or any((folder / found).exists() for folder in folders)
        if not exists:
            yield found


def anchors(document):
    """Return the anchors of a document's headings, as GitHub and GitLab make them."""
    headings = re.findall(r"^#+ (.+)$", prose(document), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(document):
    for link in LINK.findall(prose(document)):
        if link.startswith(("http:", "https:")):
            continue
        name, _, anchor = link.partition("#")
        target = document.parent / name if name else document
        if not target.exists() or (anchor and anchor not in anchors(target)):
            yield link


def missing_modules(text):
    """Return what looks like a module of Assay, or a name in one, and has no such module."""
    for found in CODE.findall(text):
        if not MODULE.fullmatch(found):
            continue
        _, layer, *rest = found.split(".")
        package = ROOT / layer / "assay" / layer
        if not package.is_dir() or (rest and not (package / f"{rest[0]}.py").exists()):
            yield found


@documents
def test_every_test_that_is_named_exists(document):
    assert set(TEST.findall(document.read_text(encoding="utf-8"))) - existing_tests() == set()


@documents
def test_every_path_that_is_named_exists(document):
    assert list(missing_paths(prose(document))) == []


@documents
def test_every_link_leads_somewhere(document):
    assert list(broken_links(document)) == []


@documents
def test_every_module_that_is_named_exists(document):
    assert list(missing_modules(prose(document))) == []


def threats():
    """Return the rows of the tables of handled threats: (threat, defence, test)."""
    text = (ROOT / "docs" / "threats.md").read_text(encoding="utf-8")
    handled = text[text.index("## Handled") : text.index("## Not protected against")]
    rows = [line.strip("|").split(" | ") for line in handled.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in row] for row in rows if row[0].strip() != "threat"]


def test_every_threat_has_a_defence_in_a_file_and_a_test():
    rows = threats()
    assert len(rows) > 50
    for row in rows:
        threat, defence, tests = row
        files = [found for found in CODE.findall(defence) if found.endswith(".py")]
        assert files, threat
        assert TEST.findall(tests), threat


def test_what_does_not_exist_is_found(tmp_path):
    """The control: each of the checks above can fail."""
    text = "`privacy/assay/privacy/nothing.py` `nothing.py` `tests/nothing/`"
    assert list(missing_paths(text)) == ["privacy/assay/privacy/nothing.py", "nothing.py", "tests/nothing/"]
    assert list(missing_paths("`privacy/` `noise.py` `models/*.bundle` `keys/ca.pem`")) == []
    assert list(missing_modules("`assay.server.nothing` `assay.nothing` `assay.server.gate.Gate`")) == [
        "assay.server.nothing",
        "assay.nothing",
    ]
    assert TEST.findall("`test_this_one`, `tests/test_docs.py`") == ["test_this_one"]
    assert "test_this_one" not in existing_tests()
    document = tmp_path / "page.md"
    document.write_text('# One "tolerated"\n[a](#one-tolerated) [b](#two) [c](none.md)\n', encoding="utf-8")
    assert list(broken_links(document)) == ["#two", "none.md"]
