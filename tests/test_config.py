from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from autodisc.config import (
    DEFAULT_SPARSITIES,
    DistillationConfig,
    ImportanceConfig,
    SearchConfig,
    StudyConfig,
    differences,
    make_budget,
    make_config,
    read_config,
    scored_examples,
    write_config,
)
from autodisc.errors import ConfigError


def config(**overrides: Any) -> StudyConfig:
    return make_config({"task": {"name": "sst2"}, "teacher": {"model": "m"}, **overrides})


def refused(pattern: str, **overrides: Any) -> None:
    with pytest.raises(ConfigError, match=pattern) as caught:
        config(**overrides)
    assert "\n" not in str(caught.value)


def test_a_configuration_survives_yaml(tmp_path):
    ours = config(
        task={"name": "mine", "data": "some/data", "metric": "f1", "text_pair": "second", "limit_train": 100},
        teacher={"model": "package:p/m", "finetune": {"epochs": 4}},
        search={"sparsities": [0.5, 0.3], "lam": 0.1, "recovery": {"steps": 30}, "importance": {"rounds": 1}},
        baseline={"strategies": ["direct"]},
        cache={"dir": "/tmp/cache"},
        runtime={"seed": 7, "precision": "fp32"},
        student_sparsity=0.95,
    )
    write_config(ours, tmp_path / "config.yaml")
    theirs = read_config(tmp_path / "config.yaml")
    assert theirs == ours
    assert differences(ours, theirs) == []
    assert isinstance(theirs.task.data, Path)


def test_a_file_holds_overrides_of_defaults(tmp_path):
    (tmp_path / "c.yaml").write_text("task: {name: sst2}\nteacher: {model: m}\nsearch: {lam: 0.5}\n")
    read = read_config(tmp_path / "c.yaml")
    assert read.search.lam == 0.5
    assert read == config(search={"lam": 0.5})


def test_settings_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        config().search.lam = 0.3


@pytest.mark.parametrize(
    ("pattern", "overrides"),
    [
        (r"^serach: unknown setting; did you mean 'search'\?", {"serach": {}}),
        (r"^search\.sparsity: unknown setting; did you mean 'sparsities'\?", {"search": {"sparsity": 0.5}}),
        (r"^search\.recovery\.step: unknown setting; did you mean 'steps'\?", {"search": {"recovery": {"step": 3}}}),
        (
            r"^teacher\.finetune\.epoch: unknown setting; did you mean 'epochs'\?",
            {"teacher": {"model": "m", "finetune": {"epoch": 3}}},
        ),
        (r"^cache\.zzz: unknown setting; known here: dir, max_gib", {"cache": {"zzz": 3}}),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest(pattern, overrides):
    refused(pattern, **overrides)


@pytest.mark.parametrize(
    ("pattern", "overrides"),
    [
        (r"^distillation\.epochs: got 'many'; input should be a valid integer", {"distillation": {"epochs": "many"}}),
        (r"^distillation\.epochs: got 1\.5; ", {"distillation": {"epochs": 1.5}}),
        (r"^distillation\.batch_size: got 0; input should be greater than", {"distillation": {"batch_size": 0}}),
        (r"^search\.scorer: got 'best'; input should be 'recovered' or 'pruned'", {"search": {"scorer": "best"}}),
        (r"^search: got 3; ", {"search": 3}),
        (r"^search\.lam: got -1; ", {"search": {"lam": -1}}),
        (r"^search\.lam: got nan; ", {"search": {"lam": float("nan")}}),
        (r"^search\.examples: got 9; expected a number of rows, at least 10, or all$", {"search": {"examples": 9}}),
        (r"^search\.examples: got True; ", {"search": {"examples": True}}),
        (r"^search\.examples: got 'most'; expected .* or all$", {"search": {"examples": "most"}}),
        (r"^baseline\.strategies\.0: got 'random'; ", {"baseline": {"strategies": ["random"]}}),
        (r"^task\.metric: got 'acc'; .*'accuracy'", {"task": {"name": "x", "metric": "acc"}}),
        (r"^runtime\.seed: got -1; ", {"runtime": {"seed": -1}}),
    ],
)
def test_a_wrong_type_or_value_is_refused_by_the_fields_name(pattern, overrides):
    refused(pattern, **overrides)


@pytest.mark.parametrize(
    ("examples", "train", "validation", "expected"),
    [
        (None, 5000, 2062, 1000),  # a tenth of two passes
        (None, 5749, 1500, 1150),
        (None, 500, 2062, 1000),  # at least
        (None, 3668, 408, 408),  # there are no more
        (None, 400_000, 9815, 9815),
        ("all", 500, 2062, 2062),
        (30, 5000, 2062, 30),
        (3000, 5000, 2062, 2062),
    ],
)
def test_a_trial_is_scored_on_a_tenth_of_what_the_assistant_s_phase_passes_over(examples, train, validation, expected):
    asked, budget = SearchConfig(examples=examples), DistillationConfig(epochs=2)
    assert scored_examples(asked, budget, train=train, validation=validation) == expected
    rarer = scored_examples(asked, budget, train=train, validation=validation, least=1800)
    assert rarer == (min(validation, max(expected, 1800)) if examples is None else expected)


@pytest.mark.parametrize("value", [0, 1, 1.5, -0.1, float("nan")])
def test_a_student_outside_zero_and_one_is_refused(value):
    refused(r"^student_sparsity: got .*expected a removed fraction in \(0, 1\)", student_sparsity=value)


def test_a_percentage_is_told_how_to_write_it():
    refused(r"student_sparsity: got 90; .*For 90 % removed write 0\.9\.", student_sparsity=90)
    refused(r"search\.sparsities: .*got 50; .*For 50 % removed write 0\.5\.", search={"sparsities": [50]})


@pytest.mark.parametrize(
    ("pattern", "overrides"),
    [
        (r"search\.sparsities: got 0\.9, at or beyond the student's 0\.9", {"search": {"sparsities": [0.5, 0.9]}}),
        (r"got 0\.8, at or beyond", {"student_sparsity": 0.8, "search": {"low": 0.3, "high": 0.85}}),
        (r"^search: .*give both", {"search": {"low": 0.3}}),
        (r"^search: .*exclude each other", {"search": {"low": 0.3, "high": 0.5, "sparsities": [0.4]}}),
        (r"^search: .*low: got 0\.6, above high = 0\.5", {"search": {"low": 0.6, "high": 0.5}}),
        (r"search\.sparsities: .*empty grid", {"search": {"sparsities": []}}),
    ],
)
def test_what_cannot_be_together_is_refused(pattern, overrides):
    refused(pattern, **overrides)


@pytest.mark.parametrize(
    ("pattern", "overrides"),
    [
        (r"^student_sparsity: got one beside budget", {"student_sparsity": 0.8, "budget": {"params": 9}}),
        (r"^budget: give at least one of", {"budget": {}}),
        (r"^budget: batch and length say of what", {"budget": {"params": 9, "batch": 8}}),
        (r"^budget\.macs: got '2X'; input should be a valid integer", {"budget": {"macs": "2X"}}),
        (r"^budget\.params: got 0; ", {"budget": {"params": 0}}),
        (r"^budget\.latency_ms: got inf; ", {"budget": {"latency_ms": float("inf")}}),
        (r"^budget\.parms: unknown setting; did you mean 'params'", {"budget": {"parms": 9}}),
    ],
)
def test_a_budget_that_says_too_little_or_too_much_is_refused(pattern, overrides):
    refused(pattern, **overrides)


def test_a_budget_stands_in_for_the_sparsity_until_that_is_found(tmp_path):
    ours = config(budget={"params": "1.2M", "macs": "200M", "latency_ms": 3})
    assert (ours.budget.params, ours.budget.macs) == (1_200_000, 200_000_000)
    assert ours.student_sparsity is None
    write_config(ours, tmp_path / "c.yaml")
    assert read_config(tmp_path / "c.yaml") == ours
    found = ours.with_student(0.6)
    assert found.student == 0.6
    assert found.assistant_sparsities == (0.3, 0.4, 0.5)
    with pytest.raises(ConfigError, match=r"got 0\.7, at or beyond the student's 0\.6, .* the budget"):
        config(budget={"params": 9}, search={"sparsities": [0.3, 0.7]}).with_student(0.6)
    assert config().student == 0.9


def test_a_budget_alone_is_refused_as_a_studys_is():
    assert make_budget({"params": "3k"}).params == 3000
    assert make_budget({"macs": "1.2T"}).macs == make_budget({"macs": "1.2 T"}).macs == 1_200_000_000_000
    with pytest.raises(ConfigError, match=r"^budget\.params: got 'x'"):
        make_budget({"params": "x"})


def test_the_experiment_has_no_default():
    with pytest.raises(ConfigError, match=r"task: missing; .*teacher: missing; it has no default") as caught:
        make_config({}, source="here.yaml")
    assert str(caught.value).startswith("here.yaml: ")


def test_several_mistakes_are_said_together():
    refused(r"runtime\.seed: .*; serach: ", serach={}, runtime={"seed": -1})


def test_the_default_grid_stays_below_the_student():
    assert config().assistant_sparsities == DEFAULT_SPARSITIES
    assert config(student_sparsity=0.6).assistant_sparsities == (0.3, 0.4, 0.5)
    assert config(student_sparsity=0.2).assistant_sparsities == (0.1,)


def test_a_grid_is_sorted_and_each_point_once():
    assert config(search={"sparsities": [0.7, 0.3, 0.7]}).assistant_sparsities == (0.3, 0.7)


def test_a_range_is_its_points():
    assert config(search={"low": 0.3, "high": 0.6, "step": 0.1}).assistant_sparsities == (0.3, 0.4, 0.5, 0.6)
    assert config(search={"low": 0.3, "high": 0.59, "step": 0.1}).assistant_sparsities == (0.3, 0.4, 0.5)
    assert config(search={"low": 0.3, "high": 0.3}).assistant_sparsities == (0.3,)


def test_differences_name_the_field_and_both_values():
    ours, theirs = config(), config(search={"lam": 0.1}, runtime={"seed": 3, "threads": 2}, name="other")
    assert differences(ours, theirs) == [
        "name: study -> other",
        "runtime.seed: 0 -> 3",
        "runtime.threads: None -> 2",
        "search.lam: 0.2 -> 0.1",
    ]
    assert differences(ours, theirs, ignore=("name", "runtime")) == ["search.lam: 0.2 -> 0.1"]
    assert differences(ours, theirs, ignore=("na", "runtime.seed", "search.lam")) == [
        "name: study -> other",
        "runtime.threads: None -> 2",
    ]


def test_differences_see_a_section_that_one_side_lacks():
    ours = config()
    theirs = config(teacher={"model": "m", "finetune": {"epochs": 2}})
    assert "teacher.finetune.epochs: None -> 2" in differences(ours, theirs)


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("", "expected a mapping of settings, got NoneType"),
        ("- a\n- b\n", "expected a mapping of settings, got list"),
        ("task: [unclosed\n", "not valid YAML"),
        ("task: {name: x}\nteacher: {model: m}\nlam: 1\n", "lam: unknown setting"),
    ],
)
def test_a_bad_file_is_one_line_that_names_it(tmp_path, text, pattern):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=pattern) as caught:
        read_config(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_missing_or_not_text_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot be read \(No such file"):
        read_config(tmp_path / "none.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not valid YAML"):
        read_config(tmp_path / "binary.yaml")


def test_what_is_written_is_plain_yaml(tmp_path):
    write_config(config(task={"name": "x", "data": "d"}), tmp_path / "c.yaml")
    assert yaml.safe_load((tmp_path / "c.yaml").read_text())["task"]["data"] == "d"


def test_rounds_are_first_orders_alone():
    study = {"task": {"name": "sst2"}, "teacher": {"model": "t"}}
    for importance in ({"rounds": 4}, {"normalise": True}):
        with pytest.raises(ConfigError, match=r"search.importance: rounds, normalise: .*add criterion: first-order"):
            make_config({**study, "search": {"importance": {"criterion": "fisher", **importance}}})


def test_where_a_cut_is_refitted_the_fisher_criterion_ranks_unless_another_is_asked_for():
    study = {"task": {"name": "sst2"}, "teacher": {"model": "t"}}
    for search, criterion in (
        ({}, "first-order"),
        ({"scorer": "pruned"}, "fisher"),
        ({"scorer": "pruned", "importance": {"examples": 64}}, "fisher"),
        ({"scorer": "pruned", "importance": ImportanceConfig(examples=64)}, "fisher"),
        ({"scorer": "pruned", "importance": {"rounds": 2}}, "first-order"),
        ({"scorer": "pruned", "importance": {"criterion": "first-order"}}, "first-order"),
        ({"importance": {"criterion": "fisher"}}, "fisher"),
    ):
        assert make_config({**study, "search": search}).search.importance.criterion == criterion
