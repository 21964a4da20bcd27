"""Is this machine fit for autodisc: what is installed, what it computes on, where it keeps things, what it can reach.

Each finding is good, worth knowing (``note``) or in the way (``broken``), and says what to do. Nothing is changed; no
network is asked but the storage that was named.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from packaging.requirements import Requirement

from autodisc import caches
from autodisc.errors import AutodiscError, one_line
from autodisc.urls import public

State = Literal["good", "note", "broken"]
FOR = {  # what an extra of pyproject.toml is for
    "demo": "autodisc demo and studies that start from MiniLM",
    "onnx": "autodisc export --format onnx, and bench with onnxruntime",
    "gguf": "models in GGUF files",
    "postgresql": "searches whose storage is PostgreSQL",
    "mysql": "searches whose storage is MySQL",
    "dask": "--backend dask://HOST:PORT",
    "ray": "--backend ray",
    "tensorboard": "--track tensorboard",
    "mlflow": "--track mlflow",
    "wandb": "--track wandb",
}
LITTLE_GIB = 1.0  # of disk: a teacher's outputs on MRPC alone take 0.6
LITTLE_MEMORY_GIB = 2.0


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    name: str
    state: State
    said: str
    way_out: str = ""


def examine(*, cache: Path | None = None, storage: str | None = None) -> dict[str, Any]:
    """Every finding, and whether anything is broken."""
    folder = cache or caches.default_folder()
    found = [
        *_python(),
        *_packages(),
        *_extras(),
        *_devices(),
        _memory(),
        _disk("working folder", Path.cwd()),
        _disk("cache folder", folder),
        *_cache(folder),
    ]
    if storage is not None:
        found.append(_storage(storage))
    return {"findings": [asdict(each) for each in found], "broken": any(each.state == "broken" for each in found)}


def _python() -> Iterator[Finding]:
    yield Finding("python", "good", f"{platform.python_version()} at {sys.executable}")


def _packages() -> Iterator[Finding]:
    for requirement in _requirements(None):
        yield _package(requirement, broken=True)


def _extras() -> Iterator[Finding]:
    for extra, purpose in FOR.items():
        required = _requirements(extra)
        if not required:
            continue  # autodisc itself was not installed, or is of before this extra
        lacking = [each for each in map(_package, required) if each.state != "good"]
        if lacking:
            said = f"not here: {', '.join(each.name for each in lacking)}"
            yield Finding(f"extra {extra}", "note", said, f"pip install 'autodisc[{extra}]' for {purpose}")
        else:
            yield Finding(f"extra {extra}", "good", purpose)


def _requirements(extra: str | None) -> list[Requirement]:
    """What pyproject.toml asks for, with an extra or without any."""
    try:
        listed = [Requirement(text) for text in metadata.requires("autodisc") or ()]
    except metadata.PackageNotFoundError:
        return []  # run from a folder that was not installed
    own = [each for each in listed if each.marker is None or "extra" not in str(each.marker)]
    if extra is None:
        return own
    named = {"extra": extra}
    return [each for each in listed if each not in own and each.marker is not None and each.marker.evaluate(named)]


def _package(requirement: Requirement, *, broken: bool = False) -> Finding:
    wrong: State = "broken" if broken else "note"
    install = f"pip install '{requirement.name}{requirement.specifier}'"
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return Finding(requirement.name, wrong, "not installed", install)
    if not requirement.specifier.contains(version, prereleases=True):
        return Finding(requirement.name, wrong, f"{version}, which is not {requirement.specifier}", install)
    return Finding(requirement.name, "good", version)


def _devices() -> Iterator[Finding]:
    try:
        import torch
    except Exception as error:  # a library that it needs, for instance
        yield Finding("torch", "broken", f"cannot be imported ({one_line(error)})", "install it again")
        return
    from autodisc.config import RuntimeConfig
    from autodisc.reporting.records import environment
    from autodisc.runtime import make_runtime

    runtime = make_runtime(RuntimeConfig())
    where = environment(device="cpu", precision=runtime.precision, threads=runtime.threads)
    fast = make_runtime(RuntimeConfig(device="cpu")).precision == "bf16"
    bf16 = "multiplies bf16" if fast else "does not multiply bf16: computes in fp32"
    yield Finding("cpu", "good", f"{where['hardware']}, {where['cpus']} cores, {runtime.threads} threads; {bf16}")
    for number in range(torch.cuda.device_count()):
        name = f"cuda:{number}"
        try:
            free, total = torch.cuda.mem_get_info(number)
            ones = torch.ones(8, 8, device=name)
            works = bool((ones @ ones == 8).all())
        except RuntimeError as error:
            yield Finding(name, "broken", f"does not compute ({one_line(error)})", "check its driver with nvidia-smi")
            continue
        said = f"{torch.cuda.get_device_name(number)}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
        yield Finding(name, "good" if works else "broken", said, "" if works else "it computes wrongly; do not use it")
    if not torch.cuda.device_count():
        yield Finding("gpu", "note", "none that torch sees", "everything runs on the CPU")


def _memory() -> Finding:
    import psutil

    memory = psutil.virtual_memory()
    said = f"{memory.available / 2**30:.1f} of {memory.total / 2**30:.1f} GiB free"
    if memory.available < LITTLE_MEMORY_GIB * 2**30:
        return Finding("memory", "note", said, "end other programs; autodisc search --dry-run says what it will take")
    return Finding("memory", "good", said)


def _disk(name: str, folder: Path) -> Finding:
    """Whether ``folder``, or where it would be made, can be written to, and how much fits."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(b"\0" * 4096)
        free = shutil.disk_usage(there).free / 2**30
    except OSError as error:
        reason = error.strerror or str(error)
        return Finding(name, "broken", f"{folder} cannot be written to ({reason})", "give another, or free some space")
    said = f"{folder}, {free:.1f} GiB free"
    if free < LITTLE_GIB:
        return Finding(name, "note", said, "autodisc clean frees caches")
    return Finding(name, "good", said)


def _cache(folder: Path) -> Iterator[Finding]:
    held = caches.entries(folder)
    total = sum(entry.bytes for entry in held) / 2**30
    yield Finding("cache", "good", f"{len(held)} entries, {total:.2f} GiB in {folder}")
    for entry in held:
        if entry.abandoned:
            # A damaged entry is made again when it is met; until then it takes room.
            yield Finding(
                "cache",
                "note",
                f"{entry.path}: {entry.kind}, {entry.damage}",
                "autodisc clean --older-than 30 --yes removes it, too",
            )


def _storage(url: str) -> Finding:
    """Whether the storage answers; a journal or SQLite file that is not there yet is not made."""
    file = (
        re.sub(r"^sqlite(\+\w+)?:///", "", url) if url.startswith("sqlite") else url if url.endswith(".log") else None
    )
    if file is not None and not Path(file).is_file():
        if Path(file).parent.is_dir() and os.access(Path(file).parent, os.W_OK):
            return Finding("storage", "good", f"{file} is not there yet, and can be made")
        return Finding("storage", "broken", f"{file} is not there, nor a folder for it", "make the folder")
    from autodisc.search.storage import study_names

    try:
        names = study_names(url)
    except AutodiscError as error:
        return Finding("storage", "broken", str(error), "check address, user, password and driver")
    listed = f": {', '.join(names[:5])}" if names else ""
    return Finding("storage", "good", f"{public(url)} answers; {len(names)} studies{listed}")
