"""Where processes run, by joblib: beside this one (loky), or on a cluster's machines (Dask, Ray).

A cluster's workers have autodisc installed and see the same folders under the same names: data, teacher, cache and
results. On a machine with several GPUs a loky process has one of them; Dask and Ray hand out a cluster's.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
from collections.abc import Iterator

import joblib
import torch

from autodisc.errors import ConfigError, one_line

LOCAL, RAY, DASK = "loky", "ray", "dask://"
Died = tuple[type[BaseException], ...]  # what joblib raises where a process was ended from outside


@contextlib.contextmanager
def started(backend: str, threads: int) -> Iterator[Died]:
    """joblib's calls go to ``backend`` inside; ConfigError where that is not installed or does not answer."""
    with contextlib.ExitStack() as stack:
        if backend == LOCAL:
            died = stack.enter_context(_loky(threads))
        else:
            died = stack.enter_context(_ray() if backend == RAY else _dask(backend))
        yield died


@contextlib.contextmanager
def _loky(threads: int) -> Iterator[Died]:
    from joblib.externals.loky import get_reusable_executor
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    try:
        with joblib.parallel_config(backend="loky", inner_max_num_threads=threads):
            yield (TerminatedWorkerError,)
    finally:  # joblib keeps idle workers, and what they hold of models, for five minutes
        get_reusable_executor().shutdown(wait=True, kill_workers=True)


@contextlib.contextmanager
def _dask(address: str) -> Iterator[Died]:
    try:
        from distributed import Client
        from distributed.scheduler import KilledWorker
    except ImportError:
        raise ConfigError(f"backend: {address} needs Dask; pip install 'autodisc[dask]', or give loky") from None
    try:
        client = Client("tcp://" + address.removeprefix(DASK), timeout="5s")
    except (OSError, TimeoutError) as error:
        raise ConfigError(
            f"backend: no Dask scheduler answers at {address} ({one_line(error, 100)}); start one with 'dask scheduler'"
        ) from None
    with client, joblib.parallel_config(backend="dask", wait_for_workers_timeout=30):
        if not client.scheduler_info()["workers"]:
            raise ConfigError(f"backend: {address} has no workers; start some with 'dask worker {address[7:]}'")
        yield (KilledWorker,)


@contextlib.contextmanager
def _ray() -> Iterator[Died]:
    """The cluster that RAY_ADDRESS names, or one on this machine until the end of the block."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nobody is told what runs here
    try:
        import ray
        from ray.util.joblib import register_ray
    except ImportError:
        raise ConfigError("backend: ray is not installed; pip install 'autodisc[ray]', or give loky") from None
    ours = not ray.is_initialized()
    if ours:
        try:
            ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ConfigError(f"backend: Ray cannot be reached ({one_line(error, 100)}); see RAY_ADDRESS") from None
    try:
        register_ray()
        with joblib.parallel_config(backend="ray"):
            yield (ray.exceptions.RayError,)
    finally:
        if ours:
            ray.shutdown()


def placed(device: torch.device) -> torch.device:
    """Where a process puts what its parent had on ``device``: on a GPU of its own, in turns, if it is loky's.

    The parent's is the first, which nobody chose; another that was asked for by name is every process's.
    """
    kind, _, number = multiprocessing.current_process().name.partition("-")
    if device.type != "cuda" or device.index not in (None, 0) or kind != "LokyProcess":
        return device
    return torch.device("cuda", int(number.partition(":")[0]) % torch.cuda.device_count())
