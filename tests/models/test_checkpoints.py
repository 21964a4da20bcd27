"""A saved model is the model; anything that does not fit is one clear line, never a re-initialised weight."""

from __future__ import annotations

import copy
import json
import pickle
import resource
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import BPE, WordPiece
from tokenizers.pre_tokenizers import BertPreTokenizer, ByteLevel, Metaspace, Sequence, Split
from transformers import GemmaTokenizer, PreTrainedTokenizerFast, Qwen2Tokenizer

import autodisc
from autodisc.config import ImportanceConfig
from autodisc.costs import Ledger
from autodisc.errors import CheckpointError, ModelError, UserError
from autodisc.models.checkpoints import (
    Kept,
    fingerprint,
    identity,
    load,
    load_model,
    load_tokenizer,
    pad_alike,
    save_model,
    spaced_words,
)
from autodisc.pruning.candidates import Candidate
from autodisc.pruning.importance import rank_units
from autodisc.pruning.refit import refit
from autodisc.pruning.supernet import Supernet, extract
from autodisc.search.workers import opened, packed
from autodisc.tasks.splits import IGNORED
from autodisc.tasks.tokenising import identity as identity_of_tokens
from autodisc.tasks.words import encode_words

STANDARD = ("bert", "distilbert", "electra", "roberta")  # their layers are computed by hand

UNEVEN = Candidate(0.6, heads=(3, 0, 1), neurons=(16, 9, 0))
EMPTY = Candidate(0.9, heads=(0, 0, 1), neurons=(0, 0, 8))  # several tensors without an element
IDS = {"input_ids": torch.tensor([[2, 8, 9, 3]]), "attention_mask": torch.ones(1, 4, dtype=torch.long)}


@pytest.fixture
def saved(tiny, random_ranking, tmp_path) -> Path:
    """A pruned bert in a folder."""
    model = tiny()
    save_model(extract(model, random_ranking(model), UNEVEN), None, tmp_path / "pruned")
    return tmp_path / "pruned"


def change_config(folder: Path, change: Callable[[dict], None]) -> None:
    path = folder / "config.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def change_weights(folder: Path, change: Callable[[dict], None]) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})


def refused(folder: Path, kind: type[UserError], pattern: str, *, verify: bool = True) -> None:
    with pytest.raises(kind, match=pattern) as caught:
        load(folder, verify=verify)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("candidate", [UNEVEN, EMPTY], ids=["uneven", "almost empty"])
@pytest.mark.parametrize("family", STANDARD)
def test_a_loaded_model_gives_exactly_the_saved_logits(tiny, random_ranking, same_weights, tmp_path, family, candidate):
    model = tiny(family)
    cut = extract(model, random_ranking(model), candidate)
    save_model(cut, None, tmp_path / "model")
    loaded = autodisc.load(tmp_path / "model")
    assert torch.equal(loaded(**IDS).logits, cut(**IDS).logits)
    assert same_weights(loaded, cut)
    assert Kept.of(loaded.config) == Kept.of(cut.config)
    assert fingerprint(loaded) == fingerprint(cut)
    assert not loaded.training


@pytest.mark.parametrize("family", STANDARD)
def test_an_unpruned_model_comes_back_bit_for_bit(tiny, same_weights, tmp_path, family):
    model = tiny(family, num_labels=3)
    save_model(model, None, tmp_path / "model")
    assert same_weights(load(tmp_path / "model"), model)


def test_a_loaded_model_can_be_cut_again(saved, tiny, random_ranking, same_weights):
    model = tiny()
    small = Candidate(0.9, heads=(1, 0, 1), neurons=(8, 8, 0))
    ranking = random_ranking(model)
    assert same_weights(Supernet(load(saved), ranking).extract(small), extract(model, ranking, small))


def test_a_loaded_model_without_units_in_some_layers_can_be_ranked_refitted_and_sent(
    saved, same_weights, make_task, make_runtime
):
    """Its empty layers run no products; what hooks into them sees what it would of a cut in memory."""
    task, runtime = make_task(), make_runtime()
    loaded = load(saved)
    for criterion in ("fisher", "first-order"):
        ranking = rank_units(loaded, task, ImportanceConfig(criterion=criterion, examples=16), runtime=runtime)
        assert len(ranking.heads) == 4
    small = extract(loaded, ranking, Candidate(0.9, heads=(1, 0, 1), neurons=(8, 8, 0)))
    before = copy.deepcopy(small)
    refit(small, loaded, task.train, task=task, runtime=runtime, ledger=Ledger())
    assert not same_weights(small, before)
    assert same_weights(opened(pickle.loads(pickle.dumps(packed(small)))), small)


def test_a_half_precision_file_is_loaded_as_fp32(tiny, random_ranking, tmp_path):
    model = tiny()
    save_model(extract(model, random_ranking(model), UNEVEN).bfloat16(), None, tmp_path / "half")
    assert {p.dtype for p in load(tmp_path / "half").parameters()} == {torch.float32}


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_a_model_in_half_precision_that_was_sent_is_the_same_one(tiny, tmp_path, family):
    """The outputs that are kept of it are found by its identity."""
    save_model(tiny(family), None, tmp_path / "teacher")
    model = load_model(tmp_path / "teacher", dtype=torch.bfloat16)
    found = opened(pickle.loads(pickle.dumps(packed(model))))
    assert identity(found) == identity(model)
    ids = torch.full((1, 5), 7)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(found(ids).logits, model(ids).logits)


@pytest.mark.parametrize("left", [-1000, 0], ids=["truncated", "empty"])
def test_a_truncated_file_is_refused(saved, left):
    path = saved / "model.safetensors"
    path.write_bytes(path.read_bytes()[:left])
    refused(saved, CheckpointError, "pruned: model.safetensors: not what was saved")
    refused(saved, CheckpointError, "pruned: weights cannot be loaded", verify=False)


@pytest.mark.parametrize("where", [0.0, 0.3, 0.999])
def test_one_flipped_bit_of_the_weights_is_refused(saved, where):
    path = saved / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[int(where * len(content))] ^= 1
    path.write_bytes(content)
    refused(saved, CheckpointError, "pruned: model.safetensors: not what was saved.*verify=False.*save it again")


@pytest.mark.parametrize(
    "change",
    [
        lambda values: values.update(hidden_act="relu"),
        lambda values: values.update(dtype="float16"),
        lambda values: values["id2label"].update({"0": "LABEL_1", "1": "LABEL_0"}),
        lambda values: values.update(transformers_weights="other.safetensors"),
        lambda values: values["autodisc"]["kept_heads"].__setitem__(0, [0, 1, 3]),
    ],
    ids=["activation", "dtype", "labels", "another file", "kept heads"],
)
def test_a_changed_setting_is_refused(tiny, random_ranking, tmp_path, change):
    model = tiny()
    model.config.id2label = {0: "LABEL_0", 1: "bad"}
    save_model(extract(model, random_ranking(model), UNEVEN), None, tmp_path / "pruned")
    change_config(tmp_path / "pruned", change)
    refused(tmp_path / "pruned", CheckpointError, "config.json: not what was saved")


def test_who_wrote_a_config_and_how_it_is_laid_out_do_not_matter(saved):
    before = load(saved)(**IDS).logits
    change_config(saved, lambda values: values.update(transformers_version="9", _name_or_path="/elsewhere"))
    assert torch.equal(load(saved)(**IDS).logits, before)


def test_an_edit_that_is_meant_is_opened_unverified_and_verifies_when_saved_again(saved):
    change_config(saved, lambda values: values.update(hidden_act="relu"))
    edited = load(saved, verify=False)
    save_model(edited, None, saved)
    assert torch.equal(load(saved)(**IDS).logits, edited(**IDS).logits)


def test_a_folder_of_format_1_opens_unverified_and_has_digests_when_saved_again(saved, same_weights):
    cut = load(saved)
    change_config(saved, as_format_1)
    (saved / "modeling_autodisc.py").unlink()
    old = load(saved)
    assert same_weights(old, cut)
    save_model(old, None, saved)
    assert set(json.loads((saved / "config.json").read_text())["autodisc"]["digests"]) == {
        "config.json",
        "model.safetensors",
        "modeling_autodisc.py",
        "blocks_autodisc.py",
        "layouts_autodisc.py",
    }
    assert same_weights(load(saved), cut)


def as_format_1(values: dict) -> None:
    values["autodisc"].pop("digests")
    values["autodisc"]["format"] = 1
    values.pop("auto_map")


@pytest.mark.parametrize("left", ["all", "none"])
def test_digests_cannot_be_lost(saved, left):
    change_config(
        saved,
        lambda values: values["autodisc"].update(format=1) if left == "all" else values["autodisc"].pop("digests"),
    )
    refused(saved, CheckpointError, "config.autodisc.digests")


def test_missing_weights_are_refused(saved):
    (saved / "model.safetensors").unlink()
    refused(saved, CheckpointError, "model.safetensors: missing")
    refused(saved, ModelError, "model.safetensors", verify=False)


def test_a_missing_key_is_refused(saved):
    change_weights(saved, lambda weights: weights.pop("bert.encoder.layer.0.output.dense.weight"))
    refused(saved, CheckpointError, "missing keys.*layer.0.output.dense.weight", verify=False)


def test_an_unknown_key_is_refused(saved):
    change_weights(saved, lambda weights: weights.update(extra=torch.ones(1)))
    refused(saved, CheckpointError, "unexpected keys extra", verify=False)


@pytest.mark.parametrize("key", ["bert.encoder.layer.1.output.dense.weight", "bert.embeddings.LayerNorm.weight"])
@pytest.mark.parametrize("num_labels", [None, 2], ids=["as a teacher", "to fine-tune"])
def test_an_unpruned_model_that_lacks_a_key_is_damaged(tiny, tmp_path, key, num_labels):
    save_model(tiny(), None, tmp_path / "model")
    change_weights(tmp_path / "model", lambda weights: weights.pop(key))
    with pytest.raises(CheckpointError, match=f"{key}; the file is damaged"):
        load_model(tmp_path / "model", num_labels=num_labels)


def test_a_pretrained_model_without_a_classifier_is_sent_to_finetune(tiny, tmp_path):
    tiny().base_model.save_pretrained(tmp_path / "model")
    refused(tmp_path / "model", CheckpointError, "lack classifier.bias.*autodisc finetune")
    assert load_model(tmp_path / "model", num_labels=3).num_labels == 3


def test_weights_of_another_shape_are_refused(saved):
    name = "bert.encoder.layer.0.output.dense.weight"
    change_weights(saved, lambda weights: weights.update({name: weights[name][:, :-1].contiguous()}))
    refused(saved, CheckpointError, "does not fit config.json.*layer.0.output.dense.weight", verify=False)


def test_kept_units_that_the_weights_do_not_have_are_refused(saved):
    change_config(saved, lambda values: values["autodisc"]["kept_neurons"].__setitem__(2, [0, 1]))
    refused(saved, CheckpointError, "does not fit config.json", verify=False)


@pytest.mark.parametrize("layer", [[0, 4], [-1, 0], [2, 1], [1, 1], ["0"], [True], [0.0], None], ids=repr)
def test_kept_units_that_cannot_be_are_refused(saved, layer):
    change_config(saved, lambda values: values["autodisc"]["kept_heads"].__setitem__(0, layer))
    refused(saved, CheckpointError, r"kept_heads\[0\]: expected ascending indices in \[0, 4\)", verify=False)


def test_kept_units_for_another_number_of_layers_are_refused(saved):
    change_config(saved, lambda values: values["autodisc"]["kept_heads"].pop())
    refused(saved, CheckpointError, "kept_heads: expected one list for each of 3 layers", verify=False)


@pytest.mark.parametrize("entry", [{"format": 3}, {"format": True}, {}, "pruned", 1], ids=repr)
def test_another_format_is_refused(saved, entry):
    change_config(saved, lambda values: values.update(autodisc=entry))
    for verify in (True, False):
        refused(saved, CheckpointError, "this version reads 1 to 2.*Upgrade autodisc", verify=verify)


def test_a_key_of_a_newer_version_is_refused(saved):
    change_config(saved, lambda values: values["autodisc"].update(kept_experts=[[0]]))
    for verify in (True, False):
        refused(saved, CheckpointError, "config.autodisc.kept_experts: unknown.*Upgrade", verify=verify)


def test_a_config_without_its_kept_units_is_refused(saved):
    change_config(saved, lambda values: values.pop("autodisc"))
    refused(saved, CheckpointError, "config.autodisc: missing")
    refused(saved, CheckpointError, "weights cannot be loaded", verify=False)


def test_a_config_that_is_no_json_is_refused(saved):
    (saved / "config.json").write_text("{")
    refused(saved, ModelError, "pruned: cannot be opened as a model")


def test_a_missing_folder_is_refused(tmp_path):
    refused(tmp_path / "nowhere", ModelError, "no such folder")


def test_a_folder_without_a_model_is_refused(tmp_path):
    refused(tmp_path, ModelError, "cannot be opened as a model")


def test_a_name_that_the_hub_cannot_be_asked_for_is_refused():
    with pytest.raises(
        ModelError, match="nobody/nothing: not a local folder, and not to be had from the hub"
    ) as caught:
        load_model("nobody/nothing")
    assert "\n" not in str(caught.value)


def test_a_package_that_is_not_installed_is_refused():
    with pytest.raises(ModelError, match="package 'no_such_package' is not installed"):
        load_model("package:no_such_package/model")


def test_a_tokenizer_is_saved_beside_the_model(tiny, word_tokenizer, tmp_path):
    save_model(tiny(), word_tokenizer, tmp_path / "model")
    loaded = load_tokenizer(tmp_path / "model")
    assert loaded("good w1").input_ids == word_tokenizer("good w1").input_ids


def test_a_tokenizer_other_than_the_one_saved_with_a_pruned_model_is_refused(saved, word_tokenizer):
    save_model(load(saved), word_tokenizer, saved)
    assert load_tokenizer(saved)("good w1").input_ids == word_tokenizer("good w1").input_ids
    path = saved / "tokenizer.json"
    path.write_text(path.read_text().replace("good", "dood"))
    with pytest.raises(CheckpointError, match=r"tokenizer.json: not what was saved"):
        load_tokenizer(saved)
    load(saved)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"tokenizer.json: missing"):
        load_tokenizer(saved)


def test_saving_replaces_a_model(tiny, same_weights, tmp_path):
    for seed in (0, 1):
        save_model(tiny(seed=seed), None, tmp_path / "model")
    assert same_weights(load(tmp_path / "model"), tiny(seed=1))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("over", [False, True], ids=["a folder", "a model's folder"])
def test_a_folder_with_other_files_is_refused_and_left_alone(tiny, tmp_path, over):
    folder = tmp_path / "work"
    folder.mkdir()
    if over:
        save_model(tiny(), None, folder)
    (folder / "thesis.tex").write_text("years")
    before = sorted(path.name for path in folder.iterdir())
    with pytest.raises(CheckpointError, match=r"work: holds other files.*"):
        save_model(tiny(seed=1), None, folder)
    assert sorted(path.name for path in folder.iterdir()) == before
    assert (folder / "thesis.tex").read_text() == "years"
    assert [path.name for path in tmp_path.iterdir()] == ["work"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["disk", "^C"])
def test_a_save_that_fails_leaves_the_old_model_and_nothing_half_written(
    tiny, word_tokenizer, same_weights, tmp_path, monkeypatch, error
):
    save_model(tiny(), None, tmp_path / "model")

    def fail(folder):
        (Path(folder) / "half").write_text("written")
        raise error

    monkeypatch.setattr(word_tokenizer, "save_pretrained", fail)
    for name in ("model", "new"):
        with pytest.raises(type(error)):
            save_model(tiny(seed=1), word_tokenizer, tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert same_weights(load(tmp_path / "model"), tiny())


def test_a_rename_that_fails_leaves_the_old_model(tiny, same_weights, tmp_path, monkeypatch):
    save_model(tiny(), None, tmp_path / "model")
    rename = Path.rename

    def fail(self, target):
        if self.name.endswith(".partial"):
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="Input/output"):
        save_model(tiny(seed=1), None, tmp_path / "model")
    assert same_weights(load(tmp_path / "model"), tiny())
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_full_disk_is_an_os_error(tiny, tmp_path):
    """What safetensors raises there is none of Python's own; here a file-size limit stands in for the disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(OSError, match=r"File too large: .*model.safetensors"):
            save_model(tiny(), None, tmp_path / "model")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())


def test_an_identity_changes_with_what_the_config_says_of_answers_and_with_no_name(tiny, tmp_path):
    save_model(tiny(), None, tmp_path / "model")
    before = identity(load_model(tmp_path / "model"))
    assert before == identity(tiny())
    change_config(
        tmp_path / "model", lambda c: c.update(id2label={"0": "no", "1": "yes"}, use_cache=False, dtype="bfloat16")
    )
    assert identity(load_model(tmp_path / "model")) == before
    change_config(tmp_path / "model", lambda c: c.update(layer_norm_eps=1e-3))
    assert identity(load_model(tmp_path / "model")) != before


def test_weights_that_the_config_has_no_place_for_are_refused(tiny, tmp_path):
    save_model(tiny(), None, tmp_path / "model")
    change_config(tmp_path / "model", lambda c: c.update(num_hidden_layers=2))
    with pytest.raises(
        CheckpointError, match=r"the weights hold bert\.encoder\.layer\.2\..*, which a bert of this config"
    ) as caught:
        load_model(tmp_path / "model")
    assert "\n" not in str(caught.value)


def test_an_adapter_beside_the_weights_is_refused(tiny, tmp_path):
    save_model(tiny(), None, tmp_path / "model")
    (tmp_path / "model" / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="an adapter beside the weights; merge it"):
        load_model(tmp_path / "model")


@pytest.mark.parametrize("pads", [0, None, 5], ids=["as the batches", "not named", "another"])
def test_a_decoder_s_classifier_answers_alike_alone_and_beside_a_longer_text(decoder, tiny, word_tokenizer, pads):
    model = tiny(decoder)
    model.config.pad_token_id = pads
    pad_alike(model, word_tokenizer)
    short, long = [2, 8, 9], [2, 7, 8, 9, 10, 11, 3]
    alone = torch.tensor([short])
    beside = torch.tensor([short + [0] * 4, long])
    with torch.no_grad():
        expected = model(input_ids=alone, attention_mask=torch.ones_like(alone)).logits[0]
        found = model(input_ids=beside, attention_mask=(beside > 0).long()).logits[0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_byte_level_tokenizer_puts_a_space_before_words_that_come_alone(tmp_path):
    backend = Tokenizer(BPE({c: i for i, c in enumerate(sorted(ByteLevel.alphabet()))}, []))
    backend.pre_tokenizer = ByteLevel(add_prefix_space=False)
    made = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="!", add_prefix_space=False)
    made.save_pretrained(tmp_path / "plain")
    load_tokenizer(tmp_path / "plain", words=True).save_pretrained(tmp_path / "words")
    for folder, words, expected in (("plain", False, "ab"), ("plain", True, "ĠaĠb"), ("words", False, "ĠaĠb")):
        tokenizer = load_tokenizer(tmp_path / folder, words=words)
        ids = tokenizer(["a", "b"], is_split_into_words=True)["input_ids"]
        assert "".join(tokenizer.convert_ids_to_tokens(ids)) == expected


def _pieces(*tokens: str, **parts) -> PreTrainedTokenizerFast:
    backend = Tokenizer(BPE({token: i for i, token in enumerate(("<pad>", *tokens))}, []))
    for name, part in parts.items():
        setattr(backend, name, part)
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>")


def _qwen2() -> PreTrainedTokenizerFast:
    return Qwen2Tokenizer(vocab={c: i for i, c in enumerate(sorted(ByteLevel.alphabet()))}, merges=[])


def _gemma() -> PreTrainedTokenizerFast:
    named = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "a", "b", "▁")
    return GemmaTokenizer(vocab={token: i for i, token in enumerate(named)}, merges=[])


def _wordpiece() -> PreTrainedTokenizerFast:
    backend = Tokenizer(WordPiece({"[PAD]": 0, "[UNK]": 1, "a": 2, "b": 3}, unk_token="[UNK]"))
    backend.pre_tokenizer = BertPreTokenizer()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]")


@pytest.mark.parametrize(
    ("make", "alone", "spaced"),
    [
        (
            lambda: _pieces("a", "b", "Ġ", pre_tokenizer=Sequence([Split(" ", "merged_with_next"), ByteLevel(False)])),
            "ab",
            "ĠaĠb",
        ),
        (lambda: _pieces("a", "b", "▁", pre_tokenizer=Metaspace(prepend_scheme="never")), "ab", "▁a▁b"),
        (lambda: _pieces("a", "b", "▁", pre_tokenizer=Metaspace()), "▁a▁b", "▁a▁b"),
        (_qwen2, "ab", "ĠaĠb"),
        (_gemma, "ab", "▁a▁b"),
        (_wordpiece, "ab", "ab"),
    ],
    ids=["sequence", "metaspace", "prepending metaspace", "qwen2", "gemma", "wordpiece"],
)
def test_words_that_come_alone_are_not_glued_together_whatever_the_tokenizer(make, alone, spaced, tmp_path):
    make().save_pretrained(tmp_path / "plain")
    made = load_tokenizer(tmp_path / "plain", words=True)
    made.save_pretrained(tmp_path / "words")
    for folder, words, expected in (("plain", False, alone), ("plain", True, spaced), ("words", False, spaced)):
        tokenizer = load_tokenizer(tmp_path / folder, words=words)
        row = encode_words([["a", "b"]], tokenizer, 9, [[3, 4]])
        own = [i for i in row["input_ids"][0] if i not in tokenizer.all_special_ids]
        assert "".join(tokenizer.convert_ids_to_tokens(own)) == expected
        assert [tag for tag in row["labels"][0] if tag != IGNORED] == [3, 4]
        assert spaced_words(tokenizer) == (alone != expected)
    if alone == spaced:
        assert identity_of_tokens(made) == identity_of_tokens(load_tokenizer(tmp_path / "plain"))


def test_a_fingerprint_changes_with_a_weight_and_with_a_kept_unit(tiny, random_ranking):
    model = tiny()
    ranking = random_ranking(model)
    prints = {
        fingerprint(model),
        fingerprint(extract(model, ranking, UNEVEN)),
        fingerprint(extract(model, ranking, EMPTY)),
    }
    with torch.no_grad():
        model.classifier.bias[0] += 1e-6
    prints.add(fingerprint(model))
    assert len(prints) == 4
    assert fingerprint(tiny()) in prints


@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_a_model_fine_tuned_for_another_number_of_classes_is_named_with_both(tiny, tmp_path, family):
    save_model(tiny(family, layers=2, num_labels=2), None, tmp_path / "two")
    assert load_model(tmp_path / "two", num_labels=2).config.num_labels == 2
    with pytest.raises(CheckpointError, match="its head has 2 outputs, the task has 3; give"):
        load_model(tmp_path / "two", num_labels=3)


def test_a_pruned_model_is_not_taken_for_another_number_of_classes(saved):
    assert load_model(saved, num_labels=2).config.num_labels == 2
    with pytest.raises(CheckpointError, match="its head has 2 outputs, the task has 3; give"):
        load_model(saved, num_labels=3)
