"""Sentences of words with tags: reading, aligning, and what is counted of them."""

from __future__ import annotations

import datasets
import numpy as np
import pytest
from seqeval.metrics import f1_score
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import Replace
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from autodisc.config import TaskConfig
from autodisc.errors import ConfigError, DataError
from autodisc.tasks.data import load_task
from autodisc.tasks.formats import read_conll
from autodisc.tasks.metrics import METRICS
from autodisc.tasks.splits import IGNORED
from autodisc.tasks.words import MISSED, answers, begun_with_b, padded_tags, truth

NAMES = ("O", "B-loc", "I-loc", "B-per", "I-per")
SENTENCES = [
    [("playing", "O"), ("in", "O"), ("paris", "B-loc"), ("france", "I-loc")],
    [("anna", "B-per"), ("played", "O")],
    [("in", "O"), ("in", "O"), ("anna", "B-per"), ("paris", "B-loc")],
]


@pytest.fixture
def pieces() -> PreTrainedTokenizerFast:
    """play ##ing, play ##ed, par ##is; "*" is nothing at all to it."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "play", "##ing", "##ed", "in", "par", "##is", "france", "anna"]
    backend = Tokenizer(WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    backend.normalizer = Replace("*", "")
    backend.pre_tokenizer = Whitespace()
    backend.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )


def conll(sentences) -> str:
    return "".join("".join(f"{word}\t{tag}\n" for word, tag in own) + "\n" for own in sentences)


@pytest.fixture
def load_words(tmp_path, pieces, make_listener):
    """Load a task of the sentences in ``tmp_path/data``; returns it and what was said."""

    def call(known=None, **settings):
        config = TaskConfig(name="names", **({"data": tmp_path / "data"} | settings))
        heard = make_listener()
        task = load_task(config, pieces, seed=0, cache_dir=tmp_path / "cache", label_names=known, progress=heard)
        return task, heard.said

    return call


def test_a_conll_file_makes_the_task_one_of_tokens_with_entity_f1(write, load_words):
    write(".conll", train=conll(SENTENCES), validation=conll(SENTENCES[:1]), test=conll(SENTENCES[1:]))
    task, said = load_words()
    assert (task.kind, task.metric.name, task.num_labels, said) == ("tokens", "entity_f1", 4, [])
    assert task.label_names == NAMES[:4]
    assert (len(task.train), len(task.validation), len(task.final), task.final_name) == (3, 1, 2, "test")


def test_the_first_token_of_a_word_has_its_tag_and_the_others_none(write, load_words):
    write(".conll", train=conll(SENTENCES), validation=conll(SENTENCES), test=conll(SENTENCES))
    rows = load_words()[0].train.rows
    assert rows[0]["input_ids"] == [2, 4, 5, 7, 8, 9, 10, 3]
    assert rows[0]["labels"] == [IGNORED, 0, IGNORED, 0, 1, IGNORED, 2, IGNORED]
    assert load_words()[0].train.labelled == sum(map(len, SENTENCES))


@pytest.mark.parametrize("side", ["right", "left"])
def test_words_beyond_the_length_are_said_and_missed(write, load_words, pieces, side):
    pieces.truncation_side = side  # of words the last are cut off, whatever a tokenizer does to texts
    write(".conll", train=conll(SENTENCES), validation=conll(SENTENCES), test=conll(SENTENCES))
    task, said = load_words(max_length=8)
    assert said == []
    long = [("in", "O")] * 5 + [("paris", "B-loc"), ("france", "I-loc"), ("anna", "B-per")]
    write(".conll", train=conll([long]), validation=conll([long]), test=conll([long]))
    task, said = load_words(max_length=8)
    assert task.train.rows[0]["labels"] == [IGNORED, 0, 0, 0, 0, 0, 1, IGNORED]
    assert said[0].startswith("train: 2 words lie beyond 8 tokens and are counted as missed")
    seen = np.array([[0, 0, 0, 0, 0, 1, MISSED, MISSED]])
    assert answers(seen, task.train.tags, NAMES).tolist() == [[0, 1, 6]]  # the entity was cut in two, anna not seen


def test_a_word_that_the_tokenizer_makes_nothing_of_is_unknown_and_keeps_its_place(write, load_words):
    own = [("in", "O"), ("*", "O"), ("paris", "B-loc"), ("**", "I-loc")]
    write(".conll", train=conll([own]), validation=conll([own]), test=conll([own]))
    row = load_words()[0].train.rows[0]
    assert row["input_ids"] == [2, 7, 1, 8, 9, 1, 3]
    assert row["labels"] == [IGNORED, 0, 0, 1, IGNORED, 2, IGNORED]


def test_iob1_is_read_as_iob2_and_said(write, load_words):
    assert begun_with_b(["I-a", "I-a", "B-a", "O", "I-b", "I-a"]) == ["B-a", "I-a", "B-a", "O", "B-b", "B-a"]
    old = [[(word, tag.replace("B-", "I-")) for word, tag in own] for own in SENTENCES]
    write(".conll", train=conll(SENTENCES), validation=conll(old), test=conll(SENTENCES))
    task, said = load_words()
    assert task.validation.fingerprint == task.train.fingerprint
    assert said == ["validation: 4 entities begin with I-, which is read as B- (IOB1 tags)"]


def test_a_teacher_of_iob1_tags_keeps_those_of_the_file_and_finds_the_same_entities(write, load_words):
    old = [[(word, tag.replace("B-", "I-")) for word, tag in own] for own in SENTENCES]
    write(".conll", train=conll(old), validation=conll(old), test=conll(old))
    read_as_iob2 = load_words()[0].train
    names = ("B-loc", "I-loc", "I-per", "O")  # of persons none ever stood beside another
    task, said = load_words(known=names)
    assert [[names[tag] for tag in own if tag != IGNORED] for own in task.train.tags] == [
        [tag for _, tag in own] for own in old
    ]
    assert said[0] == "train: 4 entities begin with I-, which stays; the classes have I-per and no B-per (IOB1 tags)"
    assert task.train.labels[:, :3].tolist() == read_as_iob2.labels[:, :3].tolist()
    assert answers(task.train.tags, task.train.tags, names)[:, 0].tolist() == [1, 1, 2]
    with pytest.raises(DataError, match="train row 1: unknown tag 'I-loc'; known: O, B-per, I-per"):
        load_words(known=("O", "B-per", "I-per"))


def test_lists_in_columns_and_names_that_a_data_set_brings_give_the_same_rows(write, load_words, tmp_path):
    write(".conll", train=conll(SENTENCES), validation=conll(SENTENCES), test=conll(SENTENCES))
    expected = load_words()[0].train
    for path in (tmp_path / "data").iterdir():
        path.unlink()
    feature = datasets.Features(
        {"tokens": datasets.List(datasets.Value("string")), "ner_tags": datasets.List(datasets.ClassLabel(names=NAMES))}
    )
    rows = [{"tokens": [w for w, _ in own], "ner_tags": [t for _, t in own]} for own in SENTENCES]
    for split in ("train", "validation", "test"):
        datasets.Dataset.from_list(rows, features=feature).to_parquet(str(tmp_path / "data" / f"{split}.parquet"))
    task, _ = load_words(kind="tokens")
    assert (task.label_names, task.train.fingerprint) == (NAMES, expected.fingerprint)
    for path in (tmp_path / "data").iterdir():
        path.unlink()
    write(train=[{"w": r["tokens"], "t": r["ner_tags"]} for r in rows], validation=[{"w": "in paris", "t": ["O", "O"]}])
    task, said = load_words(metric="entity_f1", text="w", label="t")
    assert task.final_name == "held-out train"
    assert len(task.train) + len(task.final) == 3
    assert "held out for the final figure" in said[-1]


def test_tags_that_are_kept_back_are_no_class(load_words, tmp_path):
    feature = datasets.Features(
        {"tokens": datasets.List(datasets.Value("string")), "ner_tags": datasets.List(datasets.ClassLabel(names=NAMES))}
    )
    (tmp_path / "data").mkdir()
    rows = [{"tokens": [w for w, _ in own], "ner_tags": [NAMES.index(t) for _, t in own]} for own in SENTENCES]

    def written(split, last):
        told = [*rows, {"tokens": ["in", "paris"], "ner_tags": last}]
        told = told if split != "test" else [{**row, "ner_tags": [-1] * len(row["tokens"])} for row in told]
        datasets.Dataset.from_list(told, features=feature).to_parquet(str(tmp_path / "data" / f"{split}.parquet"))

    for split in ("train", "validation", "test"):
        written(split, [0, 1])
    assert load_words(kind="tokens")[0].final_name == "held-out train"
    written("validation", [0, -1])
    with pytest.raises(DataError, match="validation row 4: tag -1 is no class; expected 0 to 4"):
        load_words(kind="tokens")


def test_the_teachers_tags_keep_their_order(write, load_words):
    write(".conll", train=conll(SENTENCES), validation=conll(SENTENCES), test=conll(SENTENCES))
    names = (*NAMES[::-1], "B-org")
    task, _ = load_words(known=names)
    assert (task.label_names, task.num_labels) == (names, 6)
    assert task.train.tags[1].tolist() == [1, 4, IGNORED, IGNORED]
    with pytest.raises(DataError, match="train row 1: unknown tag 'B-loc'; known: O, B-per"):
        load_words(known=("O", "B-per"))


def test_numbers_are_tags_of_the_teacher_where_all_of_them_can_be_and_that_is_said(write, load_words):
    def rows(number):
        return [{"tokens": [w for w, _ in own], "ner_tags": [number(t) for _, t in own]} for own in SENTENCES]

    write(train=rows(str), validation=rows(str), test=rows(str))
    expected = load_words(kind="tokens", known=NAMES)[0].train
    numbers = rows(NAMES.index)
    write(train=numbers, validation=numbers, test=numbers)
    task, said = load_words(kind="tokens", known=NAMES)
    assert (task.label_names, task.train.fingerprint) == (NAMES, expected.fingerprint)
    assert said == [
        "tags: numbers, taken for the model's classes: 0 is O, 1 is B-loc, 2 is I-loc, 3 is B-per, 4 is I-per; if"
        " they are others, write names"
    ]
    digits = ("1", "0", "2", "3", "4")  # names, not numbers
    task, said = load_words(kind="tokens", metric="word_accuracy", known=digits)
    assert (task.train.tags[1].tolist(), said) == ([3, 1, IGNORED, IGNORED], [])
    write(validation=rows(lambda tag: NAMES.index(tag) + 2))  # one of them is 5, no class of five
    with pytest.raises(DataError, match=r"train row 1: tag '0'; entity_f1 needs .* Convert the tags$"):
        load_words(kind="tokens", known=NAMES)


@pytest.mark.parametrize(
    ("content", "settings", "message"),
    [
        ("in\nparis B-loc\n", {}, r"train.conll line 1: got 'in'; expected a word and its tag"),
        ("paris S-loc\n", {}, "train row 1: tag 'S-loc'; entity_f1 needs O, B-TYPE and I-TYPE"),
        ("-DOCSTART- O\n\n", {}, "no sentence"),
        ("paris O\n", {"metric": "accuracy"}, "accuracy is for classification, but the task's kind is tokens"),
        ("paris O\n", {"text_pair": "b"}, "--text-pair: got 'b'; a row of kind tokens is one sentence"),
        ("paris O\n", {"text": "b"}, "train: no column 'b'; it has tokens, tags; name the words' column with --text"),
    ],
)
def test_what_cannot_be_read_is_said_in_one_line(write, load_words, content, settings, message):
    write(".conll", train=content, validation="in O\n", test="in O\n")
    with pytest.raises((ConfigError, DataError), match=message):
        load_words(kind="tokens", **settings)


def test_counts_of_tags_and_words_must_agree(write, load_words):
    write(train=[{"tokens": ["in", "paris"], "tags": ["O"]}], validation=[{"tokens": ["in"], "tags": ["O"]}])
    with pytest.raises(DataError, match="train row 1: 2 words and 1 tags; expected a tag for each word"):
        load_words(kind="tokens")


def test_other_tags_than_entities_are_learnt_by_word_accuracy(write, load_words):
    write(".conll", train="in ADP\nparis NOUN\n", validation="in ADP\n", test="paris NOUN\n")
    task, _ = load_words(metric="word_accuracy")
    assert task.label_names == ("ADP", "NOUN")
    assert task.metric.floor(task.train.labels) == 0.5


def test_a_conll_file_of_four_columns_and_spaces_gives_the_first_and_the_last(tmp_path):
    (tmp_path / "a.conll").write_text(
        "-DOCSTART- -X- O O\n\nEU NNP I-NP B-org\nrejects VBZ I-VP O\n\n\nPeter NNP I B-per"
    )
    assert read_conll(tmp_path / "a.conll") == {
        "tokens": [["EU", "rejects"], ["Peter"]],
        "tags": [["B-org", "O"], ["B-per"]],
    }


def test_entity_f1_is_seqevals():
    rng = np.random.default_rng(0)
    metric = METRICS["entity_f1"]
    for _ in range(20):
        tags = [rng.integers(0, 5, rng.integers(1, 9)).tolist() for _ in range(12)]
        said = [[t if rng.random() < 0.7 else int(rng.integers(0, 5)) for t in own] for own in tags]
        named = [[[NAMES[t] for t in own] for own in each] for each in (tags, said)]
        gold = padded_tags(tags)
        counted = answers(padded_tags(said), gold, NAMES)
        parts = metric.components(counted, truth(gold, NAMES))
        assert parts["entity_f1"] == pytest.approx(f1_score(*named))
        right = [a == b for one, other in zip(tags, said, strict=True) for a, b in zip(one, other, strict=True)]
        assert parts["word_accuracy"] == pytest.approx(np.mean(right))


def test_a_published_example_of_entity_f1():
    """seqeval's own: one of two entities, since the other's span is longer by a word."""
    names = ("O", "B-MISC", "I-MISC", "B-PER", "I-PER")
    gold = padded_tags([[0, 0, 0, 1, 2, 2, 0], [3, 4, 0]])
    said = padded_tags([[0, 0, 1, 2, 2, 2, 0], [3, 4, 0]])
    assert METRICS["entity_f1"].score(answers(said, gold, names), truth(gold, names)) == 0.5


def test_a_predicted_tag_that_is_no_entitys_is_read_as_o_and_the_rest_of_the_sentence_counts():
    names = (*NAMES, "[PAD]")
    gold, said = padded_tags([[3, 4, 0, 1, 0]]), padded_tags([[3, 4, 5, 1, 5]])
    assert answers(said, gold, names).tolist() == [[2, 2, 3]]
    assert answers(padded_tags([[3, 5, 0, 1, 0]]), gold, names).tolist() == [[1, 2, 4]]  # B-per alone is another span


def test_the_floors_are_those_of_the_best_constant_tag():
    rng = np.random.default_rng(1)
    gold = padded_tags([rng.choice(5, 7, p=[0.5, 0.2, 0.05, 0.2, 0.05]).tolist() for _ in range(30)])
    labels = truth(gold, NAMES)
    for name in ("entity_f1", "word_accuracy"):
        constants = [METRICS[name].score(answers(np.full_like(gold, c), gold, NAMES), labels) for c in (0, 1, 3)]
        assert METRICS[name].floor(labels) == pytest.approx(max(constants))


def test_an_entity_of_one_word_in_train_may_have_more_elsewhere(write, load_words):
    single = [[("anna", "B-per"), ("played", "O")]]
    double = [[("anna", "B-per"), ("anna", "I-per")]]
    write(".conll", train=conll(single), validation=conll(double), test=conll(single))
    assert load_words()[0].label_names == ("O", "B-per", "I-per")
    write(".conll", validation=conll([[("paris", "B-loc")]]))
    with pytest.raises(DataError, match="validation row 1: unknown tag 'B-loc'; known: O, B-per"):
        load_words()
