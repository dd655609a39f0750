"""What must hold for any workload, checked after every event of a run on a virtual clock.

`check` is used on the real scheduler, where it must stay silent, and on broken ones, where it must not.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from hypothesis import strategies as st
from standin_engine.config import EngineConfig
from standin_engine.forward import SimulatedForward
from standin_engine.pipeline import Pipeline
from standin_engine.scheduler import QueueFull, Request, Scheduler, TooLong


@dataclass(frozen=True)
class Arrival:
    """One request of a made-up workload."""

    pause: float
    prompt: int
    answer: int
    family: int
    cancel_after: float | None


@dataclass
class Observed:
    """What a client and an operator could see."""

    tokens: dict[int, list[int]] = field(default_factory=dict)
    finished: set[int] = field(default_factory=set)
    cancelled: set[int] = field(default_factory=set)
    rejected: set[int] = field(default_factory=set)
    admitted: list[int] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)


configs = st.builds(
    EngineConfig,
    stages=st.integers(1, 4),
    max_batch=st.integers(4, 12),
    chunk_tokens=st.integers(1, 40),
    kv_blocks=st.integers(2, 30),
    tokens_per_block=st.integers(1, 8),
    prefix_cache=st.booleans(),
    max_waiting=st.integers(1, 6),
    stream_interval=st.integers(1, 4),
)
arrivals = st.lists(
    st.builds(
        Arrival,
        pause=st.sampled_from([0.0, 0.01, 0.2, 2.0]),
        prompt=st.integers(1, 60),
        answer=st.integers(1, 20),
        family=st.integers(0, 2),
        cancel_after=st.none() | st.sampled_from([0.0, 0.1, 0.5, 3.0]),
    ),
    min_size=1,
    max_size=25,
)


def check(
    config: EngineConfig,
    workload: list[Arrival],
    build: Callable[[EngineConfig], Scheduler] = Scheduler,
) -> Observed:
    """Serve the workload and assert every promise of the scheduler on the way."""
    scheduler = build(config)
    pipeline = Pipeline(scheduler, SimulatedForward(config.cost_model()), max_lag_seconds=math.inf)
    seen = Observed()
    events: list[tuple[float, int, str]] = []
    now = 0.0
    for number, arrival in enumerate(workload):
        now += arrival.pause
        events.append((now, number, "arrive"))
        if arrival.cancel_after is not None:
            events.append((now + arrival.cancel_after, number, "cancel"))
    events.sort(key=lambda event: (event[0], event[1], event[2] != "arrive"))
    for at, number, kind in events:
        _run_until(pipeline, scheduler, seen, at)
        if kind == "arrive":
            _arrive(pipeline, seen, at, number, workload[number])
        else:
            _cancel(pipeline, scheduler, seen, at, number)
        _assert_within_budget(scheduler, seen)
    _run_until(pipeline, scheduler, seen, math.inf)
    assert not scheduler.active
    assert not scheduler.waiting, "requests were left waiting for ever"
    assert scheduler.pool.used == 0, "blocks leaked"
    for number in seen.accepted:
        if number not in seen.cancelled:
            assert seen.tokens[number] == list(range(workload[number].answer)), "a token was lost or repeated"
            assert number in seen.finished
    order = [number for number in seen.accepted if number in seen.admitted]
    assert seen.admitted == order, "a request overtook another"
    return seen


def _arrive(pipeline: Pipeline, seen: Observed, at: float, number: int, arrival: Arrival) -> None:
    """Submit; a refusal must have one of the two allowed reasons."""
    scheduler = pipeline.scheduler
    keys = tuple(arrival.family * 1000 + block for block in range(arrival.prompt // scheduler.pool.tokens_per_block))
    waiting = len(scheduler.waiting)
    try:
        pipeline.submit(Request(number, arrival.prompt, arrival.answer, keys), at)
        seen.accepted.append(number)
        seen.tokens[number] = []
    except QueueFull as refusal:
        assert waiting >= scheduler.config.max_waiting
        assert "queue is full" in str(refusal)
        seen.rejected.add(number)
    except TooLong:
        needed = -(-(arrival.prompt + arrival.answer) // scheduler.pool.tokens_per_block)
        assert needed > scheduler.pool.total
        seen.rejected.add(number)


def _cancel(pipeline: Pipeline, scheduler: Scheduler, seen: Observed, at: float, number: int) -> None:
    """Cancel; what only this request held must be free before anything else happens."""
    before = scheduler.pool.used
    sequence = scheduler.active.get(number)
    others = {
        block for other in scheduler.active.values() if other is not sequence for block in other.allocation.blocks
    }
    own = set(sequence.allocation.blocks) - others if sequence else set()
    known = scheduler.cancel(number)
    if known:
        seen.cancelled.add(number)
    assert number not in scheduler.active, "a cancelled request is still active"
    assert scheduler.pool.used == before - len(own), "a cancelled request kept its blocks"
    pipeline.cancel(number, at)
    _note_admissions(scheduler, seen)


def _run_until(pipeline: Pipeline, scheduler: Scheduler, seen: Observed, limit: float) -> None:
    """Let steps end until the time limit."""
    _note_admissions(scheduler, seen)
    while pipeline.next_deadline is not None and pipeline.next_deadline <= limit:
        for _, emissions in pipeline.advance(pipeline.next_deadline):
            for emission in emissions:
                number = emission.request_id
                assert number not in seen.cancelled, "a token came after the cancellation"
                assert emission.count >= 1
                assert emission.count <= scheduler.config.stream_interval
                seen.tokens[number].extend(range(emission.first, emission.first + emission.count))
                if emission.final:
                    seen.finished.add(number)
        _note_admissions(scheduler, seen)
        _assert_within_budget(scheduler, seen)


def _note_admissions(scheduler: Scheduler, seen: Observed) -> None:
    """Remember in which order requests got in; a dict keeps the order of admission."""
    for number in [*seen.finished - set(seen.admitted), *scheduler.active]:
        if number not in seen.admitted:
            seen.admitted.append(number)


def _assert_within_budget(scheduler: Scheduler, seen: Observed) -> None:
    """The limits that hold at every moment."""
    held = {block for sequence in scheduler.active.values() for block in sequence.allocation.blocks}
    assert len(held) == scheduler.pool.used, "the pool's count is wrong"
    assert scheduler.pool.used <= scheduler.config.kv_blocks, "over the block budget"
    for sequence in scheduler.active.values():
        room = len(sequence.allocation.blocks) * scheduler.pool.tokens_per_block
        assert room >= sequence.computed + sequence.produced, "a sequence outgrew its blocks"
    assert len(scheduler.waiting) <= scheduler.config.max_waiting, "the queue is longer than its bound"
    assert all(len(lane) <= scheduler.config.lane_slots for lane in scheduler.lanes)
