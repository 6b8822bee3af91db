"""CSV and Parquet files, read by pyarrow: only the wanted columns come into memory, whole or in batches.

A file must be what its name and its kind say; what pyarrow would accept in silence (two columns of one
name, a quote that is never closed, NUL bytes) is refused here.
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from assay.models.columns import csv_options, no_duplicates
from assay.privacy.errors import BadData

__all__ = ["CsvReader", "ParquetReader", "open_table", "require_file"]

_GZIP = b"\x1f\x8b"
_PARQUET = b"PAR1"
_PARQUET_ENCRYPTED = b"PARE"
# First bytes of files that are often given in place of another kind, and what to do then.
_FOREIGN = (
    (_PARQUET, 'It is a Parquet file: set kind = "parquet"'),
    (b"SQLite format 3\0", 'It is an SQLite file: set kind = "sqlite"'),
    (b"PK\x03\x04", "It is a ZIP archive or a spreadsheet: export it as CSV"),
    (b"\xff\xfe", "It is UTF-16: save it as UTF-8"),
    (b"\xfe\xff", "It is UTF-16: save it as UTF-8"),
)
_BATCH_ROWS = 1 << 16
# Bounds on what a Parquet footer may claim about itself.
_FOOTER_STRING_BYTES = 64 << 20
_FOOTER_ENTRIES = 1 << 20
_ARROW_ERRORS = (pa.ArrowException, OSError, ValueError, KeyError)


def require_file(path: Path) -> bytes:
    """Return the first 16 bytes of a file that exists, is a regular file and is not empty.

    Raises:
        BadData: it is none of these, or may not be read.
    """
    if not path.is_file():
        found = "It is a directory" if path.is_dir() else "There is no file of this name"
        raise BadData("file", where=path, allowed="an existing file", remedy=found)
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except OSError as error:
        raise BadData("file", where=path, allowed=f"a readable file ({error.strerror})") from None
    if not head:
        raise BadData("file", where=path, allowed="a file that is not empty")
    return head


class _CheckedText:
    """The bytes of a CSV file on their way to pyarrow; refuses NUL bytes and a quote that stays open."""

    def __init__(self, path: Path) -> None:
        self._path = path
        opener = gzip.GzipFile if path.suffix == ".gz" else Path.open
        self._raw = cast(IO[bytes], opener(path, "rb"))
        self._quotes = 0
        self.closed = False

    def read(self, size: int = -1) -> bytes:
        try:
            data = self._raw.read(size)
        except (EOFError, OSError, zlib.error):
            raise BadData(
                "file", where=self._path, allowed="a whole gzip file; this one is damaged"
            ) from None
        if b"\0" in data:
            raise BadData(
                "file",
                where=self._path,
                allowed="UTF-8 text, without NUL bytes",
                remedy="Export it again as CSV",
            )
        self._quotes += data.count(b'"')
        # RFC 4180: quotes come in pairs. pyarrow would take the rest of the file for one cell.
        if not data and self._quotes % 2:
            raise BadData(
                "file", where=self._path, allowed='every quote (") closed; their number here is odd'
            )
        return data

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._raw.close()
        self.closed = True


class CsvReader:
    """A comma-separated file with a header line, UTF-8 (a byte order mark is fine), ``.gz`` if compressed."""

    def __init__(self, path: Path) -> None:
        self.where = str(path)
        self._path = path
        head = require_file(path)
        compressed = path.suffix == ".gz"
        if head.startswith(_GZIP) != compressed:
            remedy = "Rename it to end in .csv.gz" if not compressed else "Rename it to end in .csv"
            raise BadData(
                "file",
                where=path,
                allowed="gzip data in a file that ends in .gz, and only there",
                remedy=remedy,
            )
        for magic, remedy in _FOREIGN:
            if head.startswith(magic):
                raise BadData("file", where=path, allowed="comma-separated UTF-8 text", remedy=remedy)
        with self._batches(None) as reader:
            self.columns: tuple[str, ...] = tuple(reader.schema.names)
        if len(self.columns) == 1 and (found := re.search(r"[;\t|]", self.columns[0])):
            raise BadData(
                "header",
                where=path,
                allowed="columns separated by commas",
                remedy=f"Found {found[0]!r} instead",
            )

    def fetch(self, names: Sequence[str]) -> pa.Table:
        """Return these columns as text, null where a cell is empty."""
        with self._batches(names) as reader:
            return reader.read_all()

    def batches(self, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Yield the same in pieces of a few megabytes."""
        with self._batches(names) as reader:
            yield from reader

    def close(self) -> None:
        """Nothing stays open between reads."""

    @contextmanager
    def _batches(self, names: Sequence[str] | None) -> Iterator[Any]:
        read, parse, convert = csv_options()
        parse.newlines_in_values = True
        convert.default_column_type = pa.string()
        if names is not None:
            convert.include_columns = list(names)
        text = _CheckedText(self._path)
        try:
            with pyarrow.csv.open_csv(
                text, read_options=read, parse_options=parse, convert_options=convert
            ) as reader:
                yield reader
        except BadData:
            raise
        except UnicodeDecodeError:
            raise BadData(
                "header", where=self.where, allowed="UTF-8 text", remedy="Save it as UTF-8"
            ) from None
        except _ARROW_ERRORS as error:
            raise self._explained(str(error)) from None
        finally:
            text.close()

    def _explained(self, message: str) -> BadData:
        """Turn pyarrow's message, which may quote a row, into one that does not."""
        # An invalid_row_handler would be given these numbers, but it fails on rows that are not UTF-8.
        if found := re.match(r"CSV parse error: Row #(\d+): Expected (\d+) columns, got (\d+)", message):
            row, expected, actual = (int(number) for number in found.groups())
            return BadData(
                f"row {row - 1}",
                where=self.where,
                allowed=f"{expected} cells, as in the header; it has {actual}",
            )
        if "UTF8" in message:
            found = re.search(r"Row #(\d+)", message)
            place = f"row {int(found[1]) - 1}" if found else "a cell"
            return BadData(place, where=self.where, allowed="UTF-8 text", remedy="Save the file as UTF-8")
        if "straddling" in message:
            return BadData(
                "a row",
                where=self.where,
                allowed="rows of at most 4 MiB",
                remedy='Look for a quote (") left open',
            )
        if "Empty CSV" in message:
            return BadData("rows", where=self.where, allowed="a header line and at least one record")
        return BadData("file", where=self.where, allowed="comma-separated UTF-8 text")


class ParquetReader:
    """A Parquet file, not encrypted."""

    def __init__(self, path: Path) -> None:
        self.where = str(path)
        self._path = path
        head = require_file(path)
        with path.open("rb") as file:
            file.seek(0, 2)
            file.seek(-min(4, file.tell()), 2)
            tail = file.read(4)
        if _PARQUET_ENCRYPTED in (head[:4], tail):
            raise self._bad("It is encrypted: write it without encryption")
        if head[:4] != _PARQUET:
            raise self._bad("It does not begin like one: check the file and the kind it is said to be")
        if tail != _PARQUET:
            raise self._bad("Its end is missing: copy it again")
        with self._file() as file:
            self._schema = file.schema_arrow
        self.columns: tuple[str, ...] = tuple(self._schema.names)

    def fetch(self, names: Sequence[str]) -> pa.Table:
        """Return these columns; text stays dictionary-encoded, so that a small file stays small."""
        wanted = pa.schema([self._schema.field(name) for name in names])
        texts = [field.name for field in wanted if pa.types.is_string(field.type)]
        with self._file(texts) as file:
            batches = list(file.iter_batches(batch_size=_BATCH_ROWS, columns=list(names)))
            table = pa.Table.from_batches(batches) if batches else wanted.empty_table()
            if table.num_rows != file.metadata.num_rows:
                raise self._bad("Its footer states another number of rows: write it again")
        return table.select(list(names))

    def batches(self, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Yield these columns in pieces of at most 65,536 rows."""
        with self._file() as file:
            yield from file.iter_batches(batch_size=_BATCH_ROWS, columns=list(names))

    def close(self) -> None:
        """Nothing stays open between reads."""

    @contextmanager
    def _file(self, dictionary: Sequence[str] = ()) -> Iterator[Any]:
        try:
            with pyarrow.parquet.ParquetFile(
                self._path,
                read_dictionary=list(dictionary),
                # pyarrow's read-ahead keeps what it has read until the file is closed: in the end, all of it.
                pre_buffer=False,
                thrift_string_size_limit=_FOOTER_STRING_BYTES,
                thrift_container_size_limit=_FOOTER_ENTRIES,
                page_checksum_verification=True,
            ) as file:
                yield file
        except BadData:
            raise
        except _ARROW_ERRORS:
            raise self._bad("It is damaged or has encrypted columns: write it again") from None

    def _bad(self, remedy: str) -> BadData:
        return BadData("file", where=self.where, allowed="a whole Parquet file, not encrypted", remedy=remedy)


def open_table(path: Path) -> CsvReader | ParquetReader:
    """Open a file as what its name says: ``.csv``, ``.csv.gz`` or ``.parquet``.

    Raises:
        BadData: the name says something else, the file is not that, or two columns have one name.
    """
    reader: CsvReader | ParquetReader
    if path.name.endswith((".csv", ".csv.gz")):
        reader = CsvReader(path)
    elif path.suffix == ".parquet":
        reader = ParquetReader(path)
    else:
        raise BadData("file", where=path, allowed="a name that ends in .csv, .csv.gz or .parquet")
    no_duplicates(list(reader.columns), path)
    return reader
