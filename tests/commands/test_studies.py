"""The studies that ship: each is valid, holds overrides only, and the demo's runs small, end to end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import autodisc
from autodisc.comparison.config import read_comparison
from autodisc.config import StudyConfig, read_config, read_yaml
from autodisc.tasks.data import find_metric
from autodisc.tasks.metrics import GLUE

STUDIES = Path(autodisc.__file__).parents[1] / "studies"
COMPARISONS = sorted(path for path in STUDIES.rglob("config.yaml") if "compare" in read_yaml(path))
CONFIGS = sorted(set(STUDIES.rglob("config.yaml")) - set(COMPARISONS))


def test_the_studies_that_the_readme_names_are_here():
    names = {str(path.parent.relative_to(STUDIES)) for path in CONFIGS}
    ours = {"demo", "mrpc", "sst2", "stsb", "wnut17-minilm", "smollm2-docstrings"}
    assert names == {*ours, *(f"glue-bert-base/{task}" for task in GLUE)}


@pytest.mark.parametrize("path", COMPARISONS, ids=lambda path: path.parent.name)
def test_a_comparison_is_valid_and_has_a_readme(path):
    config = read_comparison(path)
    assert all(find_metric(study.task).name for study in config.studies())
    assert (path.parent / "README.md").is_file()


def test_the_comparisons_that_the_readme_names_are_here():
    assert {path.parent.name for path in COMPARISONS} == {"compare-demo", "glue-minilm", "released"}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.parent.relative_to(STUDIES)))
def test_a_study_is_valid_and_has_a_readme_and_a_metric(path):
    config = read_config(path)
    assert find_metric(config.task).name
    assert any((folder / "README.md").is_file() for folder in (path.parent, path.parent.parent))


@pytest.mark.parametrize("task", GLUE)
def test_the_papers_settings_stand_in_every_glue_study(task):
    config = read_config(STUDIES / "glue-bert-base" / task / "config.yaml")
    assert config.task.name == task
    assert (config.search.lam, config.search.importance.rounds, config.task.max_length) == (0.2, 1, 128)
    small = task in ("cola", "mrpc", "rte", "stsb", "wnli")
    recipe = (3e-5, 16) if small else (2e-5, 32)
    assert (config.distillation.lr, config.distillation.batch_size) == recipe
    assert (config.teacher.finetune.lr, config.teacher.finetune.batch_size) == recipe
    assert config.distillation.epochs == 10


def test_the_demos_study_is_the_one_that_the_package_carries():
    linked = STUDIES / "demo" / "config.yaml"
    assert linked.is_symlink()
    assert linked.resolve() == Path(autodisc.__file__).parent / "demo.yaml"


def test_the_demos_study_runs_end_to_end_and_again_in_no_time(autodisc, home):
    """On a tiny encoder and tiny data; everything else, the grid and the strategies, is the demo's."""
    line = (
        f"run {STUDIES / 'demo' / 'config.yaml'} --data data/mrpc --task mrpc --teacher models/encoder --out runs/demo"
        " --threads 1 --precision fp32 --set teacher.finetune.lr=0.003 --set teacher.finetune.epochs=6"
        " --set search.margin=0 --set search.importance.rounds=1 --set search.importance.examples=32 --json"
    )
    ran = autodisc(line)
    assert ran.code == 0, ran.err
    assert {"finetune", "search", "maxidisc", "direct", "report"} <= ran.json.keys()
    assert [trial["sparsity"] for trial in ran.json["search"]["trials"]] == [0.5, 0.7, 0.8]
    page = Path("runs/demo/report.html").read_text()
    assert "maxidisc" in page
    assert Path("runs/demo/report.md").is_file()

    again = autodisc(line)
    assert again.code == 0, again.err
    assert again.json["search"] == ran.json["search"]
    assert "recovery" not in again.err


def flat(values: dict[str, Any], prefix: str = "") -> set[str]:
    return {
        key
        for name, value in values.items()
        for key in (flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name})
    }


@pytest.mark.parametrize(
    "path", [p for p in CONFIGS if p.parents[1].name != "glue-bert-base"], ids=lambda p: p.parent.name
)
def test_a_study_sets_few_things_and_every_one_is_a_setting(path):
    assert flat(read_yaml(path)) <= flat(StudyConfig.model_validate(read_yaml(path)).model_dump())
    assert len(flat(read_yaml(path))) <= 15
