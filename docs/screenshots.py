"""The README's pictures: report and dashboard of a finished study, as a chromium shows them.

    python docs/screenshots.py [RESULTS] [--out docs/images]

RESULTS is a folder that holds records/; studies/mrpc/results unless given. The dashboard shows the recorded trials,
written again into a study of its own by what writes them while a search runs. Pictures keep below 300 kB: they have
256 colours. Needs a chromium and `pip install 'autodisc[browser]'`.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import warnings
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from autodisc.config import make_config, write_config
from autodisc.costs import Cost
from autodisc.reporting.live import ARTIFACTS, About, Live
from autodisc.reporting.records import Record, latest, read_records
from autodisc.reporting.report import write_report

ROOT = Path(__file__).parents[1]
LARGEST = 300_000  # bytes
DESK, TELEPHONE = {"width": 1280, "height": 1100}, {"width": 390, "height": 844}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, nargs="?", default=ROOT / "studies" / "mrpc" / "results")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images")
    asked = parser.parse_args()
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        sys.exit("no browser: chromium is not on the path; on Debian: apt-get install chromium")
    asked.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name, sync_playwright() as playwright:
        work = Path(name)
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        report(browser, asked.results, work, asked.out)
        dashboard(browser, asked.results, work, asked.out)
        browser.close()


def report(browser: Browser, results: Path, work: Path, out: Path) -> None:
    page_file = work / "report.html"
    write_report([results], page_file)
    for name, size, scheme in (
        ("report-light", DESK, "light"),
        ("report-dark", DESK, "dark"),
        ("report-phone", TELEPHONE, "dark"),
    ):
        page = browser.new_context(viewport=size, color_scheme=scheme, offline=True).new_page()  # type: ignore[arg-type]
        page.goto(page_file.as_uri())
        page.wait_for_function("document.querySelectorAll('.plot .main-svg').length > 5")
        keep(page, out / f"{name}.png")


def dashboard(browser: Browser, results: Path, work: Path, out: Path) -> None:
    record = latest(read_records([results]), "search")
    assert record is not None, f"{results}: holds no search"
    folder = replayed(record, work / str(record.values["config"]["name"]))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "autodisc.cli", "dashboard", str(folder), "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    try:
        address = f"http://127.0.0.1:{port}"
        wait_for(f"{address}/api/studies")
        page = browser.new_context(viewport={"width": 1280, "height": 1000}).new_page()
        page.goto(f"{address}/dashboard/studies/0")
        page.get_by_text("Which teacher assistant").first.wait_for(timeout=60_000)
        page.wait_for_timeout(3000)  # plotly's own resizing
        boxes = page.evaluate(
            "[...document.querySelectorAll('.js-plotly-plot')].filter(p => p.layout.meta === 'autodisc')"
            ".map(p => { const r = p.getBoundingClientRect();"
            " return [r.left + scrollX, r.top + scrollY, r.right + scrollX, r.bottom + scrollY] })"
        )
        left, top = (min(box[i] for box in boxes) for i in (0, 1))
        right, bottom = (max(box[i] for box in boxes) for i in (2, 3))
        clip = {"x": left - 12, "y": top, "width": right - left + 24, "height": bottom - top}
        keep(page, out / "dashboard.png", clip=clip)
        best = record.result["best"]["sparsity"]
        number = next(i for i, row in enumerate(measured(record)) if row["sparsity"] == best)
        page.goto(f"{address}/dashboard/studies/0/trials?numbers={number}")
        page.wait_for_function("[...document.images].some(i => i.src.includes('/artifacts/') && i.naturalWidth)")
        page.evaluate("[...document.images].find(i => i.src.includes('/artifacts/')).scrollIntoView({block: 'end'})")
        page.wait_for_timeout(500)
        keep(page, out / "dashboard-trial.png")
    finally:
        server.terminate()
        server.wait(timeout=20)


def replayed(record: Record, folder: Path) -> Path:
    """A study's folder whose dashboard shows the recorded trials."""
    values, rows = record.values, measured(record)
    folder.mkdir()
    config = make_config(values["config"])
    local = config.search.model_copy(update={"storage": None})
    write_config(config.model_copy(update={"search": local}), folder / "config.yaml")
    storage = JournalStorage(JournalFileBackend(str(folder / "journal.log")))
    name = f"{config.name}-{config.task.name}"
    study = optuna.create_study(study_name=name, storage=storage, direction="maximize")
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    study.set_metric_names([f"{values['task']['metric']} + {config.search.lam:g}·sparsity"])
    layers, first = len(rows[0]["candidate"]["heads"]), rows[0]
    heads, neurons = (sum(first["candidate"][unit]) / first["scale"] / layers for unit in ("heads", "neurons"))
    live = Live(
        study,
        About(
            name=config.name,
            strategy="autodisc",
            task=config.task.name,
            metric_name=values["task"]["metric"],
            teacher=Path(config.teacher.model).name,
            teacher_metric=record.result["teacher"]["metric"],
            student_sparsity=config.student,
            lam=config.search.lam,
            margin=config.search.margin,
            scorer=config.search.scorer,
            labels=tuple(values["task"].get("label_names") or ()),
            heads=round(heads),
            neurons=8 * round(neurons / 8),  # kept ones are multiples of 8
            projected_flops=record.result.get("projected_flops"),
        ),
        folder / ARTIFACTS,
        result=lambda: record.result,
        spent=lambda: {stage: Cost(**cost) for stage, cost in values["cost"]["stages"].items()},
    )
    for row in rows:
        study.enqueue_trial({"sparsity": row["sparsity"]})
        trial = study.ask()
        trial.suggest_float("sparsity", 0.0, 1.0)
        for key, value in {**row, "examples": values["task"]["examples"]["validation"]}.items():
            trial.set_user_attr(key, value)
        live.measured(trial, None)
        study.tell(trial, row["tradeoff"])
    live.refresh()
    return folder


def measured(record: Record) -> list[dict[str, Any]]:
    return [row for row in record.result["trials"] if row["state"] == "COMPLETE"]


def wait_for(address: str) -> None:
    for _ in range(300):
        try:
            urllib.request.urlopen(address, timeout=5).read()
            return
        except OSError:
            time.sleep(0.2)
    sys.exit(f"{address}: no answer within a minute")


def keep(page: Page, path: Path, *, clip: dict[str, float] | None = None) -> None:
    """A screenshot, of the window or of a part of the page, in 256 colours."""
    taken = page.screenshot() if clip is None else page.screenshot(full_page=True, clip=clip)  # type: ignore[arg-type]
    image = Image.open(io.BytesIO(taken)).convert("RGB")
    image.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
    assert path.stat().st_size < LARGEST, f"{path}: {path.stat().st_size} bytes"
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
