"""Where the numbers come from: seeds, versions, hardware, data; and where two runs are not alike."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from autodisc.config import BINARY, flatten
from autodisc.reporting.records import Record

_MACHINE = ("hardware", "cpus", "threads", "device", "precision")
_VERSIONS = ("autodisc", "torch", "transformers", "revision")
_PASSWORD = re.compile(r"(://[^/@:\s]*:)[^/\s]*@")
_CAVEAT_KEYS = 6  # settings named in one caveat; the rest is in the records
DOUBTFUL = (
    "The final split is of train, and the teacher may have been trained on it: its figure there, and what starts from"
    " it, may be too good. Give a labelled test file, or a teacher made by autodisc finetune."
)


def provenance(records: Sequence[Record]) -> tuple[tuple[str, str], ...]:
    """Label and text, for a table; a value that differs between the records is listed with each of its forms."""
    task = records[0].values["task"]
    rows = [("record", f"{_name(record)}: {record.path.name}") for record in records]
    rows.append(("seed", _each(records, lambda values: values["seed"])))
    if (positive := positive_class(task)) is not None:
        rows.append(("positive class", positive))
    rows.append(("teacher", _each(records, lambda values: values["teacher"]["model"])))
    rows.append(("teacher fingerprint", _each(records, lambda values: values["teacher"]["fingerprint"])))
    for split, count in task["examples"].items():
        rows.append((f"{split} examples", str(count)))
    scored = {r.result["examples"] for r in records if r.kind == "search" and "examples" in r.result}
    if scored - {task["examples"].get("validation")}:
        rows.append(("validation examples of a trial", ", ".join(map(str, sorted(scored)))))
    for split in task["fingerprints"]:
        rows.append(
            (f"{split} fingerprint", _each(records, lambda values, s=split: values["task"]["fingerprints"].get(s)))
        )
    names = dict.fromkeys(name for record in records for name in record.values["environment"])
    for name in names:
        rows.append((name, _each(records, lambda values, n=name: values["environment"].get(n))))
    return tuple(rows)


def configuration(config: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    """Every setting as ``search.lam`` and its value; of a storage's URL without its password."""
    return tuple((key, _PASSWORD.sub(r"\1…@", _text(value))) for key, value in flatten(config).items())


def caveats(records: Sequence[Record]) -> tuple[str, ...]:
    """What makes the compared runs unlike, and what one run cannot show."""
    compared = [record for record in records if record.kind != "finetune"]
    if not compared:
        return ()
    first = compared[0]
    found = []
    for other in compared[1:]:
        unlike = [f"{name} {_text(ours)} against {_text(theirs)}" for name, ours, theirs in _unlike(first, other)]
        if len(unlike) > _CAVEAT_KEYS:
            unlike = [*unlike[:_CAVEAT_KEYS], f"and {len(unlike) - _CAVEAT_KEYS} more"]
        if unlike:
            found.append(f"{_name(first)} and {_name(other)} were not run alike: {'; '.join(unlike)}.")
    if any(record.values["task"].get("final_is_doubtful") for record in compared):
        found.append(DOUBTFUL)
    if any(record.values["environment"].get("dirty") for record in compared):
        found.append("The source had changes that its revision does not hold.")
    if len({record.values["seed"] for record in compared}) == 1:
        found.append("One seed: a difference of a point needs several seeds before anything is concluded.")
    return tuple(found)


def positive_class(task: Mapping[str, Any]) -> str | None:
    """The name of the class that the task's F1 is of; none of another metric, or where the name says nothing."""
    names: Sequence[str] = task.get("label_names") or ()
    if task["metric"] not in BINARY or len(names) != 2 or names[1] == "1":
        return None
    return str(names[1])


def _unlike(ours: Record, theirs: Record) -> list[tuple[str, Any, Any]]:
    """Name and both values, of what should be the same for costs and metrics to be comparable."""
    left, right = ours.values, theirs.values
    pairs = [("seed", left["seed"], right["seed"])]
    pairs += [(name, left["environment"].get(name), right["environment"].get(name)) for name in _MACHINE + _VERSIONS]
    pairs += [
        (f"{split} data", print_, right["task"]["fingerprints"].get(split))
        for split, print_ in left["task"]["fingerprints"].items()
    ]
    mine, other = flatten(left["config"]["distillation"]), flatten(right["config"]["distillation"])
    pairs += [(f"distillation.{key}", mine.get(key), other.get(key)) for key in mine | other]
    return [pair for pair in pairs if pair[1] != pair[2]]


def _name(record: Record) -> str:
    return str(record.strategy) if record.kind == "baseline" else record.kind


def _each(records: Sequence[Record], pick: Any) -> str:
    """The value that all records share, else each with the runs that it belongs to."""
    holders: dict[str, list[str]] = {}
    for record in records:
        holders.setdefault(_text(pick(record.values)), []).append(_name(record))
    if len(holders) == 1:
        return next(iter(holders))
    return "; ".join(f"{value} ({', '.join(names)})" for value, names in holders.items())


def _text(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, list):
        return ", ".join(_text(item) for item in value)
    return str(value)
