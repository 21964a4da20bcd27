"""An exported file computes what torch does at any batch and length, or is not written."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from autodisc.errors import CheckpointError, ModelError
from autodisc.models import onnx
from autodisc.models.checkpoints import Kept, load, save_model
from autodisc.models.onnx import MODEL, OnnxModel, export_onnx, quantize_int8, write_beside
from autodisc.pruning.surgery import keep

# A layer without heads, one without neurons; the last attention is not in the last layer.
UNEVEN = Kept(((0, 2, 3), (1,), ()), ((), (0, 5, 6, 30), (1, 2)))


def inputs(rows: int, length: int, *, types: bool = False, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, 60, (rows, length), generator=generator)
    mask = (torch.arange(length)[None] < torch.randint(1, length + 1, (rows, 1), generator=generator)).long()
    return {
        "input_ids": ids * mask,
        "attention_mask": mask,
        **({"token_type_ids": torch.randint(0, 2, (rows, length), generator=generator)} if types else {}),
    }


@pytest.mark.parametrize("family", ["bert", "roberta", "electra", "distilbert"])
def test_a_pruned_student_from_its_folder_gives_torchs_logits_at_any_shape(tiny, tmp_path, family):
    types = family in ("bert", "electra")
    save_model(keep(tiny(family), UNEVEN), None, tmp_path / "student")
    model = load(tmp_path / "student")
    made = export_onnx(model, tmp_path / MODEL, batches=[inputs(3, 7, types=types), inputs(1, 12, types=types)])
    assert made.max_difference <= 1e-4
    assert made.bytes == made.path.stat().st_size
    file = OnnxModel(made.path, threads=1)
    assert set(file.inputs) == set(inputs(1, 2, types=types))
    for rows, length in ((1, 1), (1, 16), (5, 3), (2, 120)):
        given = inputs(rows, length, types=types, seed=rows)
        with torch.no_grad():
            expected = model(**given).logits.numpy()
        found = file.logits({name: values.numpy() for name, values in given.items()})
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(("family", "head"), [("t5", "sequence"), ("llama", "causal")])
def test_a_family_whose_layers_are_not_written_out_is_exported_through_its_modules(tiny, tmp_path, family, head):
    model = keep(tiny(family, head=head), UNEVEN)
    made = export_onnx(model, tmp_path / MODEL, batches=[inputs(3, 7), inputs(1, 12)])
    assert made.max_difference <= 1e-4
    given = inputs(5, 30, seed=2)
    with torch.no_grad():
        expected = model(**given).logits.numpy()
    found = OnnxModel(made.path, threads=1).logits({name: values.numpy() for name, values in given.items()})
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_model_of_images_is_not_exported(tiny, tmp_path):
    with pytest.raises(ModelError, match="a vit reads pixel_values; only text is exported"):
        export_onnx(tiny("vit"), tmp_path / MODEL, batches=[])
    assert not list(tmp_path.iterdir())


def test_a_family_without_token_types_is_exported_on_its_teachers_typed_texts(tiny, tmp_path):
    model = tiny("distilbert")
    file = OnnxModel(export_onnx(model, tmp_path / MODEL, batches=[inputs(2, 5, types=True)]).path)
    assert set(file.inputs) == {"input_ids", "attention_mask"}
    given = inputs(3, 8, types=True, seed=1)
    with torch.no_grad():
        expected = model(**{name: given[name] for name in file.inputs}).logits.numpy()
    np.testing.assert_allclose(file.logits({n: v.numpy() for n, v in given.items()}), expected, atol=1e-5)


@pytest.fixture(scope="module")
def exported(tiny, tmp_path_factory):
    """A teacher, unpruned, and its file."""
    model = tiny("bert")
    return model, export_onnx(model, tmp_path_factory.mktemp("onnx") / MODEL, batches=[inputs(2, 5)]).path


def test_an_unpruned_model_is_exported_alike(exported):
    model, path = exported
    given = inputs(4, 9)
    with torch.no_grad():
        expected = model(**given).logits.numpy()
    found = OnnxModel(path, threads=1).logits({name: values.numpy() for name, values in given.items()})
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_int8_is_smaller_and_near(exported, tmp_path):
    _, path = exported
    small = quantize_int8(path, tmp_path / "int8.onnx")
    assert small.stat().st_size < path.stat().st_size
    given = {name: values.numpy() for name, values in inputs(16, 9).items()}
    near, exact = OnnxModel(small, threads=1).logits(given), OnnxModel(path, threads=1).logits(given)
    assert 0 < np.abs(near - exact).max() < 0.2 * np.abs(exact).max()


def test_what_differs_from_torch_is_refused_and_not_written(tiny, exported, tmp_path, monkeypatch):
    _, another = exported
    monkeypatch.setattr(onnx, "_write", lambda written, names, path, opset: shutil.copy(another, path))
    with pytest.raises(ModelError, match="differ from torch's by"):
        export_onnx(tiny("bert", seed=1), tmp_path / MODEL, batches=[inputs(2, 5)])
    assert list(tmp_path.iterdir()) == []


def test_an_opset_too_old_is_one_line_with_the_lowest(tiny, tmp_path):
    with pytest.raises(ModelError, match="opset: got 11; the lowest that works is 18") as refused:
        export_onnx(tiny("bert"), tmp_path / MODEL, batches=[inputs(2, 5)], opset=11)
    assert "\n" not in str(refused.value)


def test_an_opset_that_does_not_exist_yet_is_one_line_with_the_one_to_take(tiny, tmp_path):
    with pytest.raises(ModelError, match=r"^opset: got 99, which .*; leave it out for 20$"):
        export_onnx(tiny("bert", layers=1), tmp_path / MODEL, batches=[inputs(2, 5)], opset=99)
    assert list(tmp_path.iterdir()) == []


def test_why_a_model_cannot_be_exported_is_said_by_its_cause(tiny, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("Failed, \x1b[96mstep 1/3\x1b[0m") from TypeError("no such\noperator")

    monkeypatch.setattr(torch.onnx, "export", fail)
    with pytest.raises(ModelError, match=r"^onnx: torch cannot export this model at opset 20 \(no such operator\);"):
        export_onnx(tiny("bert"), tmp_path / MODEL, batches=[inputs(2, 5)])


def test_the_lowest_opset_works(tiny, tmp_path):
    made = export_onnx(tiny("bert", layers=1), tmp_path / MODEL, batches=[inputs(2, 5)], opset=onnx.LOWEST_OPSET)
    assert made.opset == onnx.LOWEST_OPSET


def test_a_missing_extra_says_what_to_install(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx.importlib.util, "find_spec", lambda name: None if name == "onnxscript" else object())
    with pytest.raises(ModelError, match=r"onnxscript is not installed; pip install 'autodisc\[onnx\]'"):
        export_onnx(tiny("bert"), tmp_path / MODEL, batches=[inputs(2, 5)])


def test_a_damaged_and_a_missing_file_are_named(tmp_path):
    with pytest.raises(ModelError, match="no such file"):
        OnnxModel(tmp_path)
    (tmp_path / MODEL).write_bytes(b"not a model")
    with pytest.raises(CheckpointError, match=r"model\.onnx: onnxruntime cannot open it"):
        OnnxModel(tmp_path)


@pytest.mark.parametrize("side", ["right", "left"])
def test_the_files_beside_it_tokenise_alike_without_transformers(tiny, word_tokenizer, tmp_path, monkeypatch, side):
    monkeypatch.setattr(word_tokenizer, "truncation_side", side)
    model = tiny("bert")
    model.config.id2label = {0: "bad", 1: "good"}
    write_beside(tmp_path, model, word_tokenizer, max_length=8, inputs=("attention_mask", "input_ids"))
    texts = ["good w1 w2", "w3 " * 19 + "w4"]
    expected = word_tokenizer(texts, padding=True, truncation=True, max_length=8)
    encoded = Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode_batch(texts)
    assert [each.ids for each in encoded] == expected["input_ids"]
    assert [each.attention_mask for each in encoded] == expected["attention_mask"]
    beside = json.loads((tmp_path / "onnx.json").read_text())
    assert beside["id2label"] == {"0": "bad", "1": "good"}
    assert beside["inputs"] == ["input_ids", "attention_mask"]
    assert beside["max_length"] == 8
    assert word_tokenizer(texts[1])["input_ids"] != expected["input_ids"][1]  # ours alone was changed
    write_beside(tmp_path, tiny("bert", head="token"), word_tokenizer, max_length=8, inputs=("input_ids",))
    of_words = Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode(texts[1])
    assert of_words.tokens[1:-1] == texts[1].split()[:6]
