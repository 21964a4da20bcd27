"""How sure a figure is: intervals over seeds and test examples, paired tests, what can be resolved at all.

All seeds of a task share one test set, so seeds and examples are crossed, not nested. The bootstrap therefore draws
seeds, and one set of examples for all of them (the pigeonhole bootstrap, Owen, 2007, doi 10.1214/07-AOAS122); another
set for each seed would average away the luck that the seeds share. Candidates and strategies meet the same draws.

    percentile   the quantiles of the draws
    BCa          the same, corrected for bias and skewness (Efron, 1987)
    t            mean ± q, with P(|error| < q) = .95 of  error ~ N(0, (S − 1) s² / (S χ²) + e²),  χ² of S − 1 degrees

s is measured between seeds, e over examples; e = 0 is Student's t, s = 0 the normal. The sum of a variance of few
degrees and one that is known has no exact test; this is the Behrens-Fisher solution (Fisher, 1935), which errs on the
careful side. Satterthwaite's (1946) takes two seeds that agree by chance for a σ of 0.

What 3 to 5 seeds can tell. A bootstrap over seeds sees only S values: 10 different draws for 3 seeds, 126 for 5. Of 3
seeds its 95 % interval is no more than the least to the greatest, which holds the mean in 75 % of cases (normal
differences; simulated: 75 %, with BCa 73 %; 5 seeds: 84 % and 84 %; the t-interval 95 % and 95 %, at 4.3 standard
errors a side for 3 seeds). Where the test set is part of the luck, t over seeds alone fails too: 78 to 84 % with 300
shared examples, where with e it holds. Where there is no difference (200,000 simulated, each σ from 0 to 5 e; a slow
test simulates it again) such p come in at most, and with Satterthwaite's degrees of freedom in

               p < .05            p < .001
    2 seeds    5.0 and 12.8 %     .10 and 4.9 %
    3          5.0 and  7.9       .10 and 1.5
    5          5.1 and  5.9       .09 and  .4

None knows what a seed that was not run does, nor what a second training of the same seed does. Decide by the t-interval
with e; the bootstrap serves figures that are no mean of differences (regret, correlations, shares), and single seeds,
where it covers the test examples alone.

Arrays in, floats out: every figure can be computed again from records.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import optimize, special

RESAMPLES = 2000  # an interval's ends are then known to 1.5 % of its width (normal draws, one standard error)
JACKKNIFE_GROUPS = 100  # of examples; enough for the acceleration, which is a third moment
_CHUNK = 1_000_000  # example rows drawn at once
_MAX_FLIPS = 20  # seeds; a million sign patterns

Metric = Callable[[np.ndarray, np.ndarray], np.ndarray]  # answers (R, N), labels (R, N) -> (R,)


@dataclass(frozen=True)
class Interval:
    """An estimate and its bounds; infinite bounds say that the data set none."""

    estimate: float
    low: float
    high: float
    confidence: float = 0.95

    @property
    def sign(self) -> int:
        """1 or -1 where the interval lies wholly above or below zero, else 0."""
        return (self.low > 0) - (self.high < 0)


@dataclass(frozen=True, eq=False)
class Results:
    """The test metrics of K students of one seed and, where they were kept, their answers to the same N examples.

    Without ``metric`` an answer is already its example's score, such as 0 or 1 for wrong or right, and the mean counts.
    """

    seed: int
    names: tuple[str, ...]
    metrics: tuple[float, ...]
    answers: np.ndarray | None = None  # (K, N)
    labels: np.ndarray | None = None  # (N,)
    metric: Metric | None = None

    def __post_init__(self) -> None:
        if len(set(self.names)) != len(self.metrics) or len(self.names) != len(self.metrics):
            raise ValueError(f"names {self.names}: expected {len(self.metrics)} different ones, one a metric")
        if (self.metric is None) != (self.labels is None):
            raise ValueError("labels and metric belong together: expected both or neither")
        if self.answers is None:
            return
        if self.answers.ndim != 2 or len(self.answers) != len(self.names) or not self.examples:
            raise ValueError(f"answers {self.answers.shape}: expected (K, N), K = {len(self.names)}, N > 0")
        again = self.resampled(np.arange(self.examples)[None])[0]
        if not np.allclose(again, self.metrics, rtol=0, atol=1e-6):
            raise ValueError(f"metrics {self.metrics}: the answers give {tuple(again.tolist())}; expected the same")

    @property
    def examples(self) -> int:
        """N, or 0 where no answers were kept."""
        return 0 if self.answers is None else self.answers.shape[1]

    def only(self, names: Sequence[str]) -> Results:
        """The results of these students, in this order."""
        rows = [self.names.index(name) for name in names]
        answers = None if self.answers is None else self.answers[rows]
        metrics = tuple(self.metrics[row] for row in rows)
        return Results(self.seed, tuple(names), metrics, answers, self.labels, self.metric)

    def resampled(self, rows: np.ndarray | None) -> np.ndarray:
        """Each student's metric (R, K) on drawn examples ``rows`` (R, N); without rows as recorded, R = 1."""
        if rows is None or self.answers is None:
            return np.array([self.metrics])
        if self.metric is None or self.labels is None:
            return np.stack([answers[rows].mean(axis=1) for answers in self.answers], axis=1)
        labels = self.labels[rows]
        return np.stack([self.metric(answers[rows], labels) for answers in self.answers], axis=1)

    def correct(self) -> np.ndarray | None:
        """Right or wrong, (K, N), where answers are right or wrong at all."""
        if self.answers is None:
            return None
        if self.labels is not None:
            return self.answers == self.labels if self.labels.dtype.kind in "iub" else None
        return self.answers > 0 if np.isin(self.answers, (0, 1)).all() else None


def examples_of(results: Sequence[Results]) -> int:
    """The N that all seeds share; 0 where one kept no answers, so that examples cannot be drawn."""
    counts = {result.examples for result in results}
    if len(counts - {0}) > 1:
        raise ValueError(f"test examples: got {sorted(counts)}; expected the same test set for every seed")
    return min(counts)


@dataclass(frozen=True, eq=False)
class Bootstrap:
    """F figures, each a mean over seeds, and what they were on drawn seeds and examples; nan is undefined."""

    estimate: np.ndarray  # (F,)
    by_seed: np.ndarray  # (S, F)
    draws: np.ndarray  # (R, F)
    acceleration: np.ndarray  # (F,), of BCa
    example_error: np.ndarray  # (F,), over examples, seeds fixed; 0 where examples were not drawn

    def interval(
        self,
        figure: int = 0,
        *,
        confidence: float = 0.95,
        method: Literal["percentile", "bca"] = "percentile",
    ) -> Interval | None:
        """None: undefined, or there is one seed and no examples, so that nothing varies."""
        estimate = float(self.estimate[figure])
        draws = self.draws[:, figure]
        draws = draws[np.isfinite(draws)]
        if math.isnan(estimate) or not len(draws):
            return None
        levels = np.array([(1 - confidence) / 2, (1 + confidence) / 2])
        if method == "bca":
            below = (np.mean(draws < estimate) + np.mean(draws <= estimate)) / 2  # ties count half
            edge = 0.5 / len(draws)  # all draws on one side: as if half a draw lay on the other
            z0 = special.ndtri(min(max(below, edge), 1 - edge))
            z = z0 + special.ndtri(levels)
            levels = special.ndtr(z0 + z / (1 - self.acceleration[figure] * z))
        low, high = np.quantile(draws, levels)
        return Interval(estimate, float(low), float(high), confidence)


def bootstrap(
    statistic: Callable[[np.ndarray | None], np.ndarray],
    *,
    examples: int,
    rng: np.random.Generator,
    resamples: int = RESAMPLES,
) -> Bootstrap:
    """Draw seeds and, where ``examples`` is not 0, examples, the same for every seed.

    ``statistic`` takes example rows (R, N), or None for the test set as it is, and returns (R, S, F).
    """
    by_seed = statistic(None)[0]  # (S, F)
    S, F = by_seed.shape
    draws, fixed = [], []
    left = resamples if examples or S > 1 else 0
    while left:
        R = min(left, max(1, _CHUNK // max(examples, 1)))
        left -= R
        rows = rng.integers(examples, size=(R, examples)) if examples else None
        values = np.broadcast_to(statistic(rows), (R, S, F))
        seeds = rng.integers(S, size=(R, S))
        draws.append(_mean(np.take_along_axis(values, seeds[:, :, None], axis=1), axis=1))
        fixed.append(_mean(values, axis=1))
    drawn = np.concatenate(draws) if draws else np.empty((0, F))
    error = np.zeros(F)
    if examples:
        kept = np.concatenate(fixed)
        error = np.sqrt(_mean((kept - _mean(kept, axis=0)) ** 2, axis=0))
    return Bootstrap(_mean(by_seed, axis=0), by_seed, drawn, _acceleration(statistic, by_seed, examples), error)


def _acceleration(
    statistic: Callable[[np.ndarray | None], np.ndarray], by_seed: np.ndarray, examples: int
) -> np.ndarray:
    """Skewness of the jackknife's influences over seeds and over groups of examples, / 6 (Efron, 1987, section 7)."""
    S, F = by_seed.shape
    left_out: list[np.ndarray] = []
    if S > 1:
        left_out.append(np.stack([_mean(np.delete(by_seed, seed, axis=0), axis=0) for seed in range(S)]))
    if examples > 1:
        groups = min(examples, JACKKNIFE_GROUPS)
        rest = [np.delete(np.arange(examples), np.s_[group::groups]) for group in range(groups)]
        left_out.append(np.stack([_mean(statistic(rows[None])[0], axis=0) for rows in rest]))
    third, second = np.zeros(F), np.zeros(F)
    for values in left_out:
        n = len(values)
        influence = np.nan_to_num((n - 1) / n * (_mean(values, axis=0) - values))
        third += (influence**3).sum(axis=0)
        second += (influence**2).sum(axis=0)
    return np.divide(third, 6 * second**1.5, out=np.zeros(F), where=second > 1e-20)


def _mean(values: np.ndarray, axis: int) -> np.ndarray:
    """The mean of what is defined; nan where nothing is."""
    count = np.isfinite(values).sum(axis=axis)
    total = np.where(np.isfinite(values), values, 0.0).sum(axis=axis)
    return np.divide(total, count, out=np.full(np.shape(total), np.nan), where=count > 0)


@dataclass(frozen=True)
class Spread:
    """How far a mean over seeds may lie from the truth: the fiducial distribution of its error, see above."""

    seeds: float  # s² / S
    examples: float  # e²
    df: int  # S − 1

    @property
    def error(self) -> float:
        return math.sqrt(self.seeds + self.examples)

    def probability(self, error: float) -> float:
        """That the mean errs by less than this, signs heeded."""
        if not self.seeds:
            return float(special.ndtr(error / self.error))
        if not self.examples:
            return float(special.stdtr(self.df, error / self.error))
        # χ² from 10⁻²¹ on, in equal steps of its logarithm: the integrand dies off at both ends
        z = np.linspace(-48.0, math.log(self.df + 200.0), 1000)
        weights = np.exp(self.df / 2 * z - np.exp(z) / 2)  # χ²'s density times χ², but for a constant
        values = special.ndtr(error / np.sqrt(self.seeds * self.df * np.exp(-z) + self.examples))
        return float(weights @ values / weights.sum())

    def quantile(self, level: float) -> float:
        """The error that a share ``level`` lies below."""
        if not self.seeds:
            return float(special.ndtri(level)) * self.error
        if not self.examples:
            return float(special.stdtrit(self.df, level)) * self.error
        end, wanted = self.error, max(level, 1 - level)  # symmetric about 0
        while self.probability(end) < wanted:
            end *= 2
        found = optimize.brentq(lambda error: self.probability(error) - wanted, 0.0, end, xtol=1e-9 * end)
        return math.copysign(float(found), level - 0.5)


def spread(values: Sequence[float], *, example_error: float = 0.0) -> Spread:
    """Of the mean of S seeds' ``values``; e is ``example_error``, of that mean, its degrees taken as infinite.

    The seeds' own s² already holds the example noise that they do not share, so this errs on the careful side.
    """
    S = len(values)
    seeds = float(np.var(values, ddof=1)) / S if S > 1 else 0.0
    if math.sqrt(seeds) <= 1e-12 * max(map(abs, values)):  # alike but for rounding
        seeds = 0.0
    return Spread(seeds, example_error**2, S - 1)


def t_interval(values: Sequence[float], *, example_error: float = 0.0, confidence: float = 0.95) -> Interval:
    """The mean over seeds, for new seeds and, with ``example_error`` (of that mean), for new test examples too.

    One seed: the examples' normal interval, which says nothing of seeds. Where nothing varies, since there is one seed
    without ``example_error`` or all agree to the last digit, there are no bounds.
    """
    mean = math.fsum(values) / len(values)
    found = spread(values, example_error=example_error)
    half = found.quantile((1 + confidence) / 2) if found.error else math.inf
    return Interval(mean, mean - half, mean + half, confidence)


def t_test(differences: Sequence[float], *, example_error: float = 0.0) -> float | None:
    """Two-sided p of the mean: below 1 − confidence exactly where ``t_interval`` of the same excludes zero.

    None where nothing varies: one seed without ``example_error``, or no spread. It takes the differences as normal.
    """
    found = spread(differences, example_error=example_error)
    if not found.error:
        return None
    return 2 * found.probability(-abs(math.fsum(differences) / len(differences)))


def sign_flip_test(differences: Sequence[float]) -> float:
    """Exact two-sided permutation p of the mean over seeds: every pattern of signs, each as likely (Fisher, 1935).

    It cannot go below 2^(1 − S): .25 for 3 seeds, .0625 for 5, so that five seeds never reach .05.
    """
    if len(differences) > _MAX_FLIPS:
        raise ValueError(f"differences: got {len(differences)}; expected at most {_MAX_FLIPS}, as all signs are tried")
    d = np.asarray(differences, dtype=np.float64)
    sums = np.zeros(1)
    for value in d:
        sums = np.concatenate([sums + value, sums - value])
    return float(np.mean(np.abs(sums) >= abs(d.sum()) - 1e-9 * np.abs(d).sum()))


def wilcoxon_test(differences: Sequence[float]) -> float:
    """Exact two-sided signed-rank p over seeds: zeros dropped, ties averaged. Its least p is ``sign_flip_test``'s."""
    d = np.asarray([value for value in differences if value], dtype=np.float64)
    return sign_flip_test((np.sign(d) * ranks(np.abs(d))).tolist())


def mcnemar(ours_only: int, theirs_only: int) -> float:
    """Exact two-sided p for one seed, from the examples that one student alone gets right (McNemar, 1947).

    It takes both students as given: another seed may decide otherwise.
    """
    n = ours_only + theirs_only
    return min(1.0, 2 * float(special.bdtr(min(ours_only, theirs_only), n, 0.5))) if n else 1.0


def holm(p_values: Sequence[float | None]) -> tuple[float | None, ...]:
    """p adjusted for their number (Holm, 1979): max over j ≤ i of (m − j) p_(j), at most 1.

    None, an undefined p, stays None and is not counted.
    """
    known = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for j, (p, i) in enumerate(known):
        highest = max(highest, min(1.0, (len(known) - j) * p))
        adjusted[i] = highest
    return tuple(adjusted)


def resolvable_difference(
    *,
    examples: int,
    discordance: float,
    seeds: int,
    seed_sd: float,
    shared: float = 1.0,
    alpha: float = 0.05,
    power: float = 0.8,
) -> float:
    """The smallest difference in accuracy that these seeds and this test set find with probability ``power``.

    δ = (z(1 − α/2) + z(power)) · sqrt(seed_sd² / S + shared · d / N)

    d: share of examples that one of the two students alone gets right. seed_sd: of the difference between seeds, on one
    test set, which already holds the discordance that seeds do not share; ``shared`` is the part they do (the
    correlation between seeds of an example's difference; 1 is the careful end). Normal approximation, δ² beside d
    neglected: the sd is taken as known. With an sd from 3 seeds about twice δ is needed, from 5 about 1.3 times.
    """
    error = math.sqrt(seed_sd**2 / seeds + shared * discordance / examples)
    return resolvable(Spread(0.0, error**2, 0), alpha=alpha, power=power)


def resolvable(found: Spread, *, alpha: float = 0.05, power: float = 0.8) -> float:
    """The difference that shows with probability ``power``: the error's quantiles 1 − α / 2 and ``power``, added."""
    return found.quantile(1 - alpha / 2) + found.quantile(power)


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1 along the last axis, ties averaged."""
    return (comparisons(values).sum(axis=-1) + values.shape[-1] + 1) / 2


def comparisons(values: np.ndarray) -> np.ndarray:
    """The sign of ``values[i] - values[j]``, also where both are infinite: (..., K) -> (..., K, K)."""
    a, b = values[..., :, None], values[..., None, :]
    return (a > b).astype(np.int8) - (a < b).astype(np.int8)
