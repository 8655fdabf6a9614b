"""Compares what entropy says with what the reward does: the two tables of `aegpo signals`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from aegpo.entropy.reading import EntropyReading, delta_entropy
from aegpo.exploration import EntropyPeaks
from aegpo.noise import KeyedNoise
from aegpo.prompts import category_of
from aegpo.study.rank_correlation import chance_level_within, spearman, spearman_within
from aegpo.study.signal_probe import Curves, Signals
from aegpo.study.step_trials import group_spread


@dataclass(frozen=True)
class StepRow:
    """One way of reading Entropy(t), held against the reward's spread by step.

    Attributes:
        tokens: Token set; or the name of what is no reading of attention.
        layer: Layer, or "all"; empty where there is none.
        entropy: Mean over prompts at each of the T steps, NaN where there is none.
        correlation: Rank correlation with the reward spread over the T - 1 eligible steps.
        own_correlation: The same over prompts and steps after the means of each prompt and of each
            step are taken away: what a prompt's own curve knows beyond the common one.
        steps: The top-K steps of the mean curve.
        share: Share of the summed reward variance at these steps.
        own_share: The same where each prompt takes the top-K of its own curve.
    """

    tokens: str
    layer: str
    entropy: list[float]
    correlation: float
    own_correlation: float
    steps: list[int]
    share: float
    own_share: float


@dataclass(frozen=True)
class StepTable:
    """All ways of reading Entropy(t), the one that agrees best with the reward's spread first.

    Attributes:
        spread: Mean over prompts of the reward's standard deviation inside a group, T - 1 steps.
        variance_share: Share of each step in the summed reward variance.
        oracle_steps: The K steps of largest reward variance.
        oracle_share: The share of an oracle that chooses a prompt's steps by the other prompts;
            that of `oracle_steps` themselves would be flattered by the choice. NaN with one prompt.
        random_share: The share to expect of K steps drawn at random, K / (T - 1).
        rows: The readings.
    """

    spread: list[float]
    variance_share: list[float]
    oracle_steps: list[int]
    oracle_share: float
    random_share: float
    rows: list[StepRow]


@dataclass(frozen=True)
class PromptRow:
    """One way of reading ΔEntropy, held against what there is to learn on a prompt.

    Two rows are no readings but yardsticks: the reward spread as a predictor, and the reward
    gained, whose own repeatability bounds what can be foretold.

    Attributes:
        tokens: Token set, or the name of the yardstick.
        layer: Layer, or "all"; empty for a yardstick.
        mean: Mean over prompts.
        retest_one: Test-retest rank correlation of one trajectory (image) with another, the mean
            over disjoint pairs.
        retest_half: The same of the averages over two disjoint halves of the trajectories (images).
        retest_half_within: That within categories.
        retest_half_chance: The |correlation| within categories that is passed once in twenty times
            by chance; likewise `spread_chance`, `gained_chance` and `foretold_chance`.
        spread: Rank correlation with the reward's spread inside a group.
        spread_within: That within categories.
        gained: With the reward gained; for the spread as a predictor, that of before training.
        gained_within: That within categories.
        foretold: ΔEntropy at the earlier checkpoint with the reward gained since.
        foretold_within: That within categories.
    """

    tokens: str
    layer: str
    mean: float
    retest_one: float = math.nan
    retest_half: float = math.nan
    retest_half_within: float = math.nan
    retest_half_chance: float = math.nan
    spread: float = math.nan
    spread_within: float = math.nan
    spread_chance: float = math.nan
    gained: float = math.nan
    gained_within: float = math.nan
    gained_chance: float = math.nan
    foretold: float = math.nan
    foretold_within: float = math.nan
    foretold_chance: float = math.nan


def step_table(signals: Signals, top_k: int) -> StepTable:
    """Hold every reading of Entropy(t) against the reward's spread by step.

    Args:
        signals: The measurements.
        top_k: Steps to choose, K.

    Returns:
        The table, sorted by correlation.

    Raises:
        ValueError: If there are fewer than `top_k` eligible steps, or no prompt was scored at all
            of them.
    """
    num_steps = signals.step_spread.shape[1] + 1
    batch_peaks = EntropyPeaks(top_k, scope="batch")
    prompt_peaks = EntropyPeaks(top_k)
    batch_peaks.validate(num_steps)
    complete = signals.step_spread.isfinite().all(dim=1)
    if not bool(complete.any()):
        raise ValueError(
            "no prompt has two scored images at every step; the reward failed too often"
        )
    spread = signals.step_spread[complete].double()
    variance = spread.square()
    total = variance.sum().clamp(min=torch.finfo(torch.float64).tiny)
    mean_spread = spread.mean(dim=0)
    oracle = _largest(variance.sum(dim=0), top_k).sort().values

    noise, index = KeyedNoise(0), signals.prompts.index[complete]  # neither is used by peaks
    rows = []
    for (tokens, layer), trajectories in signals.curves.items():
        curve = trajectories.mean(dim=1)[complete]
        eligible = curve[:, :-1]
        reading = EntropyReading(curve)
        chosen = batch_peaks(reading, noise, index, num_steps).stochastic[:, :-1]
        own = prompt_peaks(reading, noise, index, num_steps).stochastic[:, :-1]
        rows.append(
            StepRow(
                tokens=tokens,
                layer=layer,
                entropy=curve.mean(dim=0).tolist(),
                correlation=spearman(eligible.mean(dim=0), mean_spread),
                own_correlation=spearman(_residual(eligible), _residual(spread)),
                steps=chosen[0].nonzero().flatten().tolist(),
                share=float(variance[chosen].sum() / total),
                own_share=float(variance[own].sum() / total),
            )
        )
    rows.sort(key=lambda row: _rank(row.correlation), reverse=True)
    return StepTable(
        spread=mean_spread.tolist(),
        variance_share=(variance.sum(dim=0) / total).tolist(),
        oracle_steps=oracle.tolist(),
        oracle_share=_oracle_share(variance, top_k),
        random_share=top_k / (num_steps - 1),
        rows=rows,
    )


def prompt_table(signals: Signals) -> list[PromptRow] | None:
    """Hold every reading of ΔEntropy against reward spread and reward gained.

    Args:
        signals: The measurements.

    Returns:
        The yardsticks, then the readings, the most repeatable first; None for a policy that was
        not trained, whose ΔEntropy is 0.
    """
    if signals.reference_curves is None:
        return None
    categories = [category_of(record) for record in signals.prompts.metadata]
    spread = group_spread(signals.groups)
    gains = None if signals.gains is None else signals.gains.double().nanmean(dim=1)

    def both(name: str, x: Tensor, y: Tensor | None) -> dict[str, Any]:
        if y is None:
            return {}
        return {
            name: spearman(x, y),
            f"{name}_within": spearman_within(x, y, categories),
            f"{name}_chance": chance_level_within(x, y, categories),
        }

    rows = []
    for (tokens, layer), curves in signals.curves.items():
        reference = signals.reference_curves[tokens, layer]
        delta = delta_entropy(curves.mean(1), reference.mean(1)).double()
        first, second = _halves(curves, reference)
        foretold = {}
        if signals.before_curves is not None:
            earlier = delta_entropy(signals.before_curves[tokens, layer].mean(1), reference.mean(1))
            foretold = both("foretold", earlier.double(), gains)
        row = PromptRow(
            tokens,
            layer,
            mean=float(delta.mean()),
            retest_one=_retest_one(curves, reference),
            **both("retest_half", first, second),
            **both("spread", delta, spread),
            **both("gained", delta, gains),
            **foretold,
        )
        rows.append(row)
    rows.sort(key=lambda row: _rank(row.retest_half_within), reverse=True)
    first, second = (group_spread(half) for half in signals.groups.chunk(2, dim=1))
    before = spread if signals.before_groups is None else group_spread(signals.before_groups)
    yardsticks = [
        PromptRow(
            "reward spread",
            "",
            mean=float(spread.nanmean()),
            **both("retest_half", first, second),
            **both("gained", before, gains),
        )
    ]
    if signals.gains is not None and gains is not None:
        first, second = (half.double().nanmean(dim=1) for half in signals.gains.chunk(2, 1))
        yardsticks.append(
            PromptRow(
                "reward gained",
                "",
                mean=float(gains.nanmean()),
                **both("retest_half", first, second),
                **both("spread", gains, spread),
            )
        )
    return yardsticks + rows


def delta_by_prompt(curves: Curves, reference: Curves) -> dict[tuple[str, str], list[float]]:
    """ΔEntropy of each prompt from all trajectories, for every reading.

    Args:
        curves: Entropy under the policy.
        reference: Entropy under the reference.

    Returns:
        B numbers for each (token set, layer).
    """
    return {
        key: delta_entropy(own.mean(1), reference[key].mean(1)).tolist()
        for key, own in curves.items()
    }


def _largest(variance: Tensor, top_k: int) -> Tensor:
    """The K steps of largest variance, the earlier one at a tie; the last dimension are steps."""
    return variance.argsort(dim=-1, descending=True, stable=True)[..., :top_k]


def _oracle_share(variance: Tensor, top_k: int) -> float:
    """Share of the variance (B, T - 1) at the K largest steps of the other prompts."""
    if len(variance) < 2:
        return math.nan
    others = variance.sum(dim=0) - variance
    total = variance.sum().clamp(min=torch.finfo(variance.dtype).tiny)
    return float(variance.gather(1, _largest(others, top_k)).sum() / total)


def _halves(curves: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """ΔEntropy from the first and from the second half of the trajectories, (B,) each."""
    pairs = zip(curves.chunk(2, dim=1), reference.chunk(2, dim=1), strict=True)
    first, second = (delta_entropy(own.mean(1), base.mean(1)).double() for own, base in pairs)
    return first, second


def _retest_one(curves: Tensor, reference: Tensor) -> float:
    """Mean rank correlation of ΔEntropy from one trajectory with that from another."""
    single = [delta_entropy(curves[:, m], reference[:, m]).double() for m in range(curves.shape[1])]
    pairs = zip(single[::2], single[1::2], strict=True)
    return float(
        torch.tensor([spearman(one, other) for one, other in pairs], device="cpu").nanmean()
    )


def _residual(values: Tensor) -> Tensor:
    """Values (B, T) less the means of their row and column, in one row."""
    rows, columns = values.mean(dim=1, keepdim=True), values.mean(dim=0, keepdim=True)
    left = values - rows - columns + values.mean()
    unit = 1e-9 * values.abs().max().clamp(min=torch.finfo(values.dtype).tiny)
    return (left / unit).round().flatten()  # in units that rounding cannot reach: it has no ranks


def _rank(correlation: float) -> float:
    return -math.inf if math.isnan(correlation) else correlation
