"""A headless chromium, and a study that runs while it is looked at. Skips, saying so, where something is missing."""

from __future__ import annotations

import importlib.util
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from autodisc.config import make_config, write_config
from autodisc.costs import Cost
from autodisc.reporting.live import ARTIFACTS, About, Live

NAMES = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    path = next((found for name in NAMES if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is on the path; on Debian: apt-get install chromium")
    pytest.importorskip("axe_playwright_python", reason="needs pip install 'autodisc[browser]'")
    api = pytest.importorskip("playwright.sync_api", reason="needs pip install 'autodisc[browser]'")
    with api.sync_playwright() as playwright:
        # Its sandbox needs rights that a container's root has not; what is opened is our own.
        told = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        try:
            opened = playwright.chromium.launch(executable_path=path, args=told)
        except api.Error as error:
            pytest.skip(f"{path} does not start here: {str(error).splitlines()[0]}")
        yield opened
        opened.close()


@pytest.fixture(scope="session")
def make() -> SimpleNamespace:
    """The makers of hand-made records, which tests/reporting has."""
    path = Path(__file__).parents[1] / "reporting" / "conftest.py"
    spec = importlib.util.spec_from_file_location("records_of_reporting", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return SimpleNamespace(**{name: value for name, value in vars(module).items() if callable(value)})


class RunningStudy:
    """A search whose trials end when a test says so, through what a search calls."""

    def __init__(self, folder: Path, make: SimpleNamespace) -> None:
        self.folder = folder
        self._make, self._waiting = make, make.search()["result"]["trials"]
        self._told: list[dict[str, Any]] = []
        config = make_config({"name": "mrpc", "task": {"name": "mrpc"}, "teacher": {"model": "/models/mrpc"}})
        write_config(config, folder / "config.yaml")
        storage = JournalStorage(JournalFileBackend(str(folder / "journal.log")))
        self.study = optuna.create_study(study_name="mrpc-mrpc", storage=storage, direction="maximize")
        about = About(
            "mrpc", "autodisc", "mrpc", "accuracy_f1", "/models/mrpc", 0.84, 0.9, 0.2, 1.0, "recovered",
            ("different", "same"), 12, 1536, 4e14,
        )  # fmt: skip
        self.live = Live(
            self.study,
            about,
            folder / ARTIFACTS,
            result=lambda: make.search_result(self._told),
            spent=lambda: {"recovery": Cost(38.0, 100, 5.6e12, 1.0)},
        )
        self.live.refresh()

    def finish_trial(self) -> None:
        trial, row = self.study.ask(), self._waiting.pop(0)
        for name, value in {**row, "examples": 408}.items():
            trial.set_user_attr(name, value)
        self.live.measured(trial, [[120, 9], [20, 259]])
        self._told.append(row)
        self.study.tell(trial, row["tradeoff"])
        self.live.refresh()


@pytest.fixture
def running(tmp_path: Path, make: SimpleNamespace) -> RunningStudy:
    (tmp_path / "study").mkdir()
    return RunningStudy(tmp_path / "study", make)


@pytest.fixture
def served() -> Iterator[Callable[..., str]]:
    """``served(*folders)``: the address of ``autodisc dashboard`` on them."""
    processes: list[subprocess.Popen[bytes]] = []

    def serve(*folders: Path) -> str:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [sys.executable, "-m", "autodisc.cli", "dashboard", *map(str, folders), "--port", str(port)]
        processes.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        address = f"http://127.0.0.1:{port}"
        for _ in range(300):
            try:
                urllib.request.urlopen(f"{address}/api/studies", timeout=5).read()
                return address
            except OSError:
                assert processes[-1].poll() is None, "the dashboard ended"
                time.sleep(0.2)
        raise AssertionError("the dashboard did not start within a minute")

    yield serve
    for process in processes:
        process.terminate()
        process.wait(timeout=20)
