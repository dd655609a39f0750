"""The open-loop sender: each request leaves at its due time, whatever became of those before it.

One greenlet sleeps from due time to due time and starts a greenlet for each request; nobody waits for an
answer before sending the next. A system that freezes therefore shows the freeze in every request that was due
meanwhile.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import gevent
from gevent.event import Event

from llm_replicas.errors import LlmReplicasError
from llm_replicas.load.plan import Plan
from llm_replicas.load.prompts import prompt
from llm_replicas.load.records import Record
from llm_replicas.load.schedule import Due
from llm_replicas.triton.exchange import Call, Exchange

Send = Callable[[Exchange], None]

IN_FLIGHT_CAP = "in_flight_cap"
DRAIN_DEADLINE = "drain_deadline"
INTERRUPTED = "interrupted"

_GIVE_UP_SECONDS = 2.0

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Flight:
    due: Due
    exchange: Exchange
    greenlet: gevent.Greenlet | None = None


class Dispatcher:
    """Plays one worker's part of a schedule and hands over one record for every request that was due."""

    def __init__(
        self,
        plan: Plan,
        dues: Sequence[Due],
        senders: Mapping[str, Send],
        keep: Callable[[Record], None],
        *,
        worker: str,
        wall_start: float,
        monotonic_start: float,
    ) -> None:
        self.due_count = 0
        self.in_flight: dict[str, _Flight] = {}
        self.error: LlmReplicasError | None = None
        self._plan = plan
        self._dues = dues
        self._senders = senders
        self._keep = keep
        self._worker = worker
        self._wall_start = wall_start
        self._start = monotonic_start
        self._stop = Event()
        self._idle = Event()
        self._idle.set()

    @property
    def stopped(self) -> bool:
        """Whether the run was broken off."""
        return bool(self._stop.is_set())

    def stop(self) -> None:
        """Send nothing more and give up what is under way; `run` then returns soon."""
        self._stop.set()
        self._idle.set()

    def run(self) -> None:
        """Send everything at its time, then drain."""
        for due in self._dues:
            if self._wait_until(self._start + due.due_s):
                break
            self.due_count += 1
            if len(self.in_flight) >= self._plan.client.in_flight_cap:
                self._refuse(due)
            else:
                self._launch(due)
        self._wait_until(self._start + self._plan.seconds)
        self._drain(self._start + self._plan.seconds + self._plan.drain_seconds)

    def _wait_until(self, moment: float) -> bool:
        """Sleep until ``moment``; returns whether it was broken off by `stop`."""
        while (left := moment - time.monotonic()) > 0:
            # gevent's timers count from the start of its loop's turn and so may fire a little early.
            if self._stop.wait(left):
                return True
        return self.stopped

    def _launch(self, due: Due) -> None:
        call = Call(
            due.request_id, self._plan.model, prompt(due.request_id, due.prompt_tokens), due.max_tokens
        )
        flight = _Flight(due, Exchange(call, self._plan.client.completeness))
        self.in_flight[due.request_id] = flight
        self._idle.clear()
        flight.greenlet = gevent.spawn(self._fly, flight)

    def _fly(self, flight: _Flight) -> None:
        exchange = flight.exchange
        try:
            self._senders[flight.due.protocol](exchange)
        except Exception as error:
            _log.exception("request %s", flight.due.request_id)
            exchange.fail("client", repr(error))
            exchange.finish()
        finally:
            self._conclude(flight)

    def _conclude(self, flight: _Flight) -> None:
        if self.in_flight.pop(flight.due.request_id, None) is None:
            return  # given up and recorded already
        self._hand_over(self._record(flight))
        if not self.in_flight:
            self._idle.set()

    def _hand_over(self, record: Record) -> None:
        try:
            self._keep(record)
        except LlmReplicasError as error:
            if self.error is None:
                self.error = error
                self.stop()

    def _drain(self, deadline: float) -> None:
        while self.in_flight and not self._stop.is_set():
            left = deadline - time.monotonic()
            if left <= 0 or not self._idle.wait(left):
                break
        reason = INTERRUPTED if self._stop.is_set() else DRAIN_DEADLINE
        flights = list(self.in_flight.values())
        for flight in flights:
            flight.exchange.cancel(reason)
        gevent.joinall([each.greenlet for each in flights if each.greenlet], timeout=_GIVE_UP_SECONDS)
        for flight in list(self.in_flight.values()):
            # It does not answer to being cancelled, for example inside a name look-up.
            self._conclude(flight)
            if flight.greenlet is not None:
                flight.greenlet.kill(block=False)

    def _refuse(self, due: Due) -> None:
        record = self._blank(due, "failed")
        record.error_class = IN_FLIGHT_CAP
        record.error_detail = f"{self._plan.client.in_flight_cap} requests were already in flight"
        self._hand_over(record)

    def _blank(self, due: Due, outcome: str) -> Record:
        return Record(
            due.request_id,
            self._worker,
            due.phase,
            due.protocol,
            due.due_s,
            self._wall_start,
            due.prompt_tokens,
            due.max_tokens,
            outcome,
        )

    def _record(self, flight: _Flight) -> Record:
        exchange = flight.exchange
        outcome, error_class = exchange.outcome()
        record = self._blank(flight.due, outcome)
        record.error_class = error_class
        record.error_detail = None if outcome == "ok" else exchange.detail()
        record.sent_s = self._since_start(exchange.sent)
        record.first_byte_s = self._since_start(exchange.first_byte)
        record.end_s = None if outcome == "unfinished" else self._since_start(exchange.end)
        record.connection_id = exchange.connection_id
        record.connection_reused = exchange.connection_reused
        record.received_tokens = exchange.tokens.received
        record.events = exchange.events
        record.gaps_s = exchange.gaps
        record.finish_reason = exchange.finish_reason
        record.status = exchange.status
        record.attempts = exchange.attempts
        record.router = exchange.router
        record.replica = exchange.replica
        record.bytes = exchange.bytes
        return record

    def _since_start(self, moment: float | None) -> float | None:
        return None if moment is None else moment - self._start
