"""Texts of reports and cards: Markdown that no name from outside can break, and files written whole or not at all."""

from __future__ import annotations

import html
import io
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from autodisc.errors import AutodiscError, UserError
from autodisc.files import csv_writer, disk_error
from autodisc.reporting.tables import Table


def md(text: str) -> str:
    """``text`` as text: neither HTML nor a link, a table's border or emphasis."""
    line = html.escape(" ".join(text.split()), quote=False)
    return re.sub(r"([\\`*\[\]|~]|(?<!\w)_|_(?!\w))", r"\\\1", line)


def markdown_table(table: Table) -> str:
    """The table under its title, where it has one."""
    head = "| " + " | ".join(md(column) for column in table.columns) + " |"
    rule = "|" + "|".join("---" if i in table.words else "--:" for i in range(len(table.columns))) + "|"
    rows = ["| " + " | ".join(md(cell) for cell in row) + " |" for row in table.rows]
    title = [f"### {md(table.title)}", ""] if table.title else []
    return "\n".join([*title, head, rule, *rows])


def csv_text(rows: Sequence[dict[str, Any]]) -> str:
    """Rows under all the columns that one of them has."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv_writer(text, columns)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def put_in_place(out: Path, files: Mapping[Path, str | bytes]) -> None:
    """Write the files of a report that is asked for at ``out``, and their folders; AutodiscError where it cannot be."""
    try:
        for path in files:
            path.parent.mkdir(parents=True, exist_ok=True)
        replace_all(files)
    except OSError as error:
        if disk_error(error) is not None:
            raise AutodiscError(
                f"{out}: cannot be written ({error.strerror}); free some space, or give another --out"
            ) from None
        raise UserError(f"out: {out} cannot be written ({error.strerror}); choose another --out") from None


def replace_all(texts: Mapping[Path, str | bytes]) -> None:
    """Write every file beside its place first, then put all in place: a full disk leaves what was there."""
    ready: list[tuple[str, Path]] = []
    try:
        for path, text in texts.items():
            handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".tmp-")
            ready.append((temporary, path))
            with open(handle, "wb") as file:
                file.write(text.encode() if isinstance(text, str) else text)
            os.chmod(temporary, 0o644)
        for temporary, path in ready:
            os.replace(temporary, path)
    finally:
        for temporary, _ in ready:
            Path(temporary).unlink(missing_ok=True)
