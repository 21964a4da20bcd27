"""Interpreters that have only what a test names, since what travels must run where autodisc is not."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def bare_python(tmp_path_factory) -> Callable[..., Callable[..., str]]:
    """``bare_python("torch", "numpy")`` -> ``run(*arguments)`` of a new interpreter with these packages alone.

    ``run`` returns what was printed and fails with what was complained of. Where pip cannot install, the test skips.
    """

    def made(*packages: str) -> Callable[..., str]:
        home = tmp_path_factory.mktemp("bare")
        venv.create(home / "venv", with_pip=True)
        python = home / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
        install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-c", "constraints.txt"]
        done = subprocess.run([*install, *packages], cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"pip cannot install {', '.join(packages)} here: {done.stderr.strip()[-300:]}")
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("PYTHON")},
            "HF_HOME": str(home / "hf"),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
        }

        def run(*arguments: str | Path) -> str:
            done = subprocess.run([python, *arguments], cwd=home, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr[-3000:]
            return done.stdout

        for absent in ("autodisc", "pytest"):
            found = run("-c", f"import importlib.util; print(importlib.util.find_spec({absent!r}))")
            assert found.strip() == "None", f"{sys.executable} sees {found}"
        return run

    return made
