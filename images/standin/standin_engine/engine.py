"""Runs a pipeline on the machine's clock, in one thread."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from standin_engine.config import EngineConfig
from standin_engine.forward import Forward
from standin_engine.pipeline import Pipeline
from standin_engine.scheduler import Broken, Emission, Request, Scheduler, Step

LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class Load:
    """How busy the engine is, for the metrics."""

    waiting: int
    active: int
    scheduled: int
    max_requests: int
    kv_used: int
    kv_free: int
    kv_max: int
    tokens_per_block: int


class Engine:
    """Takes requests from any thread and calls `deliver` with finished tokens from its own.

    `deliver` runs outside the engine's lock, so it may be slow, submit or cancel; the next steps keep their
    deadlines meanwhile.
    """

    def __init__(
        self,
        config: EngineConfig,
        forward: Forward,
        deliver: Callable[[list[Emission]], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._scheduler = Scheduler(config)
        self._forward = forward
        self._pipeline = Pipeline(self._scheduler, forward)
        self._deliver = deliver
        self._clock = clock
        self._wake = threading.Condition()
        self._stopping = False
        self._frozen_until = 0.0
        self._failure: str | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Begin to serve."""
        self._forward.start(self._computed)
        self._thread.start()

    def stop(self) -> None:
        """Finish the current delivery and end the thread; requests in flight get nothing more."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()
        self._forward.stop()

    @property
    def failure(self) -> str | None:
        """Why the forward pass broke; from then on nothing is computed."""
        return self._failure

    def submit(self, request: Request) -> None:
        """Queue a request; raises `Rejected`."""
        with self._wake:
            if self._failure is not None:
                raise Broken(f"the forward pass failed: {self._failure}")
            # When every lane is busy the loop comes by anyway; waking it would only cost a context switch.
            if self._pipeline.submit(request, self._clock()):
                self._wake.notify()

    def cancel(self, request_id: int) -> bool:
        """Drop a request and free its memory at once."""
        with self._wake:
            known = self._pipeline.cancel(request_id, self._clock())
            self._wake.notify()
            return known

    def freeze(self, seconds: float) -> None:
        """Stop computing for a while, as a hung GPU does; requests keep arriving."""
        with self._wake:
            self._frozen_until = self._clock() + seconds

    def load(self) -> Load:
        """A consistent view of the engine's occupation."""
        with self._wake:
            pool = self._scheduler.pool
            waiting = len(self._scheduler.waiting)
            active = len(self._scheduler.active)
            return Load(
                waiting=waiting,
                active=waiting + active,
                scheduled=active,
                max_requests=self._config.max_batch,
                kv_used=pool.used,
                kv_free=pool.free,
                kv_max=pool.total,
                tokens_per_block=pool.tokens_per_block,
            )

    def _computed(self, step: Step, problem: str | None) -> None:
        """A step whose length was not known beforehand has ended, one way or the other."""
        with self._wake:
            if problem is None:
                self._pipeline.complete(step, self._clock())
            else:
                self._failure = problem
            self._wake.notify()

    def _run(self) -> None:
        """Sleep until the next deadline, end what is due, hand out the tokens, again."""
        while True:
            with self._wake:
                if self._stopping:
                    return
                delay = self._delay(self._clock())
                if delay is None or delay > 0:
                    self._wake.wait(delay)
                    continue
                batches = self._pipeline.advance(self._clock())
            for _, emissions in batches:
                try:
                    self._deliver(emissions)
                except Exception:
                    # One broken stream must not end all the others.
                    LOGGER.exception("tokens could not be delivered")

    def _delay(self, now: float) -> float | None:
        """Seconds until there is work; None when only somebody else brings some."""
        deadline = self._pipeline.next_deadline
        if deadline is None:
            return None
        return max(deadline, self._frozen_until) - now
