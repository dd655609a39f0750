"""Whether the generator itself was good enough for its figures to be about the system.

A late generator makes the system look slower than it was (latency counts from the due time); one that sent
too little makes it look better. Either way the run says nothing and is called invalid.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from llm_replicas.load.records import read_records
from llm_replicas.load.samples import Sample, read_samples
from llm_replicas.load.schedule import read_schedule


@dataclass(frozen=True)
class SelfCheckLimits:
    """Where an honest run ends.

    - ``late_p99_s``: 99 % of the requests left within this time of being due. 25 ms is a few per cent of the
      smallest time to first token that an LLM service promises, and what an idle two-core machine keeps with
      room to spare.
    - ``hub_lag_p99_s``: of all seconds, 99 % had no wake-up later than this. An event that waits for the hub
      is stamped late, so this bounds the error of a token gap.
    - ``sent_share``: at least this share of the schedule was really played.
    - ``process_cpu_share``: a process above this share of a core (95 % of the seconds below it) has no room
      for bursts.
    - ``host_steal_share``: the hypervisor took CPU away, as a mean over the run.
    - ``host_pressure_share``, ``host_starved_share``: a second in which runnable tasks waited for a core for more
      than the first share of it is starved; at most the second share of all seconds may be. A mean would not do:
      one starved minute in ten ruins a p99 and hardly moves the mean. On two idle cores a gate of the stand-in has
      0.2 to 0.3 of pressure and 1 % of starved seconds; beside a build it has 0.7 and over half.
    """

    late_p99_s: float = 0.025
    hub_lag_p99_s: float = 0.100
    sent_share: float = 0.999
    process_cpu_share: float = 0.90
    host_steal_share: float = 0.05
    host_pressure_share: float = 0.50
    host_starved_share: float = 0.05


@dataclass(frozen=True)
class SelfCheck:
    """The generator's figures and the reasons why a run is invalid; valid if there is none."""

    scheduled: int
    recorded: int
    sent: int
    late_p50_s: float | None
    late_p99_s: float | None
    late_max_s: float | None
    hub_lag_p99_s: float | None
    hub_lag_max_s: float | None
    process_cpu_p95_share: float | None
    host_steal_share: float | None
    host_pressure_share: float | None
    host_starved_share: float | None = None
    workers_missing: int = 0
    reasons: list[str] = field(default_factory=list)

    @property
    def valid(self) -> bool:
        """Whether the figures may be judged."""
        return not self.reasons

    @property
    def late_p99_ms(self) -> float | None:
        """The 99th percentile of the lateness in milliseconds."""
        return None if self.late_p99_s is None else self.late_p99_s * 1000


def quantile(values: Sequence[float], share: float) -> float | None:
    """The smallest value that at least ``share`` of the values do not exceed; None of no values."""
    if not values:
        return None
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def check(
    *,
    scheduled: int,
    lateness_s: Sequence[float],
    recorded: int,
    samples: Sequence[Sample],
    workers_missing: int = 0,
    limits: SelfCheckLimits | None = None,
) -> SelfCheck:
    """Judge the generator. ``lateness_s`` has a value for each request that left; no data is not valid."""
    limits = limits or SelfCheckLimits()
    found = SelfCheck(
        scheduled=scheduled,
        recorded=recorded,
        sent=len(lateness_s),
        late_p50_s=quantile(lateness_s, 0.5),
        late_p99_s=quantile(lateness_s, 0.99),
        late_max_s=max(lateness_s, default=None),
        hub_lag_p99_s=quantile([each.hub_lag_s for each in samples], 0.99),
        hub_lag_max_s=max((each.hub_lag_s for each in samples), default=None),
        process_cpu_p95_share=quantile([each.cpu_share for each in samples], 0.95),
        host_steal_share=_mean([each.host_steal_share for each in samples]),
        host_pressure_share=_mean([each.host_pressure_share for each in samples]),
        host_starved_share=_starved([each.host_pressure_share for each in samples], limits.host_pressure_share),
        workers_missing=workers_missing,
    )
    found.reasons.extend(_reasons(found, limits))
    return found


def _reasons(found: SelfCheck, limits: SelfCheckLimits) -> list[str]:
    reasons = []
    if not found.sent:
        reasons.append("no request was sent")
    if found.recorded < limits.sent_share * found.scheduled:
        reasons.append(
            f"only {found.recorded} of {found.scheduled} scheduled requests were played "
            f"(at least {limits.sent_share:.1%} needed)"
        )
    if found.workers_missing:
        reasons.append(f"{found.workers_missing} workers left no record")
    if found.hub_lag_p99_s is None:
        reasons.append("the generator left no samples of itself")
    for what, value, limit, unit in (
        ("requests left late: p99", found.late_p99_s, limits.late_p99_s, "ms"),
        ("the generator's own loop lagged: p99", found.hub_lag_p99_s, limits.hub_lag_p99_s, "ms"),
        ("a generator process was busy: p95", found.process_cpu_p95_share, limits.process_cpu_share, "%"),
        ("the hypervisor took CPU time: mean", found.host_steal_share, limits.host_steal_share, "%"),
        (
            f"the host was starved (tasks waited for a core more than {limits.host_pressure_share:.0%} of the time): "
            "seconds",
            found.host_starved_share,
            limits.host_starved_share,
            "%",
        ),
    ):
        if value is not None and value > limit:
            scale = 1000 if unit == "ms" else 100
            reasons.append(f"{what} {value * scale:.1f} {unit}, limit {limit * scale:.0f} {unit}")
    return reasons


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _starved(pressures: Sequence[float | None], limit: float) -> float | None:
    """Share of the seconds whose pressure is above the limit; None where the host tells no pressure."""
    return _mean([None if pressure is None else float(pressure > limit) for pressure in pressures])


def check_run(run: Path, limits: SelfCheckLimits | None = None) -> SelfCheck:
    """Judge the generator of a run from its folder alone."""
    records = read_records(run)
    lateness = [
        sent - scheduled
        for scheduled, sent in zip(
            records.column("scheduled_s").to_pylist(), records.column("sent_s").to_pylist(), strict=True
        )
        if sent is not None
    ]
    samples = read_samples(run)
    workers = set(records.column("worker").to_pylist())
    return check(
        scheduled=read_schedule(run).num_rows,
        lateness_s=lateness,
        recorded=records.num_rows,
        samples=[each for one in samples.values() for each in one],
        workers_missing=max(0, _workers_wanted(run) - len(workers)),
        limits=limits,
    )


def _workers_wanted(run: Path) -> int:
    try:
        return int(json.loads((run / "started.json").read_text(encoding="utf-8"))["workers"])
    except (OSError, ValueError, KeyError):
        return 1
