"""Deciding "the p-quantile is at most X" exactly, three ways: pass (proved), fail (refuted), inconclusive.

The claim is the same as "a request exceeds X with a probability of at most q = 1 - p". With t exceedances
among n requests and alpha = 1 - confidence:

    pass  if  P[Bin(n, q) <= t] <= alpha        so few would be unlikely if the claim were false
    fail  if  P[Bin(n, q) >= t] <= alpha        so many would be unlikely if the claim were true

This is MLPerf's early-stopping rule (mlcommons/inference loadgen/early_stopping.cc; inference_rules.adoc,
appendix on early stopping) and the same as comparing X with the one-sided order-statistic bound of the
quantile (David and Nagaraja, Order Statistics, 2003, section 7.1). It knows nothing of the law of the
latencies, interpolates nothing and rounds nothing.

The binomial tails are incomplete beta functions (Clopper and Pearson, Biometrika 26, 1934), which also take
the broken numbers that arise when n is replaced by an effective sample size and t is scaled along with it
(Korn and Graubard, Survey Methodology 24, 1998).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.special import betainc, betaincinv

Decision = Literal["pass", "fail", "inconclusive"]
Floats = npt.NDArray[np.float64]

MOST_REQUESTS = 100_000_000
"""Beyond this a number of further requests is not worth naming."""


def at_most(t: float, n: float, q: float) -> float:
    """P[Bin(n, q) <= t], for broken t and n as well."""
    if t >= n:
        return 1.0
    if t < 0:
        return 0.0
    return float(betainc(n - t, t + 1, 1 - q))


def at_least(t: float, n: float, q: float) -> float:
    """P[Bin(n, q) >= t], for broken t and n as well."""
    if t <= 0:
        return 1.0
    if t > n:
        return 0.0
    return float(betainc(t, n - t + 1, q))


def decide(exceedances: float, n: float, q: float, alpha: float, n_eff: float | None = None) -> Decision:
    """Decide whether the exceedance probability is at most `q`.

    With `n_eff` below `n` both counts shrink by the same factor. Nothing measured is never a pass. With a
    budget of zero the claim is about this run's requests alone: one exceedance refutes it.
    """
    if n <= 0:
        return "inconclusive"
    if q <= 0:
        return "fail" if exceedances > 0 else "pass"
    scale = min(1.0, (n if n_eff is None else n_eff) / n)
    t, size = exceedances * scale, n * scale
    if at_most(t, size, q) <= alpha:
        return "pass"
    if at_least(t, size, q) <= alpha:
        return "fail"
    return "inconclusive"


def smallest_n_to_pass(exceedances: int, q: float, alpha: float) -> int:
    """Smallest number of independent requests with which `exceedances` are still a pass."""
    low, high = exceedances, max(1, exceedances)
    while at_most(exceedances, high, q) > alpha:
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if at_most(exceedances, middle, q) <= alpha else (middle, high)
    return high


def most_to_pass(n: int, q: float, alpha: float, n_eff: float | None = None) -> int | None:
    """Largest number of exceedances among `n` that is still a pass; None when not even 0 is."""
    if decide(0, n, q, alpha, n_eff) != "pass":
        return None
    low, high = 0, n + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if decide(middle, n, q, alpha, n_eff) == "pass" else (low, middle)
    return low


def fewest_to_fail(n: int, q: float, alpha: float, n_eff: float | None = None) -> int | None:
    """Smallest number of exceedances among `n` that is a fail; None when not even `n` is."""
    if n <= 0 or decide(n, n, q, alpha, n_eff) != "fail":
        return None
    low, high = 0, n
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if decide(middle, n, q, alpha, n_eff) == "fail" else (middle, high)
    return high


@dataclass(frozen=True)
class QuantileBounds:
    """A quantile of measured values with its one-sided bounds; None where the sample is too small for one."""

    value: float
    lower: float | None
    upper: float | None


def quantile_bounds(
    ordered: Floats, quantile: float, alpha: float, n_eff: float | None = None
) -> QuantileBounds | None:
    """The quantile of ascending `ordered` and its bounds, each of which holds with confidence 1 - alpha.

    The value is the inverse of the empirical distribution, the k-th smallest with k = ceil(n p) (definition 1
    of Hyndman and Fan, The American Statistician 50, 1996): always one of the measured values, and infinite
    when that one is. The bounds agree with `decide` to the letter: it passes a limit if and only if the upper
    bound is within it, and fails it if and only if the lower bound is above it.
    """
    n = ordered.size
    if n == 0:
        return None
    # The product of n and p may miss a whole number by a rounding error, which must not cost a rank.
    rank = min(n, max(1, math.ceil(n * quantile - 1e-9)))
    passes, fails = (rule(n, 1 - quantile, alpha, n_eff) for rule in (most_to_pass, fewest_to_fail))
    return QuantileBounds(
        value=float(ordered[rank - 1]),
        lower=None if fails is None else float(ordered[n - fails]),
        upper=None if passes is None else float(ordered[n - passes - 1]),
    )


def share_upper_bound(count: float, n: float, confidence: float) -> float:
    """Upper Clopper-Pearson bound of a share: with this confidence the true one is not larger."""
    if n <= 0 or count >= n:
        return 1.0
    return float(betaincinv(count + 1, n - count, confidence))


def share_lower_bound(count: float, n: float, confidence: float) -> float:
    """Lower Clopper-Pearson bound of a share: with this confidence the true one is not smaller."""
    if n <= 0 or count <= 0:
        return 0.0
    return float(betaincinv(count, n - count + 1, 1 - confidence))


def zero_bound(n: int, confidence: float = 0.95) -> float:
    """What "0 of n" leaves possible: -ln(1 - confidence) / n, which is the rule of three, 3/n, at 95 %.

    Hanley and Lippman-Hand, JAMA 249, 1983. A little above the exact 1 - (1 - confidence)^(1/n); 1 for n = 0.
    """
    return min(1.0, -math.log1p(-confidence) / n) if n > 0 else 1.0


def more_requests(exceedances: int, n: int, q: float, alpha: float, n_eff: float | None = None) -> int | None:
    """How many more requests would decide an inconclusive claim if they exceed as often as those before.

    None when the observed share is so near the budget that no reasonable number would.
    """
    if n <= 0:
        return smallest_n_to_pass(0, q, alpha) if q > 0 else None
    scale = min(1.0, (n if n_eff is None else n_eff) / n)
    share = exceedances / n

    def decided(size: int) -> bool:
        return decide(share * size, size, q, alpha, size * scale) != "inconclusive"

    if decided(n):
        return 0
    low, high = n, n * 2
    while not decided(high):
        low, high = high, high * 2
        if high > MOST_REQUESTS:
            return None
    while high - low > max(1, low // 1000):
        middle = (low + high) // 2
        low, high = (low, middle) if decided(middle) else (middle, high)
    return high - n
