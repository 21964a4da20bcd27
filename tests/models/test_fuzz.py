"""Five hundred damaged folders: each is refused with an error of ours, or opens with exactly the saved logits."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save

import autodisc
from autodisc.errors import AutodiscError
from autodisc.models.checkpoints import save_model
from autodisc.models.modeling_autodisc import pruned_class
from autodisc.pruning.candidates import Candidate
from autodisc.pruning.supernet import extract

CASES = 500
IDS = {"input_ids": torch.tensor([[2, 8, 9, 3]]), "attention_mask": torch.ones(1, 4, dtype=torch.long)}
WEIGHTS, CONFIG, CODE = "model.safetensors", "config.json", "modeling_autodisc.py"
Files = dict[str, bytes]
Damage = Callable[[Files, random.Random], None]


def flip(name: str) -> Damage:
    def damage(files: Files, rng: random.Random) -> None:
        content = bytearray(files[name])
        for _ in range(rng.choice([1, 1, 1, 8])):
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        files[name] = bytes(content)

    return damage


def flip_the_header(files: Files, rng: random.Random) -> None:
    content = bytearray(files[WEIGHTS])
    content[rng.randrange(8 + int.from_bytes(content[:8], "little"))] ^= 1 << rng.randrange(8)
    files[WEIGHTS] = bytes(content)


def cut_or_stretch(files: Files, rng: random.Random) -> None:
    name = rng.choice([WEIGHTS, CONFIG, CODE])
    kept = rng.randrange(len(files[name]))
    files[name] = rng.choice([files[name][:kept], files[name] + b"\0" * 8, files[name][:kept] + bytes(kept)])


def lose(files: Files, rng: random.Random) -> None:
    del files[rng.choice([WEIGHTS, CONFIG, CODE])]


def tensors(files: Files, rng: random.Random) -> None:
    weights = load(files[WEIGHTS])
    one, other = rng.sample(sorted(weights), 2)
    what = rng.randrange(8)
    if what == 0:
        del weights[one]
    elif what == 1:
        weights[one + ".more"] = weights[one].clone()
    elif what == 2:
        weights["x" + one] = weights.pop(one)
    elif what == 3:
        weights[one], weights[other] = weights[other], weights[one]
    elif what == 4:
        weights[one] = weights[one].transpose(0, -1).contiguous()
    elif what == 5:
        weights[one] = weights[one].flatten()[:-1].contiguous()
    elif what == 6:
        weights[one] = weights[one].bfloat16()
    else:
        weights[one] = weights[one] * (1 + 1e-6)
    files[WEIGHTS] = save(weights, metadata={"format": "pt"})


def setting(files: Files, rng: random.Random) -> None:
    """Another value, another name, one more or one less, at any depth; digests and kept units included."""
    values = json.loads(files[CONFIG])
    place: Any = values
    while True:
        key = rng.choice(sorted(place)) if isinstance(place, dict) else rng.randrange(len(place))
        if not isinstance(place[key], (dict, list)) or not place[key] or rng.random() < 0.2:
            break
        place = place[key]
    what = rng.randrange(4)
    if what == 0:
        del place[key]
    elif what == 1 and isinstance(place, dict):
        place[f"{key}_"] = place.pop(key)
    elif what == 2 and isinstance(place, list):
        place.append(rng.randrange(8))
    else:
        place[key] = rng.choice([None, True, 0, 1, -1, 2**40, 0.5, "", "relu", "gpt2", [], [0], {}, place[key] == 0])
    files[CONFIG] = json.dumps(values).encode()


def units(files: Files, rng: random.Random) -> None:
    values = json.loads(files[CONFIG])
    kept = values["autodisc"][rng.choice(["kept_heads", "kept_neurons"])]
    layer = rng.randrange(len(kept))
    kept[layer] = sorted(rng.sample(range(40), rng.randrange(6)))
    files[CONFIG] = json.dumps(values).encode()


def harmless(files: Files, rng: random.Random) -> None:
    """Nothing that is computed changes."""
    values = json.loads(files[CONFIG])
    values |= rng.choice([{"transformers_version": "5.99"}, {"_name_or_path": "/x"}, {}])
    files[CONFIG] = json.dumps(dict(rng.sample(sorted(values.items()), len(values))), indent=rng.randrange(4)).encode()


DAMAGES: list[Damage] = [
    flip(WEIGHTS),
    flip_the_header,
    flip(CONFIG),
    flip(CODE),
    cut_or_stretch,
    lose,
    tensors,
    setting,
    units,
    harmless,
]


OPENED = {"here": autodisc.load, "elsewhere": pruned_class("bert", "sequence").from_pretrained}
REFUSED = {"here": AutodiscError, "elsewhere": (OSError, ValueError)}  # what users of transformers expect


@pytest.fixture
def whole(tiny, random_ranking, tmp_path) -> Path:
    model = tiny(layers=2)
    save_model(extract(model, random_ranking(model), Candidate(0.6, (3, 0), (16, 0))), None, tmp_path / "whole")
    return tmp_path / "whole"


def test_a_damaged_folder_is_refused_or_opens_exactly(whole, tmp_path):
    expected = autodisc.load(whole)(**IDS).logits
    intact = {path.name: path.read_bytes() for path in whole.iterdir()}
    rng, outcomes, said, harmed = random.Random(0), Counter(), [], set()
    folder = tmp_path / "damaged"
    folder.mkdir()
    for case in range(CASES):
        damage = DAMAGES[case % len(DAMAGES)]
        files = dict(intact)
        damage(files, rng)
        for name in intact:
            (folder / name).unlink(missing_ok=True)
        for name, content in files.items():
            (folder / name).write_bytes(content)
        for how, opened in OPENED.items():
            try:
                logits = opened(folder)(**IDS).logits
            except REFUSED[how] as error:
                outcomes[how, "refused"] += 1
                harmed.add(damage)
                said.append(str(error))
            else:
                outcomes[how, "opened"] += 1
                assert torch.equal(logits, expected), f"case {case}, {how}: silently another model"
    assert harmed == {*DAMAGES} - {harmless}
    assert not [line for line in said if "\n" in line]
    for how in ("here", "elsewhere"):
        assert outcomes[how, "refused"] > 0.8 * CASES
