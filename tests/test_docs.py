"""The documentation: figures and tables are what the records give, and the built site asks for nothing off itself."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType

import pytest

import autodisc
from autodisc.config import flatten, make_config

ROOT = Path(autodisc.__file__).parents[1]
SECTIONS = {"budget", "teacher.finetune"}  # none, unless they are given
FETCHED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src", "object": "data"}
LINKED = {"stylesheet", "preload", "modulepreload", "preconnect", "dns-prefetch", "prefetch", "icon", "manifest"}


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"docs_{name}", ROOT / "docs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_tables_of_results_are_what_the_records_give():
    results = script("results")
    for page in results.PAGES:
        (table,) = results.BETWEEN.findall(page.read_text(encoding="utf-8"))
        assert table == results.table(), f"{page.name}: run python docs/results.py"


def test_a_row_of_results_has_the_metrics_shares_and_seeds_of_its_study():
    row = next(line for line in script("results").table().splitlines() if "studies/sst2/" in line)
    assert "0.864 ± 0.008 | 0.859 ± 0.008 | 0.874 ± 0.008 | 2.6 %, 2.9 % | 16.8 %, 18.8 %" in row
    assert "seed 0" in row


def test_the_page_of_settings_is_what_the_configuration_says():
    settings = script("settings")
    assert settings.PAGE.read_text(encoding="utf-8") == settings.page(), "run python docs/settings.py"


def test_the_page_of_settings_has_every_setting_with_its_default():
    flat = flatten(make_config({"task": {"name": "mrpc"}, "teacher": {"model": "t"}}).model_dump(mode="json"))
    page = script("settings").page()
    assert all(f"| `{name}` |" in page for name in flat if name not in SECTIONS)
    assert "| `search.lam` | `0.2` | ≥ 0 |" in page
    assert "| `teacher.model` | *required* |" in page


def test_the_committed_figures_are_those_of_the_script_and_small():
    figures = script("figures")
    committed = {path.stem: path.stat().st_size for path in (ROOT / "docs" / "figures").iterdir()}
    assert committed.keys() == figures.FIGURES.keys()
    assert max(committed.values()) <= figures.LARGEST
    assert all(drawn.startswith(b"\x89PNG") for drawn in figures.drawings().values())


class Fetched(HTMLParser):
    """What a browser fetches when it opens a page; links that a reader may follow are none of it."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "link" and LINKED & set((given.get("rel") or "").split()):
            self.found.append(given.get("href") or "")
        elif tag in FETCHED:
            self.found.append(given.get(FETCHED[tag]) or "")
        self.found += re.findall(r"url\(([^)]+)\)", given.get("style") or "")


def fetched(page: str) -> list[str]:
    parser = Fetched()
    parser.feed(page)
    return [target for target in parser.found if target]


def test_what_a_page_fetches_is_seen():
    page = '<link rel="stylesheet" href="//x/a.css"><script src="https://x/b.js"></script><a href="https://x">x</a>'
    assert fetched(page) == ["//x/a.css", "https://x/b.js"]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for package in ("mkdocs", "material", "mkdocstrings"):
        pytest.importorskip(package, reason="pip install 'autodisc[docs]'; make docs builds the site too")
    out = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(out)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    return out


def test_no_page_of_the_site_fetches_from_elsewhere(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 10
    outside = {
        (page.name, target)
        for page in pages
        for target in fetched(page.read_text(encoding="utf-8"))
        if re.match(r"(\w+:)?//", target)
    }
    assert not outside
    for sheet in site.rglob("*.css"):
        assert not re.search(r"""(@import|url\()\s*["']?(https?:)?//""", sheet.read_text(encoding="utf-8")), sheet


def test_the_site_has_the_api_from_its_docstrings(site):
    text = (site / "reference.html").read_text(encoding="utf-8")
    for name in ("api.search", "config.make_config", "distillation.schedule.distill_sandwich"):
        assert f'id="autodisc.{name}"' in text
    assert "Choose the teacher assistant in one study" in text
