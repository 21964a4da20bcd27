"""What speaks against a comparison's verdict, in sentences, and where its numbers come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from autodisc.comparison.cells import SHARED, Cell, Recorded
from autodisc.comparison.strategies import RULE
from autodisc.config import DistillationConfig
from autodisc.reporting import units
from autodisc.reporting.comparison import Section
from autodisc.reporting.gains import Comparison
from autodisc.reporting.provenance import DOUBTFUL

SEARCH, SCHEDULE, REGRET = 0.05, 0.20, 0.005  # what autodisc sets out to keep below
OF_SECONDS = ("hardware", "cpus", "precision", "torch")
TOLD = 0.005  # the smallest difference that should show


def against(section: Section) -> tuple[str, ...]:
    """Targets that were missed, and what these seeds and examples could not have seen."""
    found = []
    ours = section.strategy("autodisc")
    if ours is not None:
        for what, seconds, flops, target in (
            ("The search", ours.search_seconds_share, ours.search_flops_share, SEARCH),
            ("The whole schedule", ours.seconds_share, ours.flops_share, SCHEDULE),
        ):
            if seconds is not None and flops is not None and max(seconds, flops) > target:
                found.append(
                    f"{what} cost {units.share(seconds)} of maxidisc's time and {units.share(flops)} of its FLOPs,"
                    f" more than {units.share(target)}."
                )
        if len(set(ours.assistants)) > 1:
            listed = "; ".join("none" if name == units.NONE else name for name in ours.assistants)
            found.append(f"Seeds do not agree on the assistant: {listed}.")
    if section.choice is not None and round(section.choice.regret, 4) > REGRET:
        regret = 100 * section.choice.regret
        found.append(
            f"The choice's mean regret is {regret:.2f} points, more than {100 * REGRET:.2f}: that of students through"
            " assistants cut from the teacher."
        )
    if (gap := section.gain_over("maxidisc")) is not None and gap.estimate < -REGRET:
        found.append(
            f"The student is {-100 * gap.estimate:.2f} points below the exhaustive search's, more than"
            f" {100 * REGRET:.2f}."
        )
    compared = [line.comparison for line in section.differences]
    found += [
        f"{one.theirs} made the better student; the interval over {_over(one)} excludes zero, not corrected for the"
        " number of comparisons."
        for one in compared
        if one.interval.sign < 0
    ]
    blind = [(one.theirs, one.resolvable) for one in compared if not one.interval.sign]
    if limits := [f"{100 * least:.1f} against {name}" for name, least in blind if least is not None and least > TOLD]:
        found.append(f"Smaller differences could not have been told from noise, in points: {', '.join(limits)}.")
    if unknown := [name for name, least in blind if least is None]:
        found.append(f"Nothing could have been told apart from noise: {', '.join(unknown)}.")
    return tuple(found)


def _over(comparison: Comparison) -> str:
    return (
        "one seed's examples" if len(comparison.by_seed) == 1 else f"{len(comparison.by_seed)} seeds and the examples"
    )


def _unlike(section: Section, records: Sequence[Recorded]) -> list[str]:
    """Where a strategy's name promises something else than what was run."""
    found = []
    settings = next((r.values["config"] for r in records if r.cell.kind != SHARED), None)
    training = None if settings is None else DistillationConfig.model_validate(settings["distillation"])
    if section.strategy("released") and training and training.epochs != training.last_epochs:
        found.append(
            f"released trains its student in {units.plural(training.epochs, 'epoch')}, as its authors' code does, where"
            f" autodisc's has {training.last_epochs}."
        )
    if section.strategy("pruned") and settings and settings["search"]["importance"]["criterion"] != "fisher":
        found.append("pruned has the ranking of all here; alone, --scorer pruned would rank by Fisher's criterion.")
    rule = section.strategy(RULE.name)
    for told in dict.fromkeys(rule.assistants if rule else ()):
        times = None if told == units.NONE else (1 - float(told)) / (1 - section.student_sparsity)
        if times is not None and abs(times - 2.5) > 0.05:
            found.append(
                f"The assistant of the 2.5 × rule, {told}, has {times:.3g} times the student's scale: the nearest that"
                " was tried."
            )
    return found


def caveats(
    section: Section, records: Sequence[Recorded], missing: Sequence[Cell], failed: Mapping[Cell, str]
) -> tuple[str, ...]:
    """What is not there, and what was not alike."""
    found = [f"{cell} failed: {reason}" for cell, reason in failed.items()]
    absent = len([cell for cell in missing if cell not in failed])
    if absent:
        found.append(f"{units.plural(absent, 'cell')} not computed yet; figures are of what is there.")
    seeds = {record.cell.seed for record in records if record.cell.student is not None}
    if len(seeds) == 1:
        found.append(
            "One seed: intervals are over test examples alone; another seed, or this one trained again where sums round"
            " otherwise, may decide otherwise."
        )
    elif fewer := [line for line in section.strategies if len(line.seeds) < len(seeds)]:
        listed = ", ".join(f"{line.strategy} ({len(line.seeds)})" for line in fewer)
        found.append(
            f"Of {len(seeds)} seeds some strategies have fewer: {listed}. Compare them in the paired differences, which"
            " are over the seeds that both have; with one seed an interval is over test examples alone."
        )
    found += _unlike(section, records)
    undecided = [r for r in records if r.cell.kind.startswith("search-") and r.result["best"] is None]
    for record in undecided:
        found.append(
            f"{record.cell}: no candidate left the floor; its user distils without an assistant"
            f"{'' if section.strategy('direct') else ', which strategies without direct do not have'}."
        )
    if len({record.values["environment"].get("revision") for record in records}) > 1:
        found.append("Cells are of several revisions of the source.")
    if any(record.values["data"].get("final_is_doubtful") for record in records):
        found.append(DOUBTFUL)
    if any(record.values["environment"].get("dirty") for record in records):
        found.append("The source had changes that its revision does not hold.")
    machines = {tuple(str(r.values["environment"].get(name)) for name in OF_SECONDS) for r in records}
    if len(machines) > 1:
        found.append("Cells are of several machines; their seconds cannot be compared, their FLOPs can.")
    found.append("Seconds were taken with other cells running beside; FLOPs do not depend on that.")
    return tuple(found)


def provenance(records: Sequence[Recorded]) -> tuple[tuple[str, str], ...]:
    if not records:
        return ()
    rows: dict[str, dict[str, None]] = {}
    for record in records:
        values = record.values
        rows.setdefault("seeds", {})[str(record.cell.seed)] = None
        rows.setdefault("teacher", {})[f"{values['teacher']['model']} ({values['teacher']['fingerprint']})"] = None
        for split, count in values["data"]["examples"].items():
            fingerprint = values["data"]["fingerprints"][split]
            rows.setdefault(f"{split} examples", {})[f"{count} ({fingerprint})"] = None
        for name, value in values["environment"].items():
            rows.setdefault(name, {})[str(value)] = None
    return tuple((name, "; ".join(values)) for name, values in rows.items())
