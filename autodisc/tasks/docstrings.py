"""The embedded task: which installed library is this docstring sentence from?

A real text task that every installation holds. The libraries' sources are parsed, never imported; code, tables
and directives are dropped, every library's name is masked, and a sentence belongs to one split by its hash.
Sentences that differ only in digits, case or names count as one; one that two libraries share is dropped.
The corpus is the same for the same versions of the sources, which are recorded beside it.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from autodisc.errors import DataError
from autodisc.progress import Progress, Silent

if TYPE_CHECKING:
    from datasets import Dataset

CODE_VERSION = 1  # of the cleaning below: raise it when the corpus changes
# Import name -> distribution. All are hard dependencies, direct or through torch, datasets and optuna.
SOURCES = {
    "networkx": "networkx",
    "numpy": "numpy",
    "pandas": "pandas",
    "scipy": "scipy",
    "sklearn": "scikit-learn",
    "sqlalchemy": "SQLAlchemy",
    "torch": "torch",
    "transformers": "transformers",
}
CAP = 3200  # sentences a library
SHARES = {"test": 0.36, "validation": 0.08, "train": 0.56}
WORDS = (6, 40)
# Vendored code would carry the wrong label, test code is no prose.
SKIPPED = {
    "tests",
    "test",
    "testing",
    "externals",
    "extern",
    "_vendor",
    "vendor",
    "array_api_compat",
    "array_api_extra",
}

_NAMES = re.compile(
    r"(?<![\w.])(?:numpy|np|scipy|pandas|pd|pytorch|torch|transformers|scikit-learn|scikits?|sklearn|sqlalchemy"
    r"|networkx|nx|hugging ?face)(?!\w)(?:\.\w+)*",
    re.IGNORECASE,
)
# A name inside a word (TorchScript, "sentence-transformers") cannot be masked in plain English.
_GIVE_AWAY = re.compile(r"numpy|scipy|pandas|torch|transformers|scikit|sklearn|alchemy|networkx|huggingface", re.I)
_FIELD = re.compile(r"^\s*(?::\w[^:]*:|[-*+]\s|[\w*`'\", .\[\]]+\s*:(?:\s|$)|[\w`*]+ \(.*\):|\|)")
_UNDERLINE = re.compile(r"^\s*([-=~^*+#_\"'`.])\1{2,}\s*$")
_SENTENCE_END = re.compile(r"(?<!e\.g)(?<!i\.e)(?<! cf)(?<! vs)(?<! al)(?<!etc)(?<=[.!?])\s+(?=[A-Z])")
_CODE = re.compile(r"[_=<>{}\[\]|\\@#$%^&*~`+/]|\w\.\w|\w\(|::|\.\.|--|https?:|www\.")
_ABBREVIATION = re.compile(r"\b(?:e\.g|i\.e)\.")
_ROLE = re.compile(r":[\w:+-]+:(?=`)")


def source_versions() -> dict[str, str]:
    """The installed version of every source."""
    return {name: importlib.metadata.version(distribution) for name, distribution in SOURCES.items()}


def source_folders() -> dict[str, Path]:
    """Where every source is installed; finding a top-level package does not import it."""
    folders = {}
    for name in SOURCES:
        spec = importlib.util.find_spec(name)
        if spec is None or not spec.submodule_search_locations:
            raise DataError(f"task 'docstrings': the library {name} is not installed; pip install {SOURCES[name]}")
        folders[name] = Path(next(iter(spec.submodule_search_locations)))
    return folders


def write_corpus(cache_dir: Path, *, progress: Progress | None = None) -> Path:
    """The folder with train, validation and test as Parquet; built where the cache lacks it."""
    import datasets

    versions = source_versions()
    key = hashlib.blake2b(json.dumps([CODE_VERSION, CAP, versions]).encode(), digest_size=8).hexdigest()
    folder = cache_dir / f"docstrings-{key}"
    if folder.is_dir():
        return folder
    cache_dir.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=cache_dir))
    try:
        info = {"code_version": CODE_VERSION, "cap": CAP, "sources": versions}
        for split, columns in corpus(progress=progress).items():
            datasets.Dataset.from_dict(columns).to_parquet(str(work / f"{split}.parquet"))
        (work / "sources.json").write_text(json.dumps(info, indent=2) + "\n", "utf-8")
        try:
            os.replace(work, folder)
        except OSError:
            if not folder.is_dir():  # else another process was first, with the same content
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return folder


def corpus(
    sources: Mapping[str, Path] | None = None, *, cap: int = CAP, progress: Progress | None = None
) -> dict[str, dict[str, list[str]]]:
    """``{split: {"sentence": [...], "label": [...]}}`` from the libraries' folders, ``cap`` sentences each."""
    folders = source_folders() if sources is None else sources
    found: dict[str, dict[str, str]] = {}  # library -> key -> sentence
    with (progress or Silent()).stage("Reading docstrings", len(folders)) as bar:
        for name in sorted(folders):
            # Enough to lose some to other libraries; reading the rest of torch would only take time.
            found[name] = _unique_sentences(folders[name], enough=2 * cap)
            bar.advance()
    owners: dict[str, int] = {}
    for sentences in found.values():
        for key in sentences:
            owners[key] = owners.get(key, 0) + 1
    splits: dict[str, list[tuple[float, str, str]]] = {split: [] for split in ("train", "validation", "test")}
    for name, sentences in found.items():
        own = sorted((key for key in sentences if owners[key] == 1), key=lambda key: _hash("cap", key))
        for key in own[:cap]:
            splits[split_of(key)].append((_hash("order", key), sentences[key], name))
    return {
        split: {"sentence": [row[1] for row in sorted(rows)], "label": [row[2] for row in sorted(rows)]}
        for split, rows in splits.items()
    }


def as_texts(rows: Dataset) -> Dataset:
    """A text for each library, of its sentences in their order: what a language model learns of."""
    import datasets

    texts: dict[str, list[str]] = {}
    for row in rows:
        texts.setdefault(row["label"], []).append(row["sentence"])
    return datasets.Dataset.from_dict({"text": [" ".join(texts[name]) for name in sorted(texts)]})


def split_of(key: str) -> str:
    """The split of a normalised sentence."""
    place = _hash("split", key)
    for split, share in SHARES.items():
        if place < share:
            return split
        place -= share
    return "train"


def normalised(sentence: str) -> str:
    """What near-identical sentences share: lower case, no punctuation; numbers and names inside it are one word.

    Libraries repeat a sentence for each class (`BertConfig`, `T5Config`); such copies must not straddle splits.
    """
    first, *rest = re.findall(r"[\w'-]+", sentence)
    words = [first.lower(), *("name" if re.search(r"[A-Z0-9]", word) else word for word in rest)]
    return " ".join(re.sub(r"\d+", "0", word) for word in words)


def sentences_of(docstring: str) -> list[str]:
    """The prose sentences of a docstring, cleaned, with the libraries' names masked."""
    return [
        clean
        for paragraph in _paragraphs(docstring)
        for sentence in _SENTENCE_END.split(paragraph)
        if (clean := _clean(sentence))
    ]


def _unique_sentences(folder: Path, enough: int) -> dict[str, str]:
    unique: dict[str, str] = {}
    for path in _files(folder):
        for docstring in _docstrings(path):
            for sentence in sentences_of(docstring):
                unique.setdefault(normalised(sentence), sentence)
        if len(unique) >= enough:
            break
    return unique


def _files(folder: Path) -> list[Path]:
    """The library's sources in an order that mixes its parts and does not depend on the file system."""
    paths = (path.relative_to(folder) for path in folder.rglob("*.py"))
    kept = [p for p in paths if SKIPPED.isdisjoint(p.parts[:-1]) and not p.name.startswith("test_")]
    return [folder / p for p in sorted(kept, key=lambda p: _hash("file", p.as_posix()))]


def _docstrings(path: Path) -> Iterator[str]:
    with warnings.catch_warnings():  # invalid escapes in other people's code
        warnings.simplefilter("ignore")
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, ValueError):  # templates and data for tools, not modules
            return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if text := ast.get_docstring(node):
                yield text
        elif isinstance(node, ast.Call) and _name(node.func) in ("add_newdoc", "add_docstr"):
            # numpy and torch document what is written in C through these.
            for constant in ast.walk(node):
                if isinstance(constant, ast.Constant) and isinstance(constant.value, str):
                    yield constant.value


def _name(function: ast.expr) -> str:
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def _paragraphs(docstring: str) -> Iterator[str]:
    """Runs of prose lines of one indentation; doctests, literal blocks, directives and tables are left out."""
    lines: list[str] = []
    skipping = -1  # >= 0: inside a block that lasts while lines are indented deeper than this
    fenced = doctest = False
    indent = 0
    for line in [*docstring.expandtabs().splitlines(), ""]:
        text, depth = line.strip(), len(line) - len(line.lstrip())
        fence = text.startswith("```")
        fenced ^= fence
        doctest = bool(text) and (doctest or text.startswith((">>>", "...", "In [")))
        if skipping >= 0 and text and depth <= skipping:
            skipping = -1
        directive = text.startswith(".. ")
        dropped = fence or fenced or doctest or directive or skipping >= 0 or bool(_UNDERLINE.match(line))
        if lines and (not text or dropped or depth != indent):
            yield " ".join(lines)
            lines = []
        if directive or (text.endswith("::") and not dropped):
            skipping = depth
        if text and not dropped and not text.endswith("::") and not _FIELD.match(line):
            lines.append(text)
            indent = depth


def _clean(sentence: str) -> str | None:
    """The sentence without markup and library names, or None where it is not plain prose."""
    text = _ROLE.sub("", sentence).replace("`", " ").replace("*", " ")
    text = _NAMES.sub("the library", text)
    text = re.sub(r"\b(?:the\s+)+(the library)(?:\s+(?:library|package))*\b", r"\1", text, flags=re.IGNORECASE)
    text = re.sub(r"\s+", " ", text).strip()
    text = re.sub(r"\s+([,.;:!?)])", r"\1", text)
    text = text[:1].upper() + text[1:] if text.startswith("the library") else text
    words = text.split(" ")
    plain = sum(word.strip("\"'(),.;:!?").replace("-", "").replace("'", "").isalpha() for word in words)
    if not WORDS[0] <= len(words) <= WORDS[1] or plain < 0.85 * len(words):
        return None
    if (
        not text.isascii()
        or _GIVE_AWAY.search(text)
        or _CODE.search(_ABBREVIATION.sub("", text))
        or not text[0].isupper()
        or text[-1] not in ".!?"
    ):
        return None
    return text


def _hash(salt: str, text: str) -> float:
    """A number in [0, 1) by content."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=6, key=salt.encode()).digest(), "big") / 2**48
