"""The cards of what a command made: README.md in the folders of models, with their latencies beside the teacher's."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from autodisc.models.checkpoints import load_model, resolve
from autodisc.models.latency import longest_input, random_inputs, settle_on, take_turns
from autodisc.models.modeling_autodisc import CODE
from autodisc.models.spreading import is_spread, keeps_no_graph
from autodisc.reporting.model_card import origin_of, write_card
from autodisc.workspace import Workspace

CARD_SHAPES = ((1, 64), (8, 64))  # batch and length of the latencies in a model's card: some seconds for a base model


def write_cards(
    space: Workspace, kind: str, strategy: str | None, models: dict[str, dict[str, Any]]
) -> list[dict[str, Any]]:
    """README.md in the folders of ``models``, teacher, assistant and student: those that have a ``path``; returns
    the latencies that it shows."""
    values = {**space.made(kind, strategy), "models": models}
    folders = {role: Path(model["path"]) for role, model in models.items() if "path" in model}
    values["latency"] = _latencies(space, folders)
    for role, folder in folders.items():
        own = {**values, "role": role, "has_code": (folder / CODE).is_file()}
        origin = Path(resolve(origin_of(own)))
        write_card(folder, {**own, "origin_folder": origin if origin.is_dir() else None})
    return values["latency"]


def _latencies(space: Workspace, folders: dict[str, Path]) -> list[dict[str, Any]]:
    """Median ms of a forward of the teacher and of saved models by its side, at ``CARD_SHAPES``, or as long as all
    have positions for."""
    runtime = space.workshop.runtime
    models = {"teacher": space.teacher, **{role: load_model(folder) for role, folder in folders.items()}}
    for model in models.values():
        model.eval()
        if not is_spread(model):
            model.to(runtime.device)  # type: ignore[arg-type]
    rows = []
    words = min(getattr(model.config, "vocab_size", 0) for model in models.values()) or None
    with space.workshop.progress.stage("timing", None), keeps_no_graph(space.teacher), runtime.autocast():
        limits = [most for most in map(longest_input, models.values()) if most is not None]
        for batch, longest in CARD_SHAPES:
            length = min([longest, *limits])
            inputs = random_inputs(space.teacher, batch, length, runtime.device, words=words)
            works = {role: partial(_call, model, inputs) for role, model in models.items()}
            timed = take_turns(works, turns=3, turn_s=0.2, settle=settle_on(runtime.device))
            count = torch.get_num_threads()
            where = f"{count} thread{'s' * (count > 1)}" if runtime.device.type == "cpu" else runtime.device.type
            spread = ", teacher spread" if is_spread(space.teacher) else ""
            setting = f"torch, {runtime.precision}, {where}, batch {batch}, length {length}{spread}"
            rows.append({"setting": setting, **{role: found.median_ms for role, found in timed.items()}})
    return rows


def _call(model: PreTrainedModel, inputs: dict[str, torch.Tensor], _: int) -> None:
    model(**inputs)
