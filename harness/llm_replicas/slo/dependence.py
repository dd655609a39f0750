"""How much less neighbours say than strangers: the effective sample size of a correlated sequence.

Requests that follow one another meet the same queue, so their latencies are alike and n of them prove less
than n independent ones. The design effect is the factor by which the variance of a share grows,

    deff = 1 + 2 * sum_k rho_k,          n_eff = n / deff,

with rho_k the autocorrelation at lag k of the 0/1 sequence "exceeds", in the order of the due times (Bartlett
1946; Kish 1965 for the name). The sum is cut where the estimates become noise, by Geyer's initial monotone
sequence (Geyer, Practical Markov chain Monte Carlo, Statistical Science 7, 1992, section 3.3).

One such sequence is not enough: a rare exceedance shows its own clustering badly, and one that never happened
shows none. So three are taken, "exceeds the limit" and "is among the slowest 1-p", and "5(1-p)", of this very
run, and the largest design effect counts. In simulation (AR(1), see the tests) this holds the share of false
passes at 5 % up to a correlation of 0.8 between neighbours for n from 300; above `MAX_CORRELATION` nothing is
proved.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri

MAX_CORRELATION = 0.85
"""Neighbours more alike than this make a pass inconclusive: the correction was not calibrated beyond."""

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Dependence:
    """How strongly neighbouring values hang together."""

    n: int
    n_eff: float
    design_effect: float
    correlation: float
    """Correlation between neighbours, of the normal scores of their ranks; robust against infinite values."""

    @property
    def too_strong(self) -> bool:
        """Whether the effective sample size can no longer be trusted."""
        return self.correlation > MAX_CORRELATION


def dependence(values: Floats, limit: float, quantile: float) -> Dependence:
    """Dependence of `values`, in the order of their due times, for the claim "the quantile is within it"."""
    n = values.size
    if n < 2:
        return Dependence(n, float(n), 1.0, 0.0)
    effects = [design_effect(values > limit)]
    ordered = np.sort(values)
    for share in (1 - quantile, min(0.5, 5 * (1 - quantile))):
        level = ordered[n - 1 - int(n * share)]
        effects.append(design_effect(values > level))
    effect = max(effects)
    return Dependence(n, n / effect, effect, neighbour_correlation(values))


def design_effect(exceeds: Bools) -> float:
    """Factor, at least 1, by which the variance of a 0/1 sequence's mean exceeds the independent case."""
    n = exceeds.size
    count = int(np.count_nonzero(exceeds))
    if n < 2 or count in {0, n}:
        return 1.0
    rho = autocorrelation(exceeds.astype(np.float64))
    pairs = rho[: n // 2 * 2].reshape(-1, 2).sum(axis=1)[: max(1, n // 4)]
    ends = np.flatnonzero(pairs <= 0)
    pairs = np.minimum.accumulate(pairs[: ends[0]] if ends.size else pairs)
    return max(1.0, float(2 * pairs.sum() - 1))


def autocorrelation(values: Floats) -> Floats:
    """Sample autocorrelation at every lag, biased (divided by n) as the truncation rule wants it."""
    n = values.size
    centred = values - values.mean()
    size = 1 << (2 * n - 1).bit_length()
    spectrum = np.fft.rfft(centred, size)
    covariance: Floats = np.fft.irfft(spectrum * np.conj(spectrum), size)[:n]
    correlation: Floats = covariance / covariance[0]
    return correlation


def neighbour_correlation(values: Floats) -> float:
    """Lag-1 correlation of the normal scores (van der Waerden 1952) of the ranks; 0 where all are equal."""
    n = values.size
    if n < 3:
        return 0.0
    # Ties, the infinite ones above all, share their mean rank.
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    mean_rank = np.cumsum(counts) - (counts - 1) / 2
    scores = ndtri(mean_rank[inverse] / (n + 1))
    centred = scores - scores.mean()
    variance = float(centred @ centred)
    return float(centred[:-1] @ centred[1:]) / variance if variance > 0 else 0.0
