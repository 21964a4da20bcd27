"""The table of results in README.md and docs/results.md, made from the committed records of the studies.

    python docs/results.py

Test metrics ± one standard error; costs are shares of the exhaustive search's, in wall time and in FLOPs.
"""

from __future__ import annotations

import re
from pathlib import Path

from autodisc.reporting import units
from autodisc.reporting.records import Record, read_records
from autodisc.reporting.rows import StudySummary
from autodisc.reporting.summary import summarize

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", ROOT / "docs" / "results.md")
BETWEEN = re.compile(r"(?<=<!-- results: made by docs/results\.py -->\n).*?(?=<!-- end of results -->)", re.DOTALL)
HEAD = ("study", "teacher", "student", "exhaustive search", "no assistant", "search costs", "whole schedule", "on")


def main() -> None:
    for page in PAGES:
        page.write_text(BETWEEN.sub(lambda _: table(), page.read_text(encoding="utf-8")), encoding="utf-8")


def table() -> str:
    """A row for each study with records, as Markdown; the command of each stands in its own README."""
    rows = []
    for results in sorted(path.parent for path in ROOT.glob("studies/*/results/records")):
        records = read_records([results])
        rows += [_row(study, records) for study in summarize(records).studies]
    lines = ["| " + " | ".join(HEAD) + " |", "|---|" + "--:|" * (len(HEAD) - 2) + "---|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"


def _row(study: StudySummary, records: list[Record]) -> tuple[str, ...]:
    seeds = sorted({record.values["seed"] for record in records})
    environment = records[0].values["environment"]
    threads, hardware = environment["threads"], re.sub(r"\(R\)| Processor", "", environment["hardware"])
    where = f"seed {', '.join(map(str, seeds))}; {hardware}, {threads} thread{'s' * (threads > 1)},"
    where += f" {environment['precision']}, torch {environment['torch'].partition('+')[0]}"
    shares = study.shares
    return (
        f"`autodisc run studies/{study.name}/config.yaml`, student of {study.student_sparsity:g}",
        units.fixed(study.teacher_metric),
        *(_metric(study, name) for name in ("autodisc", "maxidisc", "direct")),
        _shares(shares.search_seconds, shares.search_flops),
        _shares(shares.schedule_seconds, shares.schedule_flops),
        where,
    )


def _metric(study: StudySummary, strategy: str) -> str:
    row = study.strategy(strategy)
    return "not run" if row is None or row.metric is None else units.plus_minus(row.metric, row.standard_error)


def _shares(seconds: float | None, flops: float | None) -> str:
    return f"{units.share(seconds)}, {units.share(flops)}"


if __name__ == "__main__":
    main()
