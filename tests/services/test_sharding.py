"""Two processes (gloo, CPU) that hold shards of what they train end with what one process trains."""

from __future__ import annotations

import copy
import itertools
import json
import os
import pickle
import socket
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from accelerate import Accelerator
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.testing import assert_close

from autodisc.config import DistillationConfig, FinetuneConfig, RecoveryConfig, make_config
from autodisc.costs import Ledger
from autodisc.distillation.checkpointing import Keeping, States
from autodisc.distillation.finetuning import finetune_classifier
from autodisc.distillation.launching import check_launched, check_options, micro_batches
from autodisc.distillation.schedule import Workshop, distill_sandwich, recover
from autodisc.distillation.sharding import sharded
from autodisc.distillation.training import Term, TrainingSettings, train
from autodisc.errors import ConfigError, StudyError
from autodisc.models.checkpoints import fingerprint
from autodisc.models.inference import predict
from autodisc.pruning.candidates import Candidate
from autodisc.pruning.supernet import Supernet, extract
from autodisc.search.workers import opened, packed
from autodisc.tasks.batches import batches

pytestmark = pytest.mark.timeout(900)  # processes, beside those of other tests
PROCESSES = 2
FAMILIES = ("bert", "llama", "t5")  # written out; tied, of groups; a bias of all layers
CHAIN = (
    Candidate(0.25, (3, 3, 3), (24, 24, 24)),
    Candidate(0.5, (3, 1, 2), (16, 8, 24)),
    Candidate(0.75, (1, 0, 2), (8, 16, 0)),  # a layer without heads, one without neurons
)
SETTINGS = DistillationConfig(epochs=1, student_epochs=1, batch_size=8, lr=1e-3, accumulation=2)
ENVIRONMENT = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "WORLD_SIZE": str(PROCESSES)}


class Stopping:
    """A progress that interrupts after so many steps of a stage."""

    def __init__(self, stage: str = "", after: int = 0) -> None:
        self.name, self.left, self.said = stage, after, []

    def stage(self, name: str, total: int | None):
        import contextlib

        @contextlib.contextmanager
        def bar():
            yield _Bar(self, name)

        return bar()

    def say(self, text: str) -> None:
        self.said.append(text)

    def spending(self, cost) -> None:
        pass


class _Bar:
    def __init__(self, stopping: Stopping, name: str) -> None:
        self.stopping, self.name = stopping, name

    def advance(self, steps: int = 1) -> None:
        if self.name == self.stopping.name and steps:
            self.stopping.left -= steps
            if self.stopping.left == 0:
                raise KeyboardInterrupt

    def note(self, text: str) -> None:
        pass


def hooks_of(model) -> list[str]:
    kinds = [name for name in vars(model) if name.endswith("_hooks")]
    return [
        f"{name} {kind} {getattr(hook, 'hook', hook)}"
        for name, module in model.named_modules()
        for kind in kinds
        for hook in vars(module)[kind].values()
    ]


def weights(model) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def whole_study(model, ranking, workshop: Workshop, settings: DistillationConfig = SETTINGS) -> dict:
    """Recovery and both phases."""
    with workshop.teacher(model, settings) as outputs:
        net = recover(
            outputs, ranking, CHAIN, steps=4, recovery=RecoveryConfig(lr=1e-3), distillation=settings, workshop=workshop
        )
    made = distill_sandwich(model, extract(model, ranking, CHAIN[0]), ranking, CHAIN, settings, workshop)
    return {
        "recovered": weights(net.model),
        "assistant": weights(made.assistant.model),
        "student": weights(made.student.model),
        "metrics": (made.assistant.metric, made.student.metric),
        "curves": {stage: [point["loss"] for point in points] for stage, points in workshop.curves.items()},
        "plain": not any(isinstance(module, FSDPModule) for module in net.model.modules()),
        "flops": workshop.ledger.total.flops,
    }


class Sick:
    """Gold labels, of which one step is not a number."""

    def __init__(self, model, row: int) -> None:
        self.model, self.row, self.step = model, row, 0

    def draw(self, generator) -> None:
        self.step += 1

    def terms(self, batch, totals, drawn):
        def loss() -> torch.Tensor:
            said = self.model(**batch.inputs).logits
            value = torch.nn.functional.cross_entropy(said, batch.labels, reduction="sum") / totals.labels
            return value * float("nan") if self.step == 4 and self.row in batch.rows else value

        yield Term("labels", loss)


def sickly(model, task, runtime, states: States) -> tuple[int, int, float]:
    """Steps, halvings of the learning rate, and the part of Adam's first moments that this process holds."""
    settings = TrainingSettings(6, batch_size=16, lr=1e-3, warmup=0.0, weight_decay=0.01, clip=1.0)
    ends = {"ledger": Ledger(), "progress": Stopping(), "states": states, "stage": "sickly"}
    order = runtime.generator("sickly", "order")
    passes = [list(batches(task.train, batch_size=16, pad_token_id=0, generator=order)) for _ in range(2)]
    assert [len(each) for each in passes] == [2, 2]
    row = int(passes[1][1].rows[0])  # of the fourth step: one process's
    state = train(model, Sick(model, row), task.train, settings, task=task, runtime=runtime, **ends)
    moments = [own["exp_avg"] for own in state.optimizer.state_dict()["state"].values()]
    held = sum(own.to_local().numel() if isinstance(own, DTensor) else own.numel() for own in moments)
    return state.step, state.halvings, held / sum(own.numel() for own in moments)


class Squares(Sick):
    """The mean square of a language model's logits."""

    def terms(self, batch, totals, drawn):
        real = batch.inputs["attention_mask"]

        def loss() -> torch.Tensor:
            return (self.model(**batch.inputs).logits.square().mean(-1) * real).sum() / totals.tokens

        yield Term("squares", loss)


def squared(model, task, runtime) -> dict[str, torch.Tensor]:
    """Weights after a training that keeps its first evaluation's, of three."""
    assert model.lm_head.weight is model.model.embed_tokens.weight
    settings = TrainingSettings(10, batch_size=8, lr=1e-3, warmup=0.0, weight_decay=0.01, clip=1.0)
    ends = {"ledger": Ledger(), "progress": Stopping(), "stage": "squares"}
    evaluations = itertools.count()
    state = train(
        model,
        Squares(model, 0),
        task.train,
        settings,
        task=task,
        runtime=runtime,
        evaluate=lambda: -next(evaluations),
        **ends,
    )
    assert state.best_step < 10
    assert model.lm_head.weight is model.model.embed_tokens.weight
    return weights(model)


def kept_in(workshop: Workshop, folder: Path, **others) -> Workshop:
    return replace(workshop, keeping=Keeping(folder, 0.0, folder / "ledger.json"), curves={}, **others)


def in_each(rank: int, folder: Path, port: int) -> None:
    """What each process does; what it found goes to a file."""
    torch.set_num_threads(1)
    os.environ |= {**ENVIRONMENT, "RANK": str(rank), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    given = pickle.loads((folder / "given").read_bytes())
    task, runtime = given["task"], given["runtime"]
    accelerator = Accelerator(cpu=True)
    found: dict = {}

    def workshop(name: str, **others) -> Workshop:
        return Workshop(task, others.pop("runtime", runtime), folder / f"{name}-{rank}", 1.0, **others)

    given["models"] = {family: (opened(sent), ranking) for family, (sent, ranking) in given["models"].items()}
    for family, (model, ranking) in given["models"].items():
        found[family] = whole_study(model, ranking, workshop(family))
    model, ranking = given["models"]["bert"]
    again = replace(runtime, checkpointing=True)
    found["checkpointing"] = whole_study(model, ranking, workshop("checkpointing", runtime=again))

    found["tied"] = squared(opened(given["tied"]), task, runtime)

    # While it lies in shards.
    net = Supernet(extract(model, ranking, CHAIN[0]), ranking)
    before = {name: (type(module), vars(module).keys()) for name, module in net.model.named_modules()}
    hooks = hooks_of(net.model)
    start = weights(net.model)
    total = sum(parameter.numel() for parameter in net.model.parameters())
    with sharded(net.model, accelerator, asked=True) as shards:
        found["held"] = sum(parameter.to_local().numel() for parameter in net.model.parameters()) / total
        with net.active(CHAIN[1]) as active:
            said = predict(active, task.validation, task=task, runtime=runtime)
        assert all(isinstance(parameter, DTensor) for parameter in net.model.parameters())
        (batch,) = list(batches(task.train.select([0, 1, 2]), batch_size=3, pad_token_id=0, generator=None))
        counts = []
        for parts in (1, 2, 3, 8):
            own = list(micro_batches(batch, parts, accelerator, in_step=True))
            rows = [len(micro) for micro, weight in own if weight]
            counts.append((shards.sum(len(own)), shards.sum(sum(rows)), len(own)))
            assert not shards.any(False)
            assert shards.any(rank == 1)
        found["counts"] = counts
        (alone,) = list(batches(task.train.select([5]), batch_size=1, pad_token_id=0, generator=None))
        found["alone"] = [weight for _, weight in micro_batches(alone, 4, accelerator, in_step=True)]
    after = {name: (type(module), vars(module).keys()) for name, module in net.model.named_modules()}
    found["modules as they were"] = before == after
    found["hooks"] = (hooks, hooks_of(net.model))
    found["weights as they were"] = all(torch.equal(start[name], own) for name, own in weights(net.model).items())
    copied = copy.deepcopy(net.model)
    with net.active(CHAIN[1]) as active:
        found["said alike"] = bool((predict(active, task.validation, task=task, runtime=runtime) == said).all())
    with sharded(copied, accelerator, asked=True), sharded(net.model, accelerator, asked=True):  # once more
        pass

    # Stopped, and gone on with; the second process has no file of it.
    space = workshop("stopped")
    for stage in ("recovery", "teacher to assistant", "assistant to student"):
        try:
            stop = Stopping(stage, 3)
            whole_study(model, ranking, kept_in(space, folder / f"unfinished-{rank}", progress=stop))
        except KeyboardInterrupt:
            assert (folder / "unfinished-1" / "recovery.safetensors").exists() is False
    found["resumed"] = whole_study(model, ranking, kept_in(space, folder / f"unfinished-{rank}"))
    try:
        whole_study(model, ranking, kept_in(space, folder / f"unfinished-{rank}"), replace_lr(SETTINGS))
    except StudyError as error:
        found["refused"] = str(error)
    dist.barrier()
    if rank == 0:
        (folder / "unfinished-0" / "recovery.safetensors").write_bytes(b"damaged")
    dist.barrier()
    listening = Stopping()
    space = kept_in(space, folder / f"unfinished-{rank}", progress=listening)
    with space.teacher(model, SETTINGS) as outputs:
        options = {"recovery": RecoveryConfig(lr=1e-3), "distillation": SETTINGS, "workshop": space}
        found["damaged"] = weights(recover(outputs, ranking, CHAIN, steps=4, **options).model)
    found["said"] = listening.said

    # Numbers that are not finite, and arithmetic in bf16.
    for kept in (True, False):
        sick = copy.deepcopy(model)
        path = folder / "sick.safetensors" if kept else None
        found[f"sick {kept}"] = sickly(sick, task, runtime, States(path, minutes=0.0)), weights(sick)
    half = workshop("half", runtime=replace(runtime, precision="bf16"))
    with half.teacher(model, SETTINGS) as outputs:
        recover(
            outputs, ranking, CHAIN, steps=4, recovery=RecoveryConfig(lr=1e-3), distillation=SETTINGS, workshop=half
        )
    found["bf16"] = [point["loss"] for point in half.curves["recovery"]]

    # A state that one process goes on with, see below.
    try:
        stop = Stopping("recovery", 3)
        whole_study(model, ranking, kept_in(workshop("one"), folder / f"for-one-{rank}", progress=stop))
    except KeyboardInterrupt:
        pass

    # A teacher is fine-tuned in shards too.
    teacher = copy.deepcopy(model)
    finetune_classifier(teacher, FinetuneConfig(epochs=1, batch_size=8, lr=1e-3), workshop("finetuning"))
    found["fine-tuned"] = weights(teacher)
    found["teachers"] = {family: fingerprint(model) for family, (model, _) in given["models"].items()}
    (folder / f"found-{rank}").write_bytes(pickle.dumps(found))
    dist.barrier()  # who leaves while the other still talks may abort it
    dist.destroy_process_group()


def replace_lr(settings: DistillationConfig) -> DistillationConfig:
    return settings.model_copy(update={"weight_decay": 0.02})


@pytest.fixture(scope="module")
def given(tiny, random_ranking, make_task, make_runtime) -> dict:
    models = {family: tiny(family, head="sequence") for family in FAMILIES}
    return {
        "task": make_task(30),
        "tied": tiny("llama", head="causal"),
        "runtime": make_runtime(),
        "models": {family: (model, random_ranking(model)) for family, model in models.items()},
    }


@pytest.fixture(scope="module")
def launched(given, tmp_path_factory) -> tuple[Path, list[dict]]:
    """What both processes found."""
    folder = tmp_path_factory.mktemp("launched")
    sent = {family: (packed(model), ranking) for family, (model, ranking) in given["models"].items()}
    (folder / "given").write_bytes(pickle.dumps({**given, "models": sent, "tied": packed(given["tied"])}))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(in_each, (folder, port), nprocs=PROCESSES)
    return folder, [pickle.loads((folder / f"found-{rank}").read_bytes()) for rank in range(PROCESSES)]


@pytest.fixture(scope="module")
def alone(given, tmp_path_factory) -> dict:
    """What one process finds."""
    folder = tmp_path_factory.mktemp("alone")
    return {
        family: whole_study(model, ranking, Workshop(given["task"], given["runtime"], folder / family, 1.0))
        for family, (model, ranking) in given["models"].items()
    }


def alike(found: dict, expected: dict) -> None:
    for stage, losses in expected["curves"].items():
        pairs = [(a, b) for a, b in zip(found["curves"][stage], losses, strict=True) if b is not None]
        np.testing.assert_allclose(*zip(*pairs, strict=True), rtol=1e-4)
    assert found["metrics"] == pytest.approx(expected["metrics"], abs=0.05)
    for name in ("recovered", "assistant", "student"):
        same(found[name], expected[name])


def same(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    for key, own in expected.items():
        if not key.endswith(("key.bias", "k.bias", "k_proj.bias")):  # softmax undoes it: Adam steps on noise
            assert_close(found[key], own, rtol=1e-3, atol=2e-3, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize("family", FAMILIES)
def test_recovery_and_both_phases_in_shards_end_with_the_weights_of_one_process(family, launched, alone):
    for found in launched[1]:
        alike(found[family], alone[family])
        assert found[family]["plain"]
        assert found[family]["flops"] > 0


def test_checkpoints_of_activations_change_nothing(launched, alone):
    for found in launched[1]:
        alike(found["checkpointing"], alone["bert"])


def test_embeddings_that_are_tied_to_the_head_are_trained_in_shards(launched, given):
    expected = squared(copy.deepcopy(given["tied"]), given["task"], given["runtime"])
    assert not torch.equal(expected["lm_head.weight"], given["tied"].lm_head.weight)
    for found in launched[1]:
        same(found["tied"], expected)
        assert torch.equal(found["tied"]["lm_head.weight"], found["tied"]["model.embed_tokens.weight"])


def test_a_process_holds_its_share_and_all_say_the_same(launched):
    first, second = launched[1]
    assert first["held"] + second["held"] == pytest.approx(1)
    assert max(first["held"], second["held"]) < 0.6
    assert first["said alike"]
    for family in ("bert", "llama"):
        for name in ("recovered", "student"):
            for key, own in first[family][name].items():
                assert torch.equal(own, second[family][name][key])


def test_what_is_trained_in_shards_shares_no_memory_with_its_teacher(launched, given):
    expected = {family: fingerprint(model) for family, (model, _) in given["models"].items()}
    assert [found["teachers"] for found in launched[1]] == [expected, expected]


def test_modules_are_afterwards_what_they_were(launched):
    for found in launched[1]:
        assert found["modules as they were"]
        assert found["weights as they were"]
        assert found["hooks"][0] == found["hooks"][1]


def test_processes_make_as_many_calls_and_every_row_counts_once(launched):
    first, second = launched[1]
    for (calls, rows, mine), (_, _, theirs) in zip(first["counts"], second["counts"], strict=True):
        assert rows == 3
        assert mine == theirs
        assert calls == 2 * mine
    assert sorted([first["alone"], second["alone"]]) == [[0.0], [1.0]]


def test_what_was_stopped_in_shards_goes_on_to_the_same_bits(launched):
    for found in launched[1]:
        for name in ("recovered", "assistant", "student"):
            for key, own in found["bert"][name].items():
                assert torch.equal(own, found["resumed"][name][key]), key


def test_a_state_in_shards_is_one_file_and_one_process_goes_on_with_it(launched, given, alone, tmp_path):
    folder, _ = launched
    assert (folder / "for-one-0" / "recovery.safetensors").exists()
    assert not (folder / "for-one-1" / "recovery.safetensors").exists()
    model, ranking = given["models"]["bert"]
    workshop = Workshop(given["task"], given["runtime"], tmp_path, 1.0)
    found = whole_study(model, ranking, kept_in(workshop, folder / "for-one-0"))
    alike(found, alone["bert"])


@pytest.mark.parametrize("kept", [True, False])
def test_a_loss_that_is_no_number_in_one_process_sends_all_back_to_the_last_state(launched, given, tmp_path, kept):
    model = copy.deepcopy(given["models"]["bert"][0])
    states = States(tmp_path / "sick.safetensors" if kept else None, minutes=0.0)
    ended = sickly(model, given["task"], given["runtime"], states)
    assert ended == (6, 1, 1.0)
    for found in launched[1]:
        assert found[f"sick {kept}"][0][:2] == ended[:2]
        assert found[f"sick {kept}"][0][2] < 0.6
        same(found[f"sick {kept}"][1], weights(model))


def test_bf16_in_shards_learns_what_fp32_does(launched, alone):
    for found in launched[1]:
        losses = [loss for loss in found["bf16"] if loss is not None]
        expected = [loss for loss in alone["bert"]["curves"]["recovery"] if loss is not None]
        np.testing.assert_allclose(losses, expected, rtol=0.05)


def test_a_state_that_is_another_trainings_is_refused_and_a_damaged_one_said(launched):
    for found in launched[1]:
        assert "a training was stopped here that was made of something else (" in found["refused"]
        assert [text for text in found["said"] if "is damaged" in text]
        same(found["damaged"], found["bert"]["recovered"])


def test_a_teacher_is_finetuned_in_shards_as_by_one_process(launched, given, tmp_path):
    teacher = copy.deepcopy(given["models"]["bert"][0])
    workshop = Workshop(given["task"], given["runtime"], tmp_path, 1.0)
    finetune_classifier(teacher, FinetuneConfig(epochs=1, batch_size=8, lr=1e-3), workshop)
    assert launched[1][0]["fine-tuned"].keys() == weights(teacher).keys()


@pytest.mark.parametrize(
    ("variable", "value", "pattern"),
    [
        ("FSDP_VERSION", "1", "fsdp_version=1; give --fsdp_version 2"),
        ("FSDP_OFFLOAD_PARAMS", "true", "fsdp_offload_params=true; leave"),
        ("FSDP_ACTIVATION_CHECKPOINTING", "true", "fsdp_activation_checkpointing=true; .*runtime.checkpointing"),
    ],
)
def test_what_fsdp_offers_and_is_not_done_is_refused_in_one_line(monkeypatch, variable, value, pattern):
    for name, set_to in {**ENVIRONMENT, variable: value}.items():
        monkeypatch.setenv(name, set_to)
    with pytest.raises(ConfigError, match=f"^accelerate launch: got FSDP with {pattern}"):
        check_options()


@pytest.mark.parametrize(
    ("settings", "pattern"),
    [
        ({"student_model": "other"}, r"student_model"),
        ({"teacher": {"model": "m", "device_map": "auto"}}, r"^teacher\.device_map: got 'auto', but each"),
        ({"teacher": {"model": "m", "device_map": {"": 0}}}, r"^teacher\.device_map: got '0', but each"),
    ],
)
def test_what_launched_processes_cannot_do_is_refused_in_one_line(monkeypatch, settings, pattern):
    for name, set_to in ENVIRONMENT.items():
        monkeypatch.setenv(name, set_to)
    values = {"task": {"name": "mrpc"}, "teacher": {"model": "m"}, **settings}
    with pytest.raises(ConfigError, match=pattern):
        check_launched(make_config(values))
    spread = {"task": {"name": "mrpc"}, "teacher": {"model": "m", "device_map": {"": "disk"}}}
    check_launched(make_config(spread))
    assert json.dumps(States()._made_of)
