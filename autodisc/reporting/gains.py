"""What one strategy's student gained over another's, how sure that is, and the sentence that says so.

Differences are paired: the same seeds, the same test examples. The interval that decides is the t-interval over seeds
and examples (``statistics``), and p is that interval's; the interval is not corrected for the number of comparisons,
the table's p-values are (``holm``). A difference is told apart where its interval excludes zero. ``resolvable`` is what
this test set and these seeds find with power .8, given the spread that was measured; a difference below it may be there
and not show.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from autodisc.reporting import units
from autodisc.reporting.statistics import (
    RESAMPLES,
    Bootstrap,
    Interval,
    Results,
    bootstrap,
    examples_of,
    mcnemar,
    resolvable,
    sign_flip_test,
    spread,
    t_interval,
    t_test,
    wilcoxon_test,
)


@dataclass(frozen=True)
class Comparison:
    """``ours`` minus ``theirs`` on test; a p is None where it is undefined or does not apply."""

    ours: str
    theirs: str
    by_seed: tuple[float, ...]
    examples: int  # 0: answers were not kept, the interval is over seeds alone
    interval: Interval  # t; with one seed the normal's over examples
    bootstrap: Interval | None  # percentile, crossed
    resolvable: float | None  # None: one seed and no answers, or seeds and examples all alike
    p: float | None  # the t-test's that belongs to the interval
    p_wilcoxon: float
    p_sign_flip: float
    p_mcnemar: float | None  # exact, of one seed whose answers are right or wrong

    @property
    def difference(self) -> float:
        return self.interval.estimate


def compare(
    results: Sequence[Results],
    *,
    ours: str,
    theirs: str,
    rng: np.random.Generator,
    resamples: int = RESAMPLES,
    confidence: float = 0.95,
    power: float = 0.8,
) -> Comparison:
    """Two strategies over the seeds of one task and student sparsity: one ``Results`` a seed, both names in each."""
    seeds = [result.seed for result in results]
    if not seeds or len(set(seeds)) != len(seeds):
        raise ValueError(f"seeds {seeds}: expected one result a seed, and at least one")
    pairs = [result.only((ours, theirs)) for result in results]
    examples = examples_of(pairs)

    def statistic(rows: np.ndarray | None) -> np.ndarray:
        metrics = np.stack([pair.resampled(rows) for pair in pairs], axis=1)  # (R, S, 2)
        return metrics[:, :, :1] - metrics[:, :, 1:]

    found = bootstrap(statistic, examples=examples, rng=rng, resamples=resamples)
    by_seed = tuple(found.by_seed[:, 0].tolist())
    example_error = float(found.example_error[0])
    error = spread(by_seed, example_error=example_error)
    return Comparison(
        ours=ours,
        theirs=theirs,
        by_seed=by_seed,
        examples=examples,
        interval=t_interval(by_seed, example_error=example_error, confidence=confidence),
        bootstrap=found.interval(confidence=confidence),
        resolvable=resolvable(error, alpha=1 - confidence, power=power) if error.error else None,
        p=t_test(by_seed, example_error=example_error),
        p_wilcoxon=wilcoxon_test(by_seed),
        p_sign_flip=sign_flip_test(by_seed),
        p_mcnemar=_mcnemar(pairs[0]) if len(pairs) == 1 else None,
    )


def _mcnemar(pair: Results) -> float | None:
    correct = pair.correct()
    if correct is None:
        return None
    return mcnemar(int((correct[0] & ~correct[1]).sum()), int((correct[1] & ~correct[0]).sum()))


def share_best(
    results: Sequence[Results], *, among: Sequence[str], rng: np.random.Generator, resamples: int = RESAMPLES
) -> dict[str, float]:
    """How often each student, averaged over drawn seeds, is the best of ``among`` on drawn examples; ties are shared.

    One seed without answers: nothing can be drawn, and the best of the record has the whole share.
    """
    chosen = [result.only(among) for result in results]

    def statistic(rows: np.ndarray | None) -> np.ndarray:
        return np.stack(np.broadcast_arrays(*(result.resampled(rows) for result in chosen)), axis=1)  # (R, S, K)

    found: Bootstrap = bootstrap(statistic, examples=examples_of(chosen), rng=rng, resamples=resamples)
    draws = found.draws if len(found.draws) else found.estimate[None]
    best = np.isclose(draws, draws.max(axis=1, keepdims=True), rtol=0, atol=1e-12)
    shares = (best / best.sum(axis=1, keepdims=True)).mean(axis=0)
    return dict(zip(among, shares.tolist(), strict=True))


@dataclass(frozen=True)
class Standing:
    """What is known of one task and student sparsity; None where it was not run."""

    task: str
    student_sparsity: float
    chosen: tuple[float | None, ...]  # the assistant's sparsity by seed; None: no candidate was feasible
    over_direct: Comparison | None
    over_rule: Comparison | None = None  # the assistant of 2.5 × the student's scale
    best_share: float | None = None  # of bootstrap draws in which this is the best assistant, ties shared
    p_direct: float | None = None  # of over_direct, corrected for the report's comparisons
    p_rule: float | None = None
    search_share: float | None = None  # of the exhaustive search's cost
    schedule_share: float | None = None


def verdict(standing: Standing) -> str:
    """A plain sentence or two: take this assistant, take none, or the data cannot tell."""
    head = f"{standing.task}, student sparsity {units.plain(standing.student_sparsity)}: "
    text = _advice(standing)
    rule = _rule(standing.over_rule, standing.p_rule)
    doubts = _doubts(standing.over_direct, standing.p_direct)
    more = _doubts(standing.over_rule, standing.p_rule)
    said = (text, doubts, rule, "" if more == doubts else more, _cost(standing))
    return head + " ".join(sentence for sentence in said if sentence)


def _advice(standing: Standing) -> str:
    if all(sparsity is None for sparsity in standing.chosen):
        return "take no teacher assistant; none of the candidates left the floor."
    assistant, direct = _assistant(standing), standing.over_direct
    if direct is None:
        return f"{assistant} was chosen; without a student distilled with no assistant nothing says whether it helps."
    basis = _basis(direct)
    gain = f"{_points(direct.difference)} ({_bounds(direct.interval)}{_corrected(direct, standing.p_direct)}, {basis})"
    if direct.interval.sign > 0:
        return f"take {assistant}; over no assistant it gains {gain}{_sure(standing)}."
    if direct.interval.sign < 0:
        return f"take no teacher assistant; with {assistant} the student changes by {gain}."
    if direct.resolvable is None:
        return f"cannot tell whether {assistant} helps: {gain}; nothing varies here that an interval could be made of."
    return (
        f"cannot tell {assistant} and no assistant apart: {gain}; differences below {_points(direct.resolvable, '')}"
        f" are not resolvable with this test set and {'this seed' if len(direct.by_seed) == 1 else 'these seeds'}"
        f"{_sure(standing)}."
    )


def _doubts(direct: Comparison | None, p: float | None) -> str:
    """What speaks against a difference that shows."""
    if direct is None or not direct.interval.sign:
        return ""
    found = []
    if p is not None and p >= 1 - direct.interval.confidence:
        found.append("among as many comparisons as this report makes, chance alone may show one like it")
    if len(direct.by_seed) == 1:
        found.append("this is one seed, and another may decide otherwise")
    text = "; ".join(found)
    return f"But {text}." if text else ""


def _assistant(standing: Standing) -> str:
    """The commonest choice, the sparser of two as common; how often, where seeds differ.

    What is judged is the choice of every seed, not that assistant alone.
    """
    counts = Counter(standing.chosen)
    counted = [(count, sparsity) for sparsity, count in counts.items() if sparsity is not None]
    count, sparsity = max(counted)
    text = f"the assistant of sparsity {units.plain(sparsity)}"
    if len(counts) == 1:
        return text
    others = ", ".join(
        f"{'none feasible' if other is None else units.plain(other)} in {n}"
        for other, n in sorted(counts.items(), key=lambda item: (item[0] is None, item[0]))
        if other != sparsity
    )
    seeds = f"{count} of {len(standing.chosen)} seeds; {others}"
    if counts[None] > count:  # most seeds are distilled straight from the teacher
        return f"the search's choice (sparsity {units.plain(sparsity)} with {seeds})"
    return f"{text} (chosen with {seeds})"


def _rule(rule: Comparison | None, p: float | None) -> str:
    if rule is None:
        return ""
    text = f"Against the 2.5 × rule: {_points(rule.difference)} ({_bounds(rule.interval)}{_corrected(rule, p)})"
    if rule.interval.sign:
        return f"{text}, {'better' if rule.interval.sign > 0 else 'worse'}."
    if rule.resolvable is None:
        return f"{text}."
    return f"{text}, cannot tell apart: below {_points(rule.resolvable, '')} nothing is resolvable."


def _cost(standing: Standing) -> str:
    parts = [
        f"{what} {units.share(share)}"
        for what, share in (("the search", standing.search_share), ("the whole schedule", standing.schedule_share))
        if share is not None
    ]
    return f"Of the exhaustive search's cost {' and '.join(parts)}." if parts else ""


def _sure(standing: Standing) -> str:
    if standing.best_share is None:
        return ""
    return f"; it is the best assistant in {100 * standing.best_share:.0f} % of the bootstrap's draws"


def _basis(comparison: Comparison) -> str:
    seeds = units.plural(len(comparison.by_seed), "seed")
    return f"{seeds}, {comparison.examples:,} test examples" if comparison.examples else seeds


def _bounds(interval: Interval) -> str:
    if math.isinf(interval.low):
        return "no interval"
    low, high = (f"{100 * bound:+.1f}".replace("-", "−") for bound in (interval.low, interval.high))
    return f"{100 * interval.confidence:.0f} % interval {low} to {high}"


def _corrected(comparison: Comparison, p: float | None) -> str:
    """Not of one seed, whose p is of these two students and not of their strategies."""
    return (
        "" if p is None or len(comparison.by_seed) == 1 else f", p {'< 0.001' if p < 0.001 else f'{p:.3f}'} corrected"
    )


def _points(value: float, sign: str = "+") -> str:
    """Percentage points, the unit that readers compare in."""
    return f"{100 * value:{sign}.1f} points".replace("-", "−")


@dataclass(frozen=True)
class FrontierPoint:
    """One setting of the search: its cost as a share of the exhaustive search's, and its mean regret."""

    setting: str
    cost: float
    regret: float
    interval: Interval | None = None


def frontier(points: Sequence[FrontierPoint]) -> tuple[FrontierPoint, ...]:
    """The points that no other beats in one of cost and regret without losing in the other, cheapest first."""

    def beaten(point: FrontierPoint) -> bool:
        return any(
            other.cost <= point.cost
            and other.regret <= point.regret
            and (other.cost, other.regret) != (point.cost, point.regret)
            for other in points
        )

    return tuple(sorted((p for p in points if not beaten(p)), key=lambda p: (p.cost, p.regret, p.setting)))
