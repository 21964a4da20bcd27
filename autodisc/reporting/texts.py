"""Texts of reports and cards: Markdown that no name from outside can break, and files written whole or not at all."""

from __future__ import annotations

import html
import os
import re
import tempfile
from pathlib import Path

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


def replace_all(texts: dict[Path, str]) -> None:
    """Write every file beside its place first, then put all in place: a full disk leaves what was there."""
    ready: list[tuple[str, Path]] = []
    try:
        for path, text in texts.items():
            handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".tmp-")
            ready.append((temporary, path))
            with open(handle, "w", encoding="utf-8") as file:
                file.write(text)
            os.chmod(temporary, 0o644)
        for temporary, path in ready:
            os.replace(temporary, path)
    finally:
        for temporary, _ in ready:
            Path(temporary).unlink(missing_ok=True)
