from __future__ import annotations

import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from autodisc.errors import StudyError, UserError
from autodisc.reporting.report import write_report

NAME = "<img src=x onerror=alert(1)> & | [a](javascript:b)"


class Page(HTMLParser):
    """Tags with attributes, and each script's body."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self._inside = False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._inside = tag == "script"

    def handle_endtag(self, tag):
        self._inside = False

    def handle_data(self, data):
        if self._inside:
            self.scripts.append(data)


def _report(folder, tmp_path, **options):
    out = tmp_path / "out" / "report.html"
    write_report([folder], out, **options)
    return out.read_text(), out.with_suffix(".md").read_text()


def test_opening_a_study_leaves_torch_and_transformers_alone(whole, tmp_path):
    code = (
        "import sys; from pathlib import Path; import autodisc.reporting.report as r, autodisc.reporting.terminal;"
        f"r.write_report([Path({str(whole)!r})], Path({str(tmp_path / 'r.html')!r}));"
        "print([m for m in ('torch', 'transformers', 'datasets', 'accelerate') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_page_is_complete_in_itself(whole, tmp_path):
    html, _ = _report(whole, tmp_path)
    page = Page(html)
    for tag, attributes in page.tags:
        assert not {"src", "href", "srcset", "action"} & attributes.keys(), tag
    style = html[html.index("<style>") : html.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    assert sum("Plotly.newPlot(" in script and len(script) < 10_000 for script in page.scripts) == 1
    assert sum(len(script) > 1_000_000 for script in page.scripts) == 1  # plotly.js, once
    policy = next(a["content"] for t, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")


def test_every_picture_has_a_text_alternative_and_valid_data(whole, tmp_path):
    page = Page(_report(whole, tmp_path)[0])
    plots = [attributes for _, attributes in page.tags if attributes.get("class") == "plot"]
    assert len(plots) == 11
    assert all(attributes["aria-label"] for attributes in plots)
    figures = [json.loads(script) for script in page.scripts if script.startswith('{"data"')]
    assert len(figures) == 11


def test_the_verdict_comes_first_and_provenance_last(whole, tmp_path):
    for text in _report(whole, tmp_path):
        body = text[text.index("<body>") :] if "<body>" in text else text
        order = ["the study chose", "What speaks against it", "Strategies", "Provenance", "Configuration"]
        places = [body.index(words) for words in order]
        assert places == sorted(places)
        for fact in ("AMD EPYC 9V74", "2.13.0+cpu", "bb22", "search.lam"):
            assert fact in body


def test_names_with_markup_are_shown_as_text(make, tmp_path):
    trials = [make.trial(0, 0.7, 0.82), make.failed(1, 0.8, error=f"</script>{NAME}")]
    search = make.search(trials, name=NAME, curves={NAME: [{"step": 1, "loss": 1.0, "metric": None}]})
    search["task"]["metric"] = NAME
    search["cost"]["stages"][NAME] = {"seconds": 1.0, "flops": 1.0, "tokens": 1, "peak_mib": 1.0}
    html, markdown = _report(make.write(tmp_path / "s", search), tmp_path)
    page = Page(html)
    assert not [tag for tag, _ in page.tags if tag in ("img", "a")]
    assert not any("onerror" in attributes for _, attributes in page.tags)
    assert "&lt;img src=x" in html
    assert "<img" not in markdown
    assert re.search(r"(?<!\\)\[a", markdown) is None
    rows = [line for line in markdown.splitlines() if "onerror" in line and line.startswith("|")]
    assert rows
    assert all(r"\|" in row for row in rows)


@pytest.mark.parametrize("case", ["empty", "failed", "one", "infeasible", "baseline", "no best", "finetune"])
def test_odd_studies_are_rendered(make, tmp_path, case):
    lost = make.baseline()
    lost["result"]["best"] = None
    lost["result"]["trials"] = [{"number": 0, "state": "FAIL", "sparsity": 0.5, "error": "out of memory"}]
    made = {"path": "/t", "metric": 0.9, "metrics": {"accuracy": 0.9}, "floor": 0.5, "split": "test"}
    values = {
        "empty": make.search([]),
        "failed": make.search([make.failed(0, 0.5), make.failed(1, 0.6)]),
        "one": make.search([make.trial(0, 0.7, 0.82)]),
        "infeasible": make.search([make.trial(0, 0.7, 0.76)]),
        "baseline": make.baseline(),
        "no best": lost,
        "finetune": make.record("finetune", None, made, make.cost(finetune=(60.0, 1e12))),
    }[case]
    html, markdown = _report(make.write(tmp_path / "s", values), tmp_path, lam=0.1)
    assert '<div class="verdict">' in html
    assert markdown.startswith("# ")


def test_several_studies_become_sections(make, tmp_path):
    make.write(tmp_path / "a", make.search(name="first"))
    make.write(tmp_path / "b", make.search(name="second", teacher={"model": "/o", "fingerprint": "ee"}))
    write_report([tmp_path / "a", tmp_path / "b"], tmp_path / "r.html")
    tags = [tag for tag, _ in Page((tmp_path / "r.html").read_text()).tags]
    assert tags.count("section") == tags.count("h2") == 2


def test_two_finetunings_whose_students_a_budget_is_to_find_are_sections(make, tmp_path):
    for name in ("one", "two"):
        made = {"path": f"/t/{name}", "metric": 0.9, "metrics": {"accuracy": 0.9}, "floor": 0.5, "split": "test"}
        values = make.record("finetune", None, made, make.cost(finetune=(60.0, 1e12)))
        values["config"] = {**values["config"], "name": name, "student_sparsity": None}
        make.write(tmp_path / name, values)
    write_report([tmp_path / "one", tmp_path / "two"], tmp_path / "r.html")
    assert re.findall("<h2>(.*)</h2>", (tmp_path / "r.html").read_text()) == ["one: mrpc, seed 0", "two: mrpc, seed 0"]


def test_an_error_creates_and_replaces_nothing(make, tmp_path):
    out = tmp_path / "deep" / "report.html"
    with pytest.raises(StudyError):
        write_report([tmp_path], out)
    assert not out.parent.exists()
    folder = make.write(tmp_path / "s", make.search())
    with pytest.raises(UserError, match=r"ends in \.html"):
        write_report([folder], tmp_path / "report.pdf")
    with pytest.raises(UserError, match="lam"):
        write_report([folder], out, lam=-1.0)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_report([folder], tmp_path / "file" / "report.html")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "s"]


def test_another_lambda_is_said_on_the_page(whole, tmp_path):
    html, markdown = _report(whole, tmp_path, lam=0.0)
    for text in (html, markdown):
        assert "Ranked again at λ = 0" in text
        assert "Candidates at λ = 0" in text
        assert "★ would be chosen" in text
        assert "☆ the study&#39;s choice" in text or "☆ the study's choice" in text
