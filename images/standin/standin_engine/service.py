"""Turns prompts into requests and tokens into text; knows streams and faults, but not Triton."""

from __future__ import annotations

import itertools
import logging
import threading
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from standin_engine.config import EngineConfig
from standin_engine.control import Control, ControlError, ControlFile, StreamFault
from standin_engine.engine import Engine, Load
from standin_engine.forward import Forward
from standin_engine.scheduler import Emission, Request

LOGGER = logging.getLogger(__name__)


class Sink(Protocol):
    """Where the answer of one request goes."""

    def send(self, text: str, final: bool) -> None:
        """Send one event."""
        ...

    def fail(self, message: str) -> None:
        """End the answer with an error."""
        ...

    def is_cancelled(self) -> bool:
        """Whether the client has gone away."""
        ...


@dataclass
class _Answer:
    """An answer on its way."""

    sink: Sink
    stream: bool
    max_tokens: int
    fault: StreamFault
    checked: float


def text_of(first: int, count: int) -> str:
    """Tokens `first` to `first + count - 1` as text: numbered, so that a lost or repeated one is seen."""
    return "".join(f" t{number}" for number in range(first, first + count))


def prefix_keys(words: list[str], tokens_per_block: int) -> tuple[int, ...]:
    """One key for each full block of the prompt, each covering all words up to its end."""
    keys: list[int] = []
    key = 0
    for start in range(0, len(words) - tokens_per_block + 1, tokens_per_block):
        key = hash((key, *words[start : start + tokens_per_block]))
        keys.append(key)
    return tuple(keys)


def token_ids(words: list[str], vocabulary: int) -> tuple[int, ...]:
    """The prompt as a model with so many tokens reads it: one token a word, the same one on every replica."""
    return tuple(zlib.crc32(word.encode()) % vocabulary for word in words) if vocabulary else ()


class Service:
    """One replica: an engine, the answers in flight, and a housekeeper thread.

    The housekeeper looks for clients that went away and for a changed control file, and reports the load.
    """

    def __init__(
        self,
        config: EngineConfig,
        forward: Forward,
        report: Callable[[Load], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._forward = forward
        self._report = report
        self._clock = clock
        self._engine = Engine(config, forward, self._deliver, clock)
        self._answers: dict[int, _Answer] = {}
        self._numbers = itertools.count(1)
        self._control = Control()
        self._control_file = ControlFile(Path(config.control_path))
        self._ending = threading.Event()
        self._housekeeper = threading.Thread(target=self._keep_house, name="housekeeper", daemon=True)

    def start(self) -> None:
        """Begin to serve."""
        self._poll_control()
        self._engine.start()
        self._housekeeper.start()

    def stop(self) -> None:
        """End all threads and fail what is still open."""
        self._ending.set()
        self._engine.stop()
        if self._housekeeper.is_alive():
            self._housekeeper.join()
        self._fail_all("the replica is shutting down")

    def submit(self, prompt: str, max_tokens: int, stream: bool, sink: Sink) -> None:
        """Accept a request; raises `Rejected` with a message for the client."""
        words = prompt.split()
        number = next(self._numbers)
        # The engine may deliver before submit returns, so the answer is known first.
        self._answers[number] = _Answer(sink, stream, max_tokens, self._control.stream_fault(number), self._clock())
        keys = prefix_keys(words, self._config.tokens_per_block) if self._config.prefix_cache else ()
        tokens = token_ids(words, self._forward.vocabulary)
        try:
            self._engine.submit(Request(number, len(words), max_tokens, keys, tokens))
        except Exception:
            self._answers.pop(number, None)
            raise

    def load(self) -> Load:
        """How busy the replica is."""
        return self._engine.load()

    def _deliver(self, emissions: list[Emission]) -> None:
        """Send new tokens to their clients."""
        for emission in emissions:
            answer = self._answers.get(emission.request_id)
            if answer is None:
                continue
            if not answer.stream and emission.final:
                self._send(emission.request_id, answer, text_of(0, answer.max_tokens), True)
            elif answer.stream and not (answer.fault is StreamFault.STALL and emission.first > 0):
                self._send_event(emission, answer)

    def _send_event(self, emission: Emission, answer: _Answer) -> None:
        """Send one event of a stream, or what its fault makes of it."""
        number = emission.request_id
        final = emission.final
        if answer.fault is StreamFault.ERROR and (emission.first > 0 or final):
            self._drop(number, answer, "injected error")
            return
        if answer.fault is StreamFault.CUT:
            final = True
        if answer.fault is StreamFault.STALL:
            final = False
        self._send(number, answer, text_of(emission.first, emission.count), final)
        if final and not emission.final:
            self._engine.cancel(number)

    def _send(self, number: int, answer: _Answer, text: str, final: bool) -> None:
        """Hand over text; a client that cannot take it any more is dropped."""
        if final:
            self._answers.pop(number, None)
        try:
            answer.sink.send(text, final)
        except Exception:
            LOGGER.exception("request %d: the answer could not be sent", number)
            self._drop(number, answer, "the answer could not be sent")

    def _drop(self, number: int, answer: _Answer, reason: str) -> None:
        """Forget a request everywhere and end its answer.

        An answer that is never ended keeps the model loaded, and a server that is told to stop would wait
        for it until its whole exit timeout is over.
        """
        self._answers.pop(number, None)
        self._engine.cancel(number)
        try:
            answer.sink.fail(reason)
        except Exception:
            LOGGER.exception("request %d: the answer could not be ended", number)

    def _fail_all(self, reason: str) -> None:
        """End every open answer with an error, so that no client waits for ever."""
        for number in list(self._answers):
            answer = self._answers.get(number)
            if answer is not None:
                self._drop(number, answer, reason)

    def _keep_house(self) -> None:
        """Every so often: cancelled clients, control file, load report."""
        # Polled because neither a closed connection nor a changed file wakes anybody here.
        pause = min(self._config.cancel_check_seconds / 2, 1.0)
        reported = polled = self._clock()
        while not self._ending.wait(pause):
            now = self._clock()
            failure = self._engine.failure
            if failure is not None:
                self._fail_all(f"the forward pass failed: {failure}")
            self._drop_cancelled(now)
            if now - polled >= 1.0:
                polled = now
                self._poll_control()
            if now - reported >= 1.0:
                reported = now
                self._report(self._engine.load())

    def _drop_cancelled(self, now: float) -> None:
        """Free what belongs to clients that went away; each is asked once per `cancel_check_seconds`."""
        for number, answer in list(self._answers.items()):
            if now - answer.checked < self._config.cancel_check_seconds:
                continue
            answer.checked = now
            if answer.sink.is_cancelled():
                self._drop(number, answer, "the client went away")

    def _poll_control(self) -> None:
        """Take over changed fault switches."""
        try:
            control = self._control_file.poll()
        except ControlError as problem:
            LOGGER.warning("%s: %s; the last settings stay", self._config.control_path, problem)
            return
        if control is None:
            return
        if control != self._control:
            LOGGER.warning("fault switches changed: %s", control)
        self._control = control
        self._forward.slowdown = control.slowdown
        if control.freeze_seconds > 0:
            self._engine.freeze(control.freeze_seconds)
