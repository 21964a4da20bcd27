from __future__ import annotations

import multiprocessing

import pytest
import torch

from autodisc.config import SearchConfig
from autodisc.search import backends
from autodisc.search.backends import placed
from autodisc.search.workers import processes


@pytest.fixture
def loky(monkeypatch):
    """As the n-th process that loky started, on a machine with two GPUs."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)

    def call(number: int | None) -> None:
        process = multiprocessing.current_process()
        monkeypatch.setattr(process, "_name", "MainProcess" if number is None else f"LokyProcess-{number}")

    return call


def test_each_process_has_a_gpu_in_turns_and_the_parent_stays_where_it_is(loky):
    found = []
    for number in (1, 2, 3, 4):
        loky(number)
        found.append(placed(torch.device("cuda")).index)
        assert placed(torch.device("cuda", 0)).index == found[-1]  # where the parent's models are
    assert sorted(found) == [0, 0, 1, 1]
    assert found[0] != found[1]
    loky(None)
    assert placed(torch.device("cuda")) == torch.device("cuda")


def test_a_gpu_that_was_asked_for_and_a_cpu_are_every_process_s(loky):
    loky(1)
    assert placed(torch.device("cuda", 1)) == torch.device("cuda", 1)
    loky(2)
    assert placed(torch.device("cuda", 1)) == torch.device("cuda", 1)
    assert placed(torch.device("cpu")) == torch.device("cpu")


def test_a_cluster_has_as_many_processes_as_asked_for(make_workshop):
    assert processes(5, make_workshop()) == 1
    assert processes(5, make_workshop(), backend="dask://10.0.0.1:8786") == 5


@pytest.mark.parametrize("name", ["dask", "dask://", "dask://host", "dask://a@b:1", "spark", "dask://h:1/../x", ""])
def test_a_backend_that_is_none_is_refused(name):
    with pytest.raises(ValueError, match="expected loky"):
        SearchConfig(backend=name)


def test_a_backend_that_is_not_installed_says_what_installs_it(monkeypatch):
    import builtins

    plain = builtins.__import__

    def without(name, *arguments, **named):
        if name.split(".")[0] in ("distributed", "ray"):
            raise ModuleNotFoundError(name=name)
        return plain(name, *arguments, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    for name, extra in (("dask://127.0.0.1:9", "dask"), ("ray", "ray")):
        with (
            pytest.raises(backends.ConfigError, match=rf"pip install 'autodisc\[{extra}\]'"),
            backends.started(name, 1),
        ):
            pass
