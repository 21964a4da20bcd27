"""What trackers are told, read back from TensorBoard's files; MLflow and Weights & Biases where they are installed."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import yaml
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker
from accelerate.utils import LoggerType

from autodisc import api
from autodisc.config import TrackerName, flatten
from autodisc.costs import Cost, Ledger
from autodisc.distillation.tracking import Told, check_installed, hyperparameters, tracking
from autodisc.errors import ConfigError
from autodisc.runtime import Runtime

RUNTIME = Runtime(torch.device("cpu"), "fp32", 1, 0)
needs_tensorboard = pytest.mark.skipif(
    importlib.util.find_spec("tensorboard") is None, reason="pip install 'autodisc[tensorboard]'"
)


class Recorder(GeneralTracker):
    """accelerate's own kind of tracker, in memory."""

    name, requires_logging_directory, tracker = "recorder", False, None

    def __init__(self, name: str = "recorder", *, fails: bool = False) -> None:
        self.name, self.fails = name, fails
        self.logged: list[tuple[dict[str, float], int | None]] = []
        self.finished = False

    def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
        if self.fails:
            raise ConnectionError("the server is\naway")
        self.logged.append((values, step))

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        pass

    def finish(self) -> None:
        self.finished = True


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """(step, value) by name, from the event files of one run."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder))
    read.Reload()
    return {tag: [(event.step, event.value) for event in read.Scalars(tag)] for tag in read.Tags()["scalars"]}


def only_record(out: Path) -> dict[str, Any]:
    (path,) = (out / "records").glob("*.json")
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def tracked(config, tmp_path_factory) -> Path:
    """A search that TensorBoard was told of."""
    pytest.importorskip("tensorboard", reason="pip install 'autodisc[tensorboard]'")
    out = tmp_path_factory.mktemp("tracked") / "study"
    api.search(config(name="mine", runtime={"trackers": ["tensorboard"]}), out)
    return out


def test_tensorboard_holds_the_recorded_curve_with_its_learning_rates(tracked):
    told = scalars(tracked / "tracking" / "mine")
    curve = only_record(tracked)["curves"]["recovery"]
    assert told["recovery/loss"] == [(p["step"], pytest.approx(p["loss"])) for p in curve]
    rates = [value for _, value in told["recovery/lr"]]
    assert max(rates) == pytest.approx(3e-3)
    assert rates[-1] == 0.0  # decayed to the end


def test_tensorboard_holds_every_trial_by_its_number(tracked):
    told = scalars(tracked / "tracking" / "mine")
    trials = sorted(only_record(tracked)["result"]["trials"], key=lambda trial: trial["number"])
    for name in ("sparsity", "metric", "tradeoff"):
        assert told[f"trials/{name}"] == [(trial["number"], pytest.approx(trial[name])) for trial in trials]


def test_tensorboard_holds_the_costs_of_the_stages(tracked):
    told = scalars(tracked / "tracking" / "mine")
    stages = json.loads((tracked / "ledger.json").read_text())["stages"]
    assert {"importance", "recovery", "trials"} <= stages.keys()
    for stage, cost in stages.items():
        assert told[f"cost/{stage} FLOPs"] == [(0, pytest.approx(cost["flops"]))]


def test_tensorboard_holds_the_settings(tracked):
    (path,) = (tracked / "tracking").rglob("hparams.yml")
    values = yaml.safe_load(path.read_text())
    assert values["search.lam"] == 0.2
    assert values["search.sparsities"] == "[0.25, 0.5, 0.75]"
    assert values["budget"] == "None"


def test_a_tracked_search_is_the_untracked_one(tracked, searched):
    mine, theirs = ([t["metric"] for t in only_record(out)["result"]["trials"]] for out in (tracked, searched))
    assert mine == theirs
    assert (only_record(tracked)["curves"]) == (only_record(searched)["curves"])


def test_trackers_may_change_from_call_to_call(tracked, config):
    assert api.search(config(name="mine"), tracked)["best"] == only_record(tracked)["result"]["best"]


@needs_tensorboard
def test_the_logs_of_a_fine_tuning_lie_beside_the_teacher(config, furnished, tmp_path):
    settings = config(
        teacher={"model": str(furnished / "encoder"), "finetune": {"epochs": 1, "lr": 3e-3}},
        runtime={"trackers": ["tensorboard"]},
    )
    api.finetune(settings, tmp_path / "teacher")
    told = scalars(tmp_path / "teacher.tracking" / "study")
    assert {"fine-tuning/loss", "fine-tuning/lr", "fine-tuning/metric"} <= told.keys()
    assert not (tmp_path / "teacher" / "tracking").exists()


@needs_tensorboard
def test_each_trial_of_a_baseline_has_curves_of_its_own(config, tmp_path):
    settings = config(search={"sparsities": [0.25, 0.5]}, runtime={"trackers": ["tensorboard"]})
    api.baseline(settings, "maxidisc", tmp_path / "study")
    told = scalars(tmp_path / "study" / "baseline-maxidisc" / "tracking" / "study")
    curves = {name for name in told if name.endswith("assistant to student/loss")}
    assert len(curves) == 2
    assert len(told["trials/metric"]) == 2


def test_without_trackers_nothing_is_written(config, tmp_path):
    with tracking(config(), "run", tmp_path / "logs", runtime=RUNTIME, ledger=Ledger(), say=print) as tracker:
        tracker.log("stage", {"loss": 1.0}, step=1)
    assert list(tmp_path.iterdir()) == []


def test_a_package_that_is_missing_is_one_line_that_names_the_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for name in get_args(TrackerName):
        with pytest.raises(
            ConfigError, match=rf"^runtime\.trackers: {name} is not .*'autodisc\[{name}\]'.*--track out$"
        ):
            check_installed([name])


def test_every_tracker_has_an_extra_and_is_one_of_accelerates():
    extras = (Path(api.__file__).parents[1] / "pyproject.toml").read_text()
    for name in get_args(TrackerName):
        assert f"\n{name} = [" in extras
        assert name in LoggerType


@needs_tensorboard
def test_a_tracker_that_does_not_start_leaves_nothing_behind(config, tmp_path, monkeypatch):
    def fail(*_: Any) -> None:
        raise RuntimeError("no api key\nconfigured")

    monkeypatch.setattr(Accelerator, "init_trackers", fail)
    settings = config(runtime={"trackers": ["tensorboard"]})
    with (
        pytest.raises(ConfigError, match=r"tensorboard does not start \(no api key configured\); set it up"),
        tracking(settings, "run", tmp_path / "logs", runtime=RUNTIME, ledger=Ledger(), say=print),
    ):
        raise AssertionError("the body must not run")
    assert list(tmp_path.iterdir()) == []


def test_a_tracker_that_fails_is_let_go_of_and_the_others_are_told_on():
    good, bad, said = Recorder(), Recorder("away", fails=True), []
    told = Told([bad, good], said.append)
    told.log("recovery", {"loss": 1.0}, step=1)
    told.log("recovery", {"loss": 0.5}, step=2)
    told.finish()
    assert said == ["away is told no more: the server is away"]
    assert good.logged == [({"recovery/loss": 1.0}, 1), ({"recovery/loss": 0.5}, 2)]
    assert good.finished
    assert not bad.finished


def test_parts_of_a_run_have_names_of_their_own_and_share_the_trackers():
    recorder = Recorder()
    Told([recorder], print).within("trial 0.5").within("again").log("phase", {"loss": 1.0}, step=3)
    assert recorder.logged == [({"trial 0.5/again/phase/loss": 1.0}, 3)]


def test_weights_and_biases_gets_the_stages_step_as_a_value():
    recorder = Recorder("wandb")  # a step of its own that goes back, at the next stage, would be dropped
    Told([recorder], print).log("recovery", {"loss": 1.0}, step=7)
    assert recorder.logged == [({"recovery/loss": 1.0, "recovery/step": 7}, None)]


def test_what_trackers_say_does_not_reach_standard_output(capsys):
    class Talker(Recorder):
        def finish(self) -> None:
            print("View run at http://...")

    Told([Talker()], print).finish()
    assert capsys.readouterr() == ("", "View run at http://...\n")


def test_hyperparameters_are_plain_and_hold_no_password(config):
    found = hyperparameters(config(search={"storage": "postgresql://me:secret@host/db"}))
    assert found.keys() == flatten(config().model_dump(mode="json")).keys()
    assert "secret" not in str(found)
    assert found["search.storage"] == "postgresql://me@host/db"
    assert all(isinstance(value, bool | int | float | str) for value in found.values())


@pytest.mark.filterwarnings("ignore")  # theirs
@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_other_trackers_take_what_a_run_tells(name, config, tmp_path, monkeypatch):
    pytest.importorskip(name, reason=f"pip install 'autodisc[{name}]'")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("WANDB_MODE", "offline")
    ledger, said = Ledger(), []
    ledger.charge("recovery", Cost(seconds=2.0, flops=3e9))
    settings = config(name="mine", runtime={"trackers": [name]})
    with tracking(settings, "runs/mine", tmp_path / "logs", runtime=RUNTIME, ledger=ledger, say=said.append) as tracker:
        for step in (1, 2):
            tracker.log("recovery", {"loss": 1.0 / step, "lr": 1e-4}, step=step)
        tracker.log("teacher to assistant", {"metric": 0.5}, step=1)
    assert not said
    if name == "wandb":
        assert list((tmp_path / "logs").rglob("*.wandb"))
    else:
        import mlflow

        (run,) = mlflow.search_runs(experiment_names=["mine"], output_format="list")
        assert run.info.run_name == "runs/mine"
        assert run.data.metrics["recovery/loss"] == 0.5
        assert run.data.metrics["cost/recovery seconds"] == 2.0
        assert run.data.params["search.lam"] == "0.2"
