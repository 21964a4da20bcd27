"""A comparison's YAML: what it brings, and what is refused in one line."""

from __future__ import annotations

import pytest

from autodisc.comparison.cells import Cell
from autodisc.comparison.config import make_comparison
from autodisc.comparison.plan import all_cells
from autodisc.errors import ConfigError


@pytest.fixture
def entry(settings):
    return settings()["compare"]["tasks"][0]


MISTAKES = [
    ({"strategies": ["autodisk"]}, ["no strategy 'autodisk'", "'autodisc'"]),
    ({"strategies": ["xyz"]}, ["no strategy 'xyz'", "rule-2.5x"]),
    ({"strategis": ["direct"]}, ["strategis", "'strategies'"]),
    ({"seeds": [0, 0]}, ["two cells with the same key", "seed 0"]),
    ({"seeds": []}, ["seeds"]),
    ({"student_sparsities": [0.9, 0.9]}, ["two cells with the same key", "0.9"]),
    ({"student_sparsities": [90]}, ["compare.student_sparsities", "0.9"]),
    ({"student_sparsities": [0.6]}, ["search.sparsities", "0.75"]),
    ({"tasks": []}, ["compare.tasks"]),
    ({"searches": {"recovered": {}}}, ["recovered"]),
    ({"searches": {"more": {"sparsities": [0.5]}}}, ["sparsities", "same for every search"]),
    ({"searches": {"more": {"lam": 0.5}}}, ["lam", "same for every search"]),
    ({"searches": {"more": {"retires": 0}}}, ["search.retires", "'retries'"]),
    ({"searches": {"more": {"importance": {"examples": 3}}}}, ["importance"]),
    ({"strategies": ["direct"], "secondary": ["plain"], "secondary_seeds": 1}, ["secondary", "'plain'", "strategies"]),
    ({"strategies": ["direct"], "secondary": ["direct"]}, ["secondary", "secondary_seeds"]),
    ({"strategies": ["direct"], "secondary": ["dirct"], "secondary_seeds": 1}, ["compare.secondary", "'direct'"]),
    ({"secondary_seeds": 0}, ["compare.secondary_seeds"]),
    ({"jobs": 0}, ["compare.jobs"]),
]


@pytest.mark.parametrize(("change", "named"), MISTAKES, ids=[f"{i}" for i in range(len(MISTAKES))])
def test_a_mistake_is_one_line_that_names_it(settings, change, named):
    with pytest.raises(ConfigError) as caught:
        make_comparison(settings(compare=change), source="compare.yaml")
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in named), message


def test_what_contradicts_the_comparison_is_refused(settings, entry):
    for change, named in (
        ({"runtime": {"seed": 1}}, "runtime.seed"),
        ({"search": {"trials": 2}}, "unmeasured"),
        ({"search": {"scorer": "pruned"}}, r"search.scorer: contradicts compare.strategies"),
        ({"search": {"storage": "sqlite:///x.db"}}, r"search.storage: of a study alone.*remove it"),
        ({"search": {"jobs": 2}}, r"search.jobs: of a study alone.*--workers"),
        ({"compare": {"searches": {"more": {"jobs": 2}}}}, r"'more' sets jobs"),
        ({"search": {"balances": [0.5]}}, "unmeasured"),
        ({"search": {"prune": True, "sampler": "gp"}}, "gp learns nothing"),
        ({"search": {"sparsities": None, "low": 0.2, "high": 0.5}}, "unmeasured"),
        ({"distillation": {"epoch": 2}}, "'epochs'"),
        ({"compare": {"tasks": [entry, {**entry, "teacher": {"model": "other"}, "seeds": [9]}]}}, "called 'mine'"),
        ({"compare": {"tasks": [entry, entry]}}, "same key"),
        ({"compare": {"tasks": [{**entry, "name": "a/b"}]}}, "name"),
        (
            {"compare": {"tasks": [{**entry, "name": ".."}]}},
            r"compare.tasks.0: name: got '..'; expected a name without / and \\, since folders are named after it$",
        ),
        ({"compare": {"tasks": [{**entry, "searches": ["steps-3"]}]}}, "no search 'steps-3'; known: none"),
        ({"compare": {"tasks": [{**entry, "seeds": []}]}}, "seeds"),
        ({"compare": {"tasks": [{**entry, "student_sparsities": []}]}}, "student_sparsities"),
        ({"compare": {"tasks": [{**entry, "taks": 1}]}}, "taks"),
    ):
        with pytest.raises(ConfigError, match=named):
            make_comparison(settings(**change))


def test_a_task_may_bring_seeds_and_students_of_its_own(settings, entry, tmp_path):
    tasks = [entry, {**entry, "student_sparsities": [0.95], "seeds": [5]}, {**entry, "name": "again", "seeds": [7]}]
    config = make_comparison(settings(compare={"tasks": tasks, "strategies": ["direct"]}))
    found = {(cell.task, cell.seed, cell.student) for cell in all_cells(config, tmp_path)}
    own = {("mine", 0, 0.9), ("mine", 1, 0.9), ("mine", 5, 0.95), ("again", 7, 0.9)}
    assert found == own | {(task, seed, None) for task, seed, _ in own}
    students = [(cell.task, cell.seed) for cell in all_cells(config, tmp_path) if cell.student is not None]
    assert students == [("mine", 0), ("mine", 5), ("again", 7), ("mine", 1)]  # first seeds first


def test_searches_of_the_frontier_and_secondary_strategies_are_run_with_some_seeds_alone(settings, tmp_path):
    searches = {"steps-3": {"recovery": {"steps": 3}}}
    compare = {
        "strategies": ["autodisc", "pruned", "plain", "direct"],
        "secondary": ["pruned", "plain"],
        "searches": searches,
        "secondary_seeds": 1,
    }
    cells = all_cells(make_comparison(settings(compare=compare)), tmp_path)
    seeds = {kind: [cell.seed for cell in cells if cell.kind == kind] for kind in {cell.kind for cell in cells}}
    few, all_ = [0], [0, 1]
    assert seeds == {
        **dict.fromkeys(("search-steps-3", "search-pruned", "pruned", "plain"), few),
        **dict.fromkeys(("shared", "search-recovered", "autodisc", "direct"), all_),
    }


def test_a_task_says_itself_with_how_many_seeds_secondary_strategies_run(settings, tmp_path):
    values = settings(compare={"strategies": ["autodisc", "plain", "direct"], "secondary": ["plain"]})
    values["compare"]["searches"] = {f"steps-{steps}": {"recovery": {"steps": steps}} for steps in (3, 4)}
    first = values["compare"]["tasks"][0]
    values["compare"]["tasks"] = [
        first | {"secondary_seeds": 1},
        first | {"student_sparsities": [0.95], "secondary_seeds": 0},
        first | {"name": "again", "secondary_seeds": 2, "searches": ["steps-3"]},
    ]
    comparison = make_comparison(values)
    cells = [(cell.task, cell.student, cell.seed, cell.kind) for cell in all_cells(comparison, tmp_path)]
    where = {
        kind: {cell[:3] for cell in cells if cell[3] == kind}
        for kind in ("plain", "search-steps-3", "search-steps-4", "direct")
    }
    again = {("again", 0.9, 0), ("again", 0.9, 1)}
    assert where["plain"] == where["search-steps-3"] == {("mine", 0.9, 0)} | again
    assert where["search-steps-4"] == {("mine", 0.9, 0)}
    assert where["direct"] == {("mine", student, seed) for student in (0.9, 0.95) for seed in (0, 1)} | again
    assert set(comparison.searches) == {"recovered", "steps-3", "steps-4"}


def test_strategies_that_differ_in_what_they_try_share_their_cells(settings, tmp_path):
    shared = ["maxidisc", "maxidisc-tpe", "rule-2.5x", "smallest", "largest", "random"]
    every, one = (
        all_cells(make_comparison(settings(compare={"strategies": names})), tmp_path)
        for names in (shared, ["maxidisc"])
    )
    assert every == one
    assert len(one) == 2 * (1 + 3)


def test_a_balanced_search_has_as_many_trials_as_the_grid_has_sparsities(settings, tmp_path):
    comparison = make_comparison(settings(compare={"strategies": ["balanced-tpe", "balanced-gp"], "seeds": [0]}))
    kinds = [cell.kind for cell in all_cells(comparison, tmp_path)]
    assert kinds == ["shared", "search-balanced-tpe", "search-balanced-gp", "balanced-tpe", "balanced-gp"]
    for sampler in ("tpe", "gp"):
        own, theirs = (
            comparison.study(Cell("mine", 0, 0.9, kind), tmp_path)
            for kind in (f"balanced-{sampler}", f"search-balanced-{sampler}")
        )
        assert own == theirs
        assert (own.search.sampler, own.search.trials, len(own.search.balances)) == (sampler, 3, 5)
    whole = make_comparison(settings())
    assert not any("balanced" in cell.kind for cell in all_cells(whole, tmp_path))  # only where asked for


def test_a_cell_has_the_settings_of_its_kind(config, tmp_path):
    comparison = config(compare={"searches": {"short": {"recovery": {"steps": 3}, "retries": 0}}})
    study = {
        kind: comparison.study(Cell("mine", 4, 0.9, kind), tmp_path)
        for kind in (
            "search-recovered",
            "search-pruned",
            "search-short",
            "autodisc",
            "plain",
            "pruned",
            "assistant-0.5",
        )
    }
    assert study["search-recovered"] == study["autodisc"] == study["assistant-0.5"]
    assert study["search-pruned"] == study["pruned"]
    assert study["search-pruned"].search.scorer == "pruned"
    short = study["search-short"].search
    assert (short.recovery.steps, short.recovery.lr, short.retries) == (3, 3e-3, 0)  # the rest is the comparison's
    assert (study["plain"].distillation.sandwich_size, study["plain"].distillation.epochs) == (1, 1)
    assert {one.runtime.seed for one in study.values()} == {4}


def test_a_teacher_that_is_to_be_made_is_the_first_seeds(settings, entry, tmp_path):
    tasks = [{**entry, "teacher": {"model": "encoder", "finetune": {"epochs": 2}}, "seeds": [3, 4]}]
    config = make_comparison(settings(compare={"tasks": tasks}))
    (made,) = config.studies()
    assert (made.teacher.model, made.teacher.finetune.epochs, made.runtime.seed) == ("encoder", 2, 3)
    used = config.study(Cell("mine", 4, 0.9, "direct"), tmp_path)
    assert (used.teacher.model, used.teacher.finetune) == (str(tmp_path / "mine"), None)


def test_a_teacher_that_is_finetuned_first_is_opened_as_its_settings_say(settings, entry, tmp_path):
    teacher = {"model": "encoder", "finetune": {"epochs": 1}, "dtype": "bf16", "device_map": {"": "disk"}}
    config = make_comparison(settings(compare={"tasks": [{**entry, "teacher": teacher}]}))
    found = config.study(Cell("mine", 4, 0.9, "direct"), tmp_path).teacher
    assert (found.dtype, found.device_map, found.finetune) == ("bf16", {"": "disk"}, None)
    assert found.model == str(tmp_path / "mine")
