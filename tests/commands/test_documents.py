"""Every command and every Python block of README.md and docs/, in a folder that has what their placeholders name.

The README runs first; each page then starts from a copy of what the README left, and does not run its lines again.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import typer
import yaml

import autodisc as package
from autodisc.cli import app, main
from autodisc.comparison.config import make_comparison
from autodisc.config import make_config

ROOT = Path(package.__file__).parents[1]
PAGES = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
# Only for a tiny teacher: a step that suits it, a floor it can leave on 100 rows, a short distillation, and arithmetic
# that compiles no kernels for each shape.
TINY = {
    "search.margin": "0",
    "search.recovery.lr": "0.003",
    "search.recovery.steps": "30",
    "distillation.epochs": "1",
    "distillation.student_epochs": "1",
    "runtime.precision": "fp32",
}


def blocks(page: str) -> list[tuple[str, str]]:
    return BLOCK.findall((ROOT / page).read_text(encoding="utf-8"))


def commands(page: str) -> list[str]:
    """The lines of its shell blocks."""
    return [line for language, text in blocks(page) if language == "sh" for line in lines_of(text)]


def lines_of(text: str) -> list[str]:
    """Command lines, continued ones joined, without comments."""
    lines = text.replace("\\\n", " ").splitlines()
    return [shlex.join(words) for line in lines if (words := shlex.split(line, comments=True))]


def run_page(page: str, *, done: frozenset[str] = frozenset()) -> None:
    """Run the blocks of a page in the working folder, but for the lines that were ``done``."""
    for language, text in blocks(page):
        if language == "yaml":
            name = text.splitlines()[0].removeprefix("# ")
            values = yaml.safe_load(text)
            (make_comparison if "compare" in values else make_config)(values, source=name)
            Path(name).write_text(text)
        elif language == "python":
            exec(compile(text, page, "exec"), {})
        elif language == "sh":
            for line in lines_of(text):
                if line not in done:
                    RUN[line.split()[0]](line)


def run_autodisc(line: str) -> None:
    words = shlex.split(line)[1:]
    if words[0] in ("search", "run"):
        said = {word.partition("=")[0] for word in words}
        words += [word for key, value in TINY.items() if key not in said for word in ("--set", f"{key}={value}")]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(words)
    assert code == 0, f"{line}\n{err.getvalue()}"


def check_make(line: str) -> None:
    for target in shlex.split(line)[1:]:
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), line


def check_pip(line: str) -> None:
    extras = re.findall(r"\[(.*?)\]", line)
    known = re.findall(r"^(\w+) = \[\"", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert set(",".join(extras).split(",")) - {""} <= set(known), line


# What a line may begin with. What would set up an environment is looked up instead.
RUN: dict[str, Callable[[str], None]] = {"autodisc": run_autodisc, "make": check_make, "pip": check_pip}


@pytest.fixture(scope="module")
def served() -> Iterator[list[str]]:
    """The storages that a dashboard was opened on, without opening one."""
    opened: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "autodisc.reporting.dashboard.serve", lambda shown, **_: opened.extend(one.storage for one in shown)
        )
        yield opened


@pytest.fixture(scope="module")
def after_readme(furnished: Path, tmp_path_factory: pytest.TempPathFactory, served: list[str]) -> Iterator[Path]:
    """The folder in which the README's commands have run."""
    home = tmp_path_factory.mktemp("readme") / "home"
    shutil.copytree(furnished, home)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUTODISC_CACHE", str(home.parent / "cache"))
        patch.chdir(home)
        run_page("README.md")
        yield home


def test_the_commands_of_the_readme_leave_a_student_and_a_report(after_readme):
    assert package.load(after_readme / "runs/mrpc/distilled-1/student").num_parameters() > 0
    assert "<html" in (after_readme / "runs/mrpc/report.html").read_text()


@pytest.mark.usefixtures("modules_elsewhere")  # the user's own cache is another process's too
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)])
def test_every_command_and_block_of_a_page_runs(page, after_readme, served, tmp_path, monkeypatch):
    shutil.copytree(after_readme, tmp_path / "home")
    monkeypatch.chdir(tmp_path / "home")
    before = len(served)
    run_page(page, done=frozenset(commands("README.md")))
    dashboards = [line for line in commands(page) if line.startswith("autodisc dashboard")]
    assert (len(served) > before) == bool(dashboards)


def test_a_page_shows_every_command():
    shown = {
        line.split()[1] for page in ("README.md", *PAGES) for line in commands(page) if line.startswith("autodisc")
    }
    known = set(typer.main.get_command(app).commands)
    assert known - shown <= {"demo", "worker"}  # which make demo runs, and which other machines do
    assert shown <= known


def test_the_file_tree_names_what_is_there():
    (tree,) = re.findall(r"^```\n(autodisc/\n.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    named = set(re.findall(r"^  ([\w.]+)", tree, re.MULTILINE))
    hidden = {"__init__.py", "__pycache__", "py.typed"}
    assert named == set(os.listdir(ROOT / "autodisc")) - hidden


@pytest.mark.parametrize(
    "name",
    [
        "README.md",
        "CONTRIBUTING.md",
        *PAGES,
        *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "studies").rglob("*.md")),
    ],
)
def test_links_to_files_point_somewhere(name):
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", (ROOT / name).read_text(encoding="utf-8")):
        assert ((ROOT / name).parent / target).exists(), target
