"""Text as blocks of tokens: nothing is lost, and every token but the first is predicted once."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from datasets import Dataset

from autodisc.config import TaskConfig
from autodisc.errors import DataError
from autodisc.tasks.batches import batches
from autodisc.tasks.blocks import pack, truth, unigram_nll
from autodisc.tasks.data import load_task
from autodisc.tasks.docstrings import as_texts
from autodisc.tasks.metrics import METRICS
from autodisc.tasks.splits import IGNORED

EOS = 3


@pytest.fixture
def load_text(tmp_path, tokenizer):
    def call(eos: str | None = "[SEP]", **settings):
        tokenizer.eos_token = eos
        config = TaskConfig(name="text", **({"data": tmp_path / "data", "max_length": 8} | settings))
        return load_task(config, tokenizer, seed=0, cache_dir=tmp_path / "cache")

    return call


def text(*counts: int) -> str:
    """Documents of so many words, all different."""
    words = (f"w{i}" for i in itertools.count())
    return "\n\n".join(" ".join(itertools.islice(words, count)) for count in counts)


@pytest.mark.parametrize("counts", [(20,), (3, 9, 1), (5, 10), (7, 7, 7), (16,), (1, 14)])
def test_packing_loses_no_token_and_predicts_each_but_the_first_once(write, load_text, counts):
    write(".txt", train=text(*counts), validation=text(2), test=text(2))
    task = load_text()
    rows = task.train.rows
    word = itertools.count(4)
    stream = [token for count in counts for token in (*itertools.islice(word, count), EOS)]
    read = [token for row in rows for token in row["input_ids"]]
    predicted = [token for row in rows for token in row["labels"] if token != IGNORED]
    assert predicted == stream[1:]
    assert read == stream[: len(read)]
    assert len(read) >= len(stream) - 1  # the last token may be a label alone
    assert all(len(row["input_ids"]) == 8 for row in list(rows)[:-1])
    assert task.train.labelled == len(stream) - 1
    assert (task.kind, task.metric.name, task.num_labels) == ("causal-lm", "bits_saved", 104)


def test_where_the_tokenizer_begins_texts_with_a_token_every_block_begins_with_it(write, load_text, tokenizer):
    write(".txt", train=text(9, 10), validation=text(2), test=text(2))
    plain = load_text()
    tokenizer.bos_token = "[CLS]"  # which its template puts before a text
    task = load_text()
    rows = [(row["input_ids"], row["labels"]) for row in task.train.rows]
    assert all(ids == [2, *labels[:-1]] and labels[-1] == IGNORED for ids, labels in rows)
    assert [len(ids) for ids, _ in rows] == [8, 8, 8]
    words = [*range(4, 13), EOS, *range(13, 23), EOS]
    assert [token for _, labels in rows for token in labels[:-1]] == words
    assert task.train.labelled == len(words)
    assert task.train.fingerprint != plain.train.fingerprint
    tokenizer.bos_token = "[UNK]"  # a token that it has, and does not use
    assert load_text().train.fingerprint == plain.train.fingerprint


def test_a_batch_has_the_next_token_as_the_label_of_each(write, load_text):
    write(".txt", train=text(5, 10), validation=text(2), test=text(2))
    task = load_text()
    (batch,) = batches(task.train, batch_size=8, pad_token_id=0, generator=None)
    assert sorted(batch.inputs) == ["attention_mask", "input_ids"]
    assert batch.labels.shape == batch.inputs["input_ids"].shape
    for row, ids, labels in zip(batch.rows, batch.inputs["input_ids"], batch.labels, strict=True):
        assert ids[1:][labels[:-1] != IGNORED].tolist() == [x for x in labels[:-1].tolist() if x != IGNORED]
        assert int((labels != IGNORED).sum()) == task.train.labels[row, 0]


def test_the_floor_is_the_smoothed_unigram_distribution_of_train(write, load_text):
    write(".txt", train="w1 w1 w1 w2", validation="w1 w2 w9", test="w1 w2")
    task = load_text()
    counts = {5: 3, 6: 1, EOS: 1}
    p = {token: (counts.get(token, 0) + 1) / (5 + 104) for token in (5, 6, 13, EOS)}
    nll = -sum(math.log(p[token]) for token in (6, 13, EOS))
    assert task.metric.floor(task.validation.labels) == pytest.approx(1 - nll / (3 * math.log(104)))


def test_bits_saved_is_one_of_certainty_and_zero_of_guessing():
    rng = np.random.default_rng(0)
    metric, documents = METRICS["bits_saved"], [rng.integers(0, 50, 41)]
    labels = truth(pack(documents, 8)[1], unigram_nll(documents, 50))
    assert labels[:, 0].tolist() == [8, 8, 8, 8, 8]
    assert metric.score(np.zeros((5, 1)), labels) == 1.0
    assert metric.score(np.full((5, 1), 8 * math.log(50)), labels) == pytest.approx(0.0)
    parts = metric.components(np.full((5, 1), 8 * 1.5), labels)
    assert parts == pytest.approx({"perplexity": math.exp(1.5), "bits_saved": 1 - 1.5 / math.log(50)})


@pytest.mark.parametrize("name", ["bits_saved", "entity_f1", "word_accuracy"])
def test_sums_of_drawn_rows_are_a_bootstrap_over_examples(name):
    metric, n = METRICS[name], 150

    def example(seed: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(seed)
        if name == "bits_saved":
            return rng.gamma(4, 5, (n, 1)), np.tile([8.0, 8 * math.log(50), 25.0], (n, 1))
        true = rng.poisson(2, n)
        hits, extra, words = rng.binomial(true, 0.6), rng.poisson(1, n), 10 + rng.poisson(5, n)
        said = np.stack([hits, hits + extra, rng.binomial(words, 0.8)], axis=1)
        return said.astype(float), np.stack([true, words, true, words - true], axis=1).astype(float)

    fresh = np.std([metric.score(*example(seed)) for seed in range(300)], ddof=1)
    errors = [metric.standard_error(*example(seed), seed) for seed in range(20)]
    assert np.mean(errors) == pytest.approx(fresh, rel=0.2)
    pairs = [example(seed) for seed in range(3)]
    each = metric.each(*(np.stack(side) for side in zip(*pairs, strict=True)))
    assert each == pytest.approx([metric.score(*pair) for pair in pairs])


def test_held_out_documents_are_whole_and_not_in_train(write, load_text):
    rows = [{"text": " ".join([f"w{3 * i}", f"w{3 * i + 1}", f"w{3 * i + 2}"])} for i in range(12)]
    write(train=rows, validation=rows[:2])
    task = load_text(kind="causal-lm", held_out=0.25)
    assert task.final_name == "held-out train"
    tokens = [{t for row in split.rows for t in row["input_ids"]} - {EOS} for split in (task.train, task.final)]
    assert not tokens[0] & tokens[1]
    assert len(tokens[1]) == 9


def test_a_text_without_a_token_to_part_documents_with_is_refused(write, load_text):
    write(".txt", train=text(9), validation=text(2), test=text(2))
    with pytest.raises(DataError, match="tokenizer: it has no end-of-sequence token"):
        load_text(eos=None)


def test_docstrings_become_one_text_a_library_in_their_order():
    rows = Dataset.from_list([{"sentence": f"{c}{i}.", "label": c} for i in range(2) for c in ("torch", "numpy")])
    assert as_texts(rows)["text"] == ["numpy0. numpy1.", "torch0. torch1."]
