"""Stop at the data; of the figures only that they build, and what they do with text from outside."""

from __future__ import annotations

import dataclasses

import pytest

from autodisc.reporting import choice_figures, figure_data, figures
from autodisc.reporting.pictures import pictures
from autodisc.reporting.records import read_records
from autodisc.reporting.rows import Curve
from autodisc.reporting.summary import summarize
from autodisc.reporting.tables import trial_table


@pytest.fixture
def study(whole):
    return summarize(read_records([whole])).studies[0]


def test_tradeoff_data_marks_the_chosen_and_the_infeasible(study):
    data = figure_data.study_tradeoff(study)
    assert [point.sparsity for point in data.points if point.chosen] == [0.8]
    assert [point.sparsity for point in data.points if not point.feasible] == [0.85]
    assert data.floor == 0.76
    for point in data.points:
        assert point.tradeoff == pytest.approx(point.metric + 0.2 * point.sparsity)
        assert point.scale == pytest.approx(1 - point.sparsity)


def test_balances_are_told_apart_and_joined_by_a_line_of_the_best(make, tmp_path):
    metrics = {(0.5, -0.5): 0.76, (0.5, 0.0): 0.79, (0.7, 0.0): 0.75, (0.7, 0.5): 0.80}
    trials = [{**make.trial(i, s, m), "balance": b} for i, ((s, b), m) in enumerate(metrics.items())]
    (study,) = summarize(read_records([make.write(tmp_path, make.search(trials))])).studies
    data = figure_data.study_tradeoff(study)
    assert [(p.sparsity, p.balance) for p in data.points] == list(metrics)
    assert [(p.sparsity, p.balance) for p in data.line] == [(0.5, 0.0), (0.7, 0.5)]
    assert [(p.sparsity, p.balance) for p in data.points if p.chosen] == [(0.7, 0.5)]
    kept = figure_data.kept_data(study, "heads")
    assert kept.points == ("0.5", "0.5, balance -0.5", "0.7", "0.7, balance 0.5")
    assert kept.chosen == 3
    assert "sparsity 0.7, balance 0.5 (metric 0.800" in study.verdict[0]
    table = trial_table(study)
    assert [row[0] for row in table.rows if "chosen" in row[-1]] == ["0.7, balance 0.5"]
    (again,) = summarize(read_records([tmp_path]), lam=0.0).studies
    assert "the choice stays at sparsity 0.7, balance 0.5" in again.verdict[1]
    assert all(picture.alternative for picture in pictures(study))


def test_tradeoff_data_leaves_failed_trials_out(make):
    from autodisc.reporting.summary import trial_rows

    rows = trial_rows(make.search_result([make.failed(0, 0.5), make.trial(1, 0.7, 0.82)]))
    data = figure_data.tradeoff_data(rows, lam=0.2, metric_name="f1", shown=None, recorded=None)
    assert [point.sparsity for point in data.points] == [0.7]


@pytest.mark.parametrize("unit", ["seconds", "flops"])
def test_cost_data_has_every_student_and_maxidisc_s_trials(study, unit):
    data = figure_data.cost_data(study, unit)
    assert [point.strategy for point in data.students] == ["autodisc", "maxidisc", "direct"]
    assert len(data.trials) == 7
    assert data.teacher == 0.829
    assert data.students[1].cost == pytest.approx(sum(point.cost for point in data.trials))


def test_stage_bars_add_up_to_the_strategy_s_cost(study):
    bars = figure_data.stage_data(study, "flops")
    for row in study.strategies:
        if row.flops:
            assert sum(bar.cost for bar in bars if bar.strategy == row.name) == pytest.approx(row.flops)


def test_a_stage_looks_the_same_in_seconds_and_in_flops(study):
    free = dataclasses.replace(study.costs[0], stage="set-up", flops=0.0)
    mixed = dataclasses.replace(study, costs=(free, *study.costs))
    looks = []
    for unit in ("seconds", "flops"):
        figure = figures.stage_figure(figure_data.stage_data(mixed, unit), unit=unit)
        looks.append({bar.name: (bar.marker.color, bar.marker.pattern.shape) for bar in figure.data})
    seconds, flops = looks
    assert "set-up" in seconds
    assert "set-up" not in flops
    assert {name: seconds[name] for name in flops} == flops


def test_kept_data_has_a_row_per_layer_and_a_column_per_candidate(study):
    data = figure_data.kept_data(study, "heads")
    assert len(data.kept) == 6
    assert all(len(row) == 7 for row in data.kept)
    assert data.points[data.chosen] == "0.8"


def test_long_curves_are_thinned_and_keep_their_ends(study):
    steps = tuple(range(10_000))
    long = dataclasses.replace(study, curves=(Curve("autodisc", "student", steps, (1.0,) * 10_000, (), ()),))
    (curve,) = figure_data.curve_data(long)
    assert len(curve.steps) <= figure_data.CURVE_POINTS + 1
    assert (curve.steps[0], curve.steps[-1]) == (0, 9_999)


def test_every_picture_builds_and_has_words(study):
    found = pictures(study)
    assert len(found) == 11
    for picture in found:
        assert picture.alternative
        assert picture.figure.data


def test_curves_of_baselines_alone_are_shown():
    curves = [Curve(name, "student", (1, 2), (1.0, 0.5), (), ()) for name in ("autodisc", "maxidisc")]
    both, alone = (figures.curve_figure(some, quantity="training loss") for some in (curves, curves[1:]))
    assert [trace.visible for trace in both.data] == [True, "legendonly"]
    assert [trace.visible for trace in alone.data] == [True]


def test_a_lambda_beyond_one_is_on_its_picture(make, tmp_path):
    make.write(tmp_path, make.search())
    study = summarize(read_records([tmp_path]), lam=3.0).studies[0]
    wins = choice_figures.lambda_data(study)
    assert wins[-1].high == 3.0
    assert choice_figures.lambda_figure(wins, study.lam).layout.xaxis.range[1] > 3.0


def test_a_quotation_mark_is_drawn_as_one():
    assert figures.escape("<b>R&D 'q\"") == "&lt;b&gt;R&amp;D 'q\""


def test_figures_escape_names_from_outside():
    curve = Curve("autodisc", "<a href='http://x'>y</a>", (1, 2), (1.0, 0.5), (), ())
    assert "<a" not in figures.curve_figure([curve], quantity="training loss").data[0].name
