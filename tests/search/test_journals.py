from __future__ import annotations

from pathlib import Path

import pytest

from autodisc.finished import storage_of
from autodisc.search.journals import WholeLines, open_storage


def test_the_lock_of_a_journal_by_a_relative_path_leads_to_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    open_storage("runs/mrpc/journal.log")
    lock = WholeLines("runs/mrpc/journal.log")
    lock.acquire()
    assert Path("runs/mrpc/journal.log.lock").resolve(strict=True) == tmp_path / "runs" / "mrpc" / "journal.log"
    lock.release()
    assert [path.name for path in (tmp_path / "runs" / "mrpc").iterdir()] == ["journal.log"]


@pytest.mark.parametrize(
    ("given", "found"),
    [(None, "study/journal.log"), ("shared.log", "shared.log"), ("sqlite:///x.db", "sqlite:///x.db")],
)
def test_a_journal_is_named_by_its_whole_path(config, tmp_path, monkeypatch, given, found):
    monkeypatch.chdir(tmp_path)
    expected = found if "://" in found else str(tmp_path / found)
    assert storage_of(config(search={"storage": given}), Path("study")) == expected
