"""When requests arrive: pure functions from a seeded generator to moments in [0, seconds).

Only uniform doubles are drawn, and the transformations are our own: numpy promises that a seed gives the same
bits, but reserves the right to change how it makes other distributions from them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from llm_replicas.load.trace import Trace

Moments = NDArray[np.float64]


def poisson(rng: np.random.Generator, rate: float, *, seconds: float, requests: int | None = None) -> Moments:
    """Arrivals of a Poisson process during ``seconds``.

    With ``requests`` the count is fixed: given their number, a Poisson process's arrivals are that many
    independent uniform moments. Without it the count is Poisson distributed as well.
    """
    if requests is not None:
        return np.sort(rng.random(requests)) * seconds
    blocks: list[Moments] = []
    now = 0.0
    while now < seconds:
        gaps = -np.log1p(-rng.random(max(16, int(rate * seconds * 0.1)))) / rate
        block = now + np.cumsum(gaps)
        now = float(block[-1])
        blocks.append(block)
    merged: Moments = np.concatenate(blocks)
    return merged[merged < seconds]


def constant(rate: float, *, seconds: float, requests: int | None = None) -> Moments:
    """Evenly spaced arrivals, each in the middle of its slot."""
    count = requests if requests is not None else round(rate * seconds)
    return (np.arange(count, dtype=np.float64) + 0.5) * (seconds / max(count, 1))


def from_trace(
    rng: np.random.Generator, trace: Trace, rate: float, *, seconds: float, requests: int | None = None
) -> tuple[Moments, NDArray[np.int64]]:
    """A stretch of the trace from a drawn place on, its own rhythm squeezed or stretched to ``rate``.

    Returns the moments and the trace rows they belong to, so that the lengths can come from the same
    requests. A stretch longer than the trace goes round.
    """
    count = requests if requests is not None else max(1, round(rate * seconds))
    rows = (int(rng.random() * len(trace)) + np.arange(count)) % len(trace)
    ends = np.cumsum(trace.gaps_s[rows])
    total = float(ends[-1])
    if total <= 0:  # all of one moment: there is no rhythm to keep
        return constant(rate, seconds=seconds, requests=count), rows
    starts = np.concatenate(([0.0], ends[:-1]))
    return np.minimum(starts * (seconds / total), np.nextafter(seconds, 0.0)), rows
