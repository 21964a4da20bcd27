"""What goes wrong, what the user sees of it, and that the same call then ends as if it had not; docs/reliability.md.

The table is made of what happened here, and compared with the committed one. To write it anew:
AUTODISC_WRITE_DOCS=1 pytest tests/test_reliability.py
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from autodisc import api
from autodisc.errors import AutodiscError
from autodisc.models.checkpoints import load_model, load_tokenizer, save_model

DOCS = Path(__file__).parents[1] / "docs" / "reliability.md"
FIRST = "|---|---|---|\n"
GOES_ON, REFUSED, MADE_AGAIN = "the same command goes on", "nothing is changed", "made again; nothing is said"


@dataclass(frozen=True)
class Stopped:
    """A study that was stopped in its trials, with all that it had kept by then."""

    out: Path
    cache: Path
    settings: Any


@pytest.fixture(scope="module")
def stopped(config, make_listener, tmp_path_factory) -> Stopped:
    home = tmp_path_factory.mktemp("stopped")
    settings = config(cache={"dir": str(home / "cache")}, runtime={"checkpoint_minutes": 0})
    with pytest.raises(KeyboardInterrupt):
        api.search(settings, home / "study", progress=make_listener("trials", after=2))
    return Stopped(home / "study", home / "cache", settings)


@pytest.fixture(scope="module")
def table() -> Iterator[dict[str, tuple[str, str]]]:
    """By what was injected, what the user saw and what became of the work; compared when all have added theirs."""
    rows: dict[str, tuple[str, str]] = {}
    yield rows
    lines = "".join(f"| {fault} | {saw} | {then} |\n" for fault, (saw, then) in rows.items())
    head, _, _ = DOCS.read_text(encoding="utf-8").partition(FIRST)
    if os.environ.get("AUTODISC_WRITE_DOCS"):
        DOCS.write_text(head + FIRST + lines, encoding="utf-8")
    if len(rows) == ROWS:  # all of them were run
        assert DOCS.read_text(encoding="utf-8") == head + FIRST + lines


def shown(text: str, *folders: Path) -> str:
    """A message as the table has it: the same wherever and whenever it is made."""
    for folder, name in zip(folders, ("DIR", "CACHE", "TEACHER"), strict=False):
        text = text.replace(str(folder), name)
    text = re.sub(r"\b[0-9a-f]{16,}\b", "…", text)
    return " ".join(text.split()).replace("|", "\\|")


def files(folder: Path) -> dict[Path, bytes]:
    """All but the journal, in which opening a study closes the trials of the run that was stopped."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.suffix != ".log"}


def only(folder: Path, pattern: str) -> Path:
    return sorted(folder.rglob(pattern))[0]


def chosen(result: dict[str, Any]) -> list[Any]:
    return [result["best"]["sparsity"], *((row["sparsity"], row["metric"]) for row in result["trials"])]


NAMED: dict[str, Callable[[Path], Path]] = {
    "settings of the study": lambda out: out / "config.yaml",
    "fingerprints of the study": lambda out: out / "made_of.json",
    "ledger": lambda out: out / "ledger.json",
    "order of the units": lambda out: out / "ranking.json",
    "supernet's weights": lambda out: out / "supernet" / "model.safetensors",
}
MADE: dict[str, Callable[[Path], Path]] = {
    "order of the units in the cache": lambda cache: only(cache / "ranking", "*.json"),
    "teacher outputs: hidden states": lambda cache: only(cache / "teacher", "hidden.f16"),
    "teacher outputs: logits": lambda cache: only(cache / "teacher", "logits.f32"),
    "teacher outputs: cost": lambda cache: only(cache / "teacher", "cost.json"),
}


@pytest.mark.parametrize("what", NAMED)
def test_a_file_of_a_study_that_was_cut_off_is_named_and_nothing_is_changed(what, stopped, tmp_path, table):
    out = tmp_path / "study"
    shutil.copytree(stopped.out, out)
    victim = NAMED[what](out)
    os.truncate(victim, victim.stat().st_size // 2)
    before = files(out)
    with pytest.raises(AutodiscError) as caught:
        api.search(stopped.settings, out)
    assert caught.value.exit_code == 2
    assert str(victim.parent) in str(caught.value)
    assert before == files(out)
    table[f"{what} cut off"] = (shown(str(caught.value), out), REFUSED)


@pytest.mark.parametrize("what", MADE)
def test_a_file_of_the_cache_that_was_cut_off_is_made_again(what, stopped, searched, config, tmp_path, table):
    out, cache = tmp_path / "study", tmp_path / "cache"
    shutil.copytree(stopped.cache, cache)
    settings = stopped.settings.model_copy(update={"cache": stopped.settings.cache.model_copy(update={"dir": cache})})
    victim = MADE[what](cache)
    os.truncate(victim, victim.stat().st_size // 2)
    assert chosen(api.search(settings, out)) == chosen(api.search(config(), searched))
    table[f"{what} cut off"] = ("nothing", MADE_AGAIN)


WRITES = {
    "a full disk": ("fsync", errno.ENOSPC),
    "a disk that fails": ("fsync", errno.EIO),
    "a disk that became read-only": ("replace", errno.EROFS),
}


@pytest.mark.parametrize("what", WRITES)
def test_a_write_that_fails_is_one_line_and_the_same_call_goes_on(what, config, searched, tmp_path, table, monkeypatch):
    name, number = WRITES[what]
    out, real, calls = tmp_path / "study", getattr(os, name), []

    def fail(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 12:
            raise OSError(number, os.strerror(number))
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(os, name, fail)
        with pytest.raises(AutodiscError, match="cannot be written") as caught:
            api.search(config(runtime={"checkpoint_minutes": 0}), out)
    assert not [path for path in out.rglob(".*") if path.is_file()]
    assert chosen(api.search(config(runtime={"checkpoint_minutes": 0}), out)) == chosen(api.search(config(), searched))
    table[f"{what}, in the middle of a search"] = (shown(str(caught.value), out), GOES_ON)


def spoilt(teacher: Path, made: Path, what: str) -> None:
    model, tokenizer = load_model(teacher), load_tokenizer(teacher)
    with torch.no_grad():
        model.bert.encoder.layer[0].output.dense.weight[0, 0] = {"NaN": float("nan"), "infinite": float("inf")}[what]
    save_model(model, tokenizer, made)


@pytest.mark.parametrize("what", ["NaN", "infinite"])
def test_a_teacher_with_a_weight_that_is_not_finite_is_named(what, config, furnished, tmp_path, table):
    spoilt(furnished / "teacher", tmp_path / "teacher", what)
    settings = config(teacher={"model": str(tmp_path / "teacher")})
    for scorer, criterion in (("recovered", "first-order"), ("pruned", "fisher")):
        with pytest.raises(AutodiscError) as caught:
            api.search(
                settings.model_copy(update={"search": config(search={"scorer": scorer}).search}), tmp_path / scorer
            )
        assert "importance" in str(caught.value)
        table[f"a weight of the teacher is {what} (criterion {criterion})"] = (shown(str(caught.value)), "ends")


def test_a_recovery_whose_loss_is_nan_once_goes_on_at_half_the_rate(
    config, tmp_path, table, monkeypatch, make_listener
):
    losses = lose_once(monkeypatch)
    listener = make_listener()
    found = api.search(config(runtime={"checkpoint_minutes": 0}), tmp_path / "study", progress=listener)
    assert losses["bad"] == 1
    (said,) = (text for text in listener.said if "loss" in text)
    assert "lr of recovery" in found["cost"]["decisions"]
    table["one loss of a recovery is NaN"] = (shown(said), "recorded; the search goes on")


def test_a_recovery_whose_loss_stays_nan_ends_in_one_line(config, tmp_path, table, monkeypatch):
    lose_once(monkeypatch, times=99)
    with pytest.raises(AutodiscError, match="recovery: the loss is nan") as caught:
        api.search(config(runtime={"checkpoint_minutes": 0}), tmp_path / "study")
    table["every loss of a recovery is NaN"] = (shown(str(caught.value)), "ends; a trial alone, the study goes on")


def lose_once(monkeypatch: pytest.MonkeyPatch, *, times: int = 1) -> dict[str, int]:
    from autodisc.distillation import sandwich

    real, seen = sandwich.distillation_loss, {"calls": 0, "bad": 0}

    def loss(*arguments: Any, **named: Any) -> torch.Tensor:
        seen["calls"] += 1
        value = real(*arguments, **named)
        if seen["calls"] > 7 and seen["bad"] < times:
            seen["bad"] += 1
            return value * float("nan")
        return value

    monkeypatch.setattr(sandwich, "distillation_loss", loss)
    return seen


def test_short_memory_is_said_once_and_the_training_goes_on(config, tmp_path, table, monkeypatch, make_listener):
    from autodisc.distillation import sandwich

    real = sandwich.distillation_loss

    def loss(logits: torch.Tensor, *arguments: Any, **named: Any) -> torch.Tensor:
        if len(logits) > 20:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you")
        return real(logits, *arguments, **named)

    monkeypatch.setattr(sandwich, "distillation_loss", loss)
    listener = make_listener()
    found = api.search(config(), tmp_path / "study", progress=listener)
    said = [text for text in listener.said if "memory" in text]
    assert 1 <= len(said) <= 2
    assert "micro-batches of recovery" in found["cost"]["decisions"]
    table["memory is short in a recovery"] = (shown(said[0]), "recorded; the search goes on")


def test_a_folder_that_cannot_be_written_is_refused_before_any_work(config, tmp_path, table, monkeypatch):
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "study"))

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)  # a read-only folder stops nobody who is root
    monkeypatch.setattr(api, "open_workspace", None)
    with pytest.raises(AutodiscError, match="Permission denied") as caught:
        api.search(config(), tmp_path / "study")
    assert not (tmp_path / "study").exists()
    table["a folder without permission to write"] = (shown(str(caught.value), tmp_path / "study"), "nothing was begun")


ROWS = len(NAMED) + len(MADE) + len(WRITES) + 4 + 4  # two of each teacher; loss twice, memory, folder
