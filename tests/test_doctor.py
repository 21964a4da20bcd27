from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest
import torch

from autodisc import doctor
from autodisc.cli import main


@pytest.fixture
def examine(tmp_path) -> Callable[..., dict[str, dict]]:
    """The findings by name, of a cache of our own."""

    def call(**options) -> dict[str, dict]:
        result = doctor.examine(cache=tmp_path / "cache", **options)
        found = {finding["name"]: finding for finding in result["findings"]}
        assert result["broken"] == any(finding["state"] == "broken" for finding in result["findings"])
        return found

    return call


def test_a_machine_that_runs_this_suite_is_fit(examine):
    found = examine()
    assert not [finding for finding in found.values() if finding["state"] == "broken"]
    assert metadata.version("torch") in found["torch"]["said"]
    assert {"python", "optuna", "cpu", "memory", "working folder", "cache folder", "cache"} <= found.keys()
    assert f"{torch.get_num_threads()} threads" in found["cpu"]["said"]


def test_what_is_missing_or_too_old_is_broken_and_says_what_to_install(examine, monkeypatch):
    monkeypatch.setattr(metadata, "requires", lambda _: ["nothing-of-the-kind>=1.0", "torch>=99", "numpy>=1.0"])
    found = examine()
    assert found["nothing-of-the-kind"]["state"] == "broken"
    assert "pip install 'nothing-of-the-kind>=1.0'" in found["nothing-of-the-kind"]["way_out"]
    assert found["torch"]["state"] == "broken"
    assert "not >=99" in found["torch"]["said"]
    assert found["numpy"]["state"] == "good"


def test_every_extra_for_users_is_looked_at():
    project = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    listed = project.partition("[project.optional-dependencies]\n")[2].partition("\n[")[0]
    offered = set(re.findall(r"^([a-z]+) = ", listed, re.MULTILINE))
    assert set(doctor.FOR) == offered - {"test", "browser", "docs", "style", "services"}


def test_an_extra_that_is_missing_is_only_worth_knowing(examine, monkeypatch):
    listed = ['nothing-of-the-kind>=1.0; extra == "ray"', 'numpy>=1.0; extra == "onnx"']
    monkeypatch.setattr(metadata, "requires", lambda _: listed)
    found = examine()
    assert found["extra ray"]["state"] == "note"
    assert "pip install 'autodisc[ray]' for --backend ray" in found["extra ray"]["way_out"]
    assert found["extra onnx"]["state"] == "good"


def test_a_storage_is_reached_or_broken_and_a_journal_is_not_made_by_looking(examine, searched, tmp_path):
    assert "1 studies: study-mine" in examine(storage=str(searched / "journal.log"))["storage"]["said"]
    assert "can be made" in examine(storage=str(tmp_path / "new.log"))["storage"]["said"]
    assert not (tmp_path / "new.log").exists()
    assert examine(storage=str(tmp_path / "no" / "folder.log"))["storage"]["state"] == "broken"
    assert examine(storage="nosql://ann:hunter2@x/y")["storage"]["state"] == "broken"
    assert "hunter2" not in json.dumps(examine(storage="nosql://ann:hunter2@x/y"))


def test_a_folder_that_cannot_be_written_to_is_broken(tmp_path, monkeypatch, examine):
    def refuse(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(doctor.tempfile, "TemporaryFile", refuse)
    found = examine()
    assert found["cache folder"]["state"] == "broken"
    assert "Permission denied" in found["cache folder"]["said"]


def test_what_is_damaged_in_the_cache_is_named(examine, tmp_path):
    import os

    path = tmp_path / "cache" / "ranking" / f"{'0' * 32}.json"
    path.parent.mkdir(parents=True)
    path.write_text("{")
    os.utime(path, (time.time() - 86400,) * 2)
    assert "not valid JSON" in examine()["cache"]["said"]


def test_the_command_exits_with_1_where_something_is_broken(capsys, tmp_path):
    assert main(["doctor", "--json", "--cache-dir", str(tmp_path)]) == 0
    assert json.loads(capsys.readouterr().out)["broken"] is False
    assert main(["doctor", "--cache-dir", str(tmp_path), "--storage", str(tmp_path / "no" / "x.log")]) == 1
    assert "1 broken" in capsys.readouterr().out


def test_clean_lists_and_removes_only_with_yes(capsys, tmp_path):
    path = tmp_path / "ranking" / f"{'0' * 32}.json"
    path.parent.mkdir()
    path.write_text("{}")
    assert main(["clean", "--cache-dir", str(tmp_path), "--max-gib", "0"]) == 0
    assert "to be removed with --yes: 1 entries" in capsys.readouterr().out
    assert path.exists()
    assert main(["clean", "--cache-dir", str(tmp_path), "--max-gib", "0", "--yes", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["removed"] is True
    assert not path.exists()
