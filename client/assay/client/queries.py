"""What a holder's own query may be: one SELECT that works row by row.

The privacy accounting bounds what one person changes by what the rows of this person change. So every row
that a query gives must be computed from the data of one person alone: a filter, an expression or a join
with another table of the same person is fine; an average over everybody, a rank, a duplicate removed or
"the first 1000" is not, since one more person then changes the rows of others. That is the holder's promise.
The words that break it most often are refused here; a view or a subquery can still break it unseen.
"""

from __future__ import annotations

import re

from assay.privacy.errors import BadInput

__all__ = ["require_row_by_row", "require_single_select"]

# Literals, comments and quoted names of SQL, in which a semicolon or a word means nothing.
_INERT = re.compile(
    r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|`[^`]*`|\[[\w ]*\]|--[^\n]*|/\*.*?\*/|\$(\w*)\$.*?\$\1\$", re.DOTALL
)
_SEVERAL_ROWS = re.compile(
    r"(?<![\w.])(?:"
    r"(?P<clause>group\s+by|having|limit|offset|fetch\s+(?:first|next)|tablesample|over(?=\s*[(\w?])"
    # "is distinct from" compares two values of one row.
    r"|distinct(?!\s+from\b)|union|intersect|except|rowid|_rowid_|ctid)\b"
    r"|(?P<aggregate>count|sum|avg|total|median|mode|every|corr|variance"
    r"|\w+_(?:agg|concat)|json_group_\w+|jsonb_group_\w+|bool_(?:and|or)|bit_(?:and|or|xor)"
    r"|(?:stddev|var|covar)(?:_pop|_samp)?|regr_\w+|percentile_(?:cont|disc)|percentile)\s*\("
    r"|(?P<extreme>min|max)\s*\()",
    re.IGNORECASE,
)


def require_single_select(query: str) -> None:
    """Refuse a query that is no single SELECT or WITH statement.

    Raises:
        BadInput: it is another statement, or several.
    """
    bare = _bare(query).strip().rstrip(";").strip()
    if not re.match(r"(select|with)\b", bare, re.IGNORECASE) or ";" in bare:
        raise BadInput(
            "query", allowed="a single SELECT or WITH statement", remedy="Records are only ever read"
        )


def require_row_by_row(query: str) -> None:
    """Refuse the words that combine, drop or order the rows of several persons.

    Raises:
        BadInput: names the word.
    """
    bare = _bare(query)
    for found in _SEVERAL_ROWS.finditer(bare):
        # min(a, b) of one row is fine: only min(a) looks at several.
        if found["extreme"] and _has_two_arguments(bare, found.end()):
            continue
        word = found["clause"] or found["aggregate"] or found["extreme"]
        raise BadInput(
            "query",
            value=" ".join(word.lower().split()),
            allowed="a query that works row by row, each row from the data of one person",
            remedy="Prepare such data, per person, in a table or view; quote a column of this name",
        )


def _bare(query: str) -> str:
    # A mark that is no part of a word stays, so that what stands on both sides does not grow together.
    return _INERT.sub(lambda found: " " if found[0].startswith(("--", "/*")) else " ? ", query)


def _has_two_arguments(text: str, start: int) -> bool:
    depth = 1
    for character in text[start:]:
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return False
        if depth == 1 and character == ",":
            return True
    return False
