"""A pruned folder opens by transformers alone, to the bit, and is as loud there as it is here."""

from __future__ import annotations

import ast
import copy
import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForSequenceClassification, PreTrainedModel, pipeline

from autodisc.models import modeling_autodisc
from autodisc.models.checkpoints import load, save_model, unfilled
from autodisc.models.inference import forward_macs
from autodisc.models.layouts import blocks
from autodisc.pruning.candidates import Candidate
from autodisc.pruning.supernet import extract

STANDARD = ("bert", "distilbert", "electra", "roberta")  # their layers are computed by hand

UNEVEN = Candidate(0.6, heads=(3, 0, 1), neurons=(16, 9, 0))
EMPTY = Candidate(0.9, heads=(0, 0, 1), neurons=(0, 0, 8))
IDS = {
    "input_ids": torch.tensor([[2, 8, 9, 3], [2, 7, 3, 0]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]),
}


pytestmark = pytest.mark.usefixtures("modules_elsewhere")
TRAVELLING = {"modeling_autodisc.py", "blocks_autodisc.py", "layouts_autodisc.py"}


@pytest.fixture
def make(tiny, random_ranking, word_tokenizer, tmp_path):
    """``make(family, candidate, attention)`` -> a cut, and the folder that it is saved in."""

    def made(family="bert", candidate=UNEVEN, attention="sdpa", name="student-0.9"):
        model = tiny(family, attention=attention, num_labels=3)
        model.config.id2label = {0: "bad", 1: "so so", 2: "good"}
        cut = extract(model, random_ranking(model), candidate)
        save_model(cut, word_tokenizer, tmp_path / name)
        return cut, tmp_path / name

    return made


def elsewhere(folder: str | Path, **others) -> PreTrainedModel:
    model = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True, **others)
    assert type(model).__module__.startswith("transformers_modules.")
    return model


def change_config(folder: Path, change) -> None:
    values = json.loads((folder / "config.json").read_text())
    change(values)
    (folder / "config.json").write_text(json.dumps(values))


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def test_the_file_that_travels_needs_torch_and_transformers_alone():
    imported, beside = set(), set()
    for name in TRAVELLING:
        tree = ast.parse((Path(modeling_autodisc.__file__).parent / name).read_text(encoding="utf-8"))
        imported |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        found = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        imported |= {node.module for node in found if not node.level}
        beside |= {f"{node.module}.py" for node in found if node.level}
    assert {name.split(".")[0] for name in imported} - sys.stdlib_module_names == {"torch", "transformers"}
    assert beside | {"modeling_autodisc.py"} == TRAVELLING


def test_a_folder_imports_its_own_family_alone(make):
    _, folder = make("distilbert")
    code = (
        "import sys; from transformers import AutoModelForSequenceClassification as auto;"
        f" auto.from_pretrained({str(folder)!r}, trust_remote_code=True);"
        " print(*(name.split('.')[-1] for name in sys.modules if name.startswith('transformers.models.')"
        " and '.modeling_' in name and 'auto' not in name))"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["modeling_distilbert"]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("candidate", [UNEVEN, EMPTY], ids=["uneven", "almost empty"])
@pytest.mark.parametrize("family", STANDARD)
def test_a_folder_opened_elsewhere_gives_exactly_the_saved_outputs(make, same_weights, family, candidate, attention):
    cut, folder = make(family, candidate, attention)
    model = elsewhere(folder, attn_implementation=attention)
    asked = {"output_hidden_states": True, "output_attentions": attention == "eager"}
    expected, found = cut(**IDS, **asked), model(**IDS, **asked)
    assert torch.equal(found.logits, expected.logits)
    assert all(torch.equal(a, b) for a, b in zip(found.hidden_states, expected.hidden_states, strict=True))
    if attention == "eager":
        assert all(torch.equal(a, b) for a, b in zip(found.attentions, expected.attentions, strict=True))
    assert same_weights(model, cut)
    assert not model.training


def test_a_pipeline_opens_a_folder_and_has_nothing_to_say_against_it(make, word_tokenizer, capfd):
    cut, folder = make()
    classify = pipeline("text-classification", model=str(folder), trust_remote_code=True, top_k=None, device="cpu")
    with torch.no_grad():
        expected = cut(**word_tokenizer("good w1", return_tensors="pt")).logits.softmax(-1)[0]
    found = {row["label"]: row["score"] for row in classify(["good w1"])[0]}
    assert found == pytest.approx(dict(zip(("bad", "so so", "good"), expected.tolist(), strict=True)))
    assert "not supported" not in capfd.readouterr().err


@pytest.mark.parametrize("family", STANDARD)
def test_a_model_tuned_further_elsewhere_saves_a_folder_that_opens_everywhere(make, tmp_path, family):
    cut, folder = make(family)
    model = elsewhere(folder)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(**IDS, labels=torch.tensor([0, 2])).loss.backward()
    optimizer.step()
    expected = model(**IDS).logits
    assert not torch.equal(expected, cut(**IDS).logits)
    for target in (tmp_path / "tuned", folder):
        model.save_pretrained(target)
        assert torch.equal(load(target)(**IDS).logits, expected)
        assert torch.equal(elsewhere(target)(**IDS).logits, expected)
    flip_a_bit(folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"model.safetensors: not what was saved"):
        elsewhere(folder)


def test_what_is_pushed_has_its_code_and_its_digests(make, tmp_path, monkeypatch):
    cut, folder = make()
    pushed = {}

    def push(self, repo_id, **kwargs):  # as transformers': save to a new folder, then upload all of it
        self.save_pretrained(tmp_path / "pushed", max_shard_size="1KB")
        pushed[repo_id] = kwargs

    monkeypatch.setattr(PreTrainedModel, "push_to_hub", push)
    load(folder).save_pretrained(tmp_path / "mine", push_to_hub=True, commit_message="a student")
    assert pushed == {"mine": {"commit_message": "a student"}}
    assert {path.name for path in (tmp_path / "pushed").iterdir()} == {
        "config.json",
        "model.safetensors",
        *TRAVELLING,
    }
    assert torch.equal(elsewhere(tmp_path / "pushed")(**IDS).logits, cut(**IDS).logits)


def test_what_came_from_a_hub_is_verified_too(make, tmp_path):
    cut, folder = make()
    revision, cache = "0123456789abcdef0123456789abcdef01234567", tmp_path / "cache"
    snapshot = cache / "models--me--student" / "snapshots" / revision
    shutil.copytree(folder, snapshot)
    (cache / "models--me--student" / "refs").mkdir()
    (cache / "models--me--student" / "refs" / "main").write_text(revision)
    assert torch.equal(elsewhere("me/student", cache_dir=cache)(**IDS).logits, cut(**IDS).logits)
    flip_a_bit(snapshot / "model.safetensors")
    with pytest.raises(ValueError, match=r"model.safetensors: not what was saved"):
        elsewhere("me/student", cache_dir=cache)


class Kernels(TorchDispatchMode):
    """Remembers what ran, and what ran on nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.ran: list[str] = []
        self.on_nothing: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        touched = [x for x in (*args, out) if isinstance(x, torch.Tensor)]
        name = func.overloadpacket.__name__
        self.ran.append(name)
        if any(x.numel() == 0 for x in touched) and not func.is_view:
            self.on_nothing.add(name)
        return out


@pytest.mark.parametrize("family", STANDARD)
def test_blocks_without_units_run_no_kernels(make, family):
    """What is left of a layer without any unit is two additions and two LayerNorms."""
    cut, folder = make(family, EMPTY)
    loaded = load(folder)
    with torch.no_grad():
        hidden = torch.randn(2, 4, 32)
        for block, kernels in ((blocks(cut)[0], Kernels()), (blocks(loaded)[0], Kernels())):
            with kernels:
                block.layer(hidden)
        with Kernels() as whole:
            loaded(**IDS)
    working = [name for name in kernels.ran if name in ("add", "native_layer_norm", "addmm", "mm", "bmm", "gelu")]
    assert sorted(working) == ["add", "add", "native_layer_norm", "native_layer_norm"]
    assert not whole.on_nothing
    assert forward_macs(loaded) == forward_macs(cut)


def test_a_model_without_units_can_be_copied_pickled_and_trained(make):
    cut, folder = make(candidate=EMPTY)
    loaded = load(folder)
    for other in (copy.deepcopy(loaded), pickle.loads(pickle.dumps(loaded))):
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.zero_()
        assert not other(**IDS).logits.any()
    assert torch.equal(loaded(**IDS).logits, cut(**IDS).logits)
    for model in (loaded, cut):
        model(**IDS).logits.square().sum().backward()
    for mine, theirs in zip(loaded.parameters(), cut.parameters(), strict=True):
        assert (mine.grad is None and not mine.numel()) or torch.equal(mine.grad, theirs.grad)


def test_a_model_made_of_a_config_alone_has_initialised_weights(make):
    _, folder = make()
    model = unfilled(load(folder).config, "sequence")
    assert [block.heads for block in blocks(model)] == [3, 0, 1]
    assert torch.isfinite(model(**IDS).logits).all()


def test_without_trust_nothing_opens(make):
    for family in STANDARD:
        _, folder = make(family, name=family)
        with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
            AutoModelForSequenceClassification.from_pretrained(folder)


def test_sizes_that_do_not_fit_cannot_be_ignored(make):
    _, folder = make()
    with pytest.raises(ValueError, match="ignore_mismatched_sizes: would re-initialise"):
        elsewhere(folder, ignore_mismatched_sizes=True)
    with pytest.raises(ValueError, match=r"does not fit config.json: mismatched keys classifier.bias"):
        elsewhere(folder, num_labels=5)


@pytest.mark.parametrize(
    ("change", "pattern"),
    [
        (lambda values: values["autodisc"].update(format=3), "format: got '3'; this version reads 1 to 2"),
        (lambda values: values["autodisc"].update(ranks=[]), "config.autodisc.ranks: unknown"),
        (lambda values: values["autodisc"]["kept_heads"].pop(), "kept_heads: expected one list for each of 3 layers"),
        (lambda values: values["autodisc"]["kept_heads"][0].append(4), r"kept_heads\[0\]: expected ascending"),
        (lambda values: values["autodisc"]["kept_heads"][0].pop(), "does not fit config.json: mismatched keys"),
        (lambda values: values.update(model_type="electra"), "model_type: got 'electra'"),
    ],
    ids=["newer format", "newer key", "layers", "heads", "fewer heads", "family"],
)
def test_a_config_that_cannot_be_is_one_clear_line(make, change, pattern):
    _, folder = make()
    change_config(folder, change)
    for verify, expected in ((False, pattern), (True, f"{pattern}|config.json: not what was saved")):
        with pytest.raises(ValueError, match=expected) as caught:
            elsewhere(folder, verify=verify)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["model.safetensors", "modeling_autodisc.py", "layouts_autodisc.py"])
def test_a_flipped_bit_is_refused_unless_it_is_meant(make, name):
    _, folder = make()
    if name in TRAVELLING:  # a bit of a comment: other code might not run at all
        (folder / name).write_text((folder / name).read_text() + "# edited\n")
    else:
        flip_a_bit(folder / name)
    with pytest.raises(ValueError, match=rf"{name}: not what was saved.*verify=False"):
        elsewhere(folder)
    elsewhere(folder, verify=False).save_pretrained(folder)
    elsewhere(folder)
