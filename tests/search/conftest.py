"""A study of a tiny bert's teacher assistants, none of which is trained."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest

from autodisc.config import SearchConfig
from autodisc.distillation.schedule import Workshop
from autodisc.pruning.candidates import Candidate, all_candidates, nested_candidates
from autodisc.pruning.supernet import Supernet
from autodisc.search.assistants import run_study, search_result
from autodisc.search.storage import open_study

GRID = (0.1, 0.3, 0.5, 0.7, 0.85)


@dataclass
class Bench:
    """What a study needs; ``open`` makes or goes on with the study in ``folder``."""

    supernet: Supernet
    workshop: Workshop
    folder: Path

    def candidates(self, points=GRID) -> dict[float, Candidate]:
        return nested_candidates(self.supernet.ranking, points)

    def balanced(self, points, balances) -> list[Candidate]:
        return all_candidates(self.supernet.ranking, points, balances, student=0.9)

    def open(self, name: str = "journal", *, defaults: dict[str, Any] | None = None, **made_of: Any) -> optuna.Study:
        return open_study(
            "toy", str(self.folder / f"{name}.log"), fingerprint={"a": 1, **made_of}, defaults=defaults, metric_name="m"
        )

    @staticmethod
    def config(**settings: Any) -> SearchConfig:
        return search_config(**settings)

    def run(self, study: optuna.Study, *, points=GRID, progress=None, opened=None, **settings: Any) -> dict[str, Any]:
        config = search_config(**settings)
        workshop = self.workshop if progress is None else replace(self.workshop, progress=progress)
        candidates = self.balanced(points, config.balances)
        run_study(study, opened or self.supernet.active, candidates, config, workshop)
        return search_result(study, config, storage="here")

    def failing(self, error: BaseException, *sparsities: float) -> Any:
        """An opener that raises ``error`` for these sparsities (none: for all)."""

        @contextlib.contextmanager
        def opened(candidate):
            if not sparsities or candidate.sparsity in sparsities:
                raise error
            with self.supernet.active(candidate) as model:
                yield model

        return opened


def search_config(**settings: Any) -> SearchConfig:
    # A margin that everything clears: the toy supernet has learnt nothing.
    return SearchConfig.model_construct(**{**vars(SearchConfig()), "margin": -1000.0, **settings})


@pytest.fixture
def bench(tiny, random_ranking, make_workshop, tmp_path) -> Bench:
    model = tiny()
    return Bench(Supernet(model, random_ranking(model)), make_workshop(), tmp_path)


@pytest.fixture
def parts() -> Callable[[dict[str, Any]], Any]:
    """What two runs of one study must agree on: everything but clocks and trial numbers."""

    def call(result: dict[str, Any]) -> Any:
        def plain(row):
            return row and {k: v for k, v in row.items() if k not in ("seconds", "number")}

        done = [plain(row) for row in result["trials"] if row["state"] == "COMPLETE"]
        return SimpleNamespace(best=plain(result["best"]), done=done)

    return call
