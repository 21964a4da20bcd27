"""What is exported to ONNX runs where there is no torch: onnxruntime, tokenizers and numpy are enough."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from autodisc.models.checkpoints import Kept, load, save_model
from autodisc.models.onnx import MODEL, export_onnx, write_beside
from autodisc.pruning.surgery import keep

TEXTS = ["good w1 w2 w3", "w4 bad", "w5 " * 70]
PROGRAM = """
import importlib.util, json, sys
from pathlib import Path
import numpy as np, onnxruntime
from tokenizers import Tokenizer
assert not any(importlib.util.find_spec(name) for name in ("torch", "transformers", "onnx", "autodisc"))
folder, texts = Path(sys.argv[1]), json.loads(sys.argv[2])
beside = json.loads((folder / "onnx.json").read_text())
tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
sources = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
def run(texts):
    encoded = tokenizer.encode_batch(texts)
    inputs = {name: np.array([getattr(e, sources[name]) for e in encoded], np.int64) for name in beside["inputs"]}
    return session.run(None, inputs)[0]
together, alone = run(texts), np.concatenate([run([text]) for text in texts])
names = [beside["id2label"][str(i)] for i in together.argmax(1)]
print(json.dumps({"together": together.tolist(), "alone": alone.tolist(), "names": names}))
"""


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_student_gives_torchs_logits_without_torch(bare_python, tiny, word_tokenizer, tmp_path):
    python = bare_python("onnxruntime", "tokenizers", "numpy")
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    for family in ("bert", "distilbert"):
        folder = tmp_path / family
        student, inputs = made(tiny(family), word_tokenizer, folder, types=family == "bert")
        with torch.no_grad():
            expected = student(**inputs).logits
        found = json.loads(python(program, folder, json.dumps(TEXTS)).splitlines()[-1])
        for logits in (found["together"], found["alone"]):
            torch.testing.assert_close(torch.tensor(logits), expected, atol=1e-4, rtol=0)
        assert found["names"] == [("bad", "good")[i] for i in expected.argmax(1)]


def made(teacher, tokenizer, folder: Path, *, types: bool):
    """A student, exported to ``folder``, and the texts as it takes them."""
    teacher.config.id2label = {0: "bad", 1: "good"}
    kept = Kept(((0, 2, 3), (1,), ()), ((), (0, 5, 6, 30), (1, 2)))
    save_model(keep(teacher, kept), tokenizer, folder / "student")
    student = load(folder / "student")
    inputs = dict(tokenizer(TEXTS, padding=True, truncation=True, max_length=64, return_tensors="pt"))
    if not types:
        del inputs["token_type_ids"]
    export_onnx(student, folder / MODEL, batches=[inputs])
    write_beside(folder, student, tokenizer, max_length=64, inputs=tuple(inputs))
    return student, inputs
