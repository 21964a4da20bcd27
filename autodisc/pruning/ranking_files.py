"""The removal orders of a teacher's units, on files: in the cache, and in the folder of the study that is of them."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import joblib
from transformers import PreTrainedModel

from autodisc.config import ImportanceConfig
from autodisc.costs import Cost, Ledger
from autodisc.errors import StudyError
from autodisc.files import write_json
from autodisc.models.checkpoints import settings_digest
from autodisc.models.spreading import places
from autodisc.progress import Progress
from autodisc.pruning.candidates import STANDARD_RATIO, Ranking
from autodisc.pruning.importance import rank_units
from autodisc.runtime import Runtime, made_with
from autodisc.tasks.data import Task

RANKING_PAID = "ranking"  # in the ledger: by whom the order of the units is paid for


def ranked(
    teacher: PreTrainedModel,
    task: Task,
    importance: ImportanceConfig,
    *,
    fingerprint: str,
    cache: Path,
    runtime: Runtime,
    ledger: Ledger,
    progress: Progress,
) -> tuple[Ranking, Cost]:
    """The removal orders of the teacher's units, and what they cost; kept in the cache, and charged as if made."""
    made_of = [
        fingerprint,
        settings_digest(teacher),
        task.train.fingerprint,
        importance.model_dump(exclude={"refit"}),
        "head_sparsities",  # rankings did not always have them
        (runtime.seed, runtime.precision, runtime.device.type, runtime.threads, *made_with()),
        *places(teacher),
    ]
    path = cache / "ranking" / f"{joblib.hash(made_of)}.json"
    found = cached_ranking(path)
    if found is not None:
        ledger.charge_once(RANKING_PAID, "importance", found[1])
        return found
    before = replace(ledger.stages.get("importance", Cost()))  # of a run that was stopped at it
    ranking = rank_units(teacher, task, importance, runtime=runtime, ledger=ledger, progress=progress)
    cost = ledger.stages["importance"].since(before)
    ledger.pay(RANKING_PAID)
    write_ranking(path, ranking, cost)
    return ranking, cost


def write_ranking(path: Path, ranking: Ranking, cost: Cost) -> None:
    write_json(path, {**asdict(ranking), "cost": vars(cost)})


def read_ranking(path: Path) -> tuple[Ranking, Cost]:
    """The removal orders, and what it cost to find them; StudyError where the file is damaged."""
    found = cached_ranking(path)
    if found is None:
        raise StudyError(
            f"{path}: is damaged, and with it the order that the candidates are of; start afresh beside it with --new"
        )
    return found


def cached_ranking(path: Path) -> tuple[Ranking, Cost] | None:
    """The same; none where it is not there, or damaged."""
    try:
        stored = json.loads(path.read_text())
        heads, neurons = (tuple((int(a), int(b)) for a, b in stored[kind]) for kind in ("heads", "neurons"))
        ratio = stored.get("ratio", STANDARD_RATIO)  # rankings did not always have it, nor what follows
        of_heads = tuple(stored.get("head_sparsities", ()))
        return Ranking(heads, neurons, stored["layers"], ratio, of_heads), Cost(**stored["cost"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
