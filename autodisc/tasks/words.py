"""Token classification: a row is a sentence of words, each with a tag; named entities are spans of B- and I- tags.

The first sub-word of a word carries its tag, the others have none. A word that the tokenizer makes nothing of (a lone
variation selector) is read as the unknown token, so that every word has a first sub-word. Words beyond ``max_length``
tokens are counted as missed when a model is evaluated.

Entities are IOB2. Where an entity begins with I-, as in IOB1 and for seqeval, that tag is read as B-. It stays where
the classes are IOB1, as they are if a type has I- and no B-; the spans are the same.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from autodisc.config import TaskConfig
from autodisc.errors import DataError
from autodisc.tasks import columns
from autodisc.tasks.rows import Rows
from autodisc.tasks.splits import IGNORED, LABELS, Split, make_split
from autodisc.tasks.tokenising import SPACED, Columns, features, tokenise

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

TOKENS, TAGS = ("tokens", "words"), ("tags", "ner_tags")  # columns by their usual names
OUTSIDE = "O"
NO_TAG = "-1"  # what the words of test sets have whose tags are kept back
MISSED = -1  # the tag of a word that a model has not seen: no entity, and never right
_IOB = re.compile(r"O|[BI]-\S+")
Span = tuple[str, int, int]  # type, first word, last word


def columns_of(config: TaskConfig, have: Sequence[str], where: str) -> tuple[str, str | None]:
    """The columns of words and of tags, if there are any."""
    if config.text_pair is not None:
        raise DataError(f"--text-pair: got '{config.text_pair}'; a row of kind tokens is one sentence, leave it out")
    words = next((name for name in ([config.text] if config.text else TOKENS) if name in have), None)
    if words is None:
        asked = f"no column '{config.text}'" if config.text else f"no column {' or '.join(TOKENS)}"
        raise DataError(f"{where}: {asked}; it has {', '.join(have)}; name the words' column with --text")
    return words, next((name for name in (config.label, *TAGS) if name in have), None)


class Words(Rows):
    @staticmethod
    def unlabelled(rows: Dataset, config: TaskConfig) -> bool:
        column = next((name for name in (config.label, *TAGS) if name in rows.column_names), None)
        return column is None or not any(
            any(str(tag) != NO_TAG for tag in tags) if isinstance(tags, list) else tags
            for tags in columns.cells(rows, column)
        )

    def check(self, raw: Mapping[str, Dataset], known: tuple[str, ...] | None) -> tuple[str, ...] | None:
        cut_at_the_end(self.tokenizer)
        self.at: dict[str, tuple[str, str]] = {}
        for name, rows in raw.items():
            words, tags = columns_of(self.config, rows.column_names, name)
            if tags is None:
                have = ", ".join(rows.column_names)
                raise DataError(
                    f"{name}: no column {' or '.join(TAGS)}; it has {have}; name the tags' column with --label"
                )
            self.at[name] = words, tags
        self.entities = self.metric.name == "entity_f1"
        first = next(iter(raw))
        self.given = known or _class_names(raw[first], self.at[first][1]) or ()
        self.iob1 = next((tag[2:] for tag in self.given if tag[:2] == "I-" and f"B-{tag[2:]}" not in self.given), None)
        self.begun = self.kept = 0
        self.numbered = known is not None and self._are_numbers(raw, known)
        if self.numbered:
            said = ", ".join(f"{i} is {tag}" for i, tag in enumerate(self.given[: columns.SHOWN]))
            self.progress.say(f"tags: numbers, taken for the model's classes: {said}; if they are others, write names")
        self.names = self.given or self._found(raw)
        self.ids = {tag: i for i, tag in enumerate(self.names)}
        return self.names

    def _found(self, raw: Mapping[str, Dataset]) -> tuple[str, ...]:
        """The tags of the first split: O first, then by type.

        An entity that is of one word there may have more elsewhere: then the other tag of its type is one too.
        """
        first, *others = raw
        found = {tag for _, tags in self._sentences(raw[first], first) for tag in tags}
        if self.entities:
            types = {tag[2:] for tag in found}
            elsewhere = {tag for name in others for _, tags in self._sentences(raw[name], name) for tag in tags}
            found |= {tag for tag in elsewhere if tag[2:] in types}
        return tuple(sorted(found, key=lambda tag: (tag != OUTSIDE, tag.partition("-")[::-1])))

    def _are_numbers(self, raw: Mapping[str, Dataset], known: tuple[str, ...]) -> bool:
        """Whether all tags are numbers of the classes ``known``, and nothing says which others'."""
        if any(_class_names(rows, self.at[name][1]) for name, rows in raw.items()):
            return False
        numbers = {str(i) for i in range(len(known))} - set(known)
        cells = (tags for name, rows in raw.items() for tags in columns.cells(rows, self.at[name][1]))
        return all(isinstance(tags, list) and all(str(tag) in numbers for tag in tags) for tags in cells)

    @property
    def num_labels(self) -> int:
        return len(self.names)

    def hashes(self, rows: Dataset) -> np.ndarray:
        return columns.content_hashes(words for words, _ in self._sentences(rows, "train"))

    def split(self, rows: Dataset, name: str) -> Split:
        self.begun = self.kept = 0
        sentences = list(self._numbered(rows, name))
        if self.begun:
            self.progress.say(f"{name}: {self.begun} entities begin with I-, which is read as B- (IOB1 tags)")
        if self.kept:
            self.progress.say(
                f"{name}: {self.kept} entities begin with I-, which stays; the classes have I-{self.iob1} and no"
                f" B-{self.iob1} (IOB1 tags)"
            )
        words, tags = self.at[name]
        numbers = iter([numbers for _, numbers in sentences])

        def encode(batch: Columns) -> Columns:
            own = [as_words(value, name) for value in batch[words]]
            return encode_words(own, self.tokenizer, self.longest, list(itertools.islice(numbers, len(own))))

        tokens = tokenise(
            rows,
            name=name,
            columns=(words, tags),
            content=(("\x1f".join(own), " ".join(map(str, numbers))) for own, numbers in sentences),
            settings=("tokens", self.longest),
            encode=encode,
            labelled=True,
            tokenizer=self.tokenizer,
            cache_dir=self.cache_dir,
            progress=self.progress,
        )
        padded = padded_tags([numbers for _, numbers in sentences])
        split = make_split(name, tokens, truth(padded, self.names), tags=padded)
        cut = int((padded != IGNORED).sum()) - split.labelled
        if cut:
            self.progress.say(
                f"{name}: {cut} words lie beyond {self.longest} tokens and are counted as missed; --max-length is more"
            )
        return split

    def _numbered(self, rows: Dataset, name: str) -> Iterator[tuple[list[str], list[int]]]:
        """Words and the numbers of their tags; DataError for a tag that no class is."""
        for row, (words, tags) in enumerate(self._sentences(rows, name), 1):
            unknown = next((tag for tag in tags if tag not in self.ids), None)
            if unknown is not None:
                raise DataError(f"{name} row {row}: unknown tag '{unknown}'; known: {', '.join(self.names[:20])}")
            yield words, [self.ids[tag] for tag in tags]

    def _sentences(self, rows: Dataset, name: str) -> Iterator[tuple[list[str], list[str]]]:
        named = _class_names(rows, self.at[name][1])
        pairs = zip(*(columns.cells(rows, column) for column in self.at[name]), strict=True)
        for row, (words, tags) in enumerate(pairs, 1):
            if self.numbered:
                tags = [self.given[int(tag)] for tag in tags]
            elif named and tags:
                if odd := [tag for tag in tags if tag not in range(len(named))]:
                    raise DataError(f"{name} row {row}: tag {odd[0]} is no class; expected 0 to {len(named) - 1}")
                tags = [named[tag] for tag in tags]
            yield self._pair(words, tags, name, row)

    def _pair(self, words: Any, tags: Any, name: str, row: int) -> tuple[list[str], list[str]]:
        """One sentence, checked."""
        where = f"{name} row {row}"
        found = as_words(words, where)
        if not isinstance(tags, list) or len(tags) != len(found):
            count = len(tags) if isinstance(tags, list) else "no list of"
            raise DataError(f"{where}: {len(found)} words and {count} tags; expected a tag for each word")
        told = [str(tag) for tag in tags]
        if self.entities:
            odd = next((tag for tag in told if not _IOB.fullmatch(tag)), None)
            if odd is not None:
                also = ", or take --metric word_accuracy" if not self.given or odd in self.given else ""
                raise DataError(
                    f"{where}: tag '{odd}'; entity_f1 needs O, B-TYPE and I-TYPE (IOB2). Convert the tags{also}"
                )
            begun = begun_with_b(told)
            changed = sum(old != new for old, new in zip(told, begun, strict=True))
            if self.iob1 is not None:
                self.kept += changed
                return found, told
            self.begun += changed
            if self.given:  # a complaint names the file's own tag
                begun = [new if new in self.given else old for old, new in zip(told, begun, strict=True)]
            return found, begun
        return found, told


def _class_names(rows: Dataset, column: str) -> tuple[str, ...] | None:
    """What a data set itself calls the tags that it holds as numbers."""
    return tuple(getattr(getattr(rows.features[column], "feature", None), "names", None) or ()) or None


def as_words(value: Any, where: str) -> list[str]:
    """The words of a cell: a list of them, or a text that spaces part; DataError where there are none."""
    words = value.split() if isinstance(value, str) else value
    if not isinstance(words, list) or not words:
        raise DataError(f"{where}: no words; expected a list of them, or a text with spaces between")
    if not all(isinstance(word, str) and word.strip() for word in words):
        raise DataError(f"{where}: a word is empty, or no text")
    return words


def begun_with_b(tags: Sequence[str]) -> list[str]:
    """IOB2 of IOB1: an I- that no entity of its type stands before begins one."""
    found, before = [], OUTSIDE
    for tag in tags:
        begins = tag.startswith("I-") and before[2:] != tag[2:]
        found.append(f"B-{tag[2:]}" if begins else tag)
        before = tag
    return found


def cut_at_the_end(tokenizer: PreTrainedTokenizerBase) -> None:
    """Make it truncate on the right, whatever it was saved with: words are counted from the first."""
    tokenizer.truncation_side = "right"


def encode_words(
    sentences: Sequence[list[str]], tokenizer: PreTrainedTokenizerBase, longest: int, tags: Sequence[Sequence[int]]
) -> Columns:
    """Tokens of sentences, and for each token the tag of the word that it begins, else IGNORED."""
    if not tokenizer.is_fast:
        raise DataError("tokenizer: kind tokens needs a fast one, which knows what word a token is of (tokenizer.json)")
    encoded = _encode(sentences, tokenizer, longest)
    places = [_places(encoded.word_ids(i)) for i in range(len(sentences))]
    lost = [
        [word for word in range(max(at, default=-1) if len(ids) == longest else len(words)) if word not in at]
        for words, ids, at in zip(sentences, encoded["input_ids"], places, strict=True)
    ]
    if any(lost):
        if tokenizer.unk_token is None:
            i = next(i for i, words in enumerate(lost) if words)
            raise DataError(f"tokenizer: makes nothing of {sentences[i][lost[i][0]]!r}, and has no unknown token")
        sentences = [
            [str(tokenizer.unk_token) if i in gone else word for i, word in enumerate(words)]
            for words, gone in zip(sentences, lost, strict=True)
        ]
        encoded = _encode(sentences, tokenizer, longest)
        places = [_places(encoded.word_ids(i)) for i in range(len(sentences))]
    labels = []
    for ids, at, own in zip(encoded["input_ids"], places, tags, strict=True):
        labels.append([IGNORED] * len(ids))
        for word, place in at.items():
            labels[-1][place] = own[word]
    return {**{column: encoded[column] for column in features(tokenizer)}, LABELS: labels}


def tokenised_words(words: Sequence[list[str]], tokenizer: PreTrainedTokenizerBase, longest: int) -> Split:
    """Sentences without tags as a split in memory, cut to ``longest`` tokens; what begins a word has the label 0."""
    import datasets

    encoded = encode_words(words, tokenizer, longest, [[0] * len(own) for own in words])
    tokens = datasets.Dataset.from_dict(encoded, features=features(tokenizer, labelled=True))
    return make_split("rows", tokens, np.zeros((len(words), 1)))


def _encode(sentences: Sequence[list[str]], tokenizer: PreTrainedTokenizerBase, longest: int) -> Any:
    before = " " if tokenizer.init_kwargs.get(SPACED) else ""
    return tokenizer(
        [[before + word for word in words] for words in sentences],
        is_split_into_words=True,
        truncation=True,
        max_length=longest,
        padding=False,
        return_attention_mask=False,
        return_token_type_ids="token_type_ids" in tokenizer.model_input_names,
    )


def _places(word_ids: Sequence[int | None]) -> dict[int, int]:
    """Where each word's first token stands."""
    places: dict[int, int] = {}
    for place, word in enumerate(word_ids):
        if word is not None:
            places.setdefault(word, place)
    return places


def padded_tags(sentences: Sequence[Sequence[int]]) -> np.ndarray:
    """(N, W) int16, IGNORED beyond a sentence's words."""
    tags = np.full((len(sentences), max(map(len, sentences))), IGNORED, np.int16)
    for row, own in zip(tags, sentences, strict=True):
        row[: len(own)] = own
    return tags


def spans(tags: np.ndarray, names: Sequence[str]) -> set[Span]:
    """The entities of one sentence's tags (W,), by seqeval; a tag that is no B- or I- tag is as O."""
    from seqeval.metrics.sequence_labeling import get_entities

    told = [OUTSIDE if tag == MISSED else names[tag] for tag in tags]
    return set(get_entities([tag if _IOB.fullmatch(tag) else OUTSIDE for tag in told]))


def truth(tags: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """What the metrics of ``sums`` count of the true ``tags`` (N, W); returns (N, 4)."""
    real = tags != IGNORED
    odd = np.array([not _IOB.fullmatch(name) for name in names])  # only where the metric is of no entities
    entities = [set() if odd[row[own]].any() else spans(row[own], names) for row, own in zip(tags, real, strict=True)]
    single: dict[str, np.ndarray] = {}
    for row, found in enumerate(entities):
        for kind, first, last in found:
            single.setdefault(kind, np.zeros(len(tags)))[row] += first == last
    most = max(single.values(), key=np.sum, default=np.zeros(len(tags)))
    commonest = np.bincount(tags[real], minlength=1).argmax()
    words = real.sum(axis=1)
    counted = [np.array([len(found) for found in entities]), words, most, (tags == commonest).sum(axis=1)]
    return np.stack(counted, axis=1).astype(np.float64)


def answers(said: np.ndarray, tags: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """What the metrics of ``sums`` count of the tags ``said`` (B, W) where ``tags`` are true; returns (B, 3)."""
    rows = []
    for own, true in zip(said, tags, strict=True):
        real = true != IGNORED
        predicted = spans(own[real], names)
        rows.append((len(predicted & spans(true[real], names)), len(predicted), int((own == true)[real].sum())))
    return np.array(rows, np.float64)
