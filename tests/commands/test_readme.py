"""Every command and every Python block of the README, in order, in a folder that has what its placeholders name."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import yaml

import autodisc as package
from autodisc.comparison.config import make_comparison
from autodisc.config import make_config

ROOT = Path(package.__file__).parents[1]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks() -> list[tuple[str, str]]:
    return BLOCK.findall((ROOT / "README.md").read_text(encoding="utf-8"))


def test_every_command_and_block_of_the_readme_runs(autodisc, home, monkeypatch):
    served = []
    monkeypatch.setattr("autodisc.reporting.dashboard.serve", lambda shown, **_: served.extend(shown))
    ran = []
    for language, text in blocks():
        if language == "yaml":
            name = text.splitlines()[0].removeprefix("# ")
            values = yaml.safe_load(text)
            (make_comparison if "compare" in values else make_config)(values, source=name)
            Path(name).write_text(text)
        elif language == "python":
            exec(compile(text, "README.md", "exec"), {})
            ran.append("python")
        for line in text.splitlines() if language == "sh" else ():
            if line.startswith("autodisc "):
                # Only for a tiny teacher: a step that suits it, and a floor it can leave on 100 rows.
                tiny = (
                    " --set search.margin=0 --set search.recovery.lr=0.003 --set search.recovery.steps=30"
                    * takes_settings(line)
                )
                called = autodisc(line.removeprefix("autodisc ") + tiny)
                assert called.code == 0, f"{line}\n{called.err}"
                ran.append(line.split()[1])
    assert [one.storage for one in served] == ["runs/mrpc/journal.log", "runs/mrpc/baseline-maxidisc/journal.log"]
    commands = (
        "finetune search distill evaluate report baseline status dashboard run compare candidates export predict bench"
    )
    assert set(ran) == {"python", *commands.split()}


def takes_settings(line: str) -> bool:
    return line.split()[1] in ("search", "run") and "search.margin" not in line


def test_the_file_tree_names_what_is_there():
    (tree,) = re.findall(r"^```\n(autodisc/\n.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    named = set(re.findall(r"^  ([\w.]+)", tree, re.MULTILINE))
    hidden = {"__init__.py", "__pycache__", "py.typed"}
    assert named == set(os.listdir(ROOT / "autodisc")) - hidden


@pytest.mark.parametrize(
    "name",
    ["README.md", "CONTRIBUTING.md", *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "studies").rglob("*.md"))],
)
def test_links_to_files_point_somewhere(name):
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", (ROOT / name).read_text(encoding="utf-8")):
        assert ((ROOT / name).parent / target).exists(), target
