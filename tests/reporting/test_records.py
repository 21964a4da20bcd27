from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from autodisc.errors import StudyError
from autodisc.reporting.records import environment, latest, read_records, write_record


def test_a_record_is_written_once_and_never_overwritten(make, tmp_path):
    path = write_record(tmp_path, make.search())
    before = path.read_bytes()
    with pytest.raises(StudyError, match="exists already"):
        write_record(tmp_path, make.search(name="another"))
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]  # no temporary file stays


def test_a_record_names_kind_strategy_and_utc_time(make, tmp_path):
    path = write_record(tmp_path, make.baseline() | {"created": "2026-08-01T12:00:00+02:00"})
    assert path == tmp_path / "records" / "baseline-maxidisc-20260801T100000.000000Z.json"


def test_a_record_without_hard_links_is_still_written_once(make, tmp_path, monkeypatch):
    def refuse(*_args):
        raise PermissionError

    monkeypatch.setattr("autodisc.reporting.records.os.link", refuse)
    write_record(tmp_path, make.search())
    with pytest.raises(StudyError, match="exists already"):
        write_record(tmp_path, make.search())
    assert len(read_records([tmp_path])) == 1


@pytest.mark.parametrize("links", [True, False])
def test_a_record_is_there_as_a_whole_and_its_name_is_on_the_disk(make, tmp_path, monkeypatch, links):
    """What a power cut may lose after it was written is not there to begin with."""
    synced, shown = set(), []

    def seen(call):
        def wrapped(source, target, **named):
            shown.append((os.stat(source).st_ino in synced, Path(target)))
            return call(source, target, **named)

        return wrapped

    def refuse(*_args):
        raise PermissionError

    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: synced.add(os.fstat(handle).st_ino) or fsync(handle))
    monkeypatch.setattr(os, "link", seen(os.link) if links else refuse)
    monkeypatch.setattr(os, "replace", seen(os.replace))
    path = write_record(tmp_path, make.search())
    assert shown == [(True, path)]
    assert path.parent.stat().st_ino in synced
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_numbers_that_are_not_finite_become_null(make, tmp_path):
    path = write_record(tmp_path, make.search() | {"curves": {"recovery": [{"step": 1, "loss": float("nan")}]}})
    assert json.loads(path.read_text())["curves"]["recovery"][0]["loss"] is None


def test_records_come_back_oldest_first_from_all_folders(make, tmp_path):
    make.write(tmp_path / "b", make.distill(), make.search())
    make.write(tmp_path / "a", make.baseline())
    kinds = [record.kind for record in read_records([tmp_path / "a", tmp_path / "b", tmp_path / "a"])]
    assert kinds == ["search", "distill", "baseline"]


def test_latest_takes_the_newest_of_kind_and_strategy(make, tmp_path):
    old, new = make.search(), make.search() | {"created": "2026-08-02T00:00:00Z"}
    make.write(tmp_path, new, old, make.baseline("direct"))
    records = read_records([tmp_path])
    assert latest(records, "search").values["created"] == "2026-08-02T00:00:00Z"
    assert latest(records, "baseline", strategy="maxidisc") is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{half a", "not valid JSON"),
        ("[]", "schema None"),
        ('{"schema": 2}', "schema 2"),
        ('{"schema": 1, "kind": "search"}', "not a complete record"),
    ],
)
def test_a_record_that_cannot_be_read_is_named(make, tmp_path, text, reason):
    make.write(tmp_path, make.search())
    (tmp_path / "records" / "search-bad.json").write_text(text)
    with pytest.raises(StudyError, match=rf"search-bad\.json: .*{reason}"):
        read_records([tmp_path])


def test_a_folder_without_records_is_named(tmp_path):
    with pytest.raises(StudyError, match="holds no records"):
        read_records([tmp_path])
    with pytest.raises(StudyError, match="no such folder"):
        read_records([tmp_path / "absent"])


def test_environment_tells_versions_and_hardware():
    found = environment(device="cpu", precision="fp32", threads=2)
    assert found["optuna"]
    assert found["python"]
    assert found["hardware"]
    assert (found["device"], found["precision"], found["threads"]) == ("cpu", "fp32", 2)
    assert (found["revision"] is None) == (found["dirty"] is None)
