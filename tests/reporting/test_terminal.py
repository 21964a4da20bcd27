from __future__ import annotations

import io

import pytest
from rich.console import Console

from autodisc.progress import Silent
from autodisc.reporting import terminal, units
from autodisc.reporting.records import read_records
from autodisc.reporting.summary import summarize


def _console(*, tty: bool, width: int = 100) -> Console:
    return Console(
        file=io.StringIO(), force_terminal=tty, width=width, markup=False, highlight=False, color_system=None
    )


def test_a_stage_is_one_clean_line_where_stderr_is_no_terminal():
    console = _console(tty=False)
    with terminal.RichProgress(console).stage("importance [x]", 3) as bar:
        for _ in range(3):
            bar.advance()
        bar.note("metric 0.81")
    text = console.file.getvalue()
    assert text.startswith("importance [x]: 3/3, ")
    assert text.endswith(", metric 0.81\n")
    assert "\x1b" not in text
    assert text.count("\n") == 1


def test_a_stage_that_raises_says_it_stopped():
    console = _console(tty=False)
    with pytest.raises(ValueError, match="boom"), terminal.RichProgress(console).stage("trials", None):
        raise ValueError("boom")
    assert "trials: stopped after" in console.file.getvalue()


def test_stages_nest_on_a_terminal_and_may_follow_each_other(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    console = _console(tty=True)
    progress = terminal.RichProgress(console)
    for name in ("student", "assistant"):
        with progress.stage(name, 4) as outer, progress.stage("teacher cache [1]", 2) as inner:
            inner.advance(2)
            outer.advance(4)
            outer.note("[bold]0.8")
            progress.say("kept")
    text = console.file.getvalue()
    for words in ("student", "assistant", "teacher cache [1]", "4/4", "[bold]0.8", "kept"):
        assert words in text


def test_a_dumb_terminal_gets_lines(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    console = _console(tty=True)
    with terminal.RichProgress(console).stage("trials", 2) as bar:
        bar.advance(2)
    assert console.file.getvalue().startswith("trials: 2/2, ")


def test_a_stage_that_raises_frees_the_terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    progress = terminal.RichProgress(_console(tty=True))
    with pytest.raises(ValueError, match="boom"), progress.stage("one", 1):
        raise ValueError("boom")
    with progress.stage("two", 1) as bar:
        bar.advance()


def test_quiet_is_silent():
    assert isinstance(terminal.terminal_progress(quiet=True), Silent)


@pytest.mark.parametrize("tty", [True, False])
def test_tables_show_every_number_in_eighty_columns(whole, tty):
    console = _console(tty=tty, width=80)
    summary = summarize(read_records([whole]))
    terminal.print_summary(summary, console=console)
    text = console.file.getvalue()
    assert "…" not in text
    for words in ("★ chosen", "infeasible", "0.795 ± 0.010", "20.5 %", "366 T", "within noise"):
        assert words in text


def test_results_are_printed_with_what_was_chosen(make):
    console = _console(tty=False)
    terminal.print_search(make.search()["result"], console=console)
    terminal.print_distill(make.distill()["result"], console=console)
    terminal.print_baseline(make.baseline()["result"], console=console)
    terminal.print_baseline(make.baseline("direct")["result"], console=console)
    text = console.file.getvalue()
    assert "chosen: sparsity 0.8" in text
    assert "student: /out/student" in text
    assert "maxidisc: student 0.798 ± 0.010 on test, assistant of sparsity 0.7" in text
    assert "direct: student 0.798" in text


def test_a_search_without_a_choice_says_why(make):
    for trials, words in (
        ([], "no trial completed"),
        ([make.failed(0, 0.5)], "no trial completed"),
        ([make.trial(0, 0.8, 0.76)], "no candidate left the floor"),
    ):
        console = _console(tty=False)
        terminal.print_search(make.search(trials)["result"], console=console)
        assert words in console.file.getvalue()


@pytest.mark.parametrize(
    ("value", "written"), [(999.4, "999"), (999.6, "1 k"), (999_400, "999 k"), (999_600, "1 M"), (-999_600, "-1 M")]
)
def test_a_number_just_below_a_prefix_is_not_written_as_a_power(value, written):
    assert units.scaled(value) == written
