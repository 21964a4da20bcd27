"""A student opens where only torch, transformers and safetensors are, and gives the same logits to the bit."""

from __future__ import annotations

import copy

import pytest
import torch
from safetensors.torch import save_file

from autodisc.models.checkpoints import save_model
from autodisc.pruning.candidates import Candidate
from autodisc.pruning.supernet import extract

TYPED = ("bert", "distilbert", "electra", "roberta")  # families that take what the toy tokenizer gives
OTHERS = ("deberta-v2", "gpt2", "llama", "modernbert", "mpnet", "t5")

CANDIDATES = {
    "uneven": Candidate(0.6, heads=(3, 0, 1), neurons=(16, 9, 0)),
    "almost-empty": Candidate(0.9, heads=(0, 0, 1), neurons=(0, 0, 8)),
}
ELSEWHERE = """
import sys
from pathlib import Path
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

torch.set_num_threads(1)
opened = 0
for folder in sorted(Path(sys.argv[1]).iterdir()):
    saved = load_file(folder / "expected" / "outputs.safetensors")
    for again in (folder, folder / "again"):
        model = AutoModelForSequenceClassification.from_pretrained(again, trust_remote_code=True)
        with torch.no_grad():
            logits = model(input_ids=saved["input_ids"], attention_mask=saved["attention_mask"]).logits
        assert torch.equal(logits, saved["logits"]), (again, (logits - saved["logits"]).abs().max())
        model.save_pretrained(folder / "again")
    (found,) = pipeline("text-classification", model=str(folder), trust_remote_code=True)(["good w1"])
    inputs = AutoTokenizer.from_pretrained(folder)("good w1", return_tensors="pt")
    with torch.no_grad():
        scores = model(**inputs).logits.softmax(-1)[0]
    assert abs(found["score"] - float(scores.max())) < 1e-6
    try:
        AutoModelForSequenceClassification.from_pretrained(folder)
    except RuntimeError:
        opened += 1
print(opened)
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_student_opens_by_torch_and_transformers_alone_with_the_same_logits(
    tiny, random_ranking, word_tokenizer, bare_python, tmp_path
):
    run = bare_python("torch", "transformers", "safetensors")
    ids = torch.tensor([[2, 8, 9, 30, 41, 3], [2, 7, 3, 0, 0, 0]])
    inputs = {"input_ids": ids, "attention_mask": (ids > 0).long()}
    students = tmp_path / "students"
    for family in (*TYPED, *OTHERS):
        model, tokenizer = tiny(family), copy.deepcopy(word_tokenizer)
        if family in OTHERS:
            tokenizer.model_input_names = ["input_ids", "attention_mask"]
        for name, candidate in CANDIDATES.items():
            student = extract(model, random_ranking(model), candidate)
            folder = students / f"{family}-{name}"
            save_model(student, tokenizer, folder)
            (folder / "expected").mkdir()
            with torch.no_grad():
                save_file({**inputs, "logits": student(**inputs).logits}, folder / "expected" / "outputs.safetensors")
    (tmp_path / "elsewhere.py").write_text(ELSEWHERE)
    assert run(tmp_path / "elsewhere.py", students).split()[-1] == str(len(TYPED + OTHERS) * len(CANDIDATES))
