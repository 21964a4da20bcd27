"""Files of rows, read and written some thousand rows at a time: what is held does not grow with them.

A row is a dict. A CSV cell is the text that it is, a line of JSON Lines one object, and Parquet keeps its types.
`sources` reads what is learned from, which is drawn from at random; here rows pass by once, in their order.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, Protocol, get_args

from autodisc.errors import ConfigError, DataError
from autodisc.files import csv_writer
from autodisc.tasks.formats import check_names, csv_rows
from autodisc.tasks.sources import FORMATS

if TYPE_CHECKING:
    from pyarrow import Schema

Row = dict[str, Any]
Format = Literal["csv", "jsonl", "parquet"]
AT_ONCE = 4096  # rows; in batches of 64 by length 5 % (mrpc) and 6 % (sst2) is padding, of 1,024 rows 8 % and 15 %


def format_of(path: Path, option: str) -> Format:
    """A file's format by its name; raises DataError, which names the ``option`` that the file was given by."""
    for name in get_args(Format):
        if path.suffix.lower() == f".{name}":
            return name
    raise DataError(f"{option} {path}: no format of that name; expected a file that ends in {', '.join(FORMATS)}")


def format_to_write(out: Path | None, asked: Format | None) -> Format:
    """The format asked for, else ``out``'s by its name; standard output is JSON Lines."""
    if out is None:
        if asked == "parquet":
            raise ConfigError("--format parquet: not for standard output; give --out FILE.parquet")
        return asked or "jsonl"
    return asked or format_of(out, "--out")


def read_rows(path: Path | None) -> Iterator[list[Row]]:
    """The rows of a file, ``AT_ONCE`` at a time and at least one; None is JSON Lines from standard input."""
    rows: list[Row] = []
    empty = True
    with _opened(path) as file:
        for row in _rows(file, path):
            rows.append(row)
            if len(rows) == AT_ONCE:
                yield rows
                rows, empty = [], False
    if rows:
        yield rows
    elif empty:
        raise DataError(f"{name_of(path)}: no rows; expected at least one")


def name_of(path: Path | None) -> str:
    return "standard input" if path is None else str(path)


def parquet_schema(path: Path) -> Schema:
    """The columns and types of a Parquet file."""
    import pyarrow.parquet as pq

    with _opened(path) as file:
        return pq.ParquetFile(file).schema_arrow


def class_names(path: Path, column: str) -> tuple[str, ...] | None:
    """What a Parquet file calls the classes that it holds as numbers, where `datasets` has written it."""
    import datasets
    import pyarrow as pa

    if path.suffix.lower() != ".parquet":
        return None
    schema = parquet_schema(path)
    if schema.names.count(column) != 1:
        return None
    try:  # of this column alone: others may hold what `datasets` has no type for
        found = datasets.Features.from_arrow_schema(pa.schema([schema.field(column)], metadata=schema.metadata))
    except ValueError:
        return None
    return tuple(getattr(found[column], "names", None) or ()) or None


def schema_of(rows: Sequence[Row], names: Sequence[str]) -> Schema:
    """The types that Parquet gives these columns; DataError where a column holds more than one."""
    import pyarrow as pa

    fields = []
    for name in names:
        try:
            fields.append(pa.field(name, pa.array([row.get(name) for row in rows]).type))
        except (pa.ArrowException, OverflowError, TypeError) as error:
            raise _mixed(name, error) from None
    return pa.schema(fields)


def with_columns(schema: Schema, row: Row) -> Schema:
    """``schema`` and, behind it, the columns of ``row``."""
    for field in schema_of([row], list(row)):
        schema = schema.append(field)
    return schema


def joined(schemas: Sequence[Schema]) -> Schema:
    """One schema that holds the columns of all; DataError where a column's types have none in common."""
    import pyarrow as pa

    try:
        return pa.unify_schemas(list(schemas), promote_options="permissive")
    except pa.ArrowException as error:
        raise _mixed(None, error) from None


def _mixed(name: str | None, error: Exception) -> DataError:
    cause = " ".join(str(error).split())
    column = f"column '{name}' " if name is not None else "a column "
    return DataError(f"--format parquet: {column}holds values of several types ({cause}); write jsonl or csv")


@contextlib.contextmanager
def _opened(path: Path | None) -> Iterator[BinaryIO]:
    """The file, and what reading it raises as one line."""
    if path is None:
        yield sys.stdin.buffer
        return
    try:
        with path.open("rb") as file:
            if not path.stat().st_size:
                raise DataError(f"{path}: the file is empty; expected at least one row")
            yield file
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; expected one that ends in {', '.join(FORMATS)}") from None
    except OSError as error:  # Parquet's reader raises it for damaged pages too
        raise DataError(f"{path}: cannot be read ({error.strerror or ' '.join(str(error).split())})") from None


def _rows(file: BinaryIO, path: Path | None) -> Iterator[Row]:
    kind = "jsonl" if path is None else format_of(path, "--file")
    if kind == "csv":
        return csv_rows(file, str(path))
    if kind == "parquet":
        return _parquet_rows(file, str(path))
    return _json_rows(file, name_of(path))


def _json_rows(file: BinaryIO, name: str) -> Iterator[Row]:
    for number, line in enumerate(file, 1):
        if line.isspace():
            continue
        try:
            row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"), parse_constant=_refuse)
            if b"\\ud" in line.lower():
                json.dumps(row, ensure_ascii=False).encode()  # half of a character is valid JSON, but no text
        except (ValueError, RecursionError) as error:
            raise DataError(f"{name} line {number}: not JSON ({error}); expected one object a line") from None
        if not isinstance(row, dict):
            raise DataError(f"{name} line {number}: a JSON {type(row).__name__}; expected one object a line")
        yield row


def _refuse(text: str) -> None:
    raise ValueError(f"{text} is no JSON number")


def _parquet_rows(file: BinaryIO, name: str) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # Not pre-buffered: a file of one row group, as pandas writes it, would lie in memory whole.
        table = pq.ParquetFile(file, pre_buffer=False, buffer_size=1 << 20)
        check_names(table.schema_arrow.names, name)
        for batch in table.iter_batches(batch_size=AT_ONCE):
            yield from batch.to_pylist()
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise DataError(f"{name}: cannot be read as parquet ({' '.join(str(error).split())})") from None


class Writer(Protocol):
    def write(self, rows: Sequence[Row]) -> None: ...


@contextlib.contextmanager
def writing(path: Path | None, kind: Format, columns: Sequence[str], schema: Schema | None) -> Iterator[Writer]:
    """Write rows to a file, under a temporary name until all are there; None is standard output.

    ``columns`` are those of CSV and of Parquet, ``schema`` Parquet's. Raises DataError where it cannot be written.
    """
    if path is None:
        yield _CsvWriter(sys.stdout, columns) if kind == "csv" else _JsonWriter(sys.stdout)
        return
    if path.is_dir():
        raise DataError(f"--out {path}: a folder; give the name of a file")
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if kind == "parquet":
            import pyarrow.parquet as pq

            assert schema is not None, "Parquet's columns have types"
            with pq.ParquetWriter(partial, schema) as table:
                yield _ParquetWriter(table, schema)
        else:
            with partial.open("w", encoding="utf-8", newline="") as file:
                yield _CsvWriter(file, columns) if kind == "csv" else _JsonWriter(file)
        os.replace(partial, path)
    except OSError as error:
        raise DataError(
            f"--out {path}: cannot be written ({error.strerror or ' '.join(str(error).split())}); free some space, or"
            " give another file"
        ) from None
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


class _JsonWriter:
    def __init__(self, file: Any) -> None:
        self._file = file

    def write(self, rows: Sequence[Row]) -> None:
        self._file.write("".join(f"{_json(row)}\n" for row in rows))
        self._file.flush()


class _CsvWriter:
    def __init__(self, file: Any, columns: Sequence[str]) -> None:
        self._file = file
        self._rows = csv_writer(file, columns)
        self._rows.writeheader()

    def write(self, rows: Sequence[Row]) -> None:
        for row in rows:
            self._rows.writerow({name: _cell(value) for name, value in row.items()})
        self._file.flush()


class _ParquetWriter:
    def __init__(self, table: Any, schema: Schema) -> None:
        self._table, self._schema = table, schema

    def write(self, rows: Sequence[Row]) -> None:
        import pyarrow as pa

        try:
            self._table.write_table(pa.Table.from_pylist(list(rows), schema=self._schema))
        except (pa.ArrowException, OverflowError, TypeError) as error:
            raise _mixed(None, error) from None


def _json(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, default=str)
    except ValueError:
        return json.dumps(_finite(value), ensure_ascii=False, default=str)


def _finite(value: Any) -> Any:
    """``value`` with null for the numbers that JSON has not; Parquet knows NaN."""
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _cell(value: Any) -> Any:
    return _json(value) if isinstance(value, dict | list | bool) else value
