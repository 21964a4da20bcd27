"""Every write of a job fails in its turn: what the user sees of it, and that the same command then goes on.

failing_writes.c lets the first write to each kind of file fail, half done, as on a disk that is full or broken. What
was seen is a table in docs/reliability.md, a column an error. To write it anew:
AUTODISC_WRITE_DOCS=1 pytest -m 'slow or not slow' tests/chaos/test_writes.py -k seen
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).parents[2] / "docs" / "reliability.md"
HEAD = "| the first write to | on a full disk | on a failing disk |\n|:--|:--|:--|\n"
KEPT = "; what was finished is kept, free some space or give another folder, and run the same command again"
ERRORS = [
    pytest.param(errno.ENOSPC, id="full"),
    pytest.param(errno.EIO, id="failing", marks=pytest.mark.slow),
]
# By kind of file: letters of calls (failing_writes.c) and a pattern of the path, files being written having names of
# their own. The first that fits is the kind of a path.
KINDS = {
    "a file without a name, to try the folder": "w *(deleted)",
    "the data set, as read": "w job-cache/data/csv/*.arrow",
    "the data set's description": "w job-cache/data/csv/*/dataset_info.json",
    "the data set's lock": "o job-cache/data/*.lock",
    "tokens": "w job-cache/data/tokenised/tmp*",
    "settings": "w */.config.yaml.*",
    "fingerprints": "w */.made_of.json.*",
    "ledger": "w */.ledger.json.*",
    "a training's state": "w *unfinished/*.tmp??????",
    "a model's configuration": "w *.partial/config.json",
    "a model's weights": "w *.partial/.tmp??????",
    "a model's tokenizer": "w *.partial/tokenizer.json",
    "a model's tokenizer's settings": "w *.partial/tokenizer_config.json",
    "a record": "w */records/.tmp-*",
    "the journal": "w *journal.log",
    "the journal's lock": "n *journal.log.lock",
    "order of the units, in the cache": "w job-cache/ranking/.*",
    "order of the units": "w job/.ranking.json.*",
    "status": "w job/.tmp-*",
    "a lease": "w *.lease*",
    "a picture for the dashboard": "w */artifacts/*",
    "teacher outputs: which are there": "w */filled.u8",
    "teacher outputs: hidden states": "w */hidden.f16",
    "teacher outputs: logits": "w */logits.f32",
    "teacher outputs: cost": "w */.cost.json.*",
    "curves": "w */.curves.json.*",
    "a pruned model's code": "w *.partial/*_autodisc.py",
    "a pruned model's digests": "w *.partial/.config.json.partial",
    "a model's card": "w */[sa]*t/.tmp-*",
    "what a trial began with": "w */.began.json.*",
    "the report": "n *report.html",
    "the report, in Markdown": "n *report.md",
}


@pytest.fixture
def job(run, make_job, home) -> Iterator[Callable[..., dict[str, Any]]]:
    yield make_job(run, "job", 60.0)
    for folder in ("job", "job-cache"):
        shutil.rmtree(home / folder)


@pytest.fixture(scope="module")
def run(run_failing) -> Callable[..., dict[str, Any]]:
    """Also for the job that nothing disturbs."""
    return run_failing


class Sweep:
    """A job that is given again until it ends well; each rule lets one call fail, and is then dropped."""

    def __init__(self, job: Callable[..., dict[str, Any]], rules: list[str], *, home: Path, error: int) -> None:
        self.seen: dict[str, str] = {}  # by rule, in the order of the failures: the line that the user saw, if any
        self.calls: list[str] = []
        self.failures = 0
        while True:
            ran = job(rules=[rule for rule in rules if rule not in self.seen], root=str(home), error=error)
            failed = [call.removeprefix("! ") for call in ran["calls"] if call.startswith("! ")]
            self.calls += [call for call in ran["calls"] if not call.startswith("! ")]
            self.seen |= dict.fromkeys(failed, "")
            if ran["code"] == 0:
                if not failed:
                    break
                continue
            self.failures += 1
            line = ran["printed"][-1]
            assert failed, ran["printed"]  # whatever failed before, the command that comes after it goes on
            assert ran["code"] == 1, (failed, line)
            assert line.startswith("error: "), (failed, ran["printed"])
            assert os.strerror(error) in line, (failed, line)
            assert not [path for path in home.joinpath("job").rglob(".*") if path.is_file()], failed
            self.seen[failed[-1]] = line


def shown(line: str, home: Path) -> str:
    line = line.removeprefix("error: ").replace(f"{home}/job-cache", "CACHE").replace(f"{home}/job", "DIR")
    line = re.sub(r"(?<![0-9a-z])[0-9a-f]{16,}(?![0-9a-z])", "…", line)
    line = re.sub(r"_[\w-]+(?=_data_csv_default-)", "…", line)
    line = re.sub(r"(\.tmp-?)\w{6,8}\b|(/tmp)\w{8}\b", r"\1\2…", line)
    line = re.sub(r"(/\.[\w.]+)\.\d+:", r"\1.…:", line)
    return line.replace(KEPT, "; …").replace("|", "\\|") or "nothing"


@pytest.mark.timeout(900)
@pytest.mark.parametrize("error", ERRORS)
def test_the_first_write_to_each_kind_of_file_fails_and_is_seen(job, whole, assert_same, home, error):
    folder, _ = whole(60.0)
    found = Sweep(job, list(KINDS.values()), home=home, error=error)
    assert [kind for kind, rule in KINDS.items() if rule not in found.seen] == []
    written = {call[2:] for call in found.calls if call.startswith("w ")}
    assert [path for path in written if not any(fnmatchcase(path, rule[2:]) for rule in KINDS.values())] == []
    assert_same(job.out, folder, found.failures)
    compare({kind: shown(found.seen[rule], home) for kind, rule in KINDS.items()}, column=error == errno.EIO)


def compare(cells: dict[str, str], *, column: int) -> None:
    """With the committed table, a column of which is written anew where that is asked for."""
    before, _, rest = DOCS.read_text(encoding="utf-8").partition(HEAD)
    table, _, after = rest.partition("\n\n")
    rows = {name: columns for name, *columns in (line[2:-2].split(" | ") for line in table.splitlines())}
    if os.environ.get("AUTODISC_WRITE_DOCS"):
        for name, cell in cells.items():
            rows.setdefault(name, ["", ""])[column] = cell
        lines = (f"| {name} | {' | '.join(rows[name])} |" for name in cells)
        DOCS.write_text(f"{before}{HEAD}" + "\n".join(lines) + f"\n\n{after}", encoding="utf-8")
        return
    assert {name: columns[column] for name, columns in rows.items()} == cells


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO], ids=["full", "failing"])
def test_each_call_that_writes_to_each_file_fails_in_its_turn(run, make_job, job, whole, assert_same, home, error):
    folder, _ = whole(60.0)
    recorded = Sweep(make_job(run, f"recorded-{error}", 60.0), [], home=home, error=error)
    rules = list(dict.fromkeys(pattern(call) for call in recorded.calls))
    assert len(rules) > 300
    found = Sweep(job, rules, home=home, error=error)
    assert len(found.seen) > 0.9 * len(rules)  # some calls come only of others that went well
    assert_same(job.out, folder, found.failures)


def pattern(call: str) -> str:
    """The rule for a call of the job "recorded" that fits the same call of the job "job"."""
    letter, path = call.split(" ", 1)
    path = re.sub(r"recorded-\d+", "job", path)
    path = re.sub(r"\.tmp-?\w{6,8}$", ".tmp*", path)
    path = re.sub(r"tokenised/tmp\w{8}$", "tokenised/tmp*", path)
    return f"{letter} {re.sub(r'[0-9a-f]{16,}|[0-9a-f]{8}-[0-9a-f-]{27}|[0-9]{2,}', '*', path)}"
