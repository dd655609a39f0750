"""Deadlines are absolute: late wake-ups do not add up, and a frozen replica does not catch up in a burst."""

from __future__ import annotations

import pytest
from standin_engine.config import EngineConfig
from standin_engine.forward import SimulatedForward
from standin_engine.pipeline import Pipeline
from standin_engine.scheduler import Request, Scheduler

CONFIG = EngineConfig(stages=1, max_batch=1, stream_interval=1)
STEP = CONFIG.cost_model().step_seconds(1, 0)


def started(answer: int) -> Pipeline:
    """A pipeline with one request submitted at time 0; its prompt has one token."""
    pipeline = Pipeline(Scheduler(CONFIG), SimulatedForward(CONFIG.cost_model()))
    pipeline.submit(Request(1, 1, answer), 0.0)
    return pipeline


def test_a_wake_up_that_is_always_late_does_not_slow_the_tokens_down() -> None:
    pipeline = started(50)
    times = []
    while (deadline := pipeline.next_deadline) is not None:
        times += [at for at, _ in pipeline.advance(deadline + 0.05)]

    assert len(times) == 50
    assert times[-1] - times[0] == pytest.approx(49 * STEP)


def test_after_a_freeze_time_starts_afresh() -> None:
    pipeline = started(50)
    late = 60.0

    assert len(pipeline.advance(late)) == 1
    assert pipeline.next_deadline == pytest.approx(late + STEP)


def test_a_slowdown_stretches_the_next_step() -> None:
    forward = SimulatedForward(CONFIG.cost_model())
    pipeline = Pipeline(Scheduler(CONFIG), forward)
    forward.slowdown = 2.0
    pipeline.submit(Request(1, 1, 5), 0.0)

    assert pipeline.next_deadline == pytest.approx(2 * CONFIG.cost_model().step_seconds(1, 1))


def test_submitting_says_whether_a_lane_was_started() -> None:
    pipeline = Pipeline(Scheduler(CONFIG), SimulatedForward(CONFIG.cost_model()))

    assert pipeline.submit(Request(1, 1, 5), 0.0)
    assert not pipeline.submit(Request(2, 1, 5), 0.0)


def test_cancelling_lets_the_next_request_in() -> None:
    pipeline = started(50)
    pipeline.submit(Request(2, 1, 1), 0.0)
    pipeline.cancel(1, 0.01)
    deadline = pipeline.next_deadline
    assert deadline is not None
    pipeline.advance(deadline)

    assert list(pipeline.scheduler.active) == [2]
