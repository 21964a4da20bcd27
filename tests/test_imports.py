"""No import goes up, and each heavy dependency has one door."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import autodisc

ROOT = Path(autodisc.__file__).parent
# A stage imports from those before it; workspace and api stand between the stages and the commands.
ORDER = (
    "errors",
    "urls",
    "files",
    "caches",
    "interrupts",
    "config",
    "costs",
    "footprint",
    "progress",
    "leases",
    "runtime",
    "tasks",
    "models",
    "pruning",
    "distillation",
    "search",
    "reporting",
    "workspace",
    "opening",
    "cards",
    "resuming",
    "benching",
    "finished",
    "preparing",
    "working",
    "prediction",
    "rehearsal",
    "showing",
    "api",
    "exporting",
    "doctor",
    "tagging",
    "labelling",
    "comparison",
    "commands",
    "cli",
)
DOORS = {
    "optuna": {"search", "reporting"},
    "optuna_dashboard": {"reporting"},
    "plotly": {"reporting"},
    "jinja2": {"reporting"},
    "rich": {"reporting", "commands", "cli"},
    "typer": {"commands", "cli"},
    "accelerate": {"distillation", "models", "runtime"},
    "datasets": {"tasks"},
    "pyarrow": {"tasks"},
    "seqeval": {"tasks"},
    "sklearn": {"tasks"},
    "scipy": {"tasks", "reporting"},
    "safetensors": {"models", "distillation"},
    "onnxruntime": {"models"},
    "filelock": {"leases", "search"},
    "distributed": {"search"},
    "ray": {"search"},
}


TRAVELLING = {f"models/{name}_autodisc.py" for name in ("modeling", "blocks", "layouts")}


def stage_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports() -> list[tuple[str, str, int]]:
    """(file, imported module, line) of every import, inside functions and type-checking blocks too."""
    found = []
    for path in sorted(ROOT.rglob("*.py")):
        name = str(path.relative_to(ROOT))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found += [(name, alias.name, node.lineno) for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.module
                if node.level:  # only files that travel together: beside each other, wherever they are
                    assert node.level == 1, f"{name}:{node.lineno}"
                    assert {name, f"models/{node.module}.py"} <= TRAVELLING, f"{name}:{node.lineno}"
                    found.append((name, f"autodisc.models.{node.module}", node.lineno))
                    continue
                inner = [f"{node.module}.{alias.name}" for alias in node.names] if node.module == "autodisc" else []
                found += [(name, module, node.lineno) for module in inner or [node.module]]
    return found


IMPORTS = imports()
WITHIN = [(name, module, line) for name, module, line in IMPORTS if module.startswith("autodisc.")]


def test_the_walk_finds_the_modules_and_their_imports():
    names = {name for name, _, _ in IMPORTS}
    assert len(names) > 40
    assert {"api.py", "search/assistants.py", "reporting/report.py", "tasks/data.py"} <= names
    assert len(WITHIN) > 150
    assert ("search/assistants.py", "optuna") in {(name, module) for name, module, _ in IMPORTS}


def test_every_module_has_its_place_in_the_order():
    stages = {stage_of(path) for path in ROOT.rglob("*.py") if "__pycache__" not in path.parts}
    assert stages - {"__init__"} <= set(ORDER)


def test_no_import_goes_up():
    place = {stage: number for number, stage in enumerate(ORDER)}
    upwards = [
        f"{name}:{line} imports {module}"
        for name, module, line in WITHIN
        if stage_of(ROOT / name) != "__init__" and place[module.split(".")[1]] > place[stage_of(ROOT / name)]
    ]
    assert not upwards


def test_the_top_imports_only_what_it_offers():
    assert {module for name, module, _ in WITHIN if name == "__init__.py"} <= {
        "autodisc.models.checkpoints",
        "autodisc.api",
    }


def test_reporting_knows_of_the_stages_only_the_pure_decisions():
    stages = {"tasks", "models", "pruning", "distillation", "search", "runtime"}
    used = {
        module for name, module, _ in WITHIN if stage_of(ROOT / name) == "reporting" and module.split(".")[1] in stages
    }
    assert used <= {"autodisc.search.budgets", "autodisc.search.journals", "autodisc.search.tradeoff"}


def test_reporting_opens_a_study_without_torch():
    heavy = {"torch", "transformers", "accelerate", "datasets"}
    doors = [
        name for name, module, _ in IMPORTS if stage_of(ROOT / name) == "reporting" and module.split(".")[0] in heavy
    ]
    assert not doors


@pytest.mark.parametrize("package", sorted(DOORS))
def test_a_heavy_dependency_has_one_door(package):
    users = {stage_of(ROOT / name) for name, module, _ in IMPORTS if module.split(".")[0] == package}
    assert users
    assert users <= DOORS[package]


@pytest.mark.parametrize(
    "modules", ["autodisc", "autodisc.config", "autodisc.errors, autodisc.progress, autodisc.costs", "autodisc.cli"]
)
def test_importing_costs_no_torch_and_does_nothing(modules):
    heavy = ("torch", "transformers", "datasets", "accelerate")
    code = (
        f"import logging, os, sys; before = dict(os.environ); import {modules};"
        f" print([name for name in {heavy} if name in sys.modules], dict(os.environ) == before,"
        " logging.getLogger().handlers)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] True []"
    assert done.stderr == ""


def test_load_is_there_when_it_is_asked_for():
    from autodisc.models.checkpoints import load

    assert autodisc.load is load
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = autodisc.nothing
