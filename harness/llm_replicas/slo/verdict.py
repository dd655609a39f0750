"""The verdict of a run, from its facts.

    any part invalid        -> invalid         the generator, the machine or the plan fell short
    any objective refuted   -> fail
    any not decided         -> inconclusive    also where there is nothing to decide from
    everything proved       -> pass

Every objective is decided on its own, with the confidence of the SLO table; `p_pass` and `p_fail` are kept so
that a correction over several objectives can be made from the result alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from llm_replicas.slo.dependence import Dependence, dependence, design_effect, neighbour_correlation
from llm_replicas.slo.facts import Phase, RunFacts
from llm_replicas.slo.failover import FaultResult, Verdict4, judge_fault, struck_s, uncounted
from llm_replicas.slo.generator import GeneratorResult, judge_generator
from llm_replicas.slo.model import FAULT_KINDS, Metric, QuantileObjective, digest
from llm_replicas.slo.quantile import (
    at_least,
    at_most,
    decide,
    more_requests,
    quantile_bounds,
    share_upper_bound,
    zero_bound,
)
from llm_replicas.slo.samples import Samples

SCHEMA_VERSION = 1
LONG_STREAM_MARGIN_S = 5.0
LONG_STREAM_SHARE = 0.05
"""So large a share of the streams must outlast the withdrawal by the margin, else a drain proves nothing."""

EXIT_CODES: dict[str, int] = {"pass": 0, "fail": 1, "inconclusive": 3, "invalid": 4}
METRIC_WORDS: dict[str, str] = {
    "ttft": "time to first token",
    "largestGap": "largest gap in a stream",
    "tpot": "time per output token",
    "e2e": "time to the end of the answer",
    "errorRatio": "share of requests lost",
}


@dataclass(frozen=True)
class ObjectiveResult:
    """One objective: what was promised, measured and proved. Bounds hold with the table's confidence."""

    name: str
    metric: str
    verdict: Verdict4
    reason: str
    unit: str
    """`s` or `ratio`."""
    threshold: float
    quantile: float | None
    n: int
    n_eff: float
    exceedances: int
    allowed: float
    """Share of the requests that may exceed."""
    value: float | None
    """The quantile or share as measured; None when it is infinite or there is nothing."""
    lower: float | None
    bound: float | None
    """Proved upper bound of the value; None when there is none (too few requests, or infinite)."""
    share_bound: float
    """Proved upper bound of the share that exceeds."""
    correlation: float
    p_pass: float
    p_fail: float
    left_out: int
    """Requests to which the metric does not apply."""
    more_requests: int | None
    """When inconclusive: how many more would decide it; None when no reasonable number would."""
    headroom: float | None
    """Threshold divided by the measured value."""


@dataclass(frozen=True)
class Condition:
    """Something the run itself must fulfil for its verdict to mean anything."""

    name: str
    verdict: Verdict4
    text: str
    value: float | None = None
    limit: float | None = None


@dataclass(frozen=True)
class PhaseResult:
    """One phase in figures."""

    name: str
    judged: bool
    fault: str | None
    start_s: float | None
    end_s: float | None
    requests: int
    failed: int
    cut: int
    rate: float | None
    ttft_p50_s: float | None
    ttft_p99_s: float | None
    gap_p99_s: float | None


@dataclass(frozen=True)
class Loss:
    """Lost requests of one phase with the same cause."""

    phase: str
    outcome: str
    error_class: str
    count: int
    examples: tuple[str, ...]


@dataclass(frozen=True)
class Verdict:
    """All there is to say of one run."""

    verdict: Verdict4
    reasons: tuple[str, ...]
    requests: int
    steady_requests: int
    failed: int
    cut: int
    objectives: tuple[ObjectiveResult, ...]
    faults: tuple[FaultResult, ...]
    generator: GeneratorResult
    conditions: tuple[Condition, ...]
    phases: tuple[PhaseResult, ...]
    lost: tuple[Loss, ...]
    not_tested: tuple[str, ...]
    slo_digest: str
    confidence: float
    provenance: dict[str, object] = field(default_factory=dict)
    """Where the run was made and from what: plan, seed, digests, environment."""
    schema_version: int = SCHEMA_VERSION

    @property
    def exit_code(self) -> int:
        """The command's exit code for this verdict."""
        return EXIT_CODES[self.verdict]

    def summary(self) -> list[str]:
        """The verdict in a few lines for a terminal."""
        lines = [describe_objective(objective) for objective in self.objectives]
        lines += [describe_fault(fault) for fault in self.faults]
        lines += [f"{_mark(condition.verdict)} {condition.text}" for condition in self.conditions]
        generator = self.generator
        late = generator.late_p99_ms
        lines.append(
            f"{_mark('pass' if generator.valid else 'invalid')} generator: {generator.recorded} records, "
            + ("lateness not known" if late is None else f"sent late by {late:.1f} ms (p99)")
        )
        lines += [f"lost in {each.phase}: {each.count} {each.outcome} ({each.error_class})" for each in self.lost[:5]]
        if len(self.lost) > 5:
            lines.append(f"lost in other ways: {sum(each.count for each in self.lost[5:])}; see the report")
        if self.not_tested:
            lines.append(f"not tested by this plan: {', '.join(self.not_tested)}")
        return lines + [f"because {reason}" for reason in self.reasons]


def judge(facts: RunFacts, origin_wall: float = 0.0) -> Verdict:
    """Judge a run."""
    samples = facts.samples.with_stalls(facts.slo.stall_seconds)
    phases = facts.phases or ()
    steady = steady_samples(samples, facts)
    objectives = tuple(_objectives(steady, facts))
    faults = tuple(_faults(samples, facts, origin_wall))
    generator = judge_generator(facts)
    conditions = tuple(_conditions(samples, steady, facts))
    verdict, reasons = _combine(objectives, faults, generator, conditions)
    planned = {phase.fault for phase in phases} | {fault.kind for fault in facts.faults}
    return Verdict(
        verdict=verdict,
        reasons=tuple(reasons),
        requests=len(samples),
        steady_requests=len(steady),
        failed=int(samples.failed.sum()),
        cut=int(samples.cut.sum()),
        objectives=objectives,
        faults=faults,
        generator=generator,
        conditions=conditions,
        phases=tuple(_phase_results(samples, facts)),
        lost=tuple(_losses(samples)),
        not_tested=tuple(
            f"failover.{kind}" for kind in FAULT_KINDS if facts.slo.failover.of(kind) and kind not in planned
        ),
        slo_digest=digest(facts.slo),
        confidence=facts.slo.confidence,
    )


def steady_samples(samples: Samples, facts: RunFacts) -> Samples:
    """The requests that decide latency: of judged phases without a fault, and due in no fault's time."""
    rows = samples.phase.is_in(*(phase.name for phase in facts.phases or () if phase.steady))
    for fault in facts.faults:
        if fault.t0_s is not None:
            until = fault.healed_s if fault.healed_s is not None else np.inf
            rows &= ~((samples.scheduled >= fault.t0_s) & (samples.scheduled <= until))
    return samples.take(rows)


def judge_latency(metric: Metric, promise: QuantileObjective, steady: Samples, confidence: float) -> ObjectiveResult:
    """One latency objective over the steady requests, which are in the order of their due times."""
    values = steady.latency(metric)
    applies = ~np.isnan(values)
    values = values[applies]
    n, q = values.size, 1 - promise.quantile
    exceeds = int((values > promise.seconds).sum())
    near = dependence(values, promise.seconds, promise.quantile)
    bounds = quantile_bounds(np.sort(values), promise.quantile, 1 - confidence, near.n_eff)
    value = None if bounds is None else bounds.value
    return _decided(
        name=f"{metric}_p{promise.quantile * 100:g}",
        metric=metric,
        unit="s",
        threshold=promise.seconds,
        quantile=promise.quantile,
        n=n,
        exceedances=exceeds,
        q=q,
        near=near,
        confidence=confidence,
        value=value,
        lower=None if bounds is None else bounds.lower,
        bound=None if bounds is None else bounds.upper,
        left_out=int((~applies).sum()),
    )


def judge_errors(threshold: float, steady: Samples, confidence: float) -> ObjectiveResult:
    """The share of steady requests that were lost in any way."""
    lost = ~steady.ok
    n, count = len(steady), int(lost.sum())
    effect = design_effect(lost)
    near = Dependence(n, n / effect, effect, neighbour_correlation(lost.astype(np.float64)))
    scale = near.n_eff / n if n else 1.0
    return _decided(
        name="errorRatio",
        metric="errorRatio",
        unit="ratio",
        threshold=threshold,
        quantile=None,
        n=n,
        exceedances=count,
        q=threshold,
        near=near,
        confidence=confidence,
        value=count / n if n else None,
        lower=None,
        bound=(share_upper_bound(count * scale, near.n_eff, confidence) if count else zero_bound(n, confidence))
        if n
        else None,
        left_out=0,
    )


def describe_objective(result: ObjectiveResult) -> str:
    """One objective in one line."""
    shown = amount(result.threshold, result.unit)
    if result.n == 0:
        return f"{_mark(result.verdict)} {result.name} <= {shown}: {result.reason}"
    value = "infinite" if result.value is None else amount(result.value, result.unit)
    bound = "no bound" if result.bound is None else f"proved <= {amount(result.bound, result.unit)}"
    headroom = "" if result.headroom is None else f", threshold / measured {result.headroom:.2f}"
    return (
        f"{_mark(result.verdict)} {result.name} <= {shown}: measured {value}, {bound}{headroom} "
        f"(n {result.n}, n_eff {result.n_eff:.0f}, {result.exceedances} exceed)"
    )


def describe_fault(result: FaultResult) -> str:
    """One fault in one line."""
    if result.t0_s is None:
        return f"{_mark(result.verdict)} {result.kind}: {'; '.join(result.reasons)}"
    parts = [
        f"{result.failed_new} of {result.new_requests} new requests failed"
        + (f" (so at most {result.failed_new_bound:.2%}, 95 %)" if result.failed_new == 0 else ""),
        f"{result.cut} cut"
        + (f", {result.failed_running} lost before their first token" if result.failed_running else ""),
        f"{'?' if result.in_flight is None else result.in_flight} in flight",
    ]
    if result.last_new_request_s is not None:
        parts.append(f"delete to last new request {result.last_new_request_s:.2f} s")
    elif result.ttd_s is not None:
        parts.append(f"TTD {result.ttd_s:.2f} s")
    if result.ttr_s is not None:
        parts.append(f"TTR {'>= ' if result.ttr_censored else ''}{result.ttr_s:.2f} s")
    return f"{_mark(result.verdict)} {result.kind}: {', '.join(parts)}"


def amount(value: float, unit: str) -> str:
    """A figure with its unit, rounded for reading only."""
    if unit == "ratio":
        return f"{value * 100:.3g} %"
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.2f} s"


def _objectives(steady: Samples, facts: RunFacts) -> Iterable[ObjectiveResult]:
    for metric, promise in facts.slo.latency.promised():
        yield judge_latency(metric, promise, steady, facts.slo.confidence)
    if facts.slo.error_ratio is not None:
        yield judge_errors(facts.slo.error_ratio, steady, facts.slo.confidence)


def _decided(
    *,
    name: str,
    metric: str,
    unit: str,
    threshold: float,
    quantile: float | None,
    n: int,
    exceedances: int,
    q: float,
    near: Dependence,
    confidence: float,
    value: float | None,
    lower: float | None,
    bound: float | None,
    left_out: int,
) -> ObjectiveResult:
    alpha = 1 - confidence
    scale = near.n_eff / n if n else 1.0
    verdict: Verdict4 = decide(exceedances, n, q, alpha, near.n_eff)
    more: int | None = None
    reason = {
        "pass": f"proved with {confidence:.0%} confidence",
        "fail": f"refuted with {confidence:.0%} confidence",
    }.get(verdict, "")
    if n == 0:
        reason = "no steady request was measured"
        more = more_requests(0, 0, q, alpha)
    elif verdict == "pass" and near.too_strong:
        verdict = "inconclusive"
        reason = f"neighbouring requests are too alike (correlation {near.correlation:.2f}) for a proof: lower the rate"
    elif verdict == "inconclusive":
        more = more_requests(exceedances, n, q, alpha, near.n_eff)
        reason = (
            "too near the limit: no reasonable number of requests decides it"
            if more is None
            else f"too few requests; about {more:,} more would decide it at this rate of exceedances"
        )
    return ObjectiveResult(
        name=name,
        metric=metric,
        verdict=verdict,
        reason=reason,
        unit=unit,
        threshold=threshold,
        quantile=quantile,
        n=n,
        n_eff=near.n_eff,
        exceedances=exceedances,
        allowed=q,
        value=_finite(value),
        lower=_finite(lower),
        bound=_finite(bound),
        share_bound=share_upper_bound(exceedances * scale, near.n_eff, confidence),
        correlation=near.correlation,
        p_pass=at_most(exceedances * scale, near.n_eff, q) if n else 1.0,
        p_fail=at_least(exceedances * scale, near.n_eff, q) if n else 1.0,
        left_out=left_out,
        more_requests=more,
        headroom=threshold / value if value and np.isfinite(value) else None,
    )


def _faults(samples: Samples, facts: RunFacts, origin_wall: float) -> Iterable[FaultResult]:
    strikes = sorted(strike for fault in facts.faults if (strike := struck_s(fault)) is not None)
    for fault in facts.faults:
        own = struck_s(fault)
        later = [strike for strike in strikes if own is not None and strike > own]
        yield judge_fault(
            fault,
            samples,
            facts.slo,
            next_struck_s=later[0] if later else np.inf,
            router_log=facts.router_log,
            endpoint_withdrawal_s=facts.endpoint_withdrawal_s,
            origin_wall=origin_wall,
        )
    happened = {(fault.phase, fault.kind) for fault in facts.faults}
    for phase in facts.phases or ():
        if phase.fault is not None and (phase.name, phase.fault) not in happened:
            why = "it is not in faults.json" if facts.faults_recorded else "the run has no faults.json"
            yield uncounted(
                phase.fault,
                phase.name,
                int(samples.phase.is_in(phase.name).sum()),
                f"the plan breaks this in phase {phase.name}, but {why}",
            )


def _conditions(samples: Samples, steady: Samples, facts: RunFacts) -> Iterable[Condition]:
    for problem in facts.problems:
        yield Condition("readable", "inconclusive", problem)
    if facts.phases is not None and not any(phase.steady for phase in facts.phases):
        yield Condition("steady phase", "inconclusive", "the plan has no judged phase without a fault")
    if not len(samples):
        yield Condition("requests", "inconclusive", "no request was recorded")
    for phase in facts.phases or ():
        mine = samples.take(samples.phase.is_in(phase.name))
        if phase.judged and len(mine) and not mine.ok.any():
            causes = ", ".join(f"{loss.count} {loss.outcome} ({loss.error_class})" for loss in _losses(mine))
            yield Condition(
                "answers",
                "fail",
                f"not one request of phase {phase.name} was answered: {causes}; are the addresses (--url, --grpc-url) "
                "right, and is the plan's model served there?",
            )
    if facts.loosened:
        listed = "; ".join(str(item) for item in facts.loosened)
        yield Condition("baseline", "fail", f"the SLO table is looser than the baseline: {listed}")
    if any(fault.graceful and not fault.on_router for fault in facts.faults):
        yield _long_streams(samples, steady, facts.endpoint_withdrawal_s)


def _long_streams(samples: Samples, steady: Samples, withdrawal: float | None) -> Condition:
    name = "long streams"
    if withdrawal is None:
        return Condition(
            name,
            "inconclusive",
            "how long a pod's withdrawal takes is not recorded, nor whether streams outlast it",
        )
    whole = steady if len(steady) else samples
    whole = whole.take(whole.is_stream & whole.ok)
    needed = withdrawal + LONG_STREAM_MARGIN_S
    if not len(whole):
        return Condition(name, "invalid", f"no stream ended well, so none outlasted {needed:g} s", None, needed)
    share = float((whole.end - whole.sent > needed).mean())
    return Condition(
        name=name,
        verdict="pass" if share >= LONG_STREAM_SHARE else "invalid",
        text=f"{share:.1%} of the streams outlast withdrawal + {LONG_STREAM_MARGIN_S:g} s ({needed:g} s); "
        f"at least {LONG_STREAM_SHARE:.0%} must, or the drains prove nothing",
        value=share,
        limit=LONG_STREAM_SHARE,
    )


def _combine(
    objectives: Sequence[ObjectiveResult],
    faults: Sequence[FaultResult],
    generator: GeneratorResult,
    conditions: Sequence[Condition],
) -> tuple[Verdict4, list[str]]:
    parts: list[tuple[Verdict4, str]] = [("invalid", reason) for reason in generator.reasons]
    parts += [(condition.verdict, condition.text) for condition in conditions]
    parts += [(objective.verdict, f"{objective.name}: {objective.reason}") for objective in objectives]
    parts += [(fault.verdict, f"{fault.kind}: {'; '.join(fault.reasons)}") for fault in faults]
    if not objectives and not faults:
        parts.append(("inconclusive", "there is nothing to judge: neither an objective nor a fault"))
    ranks: tuple[Verdict4, ...] = ("invalid", "fail", "inconclusive")
    for rank in ranks:
        reasons = [text for verdict, text in parts if verdict == rank]
        if reasons:
            return rank, reasons
    return "pass", []


def _phase_results(samples: Samples, facts: RunFacts) -> Iterable[PhaseResult]:
    known = {phase.name: phase for phase in facts.phases or ()}
    names = list(known) + [word for word in samples.phase.words if word not in known]
    for name in names:
        mine = samples.take(samples.phase.is_in(name))
        phase = known.get(name, Phase(name, judged=False))
        count = len(mine)
        start = float(mine.scheduled[0]) if count else None
        end = float(mine.scheduled[-1]) if count else None
        span = (end or 0.0) - (start or 0.0)
        yield PhaseResult(
            name=name,
            judged=phase.judged,
            fault=phase.fault,
            start_s=start,
            end_s=end,
            requests=count,
            failed=int(mine.failed.sum()),
            cut=int(mine.cut.sum()),
            rate=(count - 1) / span if count > 1 and span > 0 else None,
            ttft_p50_s=_point(mine.latency("ttft"), 0.5),
            ttft_p99_s=_point(mine.latency("ttft"), 0.99),
            gap_p99_s=_point(mine.latency("largestGap"), 0.99),
        )


def _losses(samples: Samples) -> Iterable[Loss]:
    lost = samples.take(~samples.ok)
    groups: dict[tuple[str, str, str], list[int]] = {}
    for row in range(len(lost)):
        key = (lost.phase.at(row) or "?", lost.outcome.at(row) or "?", lost.error_class.at(row) or "not told")
        groups.setdefault(key, []).append(row)
    for (phase, outcome, error), rows in sorted(groups.items(), key=lambda item: -len(item[1])):
        yield Loss(phase, outcome, error, len(rows), tuple(str(lost.request_id[row]) for row in rows[:3]))


def _point(values: npt.NDArray[np.float64], quantile: float) -> float | None:
    values = np.sort(values[~np.isnan(values)])
    bounds = quantile_bounds(values, quantile, 0.05)
    return None if bounds is None else _finite(bounds.value)


def _finite(value: float | None) -> float | None:
    return float(value) if value is not None and np.isfinite(value) else None


def _mark(verdict: str) -> str:
    return {"pass": "PASS", "fail": "FAIL", "inconclusive": "OPEN", "invalid": "VOID"}[verdict]
