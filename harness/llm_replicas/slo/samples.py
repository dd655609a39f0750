"""Requests as columns of numbers, and the latencies that users felt.

Latency counts from the moment a request was due, so that a client held up by a stalled server still sees the
wait (coordinated omission). Whatever did not end well took for ever: failed, cut, stalled, unfinished and
duplicated answers have every latency +inf. NaN means "does not apply", and such a request is left out of that
objective and counted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from llm_replicas.slo.model import Metric

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int32]
Bools = npt.NDArray[np.bool_]

STREAMS = ("generate_stream", "grpc_stream")
"""Protocols that answer event by event; the others answer at once and have no gaps."""


@dataclass(frozen=True)
class Labels:
    """A column of few different words: a code for each row (-1 for none) and the words."""

    codes: Ints
    words: tuple[str, ...]

    @classmethod
    def of(cls, values: Sequence[str | None]) -> Labels:
        """Number the words of a plain sequence."""
        words = sorted({value for value in values if value is not None})
        numbers = {word: number for number, word in enumerate(words)}
        codes = np.fromiter(
            (-1 if value is None else numbers[value] for value in values), dtype=np.int32, count=len(values)
        )
        return cls(codes, tuple(words))

    def is_in(self, *words: str) -> Bools:
        """Which rows hold one of the words."""
        wanted = [number for number, word in enumerate(self.words) if word in words]
        return np.isin(self.codes, wanted)

    def matches(self, test: Callable[[str], bool]) -> Bools:
        """Which rows hold a word for which the test is true."""
        return self.is_in(*(word for word in self.words if test(word)))

    def used(self) -> tuple[str, ...]:
        """The words that some row holds."""
        codes = np.unique(self.codes)
        return tuple(self.words[code] for code in codes if code >= 0)

    def at(self, row: int) -> str | None:
        """The word of one row."""
        code = int(self.codes[row])
        return None if code < 0 else self.words[code]

    def take(self, rows: npt.NDArray[Any]) -> Labels:
        """The same column for some rows only."""
        return Labels(self.codes[rows], self.words)

    def put(self, rows: Bools, word: str) -> Labels:
        """The same column with one word in the chosen rows."""
        words = self.words if word in self.words else (*self.words, word)
        codes = self.codes.copy()
        codes[rows] = words.index(word)
        return Labels(codes, words)


@dataclass(frozen=True)
class Samples:
    """One run's requests in the order of their due times; times are seconds after the run's start."""

    request_id: npt.NDArray[np.str_]
    worker: Labels
    phase: Labels
    protocol: Labels
    outcome: Labels
    error_class: Labels
    replica: Labels
    router: Labels
    scheduled: Floats
    sent: Floats
    first: Floats
    end: Floats
    """+inf where the end was never seen."""
    tokens: Ints
    events: Ints
    gap: Floats
    """Largest pause between two events, NaN where fewer than two came."""
    reused: Ints
    """1 where the connection had been used before, 0 where not, -1 where unknown."""

    def __len__(self) -> int:
        return int(self.scheduled.size)

    @property
    def ok(self) -> Bools:
        """Complete, clean answers."""
        return self.outcome.is_in("ok")

    @property
    def failed(self) -> Bools:
        """Lost requests of which no token arrived."""
        return ~self.ok & (self.tokens <= 0)

    @property
    def cut(self) -> Bools:
        """Lost requests of which some tokens had arrived."""
        return ~self.ok & (self.tokens > 0)

    @property
    def is_stream(self) -> Bools:
        """Requests answered event by event."""
        return self.protocol.is_in(*STREAMS)

    @property
    def lateness(self) -> Floats:
        """How late the generator itself sent each request; NaN where it was never sent."""
        return self.sent - self.scheduled

    def take(self, rows: npt.NDArray[Any]) -> Samples:
        """Some rows only, by mask or by number."""
        columns: dict[str, Any] = {
            name: value.take(rows) if isinstance(value, Labels) else value[rows] for name, value in vars(self).items()
        }
        return Samples(**columns)

    def latency(self, metric: Metric) -> Floats:
        """One latency of every request: +inf where it was lost, NaN where the metric does not apply."""
        return LATENCIES[metric](self)

    def with_stalls(self, stall_seconds: float) -> Samples:
        """The same requests; one that was silent for longer than allowed has stalled, even if it ended."""
        silent = self.ok & (np.nan_to_num(self.gap, nan=0.0) > stall_seconds)
        return replace(self, outcome=self.outcome.put(silent, "stalled")) if silent.any() else self


def ttft(samples: Samples) -> Floats:
    """Due time to first token, of streams; an answer given at once has no first token of its own."""
    return _of_streams(samples, _unknown_is_infinite(samples.first - samples.scheduled))


def e2e(samples: Samples) -> Floats:
    """Due time to the end of the answer, of every request."""
    return _lost_is_infinite(samples, _unknown_is_infinite(samples.end - samples.scheduled))


def largest_gap(samples: Samples) -> Floats:
    """Largest pause within a stream; answers of one event have none."""
    return _of_streams(samples, samples.gap)


def tpot(samples: Samples) -> Floats:
    """Mean time per token of a stream after its first; answers of one token have none."""
    with np.errstate(divide="ignore", invalid="ignore"):
        values = (samples.end - samples.first) / (samples.tokens - 1)
    values[samples.tokens < 2] = np.nan
    return _of_streams(samples, values)


LATENCIES: dict[Metric, Callable[[Samples], Floats]] = {
    "ttft": ttft,
    "largestGap": largest_gap,
    "tpot": tpot,
    "e2e": e2e,
}


def from_columns(columns: Mapping[str, Any]) -> Samples:
    """Make samples from columns named as in the record schema, plus `gap` (the largest of `gaps_s`).

    Word columns may be `Labels` or sequences; numbers may hold None. Rows are put into the order of their due
    times, on which every estimate of dependence between neighbours relies.
    """
    scheduled = _floats(columns["scheduled_s"])
    # Each worker counts from the start of the run on its own clock; its anchor puts them on one line.
    anchor = _floats(columns["wall_start"])
    shift = anchor - float(columns["origin_wall"]) if "origin_wall" in columns else np.zeros_like(anchor)
    rows = np.argsort(scheduled + shift, kind="stable")
    words = {
        name: value if isinstance(value := columns[name], Labels) else Labels.of(list(value))
        for name in ("worker", "phase", "protocol", "outcome", "error_class", "replica", "router")
    }
    samples = Samples(
        request_id=np.asarray(columns["request_id"], dtype=np.str_),
        scheduled=scheduled + shift,
        sent=_floats(columns["sent_s"]) + shift,
        first=_floats(columns["first_byte_s"]) + shift,
        end=np.nan_to_num(_floats(columns["end_s"]), nan=np.inf) + shift,
        tokens=_ints(columns["received_tokens"], 0),
        events=_ints(columns["events"], 0),
        gap=_floats(columns["gap"]),
        reused=_ints(columns["connection_reused"], -1),
        **words,
    )
    return samples.take(rows)


def _of_streams(samples: Samples, values: Floats) -> Floats:
    values = _lost_is_infinite(samples, values)
    values[~samples.is_stream] = np.nan
    return values


def _unknown_is_infinite(values: Floats) -> Floats:
    # A moment that is missing from a record must not make its request look fast, or look like no request.
    return np.where(np.isnan(values), np.inf, values)


def _lost_is_infinite(samples: Samples, values: Floats) -> Floats:
    values = values.copy()
    values[~samples.ok] = np.inf
    return values


def _floats(values: Any) -> Floats:
    if isinstance(values, np.ndarray) and values.dtype != object:
        return values.astype(np.float64)
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def _ints(values: Any, missing: int) -> Ints:
    if isinstance(values, np.ndarray) and values.dtype != object:
        return values.astype(np.int32)
    return np.array([missing if value is None else value for value in values], dtype=np.int32)
