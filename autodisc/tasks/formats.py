"""Files of lines: CoNLL, a word and its tag a line, and plain text. Each is read as the columns that rows have."""

from __future__ import annotations

from pathlib import Path

from autodisc.errors import DataError


def read_conll(path: Path, *, tagged: bool = True) -> dict[str, list[list[str]]]:
    """Sentences of a CoNLL file as columns: a word and its tag a line, the first and the last of its columns.

    Columns are parted by tabs, else by spaces; a blank line ends a sentence, -DOCSTART- lines are left out. Without
    ``tagged`` a line may hold a word alone.
    """
    sentences: list[list[str]] = [[]]
    tags: list[list[str]] = [[]]
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                parts = line.rstrip("\r\n").split("\t") if line.strip() and "\t" in line else line.split()
                if not parts:
                    if sentences[-1]:
                        sentences.append([])
                        tags.append([])
                    continue
                word, tag = parts[0].strip(), parts[-1].strip()
                if word == "-DOCSTART-":
                    continue
                if not word or (tagged and (len(parts) < 2 or not tag)):
                    raise DataError(f"{path} line {number}: got {line.strip()[:60]!r}; expected a word and its tag")
                sentences[-1].append(word)
                tags[-1].append(tag)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as conll ({error})") from None
    if not sentences[-1]:
        del sentences[-1], tags[-1]
    if not sentences:
        raise DataError(f"{path}: no sentence; expected a word and its tag a line, blank lines between sentences")
    return {"tokens": sentences, **({"tags": tags} if tagged else {})}


def read_text(path: Path) -> dict[str, list[str]]:
    """The documents of a text file as a column: what blank lines part."""
    documents: list[list[str]] = [[]]
    try:
        with path.open(encoding="utf-8-sig") as file:
            for line in file:
                if line.strip():
                    documents[-1].append(line)
                elif documents[-1]:
                    documents.append([])
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as text ({error})") from None
    texts = ["".join(lines).rstrip("\n") for lines in documents if lines]
    if not texts:
        raise DataError(f"{path}: the file is empty; expected text, with blank lines between documents")
    return {"text": texts}
