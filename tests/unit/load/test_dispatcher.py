"""The open loop itself, in this process: senders are plain functions that sleep on gevent's clock."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import gevent
import pytest

from llm_replicas.errors import EnvironmentProblem
from llm_replicas.load.dispatcher import Dispatcher
from llm_replicas.load.plan import load_plan
from llm_replicas.load.records import Record
from llm_replicas.load.schedule import Due
from llm_replicas.triton.exchange import Exchange

RATE = 50.0
FREEZE_SECONDS = 0.6
# Far below the freeze and far above what a busy test machine adds.
LATE_SECONDS = 0.1


def answer(exchange: Exchange, seconds: float = 0.0) -> None:
    exchange.sent = time.monotonic()
    gevent.sleep(seconds)
    text = "".join(f" t{number}" for number in range(exchange.call.max_tokens))
    exchange.on_event(time.monotonic(), text)
    exchange.clean_end = True
    exchange.finish()


def play(
    send: Callable[[Exchange], None],
    *,
    count: int = 20,
    keep: Callable[[Record], None] | None = None,
    stop_after: float | None = None,
    kind: type[Dispatcher] = Dispatcher,
    drain: float = 2.0,
    **client: Any,
) -> tuple[list[Record], Dispatcher]:
    plan = load_plan(
        {
            "name": "p",
            "seed": 1,
            "model": "ensemble",
            "client": client,
            "drain_seconds": drain,
            "phases": [{"name": "a", "rate_per_second": RATE, "requests": count}],
        }
    )
    dues = [Due(f"{number:032x}", "a", number / RATE, "generate_stream", 10, 3) for number in range(count)]
    records: list[Record] = []
    dispatcher = kind(
        plan,
        dues,
        {"generate_stream": send},
        keep or records.append,
        worker="worker-0",
        wall_start=time.time(),
        monotonic_start=time.monotonic(),
    )
    if stop_after is not None:
        gevent.spawn_later(stop_after, dispatcher.stop)
    dispatcher.run()
    return records, dispatcher


def test_every_request_leaves_at_its_due_time() -> None:
    records, _ = play(answer)

    assert len(records) == 20
    assert all(0 <= (row.sent_s or 9) - row.scheduled_s < LATE_SECONDS for row in records)
    assert {row.outcome for row in records} == {"ok"}


class Frozen:
    """A system that answers nothing from its second request on until it thaws."""

    def __init__(self, seconds: float) -> None:
        self._thaw = time.monotonic() + seconds

    def __call__(self, exchange: Exchange) -> None:
        exchange.sent = time.monotonic()
        answer_at = max(0.0, self._thaw - time.monotonic())
        sent = exchange.sent
        answer(exchange, answer_at)
        exchange.sent = sent


def waits(records: list[Record]) -> list[float]:
    return [(row.first_byte_s or 9) - row.scheduled_s for row in records]


def test_a_freeze_shows_in_every_request_that_was_due_meanwhile() -> None:
    records, _ = play(Frozen(FREEZE_SECONDS), count=60)

    # Due at 0, 20, … 580 ms; all answered at 600 ms: the n-th has waited 600 - 20 n ms.
    expected = [FREEZE_SECONDS - number / RATE for number in range(30)]
    assert sorted(waits(records), reverse=True)[:30] == pytest.approx(expected, abs=LATE_SECONDS)
    assert all((row.sent_s or 9) - row.scheduled_s < LATE_SECONDS for row in records)


class ClosedLoop(Dispatcher):
    """The red twin: a request waits for the answer to the last, and its clock starts when it leaves."""

    def _launch(self, due: Due) -> None:
        super()._launch(due._replace(due_s=time.monotonic() - self._start))
        gevent.joinall([flight.greenlet for flight in self.in_flight.values()])


def test_a_closed_loop_would_hide_the_freeze() -> None:
    records, _ = play(Frozen(FREEZE_SECONDS), count=60, kind=ClosedLoop)

    assert sum(wait > LATE_SECONDS for wait in waits(records)) == 1


def test_a_full_house_is_a_failed_request_and_not_a_missing_one() -> None:
    records, _ = play(lambda exchange: answer(exchange, 0.5), count=10, in_flight_cap=4)

    refused = [row for row in records if row.error_class == "in_flight_cap"]
    assert len(records) == 10
    assert [row.scheduled_s for row in refused] == [number / RATE for number in range(4, 10)]
    assert {(row.outcome, row.sent_s) for row in refused} == {("failed", None)}


def test_what_is_open_at_the_end_of_the_drain_is_unfinished() -> None:
    def hang(exchange: Exchange) -> None:
        exchange.sent = time.monotonic()
        done = gevent.event.Event()
        exchange.abort_with(done.set)
        done.wait()
        exchange.finish()

    began = time.monotonic()
    records, _ = play(hang, count=5, drain=0.3)

    assert len(records) == 5
    assert {(row.outcome, row.error_class, row.end_s) for row in records} == {("unfinished", "drain_deadline", None)}
    assert time.monotonic() - began < 1.0


def test_a_sender_that_cannot_be_cancelled_still_gives_one_record() -> None:
    records, _ = play(lambda exchange: gevent.sleep(60), count=2, drain=0.1)

    assert [row.outcome for row in records] == ["unfinished", "unfinished"]


def test_breaking_off_records_what_is_under_way_and_nothing_that_was_not_due() -> None:
    records, dispatcher = play(lambda exchange: gevent.sleep(60), count=100, stop_after=0.21)

    assert len(records) == dispatcher.due_count
    assert 5 <= len(records) <= 20
    assert {(row.outcome, row.error_class) for row in records} == {("unfinished", "interrupted")}


def test_a_slip_of_the_sender_is_a_record_too() -> None:
    def slip(exchange: Exchange) -> None:
        raise ZeroDivisionError("a bug")

    records, _ = play(slip, count=3)

    assert [(row.outcome, row.error_class) for row in records] == [("failed", "client")] * 3
    assert "a bug" in (records[0].error_detail or "")


def test_records_that_cannot_be_kept_end_the_run() -> None:
    def full(record: Record) -> None:
        raise EnvironmentProblem("the disk is full")

    _, dispatcher = play(answer, count=100, keep=full)

    assert isinstance(dispatcher.error, EnvironmentProblem)
    assert dispatcher.due_count < 10
