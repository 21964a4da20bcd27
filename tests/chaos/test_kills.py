"""The whole job, killed by SIGKILL at any moment and given again, ends as if nothing had happened."""

from __future__ import annotations

import errno
import os
import random

import pytest

from autodisc.reporting.records import read_records

KILLED = -9


def test_a_job_killed_three_times_ends_as_one_that_was_not(run, make_job, whole, assert_same):
    folder, moments = whole(0.0)
    job, generator, kills = make_job(run, "killed", 0.0), random.Random(7), 0
    for _ in range(3):
        ran = job(die_at=generator.randrange(1, moments // 3))
        assert ran["code"] == KILLED
        kills += 1
    ran = job()
    assert ran["code"] == 0, ran["printed"]
    assert_same(job.out, folder, kills)
    again = job()
    assert again["code"] == 0
    assert len(read_records([job.out])) == 4


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("part", range(25))
def test_a_job_killed_at_a_random_moment_of_any_stage_ends_as_one_that_was_not(run, make_job, whole, assert_same, part):
    minutes = (0.0, 60.0)[part % 2]
    folder, moments = whole(minutes)
    first, last = (1 + edge * moments // 26 for edge in (part, part + 1))  # booking by the clock adds some or none
    job = make_job(run, f"killed-{part}", minutes)
    ran = job(die_at=random.Random(part).randrange(first, last))
    assert ran["code"] == KILLED
    ran = job()
    assert ran["code"] == 0, ran["printed"]
    assert_same(job.out, folder, 1)


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO], ids=["full", "failing"])
def test_a_job_whose_writes_fail_again_and_again_says_so_and_ends_as_one_whose_did_not(
    run, make_job, whole, assert_same, error
):
    folder, _ = whole(60.0)
    job, generator, failures = make_job(run, f"writes-{error}", 60.0), random.Random(error), 0
    while (ran := job(fail_at=generator.randrange(20, 250), error=error))["code"] != 0:
        assert ran["code"] == 1, ran["printed"]
        assert ran["printed"][-1].startswith("error: "), ran["printed"]
        assert os.strerror(error) in ran["printed"][-1]
        failures += 1
        assert failures < 200
    assert failures > 2
    assert_same(job.out, folder, failures)
