"""What goes wrong, what the user sees of it, and that the same call then ends as if it had not; docs/reliability.md.

The table is made of what happened here, and compared with the committed one. To write it anew:
AUTODISC_WRITE_DOCS=1 pytest tests/test_reliability.py
"""

from __future__ import annotations

import errno
import itertools
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from autodisc import api
from autodisc.errors import AutodiscError
from autodisc.models.checkpoints import load, load_model, load_tokenizer, save_model
from autodisc.models.losses import label_loss
from autodisc.reporting.records import read_records
from autodisc.tasks.splits import IGNORED

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
    head, _, _ = DOCS.read_text(encoding="utf-8").rpartition(FIRST)
    if os.environ.get("AUTODISC_WRITE_DOCS"):
        DOCS.write_text(head + FIRST + lines, encoding="utf-8")
    if len(rows) == ROWS:  # all of them were run
        assert DOCS.read_text(encoding="utf-8") == head + FIRST + lines


def shown(text: str, *folders: Path) -> str:
    """A message as the table has it: the same wherever and whenever it is made."""
    for folder, name in zip(folders, ("DIR", "CACHE", "TEACHER"), strict=False):
        text = text.replace(str(folder), name)
    text = re.sub(r"(?<![0-9a-z])[0-9a-f]{16,}(?![0-9a-z])", "…", text)
    text = re.sub(r"line \d+, column", "line …, column", text)  # of a configuration that gains settings
    text = re.sub(r"line \d+ column \d+ \(char \d\d+\)", "line …", text)
    return " ".join(text.split()).replace("|", "\\|")


def files(folder: Path) -> dict[Path, bytes]:
    """All but the journal, in which opening a study closes the trials of the run that was stopped."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.suffix != ".log"}


def chosen(result: dict[str, Any]) -> list[Any]:
    return [result["best"]["sparsity"], *((row["sparsity"], row["metric"]) for row in result["trials"])]


# What lies in a study that was stopped in its trials: damaged, it is named.
NAMED = {
    "settings of the study": "config.yaml",
    "fingerprints of the study": "made_of.json",
    "ledger": "ledger.json",
    "order of the units": "ranking.json",
    "supernet's weights": "supernet/model.safetensors",
    "supernet's configuration": "supernet/config.json",
    "supernet's code": "supernet/modeling_autodisc.py",
}
# What it is able to do without.
SPARED = {
    "journal of the trials": "journal.log",
    "state of the recovery": "unfinished/recovery.safetensors",
    "curves of what is unfinished": "unfinished/curves.json",
}
# What a new study finds in the cache.
CACHED = {
    "data set as read": "data/csv/*/*/*.arrow",
    "data set's description": "data/csv/*/*/dataset_info.json",
    "tokens": "data/tokenised/*.arrow",
    "order of the units in the cache": "ranking/*.json",
    "teacher outputs: which are there": "teacher/*/filled.u8",
    "teacher outputs: hidden states": "teacher/*/hidden.f16",
    "teacher outputs: logits": "teacher/*/logits.f32",
    "teacher outputs: cost": "teacher/*/cost.json",
}
# What a search, a distillation and a fine-tuning leave when they are done, and what opens it.
FINISHED = {
    "record": ("records/distill-*.json", lambda out: read_records([out])),
    "student's weights": ("distilled-1/student/model.safetensors", lambda out: load(out / "distilled-1/student")),
    "student's configuration": ("distilled-1/student/config.json", lambda out: load(out / "distilled-1/student")),
    "student's code": ("distilled-1/student/layouts_autodisc.py", lambda out: load(out / "distilled-1/student")),
    "student's tokenizer": (
        "distilled-1/student/tokenizer.json",
        lambda out: load_tokenizer(out / "distilled-1/student"),
    ),
    "teacher's weights": ("teacher/model.safetensors", lambda out: load(out / "teacher")),
    "teacher's configuration": ("teacher/config.json", lambda out: load(out / "teacher")),
    "teacher's tokenizer": ("teacher/tokenizer.json", lambda out: load_tokenizer(out / "teacher")),
}
DIGESTED = ("supernet's weights", "supernet's code", "student's weights", "student's code", "student's tokenizer")


def halve(path: Path) -> None:
    """A configuration within one of its lines, which one does not change when it gains settings."""
    whole = path.read_bytes()
    os.truncate(path, whole.index(b"\nstudent_sparsity") + 8 if path.suffix == ".yaml" else len(whole) // 2)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def flip(path: Path) -> None:
    """One bit of the last byte but a hundred."""
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], None]] = {"cut off": halve, "empty": empty, "a bit of it flipped": flip}


def damages(kinds: Iterable[str]) -> list[tuple[str, str]]:
    """By kind of file and of damage: a bit is flipped where a digest would tell."""
    return [(kind, how) for kind in kinds for how in DAMAGES if how != "a bit of it flipped" or kind in DIGESTED]


@pytest.mark.parametrize(("what", "how"), damages(NAMED))
def test_a_damaged_file_of_a_study_is_named_and_nothing_is_changed(what, how, stopped, tmp_path, table):
    out = tmp_path / "study"
    shutil.copytree(stopped.out, out)
    victim = out / NAMED[what]
    DAMAGES[how](victim)
    before = files(out)
    with pytest.raises(AutodiscError) as caught:
        api.search(stopped.settings, out)
    assert caught.value.exit_code == 2
    assert str(victim.parent) in str(caught.value)
    assert before == files(out)
    table[f"{what}: {how}"] = (shown(str(caught.value), out), REFUSED)


@pytest.mark.parametrize("how", ["cut off", "empty"])
@pytest.mark.parametrize("what", SPARED)
def test_a_study_does_without_what_it_can_make_again(what, how, stopped, searched, config, tmp_path, table):
    out = tmp_path / "study"
    shutil.copytree(stopped.out, out)
    DAMAGES[how](out / SPARED[what])
    assert chosen(api.search(stopped.settings, out)) == chosen(api.search(config(), searched))
    table[f"{what}: {how}"] = ("nothing", MADE_AGAIN)


@pytest.mark.parametrize("how", ["cut off", "empty"])
def test_a_cache_whose_files_are_all_damaged_is_made_again(how, stopped, searched, config, tmp_path, table):
    cache = tmp_path / "cache"
    shutil.copytree(stopped.cache, cache)
    for pattern in CACHED.values():
        victims = list(cache.glob(pattern))
        assert victims, pattern
        for victim in victims:
            DAMAGES[how](victim)
    settings = stopped.settings.model_copy(update={"cache": stopped.settings.cache.model_copy(update={"dir": cache})})
    assert chosen(api.search(settings, tmp_path / "study")) == chosen(api.search(config(), searched))
    for what in CACHED:
        table[f"{what}: {how}"] = ("nothing", MADE_AGAIN)


@pytest.mark.parametrize("what", [kind for kind in CACHED if kind.startswith("teacher outputs")])
def test_one_of_the_files_of_the_teachers_outputs_that_was_cut_off_is_made_again(
    what, stopped, searched, config, tmp_path
):
    cache = tmp_path / "cache"
    shutil.copytree(stopped.cache, cache)
    halve(sorted(cache.glob(CACHED[what]))[0])
    settings = stopped.settings.model_copy(update={"cache": stopped.settings.cache.model_copy(update={"dir": cache})})
    assert chosen(api.search(settings, tmp_path / "study")) == chosen(api.search(config(), searched))


@pytest.fixture(scope="module")
def finished(searched, furnished, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("finished") / "study"
    shutil.copytree(searched, out)
    api.distill(out)
    shutil.copytree(furnished / "teacher", out / "teacher")
    return out


@pytest.mark.parametrize(("what", "how"), damages(FINISHED))
def test_a_damaged_result_is_named_when_it_is_opened(what, how, finished, tmp_path, table):
    out = tmp_path / "study"
    shutil.copytree(finished, out)
    pattern, opened = FINISHED[what]
    (victim,) = out.glob(pattern)
    DAMAGES[how](victim)
    with pytest.raises(AutodiscError) as caught:
        opened(out)
    assert caught.value.exit_code == 2
    assert str(victim.parent) in str(caught.value)
    line = re.sub(r"-\d{8}T[\d.]+Z", "-…", shown(str(caught.value), out))
    table[f"{what}: {how}"] = (line, REFUSED)


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
    for scorer, criterion in (("recovered", "first-order"), ("pruned", "fisher"), ("recovered", "magnitude")):
        search = config(search={"scorer": scorer, "importance": {"criterion": criterion}}).search
        with pytest.raises(AutodiscError) as caught:
            api.search(settings.model_copy(update={"search": search}), tmp_path / criterion)
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

    real, seen = sandwich.mean_loss, {"calls": 0, "bad": 0}

    def loss(*arguments: Any, **named: Any) -> torch.Tensor:
        seen["calls"] += 1
        value = real(*arguments, **named)
        if seen["calls"] > 7 and seen["bad"] < times:
            seen["bad"] += 1
            return value * float("nan")
        return value

    monkeypatch.setattr(sandwich, "mean_loss", loss)
    return seen


def not_finite(
    monkeypatch: pytest.MonkeyPatch, module: Any, name: str, spoil: Callable[[Any], Any], *, call: int
) -> None:
    """The result of the ``call``-th call of ``module.name`` is spoilt."""
    real, calls = getattr(module, name), itertools.count(1)

    def spoilt(*arguments: Any, **named: Any) -> Any:
        found = real(*arguments, **named)
        return spoil(found) if next(calls) == call else found

    monkeypatch.setattr(module, name, spoilt)


def without_gradient(loss: torch.Tensor) -> torch.Tensor:
    """The same loss, whose gradient is NaN: 0 times the infinite slope of a root at 0."""
    return loss + (loss * 0).sqrt()


def test_a_gradient_that_is_nan_once_sends_a_recovery_back(config, tmp_path, table, monkeypatch, make_listener):
    from autodisc.distillation import sandwich

    not_finite(monkeypatch, sandwich, "mean_loss", without_gradient, call=8)
    listener = make_listener()
    found = api.search(config(runtime={"checkpoint_minutes": 0}), tmp_path / "study", progress=listener)
    (said,) = (text for text in listener.said if "gradient" in text)
    assert "lr of recovery" in found["cost"]["decisions"]
    table["one gradient of a recovery is NaN"] = (shown(said), "recorded; the search goes on")


def test_an_importance_that_is_nan_is_named_before_anything_is_ranked(config, tmp_path, table, monkeypatch):
    from autodisc.pruning import importance

    not_finite(monkeypatch, importance, "label_loss", without_gradient, call=1)
    settings = config(cache={"dir": str(tmp_path / "cache")})
    with pytest.raises(AutodiscError, match="importance: a gradient is not finite") as caught:
        api.search(settings, tmp_path / "study")
    assert not list((tmp_path / "cache").glob("ranking/*.json"))
    table["a gradient of the importance is NaN"] = (shown(str(caught.value)), GOES_ON)


def test_logits_of_the_teacher_that_are_nan_are_never_kept(config, searched, tmp_path, table, monkeypatch):
    from autodisc.distillation.teacher_cache import TeacherCache

    settings, real = config(cache={"dir": str(tmp_path / "cache")}), TeacherCache._compute

    def spoilt(self: TeacherCache, batch: Any) -> Any:
        def spoil(_: Any, __: Any, out: Any) -> None:
            out.logits[0, 0] = float("nan")

        handle = self.teacher.register_forward_hook(spoil)
        try:
            return real(self, batch)
        finally:
            handle.remove()

    with monkeypatch.context() as patch:
        patch.setattr(TeacherCache, "_compute", spoilt)
        with pytest.raises(AutodiscError, match="teacher outputs: a number") as caught:
            api.search(settings, tmp_path / "study")
    assert chosen(api.search(settings, tmp_path / "study")) == chosen(api.search(config(), searched))
    table["a logit of the teacher is NaN"] = (shown(str(caught.value)), GOES_ON)


def test_a_candidate_whose_logits_are_nan_fails_alone(config, tmp_path, table, monkeypatch):
    from autodisc.search import evaluation

    not_finite(monkeypatch, evaluation, "forward", lambda logits: logits * float("nan"), call=2)
    found = api.search(config(), tmp_path / "study")
    assert sorted(row["state"] for row in found["trials"]) == ["COMPLETE", "COMPLETE", "FAIL"]
    (reason,) = (row["error"] for row in found["trials"] if row["state"] == "FAIL")
    table["a logit of a candidate is NaN, and so its metric"] = (shown(reason), "that trial fails; the study goes on")


def test_a_batch_without_a_label_adds_nothing_and_is_not_nan(table):
    """A mean over no tokens would be NaN; the loss is a sum over what a whole batch is expected to hold."""
    logits, labels = torch.randn(2, 5, 3, requires_grad=True), torch.full((2, 5), IGNORED)
    loss = label_loss(logits, labels, 4.0)
    loss.backward()
    assert loss.item() == 0.0
    assert logits.grad is not None
    assert not logits.grad.any()
    table["a batch in which nothing is labelled"] = ("nothing", "it adds nothing; the training goes on")


def test_short_memory_is_said_once_and_the_training_goes_on(config, tmp_path, table, monkeypatch, make_listener):
    from autodisc.distillation import sandwich

    real = sandwich.mean_loss

    def loss(logits: torch.Tensor, *arguments: Any, **named: Any) -> torch.Tensor:
        if len(logits) > 20:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you")
        return real(logits, *arguments, **named)

    monkeypatch.setattr(sandwich, "mean_loss", loss)
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


ROWS = (
    len(damages(NAMED)) + len(damages(FINISHED)) + 2 * (len(SPARED) + len(CACHED)) + len(WRITES) + 4 + 9
)  # two of each teacher; loss twice, gradient, importance, logits twice, no label, memory, folder
