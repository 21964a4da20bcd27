"""The report, from records alone: whole, with one seed, with cells missing, with nothing to choose."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from autodisc.comparison.cells import Cell, Recorded, write_failure
from autodisc.comparison.config import make_comparison
from autodisc.comparison.plan import all_cells, recorded
from autodisc.comparison.running import run
from autodisc.comparison.speaking import caveats
from autodisc.comparison.summary import report, summarize
from autodisc.errors import StudyError
from autodisc.models.checkpoints import save_model
from autodisc.reporting import units
from autodisc.reporting.comparison import bounds, choices_table, overview_table
from autodisc.reporting.comparison_report import (
    PLOT,
    Mark,
    cost_data,
    difference_data,
    frontier_data,
    gains_data,
    label_places,
    write_comparison,
)
from autodisc.reporting.statistics import holm
from autodisc.tasks.metrics import METRICS


def section(config, out):
    cells = all_cells(config, out)
    (found,) = summarize(config, cells, recorded(config, cells, out), out)
    return found


def change_results(out: Path, kind: str, **values) -> None:
    for path in (out / "cells").rglob(f"{kind}.json"):
        record = json.loads(path.read_text())
        record["result"] |= values
        path.write_text(json.dumps(record))


def worsen(out: Path, seed: int, kind: str, wrong: int) -> None:
    """Make a student's first ``wrong`` test predictions wrong, as if it had been recorded so."""
    path = Cell("mine", seed, 0.9, kind).path(out)
    with np.load(path.with_suffix(".npz")) as kept:
        predictions, labels = kept["predictions"].copy(), kept["labels"]
    predictions[:wrong] = 1 - labels[:wrong]
    np.savez_compressed(path.with_suffix(".npz"), predictions=predictions, labels=labels)
    record = json.loads(path.read_text())
    record["result"]["metric"] = float(METRICS["accuracy_f1"].each(predictions[None], labels[None])[0])
    path.write_text(json.dumps(record))


def test_the_report_holds_verdict_differences_fidelity_and_frontier(whole, copied):
    found = report(whole, copied)
    assert (found["missing"], found["failed"]) == (0, {})
    text = (copied / "report.md").read_text()
    assert found["verdicts"][0].startswith("mine, student sparsity 0.9: ")
    for word in ("Strategies", "Paired differences", "Fidelity", "Frontier", "Provenance", "What speaks against it"):
        assert word in text
    page = (copied / "report.html").read_text()
    assert page.count("data-plot=") == 4
    tables = {path.stem: list(csv.DictReader(path.read_text().splitlines())) for path in (copied / "tables").iterdir()}
    assert tables.keys() - {"objectives"} == {"strategies", "differences", "fidelity", "frontier", "truth"}
    assert {row["strategy"] for row in tables["strategies"]} == set(whole.compare.strategies)


def test_a_report_is_the_same_each_time_it_is_written_and_needs_no_torch(settings, whole, copied, monkeypatch):
    monkeypatch.undo()  # the other process has all draws
    report(whole, copied)
    before = {path.name: path.read_text() for path in (copied / "tables").iterdir()}
    (copied / "settings.json").write_text(json.dumps(settings(compare=whole.compare.model_dump(mode="json"))))
    code = (
        "import json, pathlib, sys; from autodisc.comparison.config import make_comparison;"
        "from autodisc.comparison.summary import report; out = pathlib.Path(sys.argv[1]);"
        "report(make_comparison(json.loads((out / 'settings.json').read_text())), out);"
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(copied)], check=True)
    assert {path.name: path.read_text() for path in (copied / "tables").iterdir()} == before


def test_shares_are_of_maxidisc_and_every_comparison_is_paired_and_corrected(whole, computed):
    found = section(whole, computed)
    maxidisc = found.strategy("maxidisc")
    assert (maxidisc.seconds_share, maxidisc.flops_share, maxidisc.search_flops_share) == (1.0, 1.0, 1.0)
    ours = found.strategy("autodisc")
    assert ours.flops_share == pytest.approx(ours.flops / maxidisc.flops)
    assert 0 < ours.search_flops_share < ours.flops_share
    for line in found.differences:
        other = found.strategy(line.comparison.theirs)
        assert line.comparison.difference == pytest.approx(ours.metric.estimate - other.metric.estimate)
        assert line.p_holm is None or line.p_holm >= line.p
    assert {line.scorer for line in found.fidelity} == {"recovered", "pruned", "steps-0", "half", "none"}
    assert [line for line in found.frontier if line.best]
    assert min(line.flops_share for line in found.frontier) == 0.0


def test_several_tasks_stand_in_one_table_with_their_means(whole, copied):
    worsen(copied, 0, "assistant-0.5", 9)
    one = section(whole, copied)
    dearer = replace(one.strategy("autodisc"), flops_share=0.5)
    worse = replace(one.choice, regret=one.choice.regret + 0.02)
    other = replace(one, task="other", strategies=(dearer,), frontier=(worse,), verdict=("other: a sentence.",))
    empty = replace(one, task="later", strategies=(), differences=(), frontier=(), verdict=("later: nothing.",))
    table = overview_table((one, other, empty))
    assert [row[0] for row in table.rows] == ["mine", "other", "mean"]
    ours = one.strategy("autodisc")
    first, mean = (dict(zip(table.columns[:8], row, strict=False)) for row in (table.rows[0], table.rows[-1]))
    assert first["autodisc"] == f"{ours.metric.estimate:.3f}"
    assert first["over direct"] == bounds(one.gain_over("direct"), points=True)
    assert mean["regret, points"] == f"{100 * (one.choice.regret + 0.01):.1f}"
    assert table.rows[0][-4:-1] == table.rows[-1][-4:-1]  # alike
    assert table.rows[0][-1] == units.share(ours.flops_share)
    assert table.rows[-1][-1] == units.share((ours.flops_share + 0.5) / 2)
    write_comparison("toy", (one, other, empty), copied)
    text = (copied / "report.md").read_text()
    assert text.index("- other: a sentence.") < text.index("- later: nothing.") < text.index("## toy: mine")
    marks = gains_data((one, other, empty))
    assert [mark.y for mark in marks["direct"]] == [0, 1]
    assert marks["smallest"][0].x == one.gain_over("smallest").estimate


def test_pictures_are_of_what_the_tables_say(whole, computed):
    found = section(whole, computed)
    assert [(m.label, m.x, m.y) for m in frontier_data(found)] == [
        (line.setting, line.shared_flops_share, line.shared_regret) for line in found.frontier
    ]
    assert [m.label for m in difference_data(found)] == [line.comparison.theirs for line in found.differences]
    assert {m.label for m in cost_data(found)} == set(whole.compare.strategies)


def test_one_seed_renders_and_says_so(config, copied):
    one = config(compare={"seeds": [0]})
    report(one, copied)
    assert "One seed" in (copied / "report.md").read_text()
    assert section(one, copied).strategy("direct").seeds == (0,)


@pytest.mark.parametrize("gone", ["assistant-0.5", "direct", "autodisc", "search-recovered", "shared"])
def test_missing_cells_are_left_out_and_said(whole, copied, gone):
    for path in (copied / "cells").rglob(f"{gone}.json"):
        path.unlink()
    found = report(whole, copied)
    assert found["missing"] == 2
    assert "2 cells not computed yet" in (copied / "report.md").read_text()
    names = {line.strategy for line in section(whole, copied).strategies}
    assert ("maxidisc" in names) == (gone not in ("assistant-0.5", "shared"))
    assert "pruned" in names


def test_cells_of_one_seed_missing_leave_the_other_in(whole, copied):
    Cell("mine", 1, 0.9, "direct").path(copied).unlink()
    found = section(whole, copied)
    assert found.strategy("direct").seeds == (0,)
    assert found.strategy("autodisc").seeds == (0, 1)
    assert len(found.differences[0].comparison.by_seed) == 1


def test_what_has_fewer_seeds_is_compared_over_those_that_all_have(whole, copied):
    worsen(copied, 1, "assistant-0.5", 9)
    for kind in ("search-pruned", "pruned", "search-steps-0"):
        Cell("mine", 1, 0.9, kind).path(copied).unlink()
    found = section(whole, copied)
    lines = {line.setting: line for line in found.frontier}
    assert (lines["pruned"].seeds, lines["recovered"].seeds) == ((0,), (0, 1))
    one = section(whole.model_copy(update={"compare": whole.compare.model_copy(update={"seeds": (0,)})}), copied)
    for line in one.frontier:
        assert lines[line.setting].shared_regret == pytest.approx(line.regret)
        assert lines[line.setting].shared_flops_share == pytest.approx(line.flops_share)
        assert lines[line.setting].best == line.best
    assert lines["random"].regret != pytest.approx(lines["random"].shared_regret)
    report(whole, copied)
    assert "some strategies have fewer: pruned (1)" in (copied / "report.md").read_text()
    assert "Over the seeds that all have (0)" in (copied / "report.html").read_text()


def test_the_frontier_has_what_no_assistant_would_lose(whole, copied):
    for kind in ("assistant-0.25", "assistant-0.5", "assistant-0.75"):
        worsen(copied, 0, kind, 9)
    found = section(whole, copied)
    line = next(line for line in found.frontier if line.setting == "direct")
    truth = {line.sparsity: line.by_seed for line in found.truth}
    best = [max(students) for students in zip(*(truth[s] for s in truth if s is not None), strict=True)]
    regrets = [most - direct for most, direct in zip(best, truth[None], strict=True)]
    assert line.regret == pytest.approx(sum(regrets) / len(regrets))
    assert line.regret < 0
    assert not line.best
    assert (line.flops_share, line.seconds_share) == (0.0, 0.0)


def test_beside_the_frontier_stand_students_with_a_start_of_their_own(whole, copied):
    Cell("mine", 1, 0.9, "released").path(copied).unlink()
    found = section(whole, copied)
    lines = {line.setting: line for line in found.frontier}
    ours, released = lines["autodisc: its own student"], lines["released: its own student"]
    truth = {line.sparsity: line.by_seed for line in found.truth if line.sparsity is not None}
    best = sum(map(max, zip(*truth.values(), strict=True))) / 2
    assert ours.regret == pytest.approx(best - found.strategy("autodisc").metric.estimate)
    assert ours.flops_share == pytest.approx(found.strategy("autodisc").search_flops_share)
    assert (ours.best, released.best) == (False, False)
    assert (ours.shared_regret, released.seeds, released.shared_regret) == (pytest.approx(ours.regret), (0,), None)
    assert lines["recovered"].shared_regret == pytest.approx(lines["recovered"].regret)  # over both seeds still


def test_where_a_strategy_is_not_what_its_name_says_it_is_said(whole, computed, config):
    found, names = section(whole, computed), "released pruned rule-2.5x"
    assert not [line for line in caveats(found, (), (), {}) if line.split()[0] in names or "2.5" in line]
    (line,) = [line for line in caveats(replace(found, student_sparsity=0.95), (), (), {}) if "2.5" in line]
    assert line.startswith("The assistant of the 2.5 × rule, 0.75, has 5 times the student's scale")
    longer = json.loads(Cell("mine", 0, 0.9, "direct").path(computed).read_text())
    longer["config"]["distillation"] |= {"epochs": 2, "student_epochs": 8}
    record = Recorded(Cell("mine", 0, 0.9, "direct"), Path("direct.json"), longer)
    said = "\n".join(caveats(found, (record,), (), {}))
    assert "released trains its student in 2 epochs, as its authors' code does, where autodisc's has 8." in said
    assert "pruned has the ranking of all here" in said


def test_other_objectives_are_compared_by_the_students_that_they_choose(whole, copied):
    for seed in (0, 1):  # metric alone: the largest; with λ = 0.2: the smallest
        path = Cell("mine", seed, 0.9, "search-recovered").path(copied)
        record = json.loads(path.read_text())
        for row in record["result"]["trials"]:
            row["metric"] = 0.9 - 0.1 * row["sparsity"]
        path.write_text(json.dumps(record))
        worsen(copied, seed, "assistant-0.75", 5 + seed)
    found = section(whole, copied)
    truth = {line.sparsity: line.by_seed for line in found.truth}
    lines = {line.comparison.ours: line for line in found.objectives}
    gain = [a - b for a, b in zip(truth[0.25], truth[0.75], strict=True)]
    (metric,) = (line for names, line in lines.items() if "metric" in names.split(", "))
    assert metric.comparison.by_seed == pytest.approx(gain)
    assert min(gain) > 0
    assert metric.comparison.theirs == "tradeoff λ=0.2"
    assert metric.p_holm >= metric.p
    report(whole, copied)
    assert "What another choice from the same search would have gained" in (copied / "report.md").read_text()
    rows = list(csv.DictReader((copied / "tables" / "objectives.csv").read_text().splitlines()))
    assert [row["comparison_ours"] for row in rows] == list(lines)
    assert not [names for names in lines if "smallest" in names]  # it chooses what the tradeoff does


def test_provenance_is_of_the_seeds_that_have_a_student(whole, copied):
    for path in (copied / "cells" / "mine" / "seed-1").rglob("*.json"):
        if path.stem != "shared":
            path.unlink()
    assert dict(section(whole, copied).provenance)["seeds"] == "0"


def test_a_failed_cell_is_said_with_its_reason(whole, copied):
    cell = Cell("mine", 1, 0.9, "released")
    cell.path(copied).unlink()
    write_failure(copied, cell, "the loss is nan")
    found = report(whole, copied)
    assert found["failed"] == {str(cell): "the loss is nan"}
    assert "released failed: the loss is nan" in (copied / "report.md").read_text()


def test_nothing_feasible_is_distilled_without_an_assistant(whole, copied):
    change_results(copied, "search-recovered", best=None)
    found = report(whole, copied)
    assert "none of the candidates left the floor" in found["verdicts"][0]
    assert "no candidate left the floor" in (copied / "report.md").read_text()
    differences = {line.comparison.theirs: line.comparison for line in section(whole, copied).differences}
    assert differences["direct"].difference == 0.0
    without = whole.model_copy(update={"compare": whole.compare.model_copy(update={"strategies": ("autodisc",)})})
    for seed in (0, 1):
        Cell("mine", seed, 0.9, "direct").path(copied).unlink()
    found = report(without, copied)
    assert "take no teacher assistant; none of the candidates left the floor" in found["verdicts"][0]
    assert "strategies without direct do not have" in (copied / "report.md").read_text()


def test_a_trial_that_failed_takes_its_seed_out_of_fidelity(whole, copied):
    record = json.loads(Cell("mine", 0, 0.9, "search-recovered").path(copied).read_text())
    record["result"]["trials"][0] |= {"state": "FAIL", "metric": None}
    Cell("mine", 0, 0.9, "search-recovered").path(copied).write_text(json.dumps(record))
    found = section(whole, copied)
    assert {line.scorer: len(line.cells) for line in found.fidelity}["recovered"] == 1


def test_nothing_recorded_is_one_line(whole, tmp_path):
    with pytest.raises(StudyError, match="holds no cell") as caught:
        report(whole, tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("metric", ["pearson_spearman", "accuracy"])
def test_other_metrics_and_a_teacher_that_is_made_go_all_the_way(
    settings, furnished, tmp_path, tiny, word_tokenizer, metric
):
    save_model(tiny(layers=2, num_labels=2 if metric == "accuracy" else 1), word_tokenizer, tmp_path / "encoder")
    entry = {
        "task": {"name": "mine", "metric": metric, "data": str(furnished / "data")},
        "teacher": {
            "model": str(tmp_path / "encoder"),
            "finetune": {"epochs": 4, "batch_size": 16, "lr": 3e-3},
        },
    }
    strategies = ["autodisc", "direct", "maxidisc", "random"]
    config = make_comparison(settings(compare={"tasks": [entry], "seeds": [0], "strategies": strategies}))
    assert run(config, tmp_path) == {}
    found = section(config, tmp_path)
    assert {line.strategy for line in found.strategies} == set(strategies)
    assert (tmp_path / "teachers" / "mine" / "config.json").exists()
    differences = {line.comparison.theirs: line.comparison for line in found.differences}
    assert (differences["direct"].p_mcnemar is None) == (metric != "accuracy")
    before = (tmp_path / "teachers" / "mine" / "config.json").stat().st_mtime_ns
    assert run(config, tmp_path) == {}
    assert (tmp_path / "teachers" / "mine" / "config.json").stat().st_mtime_ns == before


def test_labels_of_a_figure_do_not_cover_one_another():
    marks = [Mark(f"strategy number {i}", 0.01 * (i % 3), 0.001 * (i % 5)) for i in range(12)] + [Mark("far", 1.0, 0.0)]
    places = label_places(marks, [mark.x for mark in marks])
    boxes = []
    for mark, (right, shift) in zip(marks, places, strict=True):
        across, up = mark.x * PLOT[0], mark.y / 0.004 * PLOT[1] + shift
        width = 7 * len(mark.label)
        boxes.append((across if right else across - width, across + width if right else across, up))
    for one, (left, right, up) in enumerate(boxes):
        for other_left, other_right, other_up in boxes[one + 1 :]:
            assert right <= other_left or other_right <= left or abs(up - other_up) >= 16
    assert [right for right, _ in places] == [True] * 12 + [False]


def test_strategies_of_one_student_have_one_interval_and_are_one_comparison(whole, computed):
    found = section(whole, computed)
    lines = {line.comparison.theirs: line for line in found.differences}
    rule, smallest = (lines[name] for name in ("rule-2.5x", "smallest"))
    assert found.strategy("rule-2.5x").assistants == found.strategy("smallest").assistants
    assert rule.comparison.interval == smallest.comparison.interval
    assert (rule.p, rule.p_holm) == (smallest.p, smallest.p_holm)
    tested = {line.comparison.by_seed: line.p for line in found.differences if line.p is not None}
    assert rule.p_holm == holm(list(tested.values()))[list(tested).index(rule.comparison.by_seed)]


def test_choices_are_judged_over_tasks_with_each_left_out(whole, computed):
    one = section(whole, computed)
    assert not choices_table((one,)).rows
    first = one.fidelity[0].scorer
    own = next(line.regret for line in one.fidelity if (line.scorer, line.objective) == (first, one.tradeoff))

    def other(task: str, more: float):
        """The same, where every choice but the tradeoff's loses more."""
        lines = [
            replace(line, regret=own if line.objective == one.tradeoff else own + more, excess=more - 0.02)
            for line in one.fidelity
            if line.scorer == first
        ]
        return replace(one, task=task, fidelity=tuple(lines))

    pruned = replace(one, fidelity=tuple(replace(line, scorer="pruned", regret=9.0) for line in one.fidelity))
    judged = (other("a", 0.01), other("b", 0.02), other("c", 0.06))
    table = choices_table((*judged, replace(one, fidelity=()), pruned))  # which has no such search
    assert "mean of 3 tasks" in table.title
    rows = {row[0]: row[1:] for row in table.rows}
    assert table.rows[0][0] == one.tradeoff
    assert table.marked == 0
    assert rows[one.tradeoff][:1] + rows[one.tradeoff][2:] == (
        f"{100 * own:.2f}",
        f"{100 * own:.2f}",
        "+1.00",
        units.NONE,
    )
    low, high = stats.t.interval(0.95, 2, 0.03, np.std([0.01, 0.02, 0.06], ddof=1) / 3**0.5)
    assert rows["smallest"] == (
        f"{100 * own + 3:.2f}",
        f"{100 * own + 1.5:.2f} to {100 * own + 4:.2f}",
        f"{100 * own + 6:.2f}",
        "+1.00",
        f"+3.0 ({100 * low:+.1f} to {100 * high:+.1f})".replace("-", "−"),
    )
    twice = choices_table((other("a", 0.0), other("a", 0.02), other("c", 0.06)))  # two students of one task
    assert "mean of 2 tasks, of 3 students" in twice.title
    found = next(row for row in twice.rows if row[0] == "smallest")
    assert found[1:4] == (
        f"{100 * own + 3.5:.2f}",
        f"{100 * own + 1:.2f} to {100 * own + 6:.2f}",
        f"{100 * own + 6:.2f}",
    )


def test_a_final_split_that_the_teacher_may_have_seen_is_a_caveat(whole, copied):
    def told() -> bool:
        return any("may have been trained on it" in text for text in section(whole, copied).caveats)

    assert not told()
    for path in (copied / "cells").rglob("*.json"):
        record = json.loads(path.read_text())
        record["data"]["final_is_doubtful"] = True
        path.write_text(json.dumps(record))
    assert told()
