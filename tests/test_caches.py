from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from pathlib import Path

import pytest

from autodisc import api
from autodisc.caches import DOCSTRINGS, LEFT_OVER, RANKING, ROWS, TEACHER, TOKENS, clean, entries, free, to_free
from autodisc.distillation.teacher_cache import CLASSES, HIDDEN, LIKELIEST

KEY = "0123456789abcdef0123456789abcdef"
DAY = 86400.0


def age(path: Path, days: float) -> None:
    moment = time.time() - days * DAY
    for file in [path, *path.rglob("*")]:
        os.utime(file, (moment, moment))


@pytest.fixture
def cache(tmp_path) -> Path:
    """One entry of every kind, the n-th used n days ago, and what must stay: somebody else's."""
    folder = tmp_path / "cache"
    teacher = folder / "teacher" / KEY
    teacher.mkdir(parents=True)
    (teacher / "cost.json").write_text("{}")
    (teacher / "logits.f32").write_bytes(b"\1" * 8192)
    ours = [teacher]
    for name, text in (
        (f"ranking/{KEY}.json", "{}"),
        (f"data/tokenised/{KEY}.arrow", "x" * 5000),
        ("data/docstrings-0123456789abcdef/train.parquet", "x"),
        ("data/csv/default-0123/0.0.0/train.arrow", "x"),
        (f"ranking/.{KEY}.json.77", "{"),
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
        part = Path(name).parts
        ours.append(
            folder / name
            if part[1] != "docstrings-0123456789abcdef" and part[1] != "csv"
            else folder / Path(*part[: 2 + (part[1] == "csv")])
        )
    for days, path in enumerate(ours, 1):
        age(path, days)
    for name in (
        "teacher/config.json",
        "teacher/mine/notes.txt",
        "ranking/notes.json",
        "data/mrpc/train.csv",
        "records/a.json",
        # Names that look like ours, and are somebody's results or files.
        "assistant-baseline/records/a.json",
        "assistant-20261130/hidden.f16",
        "data/docstrings-mine/train.csv",
        "data/docstrings-fedcba9876543210/notes.txt",
        "data/tokenised/notes.txt",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
        age(folder / name, 1000)
    return folder


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_every_kind_is_found_and_nothing_else(cache):
    found = entries(cache)
    assert [entry.kind for entry in found] == [LEFT_OVER, ROWS, DOCSTRINGS, TOKENS, RANKING, TEACHER]
    assert [round(entry.age_days) for entry in found] == [6, 5, 4, 3, 2, 1]
    assert found[-1].bytes >= 8192
    assert [entry.damage for entry in found] == ["not finished", "", "", "", "", ""]


def test_what_a_search_leaves_in_its_cache_is_all_known(config, tmp_path):
    api.search(config(cache={"dir": str(tmp_path / "cache")}), tmp_path / "study")
    kept = files(tmp_path / "cache")
    clean(tmp_path / "cache", max_gib=0.0, remove=True)
    left = files(tmp_path / "cache")
    assert kept - left
    assert all(name.endswith(".lock") for name in left)


def test_without_a_limit_nothing_goes_and_without_remove_nothing_is_gone(cache):
    before = files(cache)
    assert not any(row["goes"] for row in clean(cache, remove=True)["entries"])
    assert sum(row["goes"] for row in clean(cache, older_than_days=0.5)["entries"]) == 6
    assert files(cache) == before


def test_what_is_older_goes_and_somebody_elses_files_stay(cache):
    result = clean(cache, older_than_days=3.5, remove=True)
    assert [row["kind"] for row in result["entries"] if row["goes"]] == [LEFT_OVER, ROWS, DOCSTRINGS]
    assert result["removed"]
    assert [entry.kind for entry in entries(cache)] == [TOKENS, RANKING, TEACHER]
    assert {
        "teacher/config.json",
        "teacher/mine/notes.txt",
        "ranking/notes.json",
        "data/mrpc/train.csv",
        "records/a.json",
    } <= files(cache)


def test_the_least_recently_used_goes_until_the_rest_fits(cache):
    held = entries(cache)
    last_two = sum(entry.bytes for entry in held[-2:])
    going = to_free(held, max_gib=last_two / 2**30)
    assert going == held[:-2]
    assert to_free(held, max_gib=1.0) == held[:1]  # what nobody will finish goes, too


def test_a_link_out_of_the_cache_is_not_followed(cache, tmp_path):
    shutil.rmtree(cache / "teacher")
    (tmp_path / "elsewhere" / KEY).mkdir(parents=True)
    (tmp_path / "elsewhere" / KEY / "cost.json").write_text("{}")
    (cache / "teacher").symlink_to(tmp_path / "elsewhere")
    clean(cache, max_gib=0.0, remove=True)
    assert (tmp_path / "elsewhere" / KEY / "cost.json").exists()


def test_a_removal_that_is_interrupted_again_and_again_leaves_nothing_that_clean_does_not_know(cache, monkeypatch):
    for name in (f"assistant-a1b2c3d_/{KEY}/hidden.f16", "data/ann___mine/default/x"):
        (cache / name).parent.mkdir(parents=True)
        (cache / name).write_bytes(b"1")

    def interrupted(_path):
        raise KeyboardInterrupt

    going = [entry.path for entry in entries(cache) if entry.path.is_dir()]
    assert len(going) == 5
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", interrupted)
        for _ in range(2):
            for entry in entries(cache):
                with contextlib.suppress(KeyboardInterrupt):
                    free(entry)
    left = {entry.path: entry.kind for entry in entries(cache)}
    assert left == {path.with_name(f".removed-{path.name}-{os.getpid()}"): LEFT_OVER for path in going}
    clean(cache, max_gib=0.0, remove=True)
    assert not entries(cache)
    assert not list(cache.rglob(".removed-*"))


def test_a_cache_that_is_not_there_is_empty(tmp_path):
    assert clean(tmp_path / "none", max_gib=0.0, remove=True)["entries"] == []


def test_a_vocabulary_s_outputs_and_a_data_set_of_the_hub_are_known(cache):
    """The largest that there are."""
    held = {str(entry.path.relative_to(cache)): entry.kind for entry in entries(cache)}
    for name in (HIDDEN + ".f16", CLASSES + ".i32", LIKELIEST + ".f32", ".cost.json.77"):
        (cache / "teacher" / KEY / name).write_bytes(b"1")
    for name in (
        f"teacher/.removed-{KEY}-77/hidden.f16",
        f"assistant-a1b2c3d_/{KEY}/hidden.f16",
        "data/ann___mine/default/x",
    ):
        (cache / name).parent.mkdir(parents=True)
        (cache / name).write_bytes(b"1")
    assert {str(entry.path.relative_to(cache)): entry.kind for entry in entries(cache)} == held | {
        f"teacher/.removed-{KEY}-77": LEFT_OVER,
        "assistant-a1b2c3d_": LEFT_OVER,
        "data/ann___mine/default": ROWS,
    }


def test_damage_is_seen(cache):
    (cache / "teacher" / KEY / "cost.json").write_text("{")
    age(cache / "teacher" / KEY, 1)
    (entry,) = [entry for entry in entries(cache) if entry.kind == TEACHER]
    assert entry.damage == "not valid JSON"
    assert entry.abandoned
    json.loads((cache / "ranking" / f"{KEY}.json").read_text())
