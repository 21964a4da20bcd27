"""Heavy cells on a local Dask and a local Ray cluster: what they make is what this process makes."""

from __future__ import annotations

import json

import pytest

from autodisc import api
from autodisc.comparison.config import make_comparison
from autodisc.comparison.plan import all_cells
from autodisc.comparison.running import run
from autodisc.errors import ConfigError

# What Ray and Dask warn of is theirs.
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(600)]


def parts(rows):
    """All but clocks, places, trial numbers, and which trial paid for what all of them read."""
    return [{name: row[name] for name in row if name not in ("seconds", "number", "flops", "path")} for row in rows]


@pytest.fixture(scope="session")
def here(config, tmp_path_factory):
    """A baseline that was run by one process."""
    return api.baseline(config(), "maxidisc", tmp_path_factory.mktemp("here") / "out")


def test_a_baseline_on_a_cluster_makes_what_one_process_makes(backend, config, here, tmp_path):
    there = api.baseline(config(search={"jobs": 2, "backend": backend}), "maxidisc", tmp_path / "out")
    assert parts(there["trials"]) == parts(here["trials"])
    assert there["best"]["metrics"] == here["best"]["metrics"]
    assert (tmp_path / "out" / "baseline-maxidisc" / "student" / "model.safetensors").exists()
    assert there["cost"]["stages"].keys() == here["cost"]["stages"].keys()


def test_a_search_s_trials_on_a_cluster_are_those_of_one_process(backend, config, tmp_path):
    alone = api.search(config(), tmp_path / "alone")
    there = api.search(config(search={"jobs": 2, "backend": backend}), tmp_path / "there")
    assert parts(there["trials"]) == parts(alone["trials"])


@pytest.mark.parametrize("backend", ["dask", pytest.param("ray", marks=pytest.mark.slow)], indirect=True)
def test_a_comparison_s_cells_are_computed_on_a_cluster(backend, furnished, tmp_path):
    values = {
        "name": "toy",
        "search": {"sparsities": [0.25, 0.5], "margin": 0.0, "importance": {"examples": 32}, "recovery": {"steps": 4}},
        "distillation": {"epochs": 1, "student_epochs": 1, "batch_size": 32, "lr": 3e-3},
        "runtime": {"threads": 1, "precision": "fp32"},
        "cache": {"dir": str(tmp_path / "cache")},
        "compare": {
            "tasks": [
                {
                    "task": {"name": "mine", "metric": "accuracy_f1", "data": str(furnished / "data")},
                    "teacher": {"model": str(furnished / "teacher")},
                }
            ],
            "seeds": [0],
            "strategies": ["autodisc", "direct"],
            "resamples": 40,
        },
    }
    config = make_comparison(values)
    assert run(config, tmp_path / "out", jobs=2, backend=backend) == {}
    cells = all_cells(config, tmp_path / "out")
    assert len(cells) >= 4
    assert all(json.loads(cell.path(tmp_path / "out").read_text())["result"] for cell in cells)
    assert run(config, tmp_path / "out", jobs=2, backend=backend) == {}  # nothing is left to do


def test_a_scheduler_that_does_not_answer_is_one_line(config, tmp_path):
    pytest.importorskip("distributed", reason="Dask is not installed: pip install 'autodisc[dask]'")
    with pytest.raises(ConfigError, match=r"no Dask scheduler answers at dask://127\.0\.0\.1:9"):
        api.baseline(config(search={"backend": "dask://127.0.0.1:9"}), "maxidisc", tmp_path / "out")
