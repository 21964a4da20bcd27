"""What a report writes beside its page, what it says of classes and examples, and the odd studies that it must bear."""

from __future__ import annotations

import csv
import html
import io
import re

import pytest

from autodisc.errors import UserError
from autodisc.reporting.answers import ClassRow, class_rows
from autodisc.reporting.drawing import draw
from autodisc.reporting.pictures import side_by_side
from autodisc.reporting.records import read_records
from autodisc.reporting.report import page_of, write_report
from autodisc.reporting.student_figures import class_figure
from autodisc.reporting.summary import summarize
from autodisc.reporting.table_files import study_tables

EVIL = "<img src=x onerror=alert(1)>"


@pytest.fixture
def answered(make, tmp_path):
    return make.write(tmp_path / "s", make.search(), make.answered(), make.baseline(), make.baseline("direct"))


def rows(text):
    return list(csv.DictReader(io.StringIO(text)))


def test_a_folder_gets_page_markdown_pictures_and_tables(answered, tmp_path):
    out = tmp_path / "out"
    write_report([answered], out)
    assert page_of(out) == out / "report.html"
    assert {path.name for path in out.iterdir()} == {"report.html", "report.md", "figures", "tables"}
    pictures = sorted(path.name for path in (out / "figures").iterdir())
    assert len(pictures) == 15
    assert all((out / "figures" / name).read_bytes().startswith(b"\x89PNG") for name in pictures)
    linked = re.findall(r"!\[[^\n]*\]\((figures/[^)]+)\)", (out / "report.md").read_text())
    assert sorted(linked) == [f"figures/{name}" for name in pictures]
    tables = {path.stem for path in (out / "tables").iterdir()}
    assert {"strategies", "candidates", "baseline-trials", "costs", "curves", "classes", "confusion"} <= tables
    assert {"examples", "latency", "layers", "configuration", "provenance"} <= tables


def test_a_folder_s_name_may_have_a_dot_and_a_format_that_is_none_is_refused(answered, tmp_path):
    for out in (tmp_path / "mrpc-0.9", tmp_path / "there.md"):
        if out.suffix == ".md":
            out.mkdir()
        write_report([answered], out)
        assert page_of(out).is_file()
    with pytest.raises(UserError, match=r"out: got .*r\.pdf; expected"):
        write_report([answered], tmp_path / "r.pdf")


def test_seeds_side_by_side_are_told_apart(make, tmp_path):
    folders = [make.write(tmp_path / str(seed), make.search(seed=seed)) for seed in (0, 1)]
    studies = write_report(folders, tmp_path / "r.html").studies
    for text in ((tmp_path / "r.html").read_text(), (tmp_path / "r.md").read_text()):
        assert all(f"student of sparsity 0.9, seed {seed}" in text for seed in (0, 1))
    assert {row["seed"] for row in rows(study_tables(studies)["strategies"])} == {"0", "1"}


def test_classes_whose_names_begin_alike_have_a_row_each(make):
    labels = [f"wrong_exchange_rate_for_{kind}" for kind in ("card_payment", "cash_withdrawal")]
    made = [ClassRow("student", label, 10, 0.5, 0.5, f1) for label, f1 in zip(labels, (0.4, 0.6), strict=True)]
    figure = class_figure(made)
    assert (list(figure.data[0].y), list(figure.data[0].x)) == (labels, [0.4, 0.6])
    assert list(figure.layout.yaxis.ticktext) == ["wrong_excha…card_payment", "wrong_excha…h_withdrawal"]
    drawn = draw(class_figure([*made, ClassRow("student", "R&D", 10, 0.5, 0.5, 0.2)]), format="svg")
    assert drawn.count(b"R&amp;D") == 1  # one row, and its name beside it


def test_tables_are_unrounded(answered):
    study = summarize(read_records([answered])).studies[0]
    tables = study_tables([study])
    found = rows(tables["candidates"])
    assert [float(row["tradeoff"]) for row in found] == [row.tradeoff for row in study.trials]
    assert found[0]["heads"] == " ".join(map(str, study.trials[0].heads))
    assert {row["study"] for row in found} == {"mrpc"}
    confusion = rows(tables["confusion"])
    assert sum(int(row["examples"]) for row in confusion if row["role"] == "student") == 1725


def test_a_markdown_name_gets_the_markdown_alone(answered, tmp_path):
    write_report([answered], tmp_path / "note.md")
    assert (tmp_path / "note.md").read_text().startswith("# mrpc")
    assert not (tmp_path / "note.html").exists()
    with pytest.raises(UserError, match="or a folder"):
        write_report([answered], tmp_path / "note.txt")


def test_classes_are_what_their_confusions_say(answered):
    known = summarize(read_records([answered])).studies[0].answers
    student = [row for row in known.classes if row.role == "student"]
    assert [row.label for row in student] == ["different", "same"]
    assert student[0].examples == 578
    assert student[0].precision == pytest.approx(300 / 380)
    assert student[0].recall == pytest.approx(300 / 578)
    f1 = 2 * student[0].precision * student[0].recall / (student[0].precision + student[0].recall)
    assert student[0].f1 == pytest.approx(f1)


def test_a_class_that_is_never_said_has_no_precision():
    never = class_rows("student", ((5, 0), (2, 0)), ("a", "b"))[1]
    assert (never.precision, never.recall, never.f1) == (None, 0.0, 0.0)


def test_the_page_opens_with_one_sentence_and_shows_where_student_and_teacher_differ(answered, tmp_path):
    write_report([answered], tmp_path / "r.html")
    for text in ((tmp_path / "r.html").read_text(), (tmp_path / "r.md").read_text()):
        body = html.unescape(text[text.index("</h1>") :] if "</h1>" in text else text).replace("\\", "")
        assert body.index(
            "A student of 0.1 of the teacher's scale reaches accuracy_f1 0.795 ± 0.010 on test"
        ) < body.index("the study chose")
        assert "320 of 1725 examples (teacher right in 213, student right in 107" in body
        assert "he said ‖ she said" in body
        assert "Class by class" in body


def test_a_record_of_an_earlier_version_shows_what_it_has(make, tmp_path):
    study = summarize(read_records([make.write(tmp_path / "s", make.search(), make.distill())])).studies[0]
    assert study.answers.classes == study.answers.examples == study.answers.latency == ()


def test_studies_are_compared_side_by_side(make, tmp_path):
    make.write(tmp_path / "a", make.search(name="first"), make.distill(name="first"))
    other = {"teacher": {"model": "/o", "fingerprint": "ee"}}
    make.write(tmp_path / "b", make.search(name="second", **other), make.distill(0.71, name="second", **other))
    summary = write_report([tmp_path / "a", tmp_path / "b"], tmp_path / "r.html")
    for name in ("r.html", "r.md"):
        text = (tmp_path / name).read_text()
        head = text[: text.index("the study chose")]
        assert "Studies side by side" in head
        for words in ("first", "second", "0.795 ± 0.010", "0.710 ± 0.010"):
            assert words in head
    assert {row["study"] for row in rows(study_tables(summary.studies)["strategies"])} == {"first", "second"}
    assert side_by_side(summary.studies[:1]) is None


def test_a_search_without_a_baseline_shows_what_one_is_projected_to_cost(make, tmp_path):
    search = make.search()
    search["result"]["projected_flops"] = 4e14
    write_report([make.write(tmp_path / "s", search)], tmp_path / "r.html")
    assert "maxidisc, projected, all trials: 400 TFLOPs" in (tmp_path / "r.html").read_text()


def test_a_password_in_a_storage_s_url_is_not_shown(make, tmp_path):
    search = make.search()
    search["config"]["search"]["storage"] = "postgresql://ann:s3cret@db.example/x"
    summary = write_report([make.write(tmp_path / "s", search)], tmp_path / "r.html")
    page, markdown = (tmp_path / "r.html").read_text(), (tmp_path / "r.md").read_text()
    for text in (page, markdown, *study_tables(summary.studies).values()):
        assert "s3cret" not in text
    assert "postgresql://ann:…@db.example/x" in page


@pytest.mark.parametrize("case", ["empty", "failed", "one", "long names", "html", "many classes"])
def test_odd_studies_are_shown_as_text(make, tmp_path, case):
    long = "a-name-" * 60
    answered = make.answered()
    count = 60
    answered["task"]["label_names"] = [f"{EVIL} {i}" for i in range(count)]
    for part in (answered["result"]["teacher"], answered["result"]["student"]):
        part["confusion"] = [[5 if i == j else 0 for j in range(count)] for i in range(count)]
    answered["result"]["assistant"]["final"] = {}
    named = make.search(name=long if case == "long names" else EVIL)
    named["task"]["metric"] = named["config"]["name"]
    named["cost"]["stages"][named["config"]["name"]] = {"seconds": 1.0, "flops": 1.0, "tokens": 1, "peak_mib": 1.0}
    evil = make.answered(name=EVIL)
    evil["result"]["differing"]["shown"][0]["text"] = f"</script>{EVIL} $x$"
    evil["task"]["label_names"] = [EVIL, "=1+1"]
    values = {
        "empty": [make.search([])],
        "failed": [make.search([make.failed(0, 0.5), make.trial(1, 0.6, 0.82)])],
        "one": [make.search([make.trial(0, 0.7, 0.82)])],
        "long names": [named],
        "html": [named, evil],
        "many classes": [make.search(), answered],
    }[case]
    summary = write_report([make.write(tmp_path / "s", *values)], tmp_path / "r.html")
    for path in (tmp_path / "r.html", tmp_path / "r.md"):
        text = path.read_text()
        assert "<img" not in text
        assert len(re.findall("</script", text)) in (0, len(re.findall("<script", text)))
    assert (tmp_path / "r.html").stat().st_size < 6_000_000
    assert study_tables(summary.studies)["provenance"]


def test_two_thousand_trials_are_shown_in_bounded_pictures_and_words(make, tmp_path):
    many = [make.trial(i, 0.2 + i * 0.0003, 0.85 - i * 0.00004) for i in range(1990)]
    many += [make.failed(1990 + i, 0.9) for i in range(10)]
    out = tmp_path / "r.html"
    study = write_report([make.write(tmp_path / "s", make.search(many))], out).studies[0]
    text = out.read_text()
    assert len(study.trials) == 2000
    assert out.stat().st_size < 6_000_000
    assert all(len(words) < 6000 for words in re.findall(r'aria-label="([^"]*)"', text))
    assert "in the table" in text
    assert all(len(sentence) < 600 for sentence in study.against)


def test_a_search_on_a_part_of_validation_says_on_how_many_rows(make, tmp_path):
    for examples, said in ((200, ["200"]), (408, [])):
        search = make.search()
        search["result"]["examples"] = examples
        rows = write_report([make.write(tmp_path / str(examples), search)], tmp_path / "r.html").studies[0].provenance
        assert [text for label, text in rows if label == "validation examples of a trial"] == said
