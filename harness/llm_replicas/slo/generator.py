"""The run judges itself first: was the load that the plan wanted really sent, and was it all recorded?

A late or starved generator makes the system look slow, or hides that it is: the run is invalid, never a fail.
"""

from __future__ import annotations

from dataclasses import dataclass

from llm_replicas.slo.facts import RunFacts


@dataclass(frozen=True)
class GeneratorResult:
    """How well the load was generated; None is unknown."""

    valid: bool
    reasons: tuple[str, ...]
    scheduled: int | None
    recorded: int
    missing: int
    workers: tuple[str, ...]
    late_p50_ms: float | None
    late_p99_ms: float | None
    late_max_ms: float | None
    hub_lag_p99_ms: float | None
    cpu_p95_share: float | None
    host_busy_share: float | None
    host_pressure_share: float | None
    host_steal_share: float | None
    host_starved_share: float | None
    reused_share: float | None
    """Share of the requests that went over a connection used before."""


def judge_generator(facts: RunFacts) -> GeneratorResult:
    """Join what the generator found of itself with what is missing from its records."""
    samples, check = facts.samples, facts.self_check
    reasons = list(check.reasons)
    if facts.missing:
        shown = ", ".join(facts.missing[:3])
        reasons.append(
            f"{len(facts.missing)} of {facts.scheduled} scheduled requests have no record "
            f"(a worker was lost or the run was interrupted), for example {shown}"
        )
    if facts.unscheduled:
        reasons.append(f"{facts.unscheduled} records belong to no request of the schedule")
    if facts.repeated:
        reasons.append(f"{facts.repeated} records repeat the request id of another")
    known = samples.reused[samples.reused >= 0]
    return GeneratorResult(
        valid=not reasons,
        reasons=tuple(reasons),
        scheduled=facts.scheduled,
        recorded=len(samples),
        missing=len(facts.missing),
        workers=samples.worker.used(),
        late_p50_ms=check.late_p50_ms,
        late_p99_ms=check.late_p99_ms,
        late_max_ms=check.late_max_ms,
        hub_lag_p99_ms=check.hub_lag_p99_ms,
        cpu_p95_share=check.cpu_p95_share,
        host_busy_share=check.host_busy_share,
        host_pressure_share=check.host_pressure_share,
        host_steal_share=check.host_steal_share,
        host_starved_share=check.host_starved_share,
        reused_share=float(known.mean()) if known.size else None,
    )
