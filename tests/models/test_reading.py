"""What is read of a batch's logits, against all logits at once."""

from __future__ import annotations

import copy

import datasets
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from autodisc.costs import Ledger, flop_counter
from autodisc.errors import TrainingError
from autodisc.models import inference
from autodisc.models.inference import count_forward, evaluation_batch, predict
from autodisc.models.modeling_autodisc import plain_class
from autodisc.models.reading import read
from autodisc.tasks import words
from autodisc.tasks.batches import batches
from autodisc.tasks.data import Task
from autodisc.tasks.metrics import METRICS
from autodisc.tasks.splits import IGNORED, make_split
from autodisc.tasks.sums import HITS

NAMES = ("O", "B-a", "I-a", "B-b", "I-b")


@pytest.fixture
def tagger(tiny):
    config = copy.deepcopy(tiny().config)
    config.num_labels = len(NAMES)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = plain_class("bert", "token")._from_config(config)
        torch.nn.init.normal_(model.classifier.weight, 0, 2.0)
    return model.eval()


@pytest.fixture
def tags_task():
    """Sentences of words of one to three tokens, the last one cut off by a word."""

    def make(count: int = 30) -> Task:
        rng = np.random.default_rng(0)
        ids, labels, tags = [], [], []
        for _ in range(count):
            own = rng.integers(0, len(NAMES), rng.integers(1, 9)).tolist()
            marks = [mark for tag in own for mark in (tag, *[IGNORED] * int(rng.integers(0, 3)))]
            ids.append([2, *rng.integers(6, 60, len(marks)).tolist(), 3])
            labels.append([IGNORED, *marks, IGNORED])
            tags.append(own)
        tags[-1].append(1)
        feature = datasets.List(datasets.Value("int32"))
        features = datasets.Features({"input_ids": feature, "labels": feature})
        rows = datasets.Dataset.from_dict({"input_ids": ids, "labels": labels}, features=features)
        padded = words.padded_tags(tags)
        split = make_split("validation", rows, words.truth(padded, NAMES), tags=padded)
        metric = METRICS["entity_f1"]
        return Task("tags", "tokens", metric, NAMES, len(NAMES), split, split, split, "test", {}, 0)

    return make


def test_a_words_tag_is_read_at_its_first_token(tagger, tags_task, make_runtime, monkeypatch):
    task = tags_task()
    split = task.validation
    said = []
    for row in split.rows:
        with torch.no_grad():
            likeliest = tagger(input_ids=torch.tensor([row["input_ids"]])).logits[0].argmax(-1)
        said.append(likeliest[torch.tensor(row["labels"]) != IGNORED].tolist())
    said[-1].append(words.MISSED)
    expected = words.answers(words.padded_tags(said), split.tags, NAMES)
    assert expected[:, HITS].sum() > 0
    found = predict(tagger, split, task=task, runtime=make_runtime())
    np.testing.assert_array_equal(found, expected)
    monkeypatch.setattr(inference, "EVALUATION_BATCH", 7)
    np.testing.assert_array_equal(predict(tagger, split, task=task, runtime=make_runtime()), expected)


def test_the_sum_of_log_probabilities_is_that_of_all_logits_at_once(tags_task):
    task = Task(**{**vars(tags_task()), "kind": "causal-lm"})
    split = task.validation
    (batch,) = batches(split, batch_size=64, pad_token_id=0, generator=None)
    logits = torch.randn(*batch.labels.shape, 11, generator=torch.Generator().manual_seed(0))
    each = F.cross_entropy(logits.transpose(1, 2), batch.labels, ignore_index=IGNORED, reduction="none").sum(1)
    np.testing.assert_allclose(read(logits, batch, split=split, task=task)[:, 0], each.numpy(), rtol=1e-5)
    with pytest.raises(TrainingError, match="not finite"):
        read(logits * torch.nan, batch, split=split, task=task)


def test_a_vocabularys_logits_are_evaluated_a_few_rows_at_a_time(tags_task, monkeypatch):
    task = tags_task()
    longest = int(task.validation.lengths.max())
    assert evaluation_batch(task.validation, task) == 64
    monkeypatch.setattr(inference, "LOGITS", 3 * longest * len(NAMES) + 1)
    assert evaluation_batch(task.validation, task) == 3
    monkeypatch.setattr(inference, "LOGITS", 1)
    assert evaluation_batch(task.validation, task) == 1


def test_the_flops_of_a_head_on_every_token_are_counted_by_token(tagger, tags_task, make_runtime):
    ids = torch.ones(4, 24, dtype=torch.long)
    found = count_forward(tagger, {"input_ids": ids[:1, :7], "attention_mask": torch.ones(1, 7, dtype=torch.long)})
    for B, T in ((1, 7), (1, 24), (4, 9)):
        with torch.inference_mode(), flop_counter() as counter:
            tagger(input_ids=ids[:B, :T], attention_mask=torch.ones(B, T, dtype=torch.long))
        assert found.of(B, T) == counter.get_total_flops()
    ledger = Ledger()
    with ledger.stage("evaluation"):
        predict(tagger, tags_task().validation, task=tags_task(), runtime=make_runtime(), ledger=ledger)
    assert ledger.stages["evaluation"].flops > 0
