from __future__ import annotations

import os
from dataclasses import replace

import pytest
import torch

from autodisc.costs import Cost
from autodisc.errors import TrainingError
from autodisc.search.assistants import measure
from autodisc.search.scorers import Cuts, Slices, let_go
from autodisc.search.workers import processes, spread


@pytest.fixture
def two_threads(bench):
    """A bench whose work may be shared by two processes."""
    runtime = replace(bench.workshop.runtime, threads=2)
    bench.workshop = replace(bench.workshop, runtime=runtime)
    return bench


def test_processes_share_the_threads_and_are_never_more(make_workshop, make_listener):
    listener = make_listener()
    workshop = make_workshop(progress=listener)
    assert processes(1, workshop) == 1
    assert not listener.said
    assert processes(3, workshop) == 1
    assert "1 at a time" in listener.said[0]


def test_workers_return_raise_and_die_each_for_itself(two_threads, tmp_path):
    workshop = two_threads.workshop

    def work(own, key):
        (tmp_path / f"{key}-{os.getpid()}").touch()
        own.ledger.charge("work", Cost(seconds=100.0, tokens=1))
        own.curves["stage"] = [{"step": key}]
        if key == 1:
            raise ValueError("a bug")
        if key == 2:
            raise TrainingError("the loss is nan")
        if key == 3:
            os._exit(9)
        return key, own.runtime.threads, torch.get_num_threads(), os.environ["OMP_NUM_THREADS"]

    taken = []
    found = dict(spread(work, (taken.append(key) or key for key in range(6)), 2, workshop))
    assert {key: found[key] for key in (0, 4, 5)} == {key: (key, 1, 1, "1") for key in (0, 4, 5)}
    assert isinstance(found[1], ValueError)
    assert isinstance(found[2], TrainingError)
    assert "its process was ended" in str(found[3])
    assert isinstance(found[3], TrainingError)
    assert taken == list(range(6))
    assert not {path.name.split("-")[1] for path in tmp_path.iterdir()} & {str(os.getpid())}
    booked = workshop.ledger.stages["work"]
    assert (booked.seconds, booked.tokens) == (500.0, 5)  # what died told nothing
    assert workshop.ledger.as_dict()["elapsed_s"] < 500.0
    assert workshop.curves == {"stage": [{"step": 5}]}


def test_a_study_of_two_processes_measures_what_one_measures(two_threads, parts):
    expected = parts(two_threads.run(two_threads.open("one")))
    flops = two_threads.workshop.ledger.stages["trials"].flops
    model = two_threads.supernet.model
    model(torch.ones(1, 4, dtype=torch.long), output_hidden_states=True)  # leaves hooks that cannot be pickled
    found = two_threads.run(two_threads.open(), jobs=2, opened=Slices(two_threads.supernet))
    assert vars(parts(found)) == vars(expected)
    assert two_threads.workshop.ledger.stages["trials"].flops == pytest.approx(2 * flops)


def test_cuts_are_made_once_share_the_teachers_embeddings_and_are_let_go(bench, tiny, random_ranking, make_task):
    teacher = tiny()
    workshop = replace(bench.workshop, task=make_task(validation=150))
    cuts, candidate = Cuts(teacher, random_ranking(teacher), workshop), bench.candidates()[0.5]
    found = measure(cuts, candidate, workshop)
    expected = workshop.metric(workshop.cut(teacher, cuts.ranking, candidate), candidate)
    assert found.score.metric == expected
    (model,) = cuts.made.values()
    shared = model.get_input_embeddings().weight
    assert shared.data_ptr() == teacher.get_input_embeddings().weight.data_ptr()
    let_go(cuts)
    assert not cuts.made


@pytest.mark.parametrize(("spread", "most"), [(False, 5), (True, 1)])
def test_cuts_of_a_teacher_that_one_device_cannot_hold_are_measured_one_after_the_other(
    bench, tiny, random_ranking, parts, monkeypatch, spread, most
):
    class Counted(dict):
        together = 0

        def __setitem__(self, candidate, model):
            super().__setitem__(candidate, model)
            self.together = max(self.together, len(self))

    teacher, made = tiny(), Counted()
    expected = parts(bench.run(bench.open("one"), opened=Cuts(teacher, random_ranking(teacher), bench.workshop)))
    monkeypatch.setattr("autodisc.search.scorers.is_spread", lambda model: spread)
    found = bench.run(bench.open(), opened=Cuts(teacher, random_ranking(teacher), bench.workshop, made))
    assert (vars(parts(found)), made.together, len(made)) == (vars(expected), most, 0)


@pytest.mark.services  # processes of its own
def test_cuts_go_to_another_process_with_what_it_needs(two_threads, tiny, random_ranking, parts, make_listener):
    teacher = tiny()
    workshop = replace(two_threads.workshop, progress=make_listener())
    cuts = Cuts(teacher, random_ranking(teacher), workshop)
    expected = parts(two_threads.run(two_threads.open("one"), opened=cuts))
    assert vars(parts(two_threads.run(two_threads.open(), opened=cuts, jobs=2))) == vars(expected)
