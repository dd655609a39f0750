"""The same scheduler and cost model on a virtual clock: what a replica will do, computed before it runs."""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from standin_engine.config import EngineConfig
from standin_engine.forward import SimulatedForward
from standin_engine.pipeline import Pipeline
from standin_engine.scheduler import Rejected, Request, Scheduler


@dataclass
class Outcome:
    """One simulated request, all times in seconds; infinite TTFT when it was rejected."""

    arrival: float
    prompt_tokens: int
    max_tokens: int
    events: list[float] = field(default_factory=list)

    @property
    def ttft(self) -> float:
        """From arrival to the first event."""
        return self.events[0] - self.arrival if self.events else math.inf

    @property
    def largest_gap(self) -> float | None:
        """The longest pause between two events; None for an answer of one event."""
        gaps = [later - earlier for earlier, later in zip(self.events, self.events[1:], strict=False)]
        return max(gaps) if gaps else None

    @property
    def duration(self) -> float:
        """From arrival to the last event."""
        return self.events[-1] - self.arrival if self.events else math.inf


@dataclass
class Run:
    """A whole simulated run."""

    outcomes: list[Outcome]
    most_waiting: int
    most_blocks: int
    most_active: int

    @property
    def rejected(self) -> int:
        """Requests that found the queue full."""
        return sum(1 for outcome in self.outcomes if not outcome.events)


def quantile(values: Iterable[float], share: float) -> float:
    """The smallest value that at least `share` of all values do not exceed."""
    ordered = sorted(values)
    if not ordered:
        raise ValueError("no values, so no quantile")
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def poisson_arrivals(rate_per_second: float, count: int, seed: int) -> list[float]:
    """Arrival times of an open-loop Poisson process."""
    source = random.Random(seed)
    now = 0.0
    times = []
    for _ in range(count):
        now += source.expovariate(rate_per_second)
        times.append(now)
    return times


def simulate(
    arrivals: Sequence[float],
    lengths: Sequence[tuple[int, int]],
    config: EngineConfig,
    slowdown: float = 1.0,
) -> Run:
    """Serve request i, of `lengths[i]` (prompt, answer) tokens, at `arrivals[i]` on one replica."""
    scheduler = Scheduler(config)
    pipeline = Pipeline(scheduler, SimulatedForward(config.cost_model(), slowdown), max_lag_seconds=math.inf)
    outcomes = [Outcome(at, *length) for at, length in zip(arrivals, lengths, strict=True)]
    run = Run(outcomes, 0, 0, 0)
    upcoming = [(outcome.arrival, number) for number, outcome in enumerate(outcomes)]
    heapq.heapify(upcoming)
    while upcoming or pipeline.next_deadline is not None:
        deadline = pipeline.next_deadline
        if upcoming and (deadline is None or upcoming[0][0] <= deadline):
            now, number = heapq.heappop(upcoming)
            outcome = outcomes[number]
            try:
                pipeline.submit(Request(number, outcome.prompt_tokens, outcome.max_tokens), now)
            except Rejected:
                continue
            run.most_waiting = max(run.most_waiting, len(scheduler.waiting))
        elif deadline is not None:
            for at, emissions in pipeline.advance(deadline):
                for emission in emissions:
                    outcomes[emission.request_id].events.append(at)
        run.most_blocks = max(run.most_blocks, scheduler.pool.used)
        run.most_active = max(run.most_active, len(scheduler.active))
    return run


@dataclass(frozen=True)
class Unloaded:
    """The 99th percentiles of requests that have the replica for themselves."""

    ttft_seconds: float
    largest_gap_seconds: float


def unloaded_p99(lengths: Sequence[tuple[int, int]], config: EngineConfig) -> Unloaded:
    """What the workload would see one request at a time; a promise below this cannot be kept."""
    ttfts: list[float] = []
    gaps: list[float] = []
    known: dict[tuple[int, int], Outcome] = {}
    for length in lengths:
        if length not in known:
            known[length] = simulate([0.0], [length], config).outcomes[0]
        ttfts.append(known[length].ttft)
        gap = known[length].largest_gap
        if gap is not None:
            gaps.append(gap)
    return Unloaded(quantile(ttfts, 0.99), quantile(gaps, 0.99))


def stable(rate_per_second: float, lengths: Sequence[tuple[int, int]], config: EngineConfig, seed: int = 1) -> bool:
    """Whether the replica keeps up: no rejection, and the waiting queue does not grow over the run."""
    run = simulate(poisson_arrivals(rate_per_second, len(lengths), seed), lengths, config)
    if run.rejected:
        return False
    half = len(run.outcomes) // 2
    early = quantile((o.ttft for o in run.outcomes[half // 2 : half]), 0.5)
    late = quantile((o.ttft for o in run.outcomes[half + half // 2 :]), 0.5)
    return late <= 1.5 * early


def capacity(lengths: Sequence[tuple[int, int]], config: EngineConfig, seed: int = 1) -> float:
    """The largest Poisson rate that one replica keeps up with, to 0.1 requests a second."""
    low, high = 0.0, 1.0
    while stable(high, lengths, config, seed):
        low, high = high, high * 2
    while high - low > 0.1:
        middle = (low + high) / 2
        if stable(middle, lengths, config, seed):
            low = middle
        else:
            high = middle
    return low
