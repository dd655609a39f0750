"""The scheduler keeps its promises for any workload, and the checks notice when one is broken."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from standin_engine.config import EngineConfig
from standin_engine.kv import Allocation, BlockPool
from standin_engine.scheduler import Emission, QueueFull, Request, Scheduler, Sequence, TooLong
from standin_properties import Arrival, arrivals, check, configs

SMALL = EngineConfig(stages=2, max_batch=4, chunk_tokens=8, kv_blocks=12, tokens_per_block=4, max_waiting=3)


@settings(max_examples=300, deadline=None)
@given(config=configs, workload=arrivals)
def test_any_workload_is_served_in_order_within_budget_without_losing_a_token(
    config: EngineConfig, workload: list[Arrival]
) -> None:
    check(config, workload)


class LosesTokens(Scheduler):
    """Forgets the tokens that were waiting for their group."""

    def _produce(self, sequence: Sequence, emissions: list[Emission]) -> None:
        before = len(emissions)
        super()._produce(sequence, emissions)
        if len(emissions) > before and emissions[-1].count > 1:
            last = emissions[-1]
            emissions[-1] = Emission(last.request_id, last.first, last.count - 1, last.final)


class RepeatsTokens(Scheduler):
    """Sends the last token of a group again."""

    def _produce(self, sequence: Sequence, emissions: list[Emission]) -> None:
        super()._produce(sequence, emissions)
        if not sequence.produced % 5:
            sequence.emitted -= 1


class KeepsCancelled(Scheduler):
    """Frees nothing on cancellation."""

    def cancel(self, request_id: int) -> bool:
        return request_id in self.active


class Overtakes(Scheduler):
    """Tries the youngest waiting request first."""

    def _admit(self, lane: int) -> Sequence | None:
        self.waiting.rotate(1)
        return super()._admit(lane)


class Unbounded(Scheduler):
    """Never says no."""

    def submit(self, request: Request) -> None:
        self.waiting.append(request)


class OverBudget(Scheduler):
    """Reserves room for the prompt only."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.pool = PromptOnlyPool(self.config.kv_blocks, self.config.tokens_per_block)


class PromptOnlyPool(BlockPool):
    """Hands out half of what is asked for."""

    def allocate(self, tokens: int, keys: tuple[int, ...]) -> Allocation | None:  # type: ignore[override]
        return super().allocate(max(1, tokens // 2), keys)


BUSY = [Arrival(0.0, 6, 7, number, None) for number in range(6)] + [Arrival(0.2, 6, 12, 1, 0.1)]


@pytest.mark.parametrize(
    ("broken", "complaint"),
    [
        (LosesTokens, "lost or repeated"),
        (RepeatsTokens, "lost or repeated"),
        (KeepsCancelled, "still active"),
        (Overtakes, "overtook"),
        (Unbounded, "longer than its bound"),
        (OverBudget, "outgrew its blocks"),
    ],
)
def test_the_checks_notice_a_broken_scheduler(broken: Callable[[EngineConfig], Scheduler], complaint: str) -> None:
    config = EngineConfig(stages=2, max_batch=8, chunk_tokens=16, kv_blocks=60, tokens_per_block=2, max_waiting=4)
    check(config, BUSY[:4] + BUSY[6:])

    workload = BUSY + [Arrival(0.0, 6, 7, 2, None)] * 9 if broken is Unbounded else BUSY[:4] + BUSY[6:]
    with pytest.raises(AssertionError, match=complaint):
        check(config, workload, broken)


def test_a_full_queue_refuses_with_its_length_and_limit() -> None:
    scheduler = Scheduler(SMALL)
    for number in range(SMALL.max_waiting):
        scheduler.submit(Request(number, 1, 1))

    with pytest.raises(QueueFull, match="queue is full: 3 requests are waiting, the limit is 3"):
        scheduler.submit(Request(99, 1, 1))


def test_a_request_that_can_never_fit_is_refused_at_once() -> None:
    with pytest.raises(TooLong, match="need 13 blocks of KV cache, this replica has 12"):
        Scheduler(SMALL).submit(Request(1, 40, 9))


@pytest.mark.parametrize(("prompt", "answer"), [(0, 5), (5, 0)])
def test_empty_prompts_and_answers_are_refused(prompt: int, answer: int) -> None:
    with pytest.raises(TooLong, match="both must be at least 1"):
        Scheduler(SMALL).submit(Request(1, prompt, answer))


def test_a_long_prompt_is_computed_in_chunks_while_others_decode() -> None:
    scheduler = Scheduler(EngineConfig(stages=1, max_batch=4, chunk_tokens=8, kv_blocks=64, tokens_per_block=4))
    scheduler.submit(Request(1, 2, 30))
    first = scheduler.begin_step(0)
    assert first is not None
    scheduler.finish_step(first)
    scheduler.submit(Request(2, 20, 1))

    chunks = []
    while 2 in scheduler.active or scheduler.waiting:
        step = scheduler.begin_step(0)
        assert step is not None
        chunks.append((len(step.decodes), step.prefill_tokens))
        scheduler.finish_step(step)

    assert chunks == [(1, 8), (1, 8), (1, 4)]


def test_the_first_token_leaves_alone_and_later_ones_in_groups() -> None:
    scheduler = Scheduler(EngineConfig(stages=1, max_batch=1, stream_interval=3))
    scheduler.submit(Request(1, 1, 9))

    events = []
    while (step := scheduler.begin_step(0)) is not None:
        events += [(emission.first, emission.count, emission.final) for emission in scheduler.finish_step(step)]

    assert events == [(0, 1, False), (1, 3, False), (4, 3, False), (7, 2, True)]


def test_a_known_prompt_beginning_is_not_computed_again() -> None:
    scheduler = Scheduler(EngineConfig(stages=1, max_batch=4, chunk_tokens=100, kv_blocks=64, tokens_per_block=4))
    scheduler.submit(Request(1, 14, 1, (11, 12, 13)))
    first = scheduler.begin_step(0)
    assert first is not None
    scheduler.finish_step(first)
    scheduler.submit(Request(2, 14, 1, (11, 12, 99)))

    second = scheduler.begin_step(0)

    assert first.prefill_tokens == 14
    assert second is not None
    assert second.prefill_tokens == 14 - 2 * 4


def test_a_prompt_that_is_wholly_cached_still_computes_its_last_token() -> None:
    scheduler = Scheduler(EngineConfig(stages=1, max_batch=4, kv_blocks=64, tokens_per_block=4))
    computed = []
    for number in (1, 2):
        scheduler.submit(Request(number, 8, 1, (11, 12)))
        step = scheduler.begin_step(0)
        assert step is not None
        computed.append(step.prefill_tokens)
        scheduler.finish_step(step)

    assert computed == [8, 4]


def test_a_burst_is_spread_evenly_over_the_lanes() -> None:
    scheduler = Scheduler(EngineConfig(stages=4, max_batch=40, max_waiting=40))
    for number in range(20):
        scheduler.submit(Request(number, 1, 50))
    for lane in range(4):
        scheduler.begin_step(lane)

    assert [len(lane) for lane in scheduler.lanes] == [5, 5, 5, 5]


def test_cached_blocks_are_given_up_when_space_is_needed() -> None:
    pool = BlockPool(total=4, tokens_per_block=4)
    old = pool.allocate(8, ())
    assert old is not None
    pool.publish(old.blocks[0], 1)
    pool.publish(old.blocks[1], 2)
    pool.release(old)

    assert pool.free == 4
    whole = pool.allocate(16, ())
    assert whole is not None
    pool.release(whole)
    again = pool.allocate(8, (1, 2))
    assert again is not None
    assert again.shared == 0
