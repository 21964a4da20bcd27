from __future__ import annotations

import math
import subprocess
import sys
import time
import tracemalloc

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from autodisc.errors import TrainingError
from autodisc.tasks.metrics import GLUE, METRICS, _correlations, _counts, _from_counts, _score, decode

REFERENCE = {
    "accuracy": sk.accuracy_score,
    "f1": sk.f1_score,
    "f1_macro": lambda y, p: sk.f1_score(y, p, average="macro"),
    "accuracy_f1": lambda y, p: (sk.accuracy_score(y, p) + sk.f1_score(y, p)) / 2,
    "matthews": sk.matthews_corrcoef,
    "pearson": lambda y, p: stats.pearsonr(y, p).statistic,
    "spearman": lambda y, p: stats.spearmanr(y, p).statistic,
    "pearson_spearman": lambda y, p: (stats.pearsonr(y, p).statistic + stats.spearmanr(y, p).statistic) / 2,
}
CLASSIFICATION = [name for name, metric in METRICS.items() if metric.kind == "classification"]
REGRESSION = [name for name, metric in METRICS.items() if metric.kind == "regression"]


def example(name: str, n: int = 300, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Predictions that are right four times in five, and labels."""
    rng = np.random.default_rng(seed)
    if METRICS[name].kind == "regression":
        labels = rng.uniform(0, 5, n).astype(np.float32)
        return (labels + rng.normal(0, 1, n)).astype(np.float32), labels
    labels = rng.integers(2, size=n)
    return np.where(rng.random(n) < 0.8, labels, 1 - labels), labels


@pytest.mark.parametrize("name", REFERENCE)
def test_score_is_the_reference_implementation(name):
    predictions, labels = example(name)
    assert METRICS[name].score(predictions, labels) == pytest.approx(float(REFERENCE[name](labels, predictions)))


@pytest.mark.parametrize("name", REFERENCE)
def test_components_include_the_metric_by_its_name(name):
    predictions, labels = example(name)
    parts = METRICS[name].components(predictions, labels)
    assert parts[name] == METRICS[name].score(predictions, labels)
    others = [value for key, value in parts.items() if key != name]
    assert not others or parts[name] == pytest.approx(sum(others) / len(others))


def test_components_of_accuracy_f1_name_both():
    assert list(METRICS["accuracy_f1"].components(*example("accuracy_f1"))) == ["accuracy", "f1", "accuracy_f1"]


@pytest.mark.parametrize("name", ["matthews", *REGRESSION])
def test_a_constant_prediction_has_no_correlation(name):
    _, labels = example(name)
    assert METRICS[name].score(np.ones_like(labels), labels) == 0.0
    assert METRICS[name].floor(labels) == 0.0


def test_a_nearly_constant_prediction_scores_without_a_warning():
    labels = np.arange(50, dtype=np.float32)
    predictions = np.full(50, 1.0)
    predictions[0] += 1e-15
    assert math.isfinite(METRICS["pearson_spearman"].score(predictions, labels))


@pytest.mark.parametrize("name", ["f1", "f1_macro", "accuracy_f1"])
def test_a_class_that_never_occurs_scores_without_a_warning(name):
    assert METRICS[name].score(np.zeros(4, int), np.zeros(4, int)) == {"f1": 0, "f1_macro": 1, "accuracy_f1": 0.5}[name]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_predictions_that_are_not_finite_are_a_training_error_of_one_line(value):
    with pytest.raises(TrainingError, match="not finite") as error:
        METRICS["pearson"].score(np.array([1.0, value]), np.array([1.0, 2.0]))
    assert "\n" not in str(error.value)


def test_decode_does_not_hide_nan_in_an_argmax():
    with pytest.raises(TrainingError, match="1 of 4"):
        decode(np.array([[math.nan, 1.0], [0.0, 1.0]]), "classification")


def test_decode_takes_the_likeliest_class_or_the_value():
    logits = np.array([[0.1, 0.7], [3.0, 2.0]])
    assert decode(logits, "classification").tolist() == [1, 0]
    assert decode(logits[:, :1], "regression").tolist() == [0.1, 3.0]


@pytest.mark.parametrize("name", CLASSIFICATION)
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_floor_is_the_best_constant(name, share):
    labels = (np.arange(40) < 40 * share).astype(int)
    best = max(METRICS[name].score(np.full(40, c), labels) for c in (0, 1))
    assert METRICS[name].floor(labels) == best


def test_floor_has_its_closed_form():
    labels = np.array([1] * 70 + [0] * 30)
    f1 = 2 * 0.7 / 1.7
    assert METRICS["accuracy"].floor(labels) == 0.7
    assert METRICS["f1"].floor(labels) == pytest.approx(f1)
    assert METRICS["f1_macro"].floor(labels) == pytest.approx(f1 / 2)
    assert METRICS["accuracy_f1"].floor(labels) == pytest.approx((0.7 + f1) / 2)


def test_standard_error_of_accuracy_is_the_binomial_one():
    labels = np.ones(100, int)
    predictions = (np.arange(100) < 80).astype(int)
    assert METRICS["accuracy"].standard_error(predictions, labels, 0) == pytest.approx(math.sqrt(0.8 * 0.2 / 100))


@pytest.mark.parametrize("name", REFERENCE)
def test_standard_error_is_that_of_fresh_samples(name):
    fresh = [METRICS[name].score(*example(name, seed=seed)) for seed in range(200)]
    errors = [METRICS[name].standard_error(*example(name, seed=seed), seed) for seed in range(20)]
    assert np.mean(errors) == pytest.approx(np.std(fresh), rel=0.2)


@pytest.mark.parametrize("name", REFERENCE)
def test_standard_error_is_repeated_by_its_seed(name):
    metric, data = METRICS[name], example(name)
    assert metric.standard_error(*data, 3) == metric.standard_error(*data, 3)


@pytest.mark.parametrize("name", REFERENCE)
def test_standard_error_of_2000_examples_is_quick(name):
    data = example(name, 2000)
    METRICS[name].standard_error(*data, 0)  # imports
    start = time.process_time()
    METRICS[name].standard_error(*data, 0)
    assert time.process_time() - start < 0.3


@pytest.mark.parametrize("name", ["f1", "f1_macro", "accuracy_f1", "matthews"])
@pytest.mark.parametrize("classes", [2, 4])
def test_resampled_counts_score_as_the_examples_do(name, classes):
    rng = np.random.default_rng(1)
    labels = rng.integers(classes, size=200)
    predictions = np.where(rng.random(200) < 0.6, labels, rng.integers(classes, size=200))
    cells, times = np.unique(np.stack([labels, predictions]), axis=1, return_counts=True)
    counts = _counts(*cells, times, classes)
    assert (counts == _counts(labels, predictions, None, classes)).all()
    value = _from_counts(name, counts[None], np.arange(classes))[0]
    assert value == pytest.approx(METRICS[name].score(predictions, labels))


@pytest.mark.parametrize("name", ["f1_macro", "matthews"])
def test_the_standard_error_of_2000_classes_needs_no_table_of_them(name):
    rng = np.random.default_rng(1)
    labels = rng.integers(2_000, size=3_000)
    predictions = np.where(rng.random(3_000) < 0.6, labels, rng.integers(2_000, size=3_000))
    tracemalloc.start()
    assert 0.005 < METRICS[name].standard_error(predictions, labels, 0) < 0.02
    value = METRICS[name].each(np.tile(predictions, (20, 1)), np.tile(labels, (20, 1)))[0]
    assert value == pytest.approx(METRICS[name].score(predictions, labels))
    assert tracemalloc.get_traced_memory()[1] < 200 * 2**20  # tables of 200 resamples: 6.4 GB
    tracemalloc.stop()


@pytest.mark.parametrize("name", ["f1", "f1_macro", "accuracy_f1", "matthews"])
def test_200_000_examples_are_no_more_than_counts_can_hold(name):
    predictions, labels = example(name, n=200_000)
    metric = METRICS[name]
    assert metric.each(predictions[None], labels[None])[0] == pytest.approx(metric.score(predictions, labels))
    expected = metric.standard_error(predictions[:2_000], labels[:2_000], 0) / 10
    assert metric.standard_error(predictions, labels, 0) == pytest.approx(expected, rel=0.3)


@pytest.mark.parametrize("name", ["pearson", "spearman"])
def test_resampled_correlations_score_as_the_examples_do(name):
    predictions, labels = example(name)
    value = _correlations(name, predictions[None], labels[None])[0]
    assert value == pytest.approx(_score(name, predictions, labels))


def test_glue_has_nine_tasks_of_which_one_is_a_regression():
    assert len(GLUE) == 9
    assert [name for name, task in GLUE.items() if task.metric.kind == "regression"] == ["stsb"]
    assert {name: task.num_labels for name, task in GLUE.items() if task.num_labels != 2} == {"stsb": 1, "mnli": 3}


def test_importing_metrics_and_data_loads_nothing_heavy():
    code = "import sys, autodisc.tasks.metrics, autodisc.tasks.data, autodisc.tasks.batches;"
    code += "print({'torch', 'transformers', 'datasets', 'sklearn', 'scipy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
