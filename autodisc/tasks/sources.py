"""Where rows come from: a folder of files, GLUE on the hub, or the embedded corpus.

Everything is read through `datasets`, so that it is memory-mapped and read once per content.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autodisc.config import DOCSTRINGS, Kind, TaskConfig
from autodisc.errors import DataError
from autodisc.files import disk_error
from autodisc.progress import Progress
from autodisc.tasks import docstrings
from autodisc.tasks.formats import csv_rows, read_conll, read_text
from autodisc.tasks.metrics import GLUE

if TYPE_CHECKING:
    from datasets import Dataset

HUB = "nyu-mll/glue"
FORMATS = (".csv", ".jsonl", ".parquet")
CONLL, TEXT = ".conll", ".txt"
OF_KINDS: dict[str, Kind] = {CONLL: "tokens", TEXT: "causal-lm"}  # files that say what is learned of them
REQUIRED = ("train", "validation")
OPTIONAL = ("test", "validation_mismatched")
# MNLI calls its validation set so, and has a second one from other genres.
HUB_NAMES = {"validation": "validation_matched", "test": "test_matched"}


def read_splits(config: TaskConfig, kind: Kind, cache_dir: Path, progress: Progress) -> dict[str, Dataset]:
    """The raw splits by name: train, validation, and those of `OPTIONAL` that exist."""
    with quiet_datasets():
        if config.data is not None:
            return _read_files(find_files(config.data, config.name), cache_dir)
        if config.hub is not None:
            return _read_hub(config.name, config.hub, None, cache_dir)
        if config.name == DOCSTRINGS:
            folder = docstrings.write_corpus(cache_dir, progress=progress)
            read = _read_files(find_files(folder, config.name), cache_dir)
            return {split: docstrings.as_texts(rows) for split, rows in read.items()} if kind == "causal-lm" else read
        if config.name in GLUE:
            return _read_hub(config.name, HUB, config.name, cache_dir)
    raise unknown_task(config.name)


def unknown_task(name: str) -> DataError:
    known = [*GLUE, DOCSTRINGS]
    near = difflib.get_close_matches(name.lower(), known, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(known)}."
    return DataError(f"task '{name}': unknown, and no data given; {hint} For data of your own pass --data DIR")


@contextlib.contextmanager
def quiet_datasets() -> Iterator[None]:
    """`datasets` without its own progress bars, which would break ours."""
    import datasets

    if datasets.are_progress_bars_disabled():
        yield
        return
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.enable_progress_bars()


def find_files(folder: Path, task: str) -> dict[str, Path]:
    """The file of each split of a task's folder, none of them opened; DataError where one is missing."""
    if not folder.is_dir():
        what = "a file" if folder.exists() else "missing"
        raise DataError(f"--data {folder}: {what}; expected a folder with train and validation as {_formats()}")
    files = {}
    for split in (*REQUIRED, *OPTIONAL):
        names = [split, HUB_NAMES[split]] if task == "mnli" and split in HUB_NAMES else [split]
        found = [
            path for name in names for suffix in (*FORMATS, *OF_KINDS) if (path := folder / f"{name}{suffix}").is_file()
        ]
        if len(found) > 1:
            raise DataError(f"{folder}: {found[0].name} and {found[1].name} are both {split}; keep one of them")
        if found:
            files[split] = found[0]
        elif split in REQUIRED:
            here = ", ".join(sorted(path.name for path in folder.iterdir())[:12]) or "nothing"
            raise DataError(f"{folder}: no {split} file ({_formats()}); the folder holds: {here}")
    return files


def _read_files(files: dict[str, Path], cache_dir: Path) -> dict[str, Dataset]:
    return {split: read_file(path, split, cache_dir) for split, path in files.items()}


def read_file(path: Path, split: str, cache_dir: Path) -> Dataset:
    """The rows of one file; ``split`` names it in messages."""
    import datasets

    if not path.stat().st_size:
        raise DataError(f"{path}: the {split} split is empty; expected a header and at least one row")
    suffix = path.suffix.lower()
    if suffix in OF_KINDS:
        plain = read_conll if suffix == CONLL else read_text
        return datasets.Dataset.from_dict(plain(path))
    # The readers themselves: load_dataset("csv") would count the call on the hub, five seconds where it cannot.
    readers = {
        ".csv": datasets.Dataset.from_csv,
        ".jsonl": datasets.Dataset.from_json,
        ".parquet": datasets.Dataset.from_parquet,
    }

    def read() -> Dataset:
        return readers[suffix](str(path), split=datasets.NamedSplit(split), cache_dir=str(cache_dir), **options)

    try:
        options = _csv_options(path, split) if suffix == ".csv" else {}
        # `datasets` knows a file that it has read by path and time, and many a copy keeps the time.
        options["description"] = _digest(path)
        try:
            rows = read()
        except Exception:
            if not _drop_damaged(cache_dir):
                raise
            rows = read()
    except DataError:
        raise
    except Exception as error:  # parsers of three formats, each with errors of its own
        failed = disk_error(error)
        if failed is not None and failed.filename != str(path):  # what is read lies fine; its copy found no place
            raise OSError(failed.errno, failed.strerror, failed.filename or str(cache_dir)) from error
        cause = error.__cause__ or error
        if "corresponds to no data" in str(cause):  # what `datasets` says of a header alone
            raise DataError(f"{path}: the {split} split is empty; expected at least one row") from error
        first = (str(cause).strip() or type(cause).__name__).splitlines()[0]
        raise DataError(f"{path}: cannot be read as {suffix[1:]}: {first}") from error
    if not len(rows):
        raise DataError(f"{path}: the {split} split is empty; expected at least one row")
    return rows


def _digest(path: Path) -> str:
    found = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            found.update(part)
    return found.hexdigest()


def _drop_damaged(cache_dir: Path) -> bool:
    """Remove what `datasets` has kept of files that it read, where that is damaged; whether any was."""
    import datasets

    found = False
    for info in cache_dir.glob("*/default-*/*/dataset_info.json"):
        try:
            datasets.DatasetInfo.from_directory(str(info.parent))
            for file in info.parent.glob("*.arrow"):
                datasets.Dataset.from_file(str(file))
        except (OSError, ValueError, TypeError):  # cut off; another key than it knows
            shutil.rmtree(info.parent, ignore_errors=True)
            found = True
    return found


def _csv_options(path: Path, split: str) -> dict[str, Any]:
    """Every cell as the text it is: pandas would read the sentence "NA" as missing, guess types by chunk, and move the
    cells of a row that has too many; DataError for what `predict` would not read either."""
    import datasets

    names: list[str] = []
    with path.open("rb") as file:
        for row in csv_rows(file, str(path)):
            names = list(row)
    if not names:
        raise DataError(f"{path}: the {split} split is empty; expected at least one row")
    features = datasets.Features({name: datasets.Value("string") for name in names})
    return {"features": features, "keep_default_na": False, "encoding": "utf-8-sig"}


def _read_hub(task: str, data: str, part: str | None, cache_dir: Path) -> dict[str, Dataset]:
    import datasets

    try:
        splits = datasets.load_dataset(data, part, cache_dir=str(cache_dir))
    except Exception as error:  # what an unreachable hub raises differs by version and by cause
        raise DataError(
            f"task '{task}': {data} cannot be read from the hub ({type(error).__name__}); "
            "check the network, or offline pass --data DIR with train and validation files"
        ) from error
    read = {}
    for split in (*REQUIRED, *OPTIONAL):
        name = split if split in splits else HUB_NAMES.get(split, split)
        if name in splits:
            read[split] = splits[name]
        elif split in REQUIRED:
            raise DataError(f"task '{task}': {data} has no {split} split; it has {', '.join(splits)}")
    return read


def _formats() -> str:
    return ", ".join((*FORMATS, *OF_KINDS))
