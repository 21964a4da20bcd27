from __future__ import annotations

import pytest

from autodisc.tasks.docstrings import (
    SOURCES,
    corpus,
    normalised,
    sentences_of,
    source_folders,
    source_versions,
    split_of,
    write_corpus,
)

DOCSTRING = """Return the sum of all elements along an axis.

    The result has the same type as the input unless it is an integer.  It is
    never a view of the original data, e.g. a slice of it.

    Parameters
    ----------
    a : array_like
        Elements whose sum is computed along the given axis.
    axis : int, optional
        If set to `None`, then every single element is added up.

    .. versionadded:: 1.7
        This sentence belongs to a directive and is not prose.

    Examples
    --------
    Some plain words that lead into the doctest below::

        This literal block only looks like a plain sentence.

    >>> total = sum([1, 2, 3])
    This line is the output of the doctest above here.

    See https://example.org for more about how sums are computed.
    :param b: This is a field list and not a sentence of prose.
    Call sum(a, axis=0) when the rows have to be added up.
    """


def test_prose_is_kept_and_code_is_dropped():
    assert sentences_of(DOCSTRING) == [
        "Return the sum of all elements along an axis.",
        "The result has the same type as the input unless it is an integer.",
        "It is never a view of the original data, e.g. a slice of it.",
        "Elements whose sum is computed along the given axis.",
        "If set to None, then every single element is added up.",
    ]


@pytest.mark.parametrize(
    ("sentence", "masked"),
    [
        ("NumPy adds the numbers of two arrays here.", "The library adds the numbers of two arrays here."),
        ("This is what the pandas library does with dates.", "This is what the library does with dates."),
        ("A `numpy.ndarray` or :class:`torch.Tensor` of any kind.", "A the library or the library of any kind."),
        ("Use scikit-learn's own way to split the data.", "Use the library's own way to split the data."),
        ("It is used as np or pd in most code.", "It is used as the library or the library in most code."),
    ],
)
def test_names_of_libraries_are_masked(sentence, masked):
    assert sentences_of(sentence) == [masked]


@pytest.mark.parametrize(
    "sentence",
    [
        "Too short to keep.",
        "No full stop at the end of this one",
        "it does not begin with a capital letter here.",
        "The value of x_y is used for all of them.",
        "A TorchScript module is compiled before it is run.",
        "Word " * 40 + "end.",
    ],
)
def test_what_is_no_plain_sentence_is_dropped(sentence):
    assert sentences_of(sentence) == []


def test_sentences_that_differ_in_numbers_case_or_names_are_one():
    same = ["Loads the 12 weights of a BertModel from disk.", "loads the 7 weights of a T5Model from disk"]
    assert normalised(same[0]) == normalised(same[1])
    assert normalised(same[0]) != normalised("Saves the 12 weights of a BertModel to disk.")


NOUNS = ["apple", "bread", "cloud", "dream", "eagle", "flame", "grape", "heart", "island", "jacket", "kettle", "ladder"]
VERBS = ["bends", "calls", "draws", "eats", "finds", "gives", "hides", "joins", "keeps", "lifts", "moves", "needs"]


def package(root, name: str, subject: str, extra: str = ""):
    folder = root / name
    folder.mkdir(parents=True)
    prose = [f"The {subject} {verb} every old {noun} of the house." for verb in VERBS for noun in NOUNS]
    (folder / "a.py").write_text(f'"""{" ".join(prose)} {extra}"""\n')
    return folder


@pytest.fixture
def folders(tmp_path):
    shared = "This one sentence stands in both of the libraries."
    return {name: package(tmp_path, name, name, shared) for name in ("alpha", "beta")}


def test_splits_share_no_sentence_and_no_sentence_is_in_two_libraries(folders):
    splits = corpus(folders)
    keys = [normalised(sentence) for columns in splits.values() for sentence in columns["sentence"]]
    assert len(keys) == len(set(keys)) == 2 * len(NOUNS) * len(VERBS)
    assert all(set(columns["label"]) == {"alpha", "beta"} for columns in splits.values())
    assert not any("both of the libraries" in key for key in keys)


def test_labels_are_the_library_of_the_sentence(folders):
    for columns in corpus(folders).values():
        assert all(label in text for text, label in zip(columns["sentence"], columns["label"], strict=True))


def test_the_corpus_is_balanced_by_its_cap_and_repeats(folders):
    splits = corpus(folders, cap=50)
    labels = [label for columns in splits.values() for label in columns["label"]]
    assert (labels.count("alpha"), labels.count("beta")) == (50, 50)
    assert splits == corpus(dict(reversed(folders.items())), cap=50)


def test_a_sentence_keeps_its_split_when_the_sources_change(folders, tmp_path):
    for split, columns in corpus({"alpha": folders["alpha"]}).items():
        assert {split_of(normalised(sentence)) for sentence in columns["sentence"]} == {split}


def test_vendored_code_tests_and_broken_files_are_passed_over(tmp_path):
    folder = package(tmp_path, "alpha", "alpha")
    before = corpus({"alpha": folder})
    for name in ("tests/a.py", "externals/b.py", "_vendor/c.py", "test_d.py"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text('"""A sentence that must not be in the corpus."""\n')
    (folder / "broken.py").write_text("def (:\n")
    (folder / "escapes.py").write_text('x = "\\d"\n')
    assert corpus({"alpha": folder}) == before


def test_docstrings_given_in_calls_are_read(tmp_path):
    folder = tmp_path / "alpha"
    folder.mkdir()
    (folder / "a.py").write_text('add_newdoc("m", "f", ("g", """Return the sum of all the elements."""))\n')
    sentences = [text for columns in corpus({"alpha": folder}).values() for text in columns["sentence"]]
    assert sentences == ["Return the sum of all the elements."]


def test_the_written_corpus_is_read_back_and_not_built_twice(folders, tmp_path, monkeypatch):
    monkeypatch.setattr("autodisc.tasks.docstrings.source_folders", lambda: folders)
    folder = write_corpus(tmp_path / "cache")
    assert sorted(path.name for path in folder.iterdir()) == [
        "sources.json",
        "test.parquet",
        "train.parquet",
        "validation.parquet",
    ]
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [folder.name]  # nothing temporary is left
    monkeypatch.setattr("autodisc.tasks.docstrings.corpus", lambda **_: pytest.fail("built again"))
    assert write_corpus(tmp_path / "cache") == folder


def test_a_build_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def fail(**_):
        raise OSError("disk full")

    monkeypatch.setattr("autodisc.tasks.docstrings.corpus", fail)
    with pytest.raises(OSError, match="disk full"):
        write_corpus(tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_every_source_is_installed_and_has_a_version():
    assert set(source_versions()) == set(source_folders()) == set(SOURCES)
    assert all(folder.is_dir() for folder in source_folders().values())
