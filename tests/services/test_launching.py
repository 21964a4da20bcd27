"""Two processes of `accelerate launch`, over gloo, train what one process trains."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from autodisc import api
from autodisc.errors import ConfigError
from autodisc.models.checkpoints import load
from autodisc.reporting.records import Record, latest, read_records

pytestmark = pytest.mark.timeout(900)  # processes, beside those of other tests
# --multi_gpu is how accelerate says several processes; with --cpu it starts one, whatever their number (1.15).
LAUNCH = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]


def distilled(folder: Path) -> Record:
    record = latest(read_records([folder]), "distill")
    assert record is not None
    return record


FSDP = ["-m", "accelerate.commands.launch", "--use_fsdp", "--fsdp_version", "2", *LAUNCH[3:]]


def launch(*command: str, by: list[str] = LAUNCH) -> subprocess.CompletedProcess[str]:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = str(found.getsockname()[1])
    options = ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", port]
    return subprocess.run(
        [sys.executable, *by, *options, "-m", "autodisc.cli", *command],
        capture_output=True,
        text=True,
        timeout=800,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.fixture
def both(searched, tmp_path) -> tuple[Path, Path]:
    """The same search, twice."""
    folders = tmp_path / "one", tmp_path / "two"
    for folder in folders:
        shutil.copytree(searched, folder)
    return folders


@pytest.mark.parametrize("by", [LAUNCH, FSDP], ids=["multi_gpu", "fsdp"])
def test_two_processes_have_the_losses_and_the_student_of_one(both, by):
    one, two = both
    api.distill(one)
    done = launch("distill", "--study", str(two), "--json", by=by)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1  # the first alone speaks
    ours, theirs = distilled(one), distilled(two)
    assert len(list((two / "records").glob("distill-*.json"))) == 1
    for stage, points in ours.values["curves"].items():
        expected = [point["loss"] for point in points if point["loss"] is not None]
        losses = [point["loss"] for point in theirs.values["curves"][stage] if point["loss"] is not None]
        assert len(losses) > 3
        np.testing.assert_allclose(losses, expected, rtol=1e-4)
    left, right = (load(folder / "distilled-1" / "student").state_dict() for folder in both)
    for name in left:
        np.testing.assert_allclose(left[name].numpy(), right[name].numpy(), atol=2e-3, err_msg=name)
    spent = theirs.values["cost"]
    assert 0 < spent["elapsed_s"] < spent["seconds"]  # the other's are booked, too
    phase = next(iter(stage for stage in ours.values["curves"]))
    flops = [record.values["cost"]["stages"][phase]["flops"] for record in (ours, theirs)]
    assert flops[1] == pytest.approx(flops[0], rel=0.05)


def test_launched_processes_do_not_start_others(config, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")  # what each of the launched finds
    with pytest.raises(ConfigError, match=r"^accelerate launch: shares a training's rows .* leave out --workers"):
        api.search(config(search={"jobs": 2}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_search_in_shards_of_a_teacher_on_disk_chooses_what_one_process_does(config, searched, tmp_path):
    import yaml

    places = {"bert.embeddings": "cpu", "bert.encoder": "disk", "bert.pooler": "cpu"}
    spread = config(teacher={"device_map": {**places, "dropout": "cpu", "classifier": "cpu"}})
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(spread.model_dump(mode="json")))
    line = ["search", "--config", str(tmp_path / "study.yaml"), "--out", str(tmp_path / "out"), "--json"]
    done = launch(*line, by=FSDP)
    assert done.returncode == 0, done.stderr
    expected = latest(read_records([searched]), "search")
    found = latest(read_records([tmp_path / "out"]), "search")
    assert expected is not None
    assert found is not None
    for mine, theirs in zip(found.result["trials"], expected.result["trials"], strict=True):
        assert mine["candidate"] == theirs["candidate"]
        assert mine["metric"] == pytest.approx(theirs["metric"], abs=0.03)
    ours, theirs = (load(folder / "supernet").state_dict() for folder in (tmp_path / "out", searched))
    for name in ours:
        if name.endswith("key.bias"):  # softmax undoes it: Adam steps on noise
            continue
        np.testing.assert_allclose(ours[name].numpy(), theirs[name].numpy(), atol=2e-3, err_msg=name)


def test_fsdps_first_version_is_refused_in_one_line(both):
    first = [word if word != "2" or FSDP[i - 1] != "--fsdp_version" else "1" for i, word in enumerate(FSDP)]
    done = launch("distill", "--study", str(both[0]), by=first)
    assert done.returncode != 0
    (said,) = {line for line in done.stderr.splitlines() if line.startswith("error: ")}  # of each process
    assert said == "error: accelerate launch: got FSDP with fsdp_version=1; give --fsdp_version 2"
