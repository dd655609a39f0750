"""The lanes on one time line; the clock is the caller's, real in `engine` and virtual in `simulation`."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field

from standin_engine.forward import Forward
from standin_engine.scheduler import Emission, Request, Scheduler, Step


@dataclass
class Pipeline:
    """Starts steps, and ends each at its own deadline.

    The next step of a lane starts at the deadline of the last one, not at the moment somebody looked, so late
    wake-ups do not add up. Only after `max_lag_seconds` (the process was frozen) does time start afresh;
    otherwise a thawed replica would hand out in one burst what it could not have computed.
    """

    scheduler: Scheduler
    forward: Forward
    max_lag_seconds: float = 0.25
    _due: list[tuple[float, int]] = field(init=False, default_factory=list)
    _running: dict[int, Step] = field(init=False, default_factory=dict)

    @property
    def next_deadline(self) -> float | None:
        """When something happens next, None when that is not known or nothing is under way."""
        return self._due[0][0] if self._due else None

    def submit(self, request: Request, now: float) -> bool:
        """Queue a request; True if it started a lane, so that the next deadline may have changed."""
        self.scheduler.submit(request)
        return self._start_idle_lanes(now)

    def cancel(self, request_id: int, now: float) -> bool:
        """Drop a request; what it held may let the next one in."""
        known = self.scheduler.cancel(request_id)
        if known:
            self._start_idle_lanes(now)
        return known

    def advance(self, now: float) -> list[tuple[float, list[Emission]]]:
        """End every step that is due, start its lane's next one, return what is to be sent and since when."""
        results: list[tuple[float, list[Emission]]] = []
        while self._due and self._due[0][0] <= now:
            deadline, lane = heapq.heappop(self._due)
            emissions = self.scheduler.finish_step(self._running.pop(lane))
            if emissions:
                results.append((deadline, emissions))
            start = deadline if now - deadline <= self.max_lag_seconds else now
            self._start(lane, start)
            self._start_idle_lanes(start)
        return results

    def complete(self, step: Step, now: float) -> None:
        """A step whose length was not known beforehand is computed; it is due at once."""
        heapq.heappush(self._due, (now, step.lane))

    def _start(self, lane: int, at: float) -> bool:
        """Begin a lane's next step if it has one."""
        step = self.scheduler.begin_step(lane)
        if step is None:
            return False
        self._running[lane] = step
        seconds = self.forward.run(step)
        if seconds is not None:
            heapq.heappush(self._due, (at + seconds, lane))
        return True

    def _start_idle_lanes(self, at: float) -> bool:
        """Wake lanes for waiting requests; an idle lane has no sequence, so any of them will do."""
        started = False
        for lane in range(len(self.scheduler.lanes)):
            if not self.scheduler.waiting:
                break
            if lane not in self._running:
                if not self._start(lane, at):
                    break
                started = True
        return started
