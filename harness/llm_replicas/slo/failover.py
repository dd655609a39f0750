"""What users noticed of one fault. Everything is counted from the clients' records and the router's log.

T0 is the moment the fault took effect. A request is *new* when it was due at T0 or later.

failed    no token arrived;  cut    tokens arrived and then no clean end.
in flight at a moment t    sent <= t < end, on the broken pod.
TTD       T0 until the router last sent a request to the broken pod.
TTR       T0 until the last bad request of the outage was due, plus the mean time between requests; 0 if there
          is no outage. Bad is a new request that was lost or slower to its first token than promised. Unknown
          (censored) unless `GOOD_AFTER` requests follow.

The promise "p99 within X" itself allows one request in a hundred to be slow at any time, fault or none. So
one slow request long after T0 is not an outage. Slow requests prolong it while there are more of them since its
last end than the promise allows, P[Bin(m, 1-p) >= c] <= alpha for c slow among m; and an outage that begins later
is one wherever c slow ones lie so close together that this would be unlikely anywhere in the phase, with alpha
divided by the number of requests (Bonferroni). A lost request always belongs to it. Without that rule a healthy
system would fail a recovery objective by chance, at 0.2 % slow in most of the faults. `last_bad_s` tells the last
slow or lost request all the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from llm_replicas.slo.dependence import dependence
from llm_replicas.slo.facts import Drain, FaultEvent, RouterRequest
from llm_replicas.slo.model import FailoverObjective, QuantileObjective, Slo
from llm_replicas.slo.quantile import at_least, quantile_bounds, zero_bound
from llm_replicas.slo.samples import Samples

GOOD_AFTER = 100
"""So many requests must follow an outage before it counts as over."""

LEAST_IN_FLIGHT = 3
"""A fault that meets fewer running requests proves nothing about them."""

Verdict4 = Literal["pass", "fail", "inconclusive", "invalid"]
Bools = npt.NDArray[np.bool_]
Numbers = npt.NDArray[np.intp]


@dataclass(frozen=True)
class DrainResult:
    """What one pod's way out looked like from the clients."""

    pod: str
    in_flight: int | None
    """Requests running on it when it was told to stop."""
    last_new_request_s: float | None
    """Delete until the last new request reached it."""


@dataclass(frozen=True)
class FaultResult:
    """Everything counted for one fault; None is unknown, and never means zero."""

    kind: str
    phase: str
    verdict: Verdict4
    reasons: tuple[str, ...]
    target: str | None
    t0: float | None
    """Epoch seconds."""
    t0_s: float | None
    healed_s: float | None
    """Both in seconds after the start of the run."""
    requests: int
    new_requests: int
    in_flight: int | None
    """Running on the broken pod when it broke or was told to stop; the smallest over several pods."""
    failed_new: int
    failed_running: int
    """Requests due before T0 of which no token ever arrived."""
    cut: int
    cut_elsewhere: int
    """Lost running requests that were not on the broken pod."""
    failed_new_bound: float
    """The true share of new requests that fail is below this, with 95 % confidence, when none did."""
    ttd_s: float | None
    ttr_s: float | None
    ttr_censored: bool
    last_bad_s: float | None
    last_new_request_s: float | None
    survivors_p99_s: float | None
    survivors_p99_bound_s: float | None
    drains: tuple[DrainResult, ...]
    examples: tuple[str, ...]
    """Ids of some lost requests."""


@dataclass(frozen=True)
class Recovery:
    """When new requests were served as promised again."""

    ttr_s: float | None
    censored: bool
    last_bad_s: float | None


def judge_fault(
    fault: FaultEvent,
    samples: Samples,
    slo: Slo,
    *,
    router_log: Sequence[RouterRequest] | None = None,
    endpoint_withdrawal_s: float | None = None,
    next_struck_s: float = np.inf,
    origin_wall: float = 0.0,
) -> FaultResult:
    """Count what one fault did and hold it against its objective; the next one struck at `next_struck_s`."""
    objective = slo.failover.of(fault.kind)
    alpha = 1 - slo.confidence
    members = concerned(fault, samples, next_struck_s)
    count = len(members)
    t0 = fault.t0_s
    if t0 is None:
        why = fault.error or "the moment it took effect was not observed"
        return uncounted(fault.kind, fault.phase, count, f"the fault did not happen as planned: {why}")

    new = members.scheduled >= t0
    on_victim = _on_victim(fault, members)
    # Replicas are told apart by address: a request without one was on nobody's pod as far as we know.
    failed_new = members.failed & new
    failed_running = members.failed & ~new
    struck = struck_s(fault)
    lost_running = (members.cut | failed_running) & (members.end >= (t0 if struck is None else struck))
    lost_before = (members.cut | failed_running) & ~lost_running
    excused = on_victim & lost_running & ~new & (members.sent <= t0)
    elsewhere = (lost_running & ~excused) | lost_before

    drains = tuple(_drain(drain, fault, samples, router_log, endpoint_withdrawal_s) for drain in _drains(fault))
    in_flight = _in_flight(fault, samples, drains)
    recovery = recover(members.take(new), t0, slo.latency.ttft, alpha)
    last_new = _largest([drain.last_new_request_s for drain in drains]) if fault.graceful else None
    # A rollout replaces everyone; otherwise those count that were left.
    survivors = members.take(new if len(drains) > 1 else new & ~on_victim)
    p99, p99_bound = _survivors(survivors, slo)
    lost = members.failed | members.cut
    result = FaultResult(
        kind=fault.kind,
        phase=fault.phase,
        verdict="pass",
        reasons=(),
        target=fault.pod,
        t0=origin_wall + t0,
        t0_s=t0,
        healed_s=fault.healed_s,
        requests=count,
        new_requests=int(new.sum()),
        in_flight=in_flight,
        failed_new=int(failed_new.sum()),
        failed_running=int(failed_running.sum()),
        cut=int(members.cut.sum()),
        cut_elsewhere=int(elsewhere.sum()),
        failed_new_bound=zero_bound(int(new.sum()), 0.95),
        ttd_s=last_new if fault.graceful else time_to_detect(fault, router_log),
        ttr_s=recovery.ttr_s,
        ttr_censored=recovery.censored,
        last_bad_s=recovery.last_bad_s,
        last_new_request_s=last_new,
        survivors_p99_s=p99,
        survivors_p99_bound_s=p99_bound,
        drains=drains,
        examples=tuple(str(name) for name in members.request_id[lost][:5]),
    )
    return _verdict(result, fault, objective, samples, endpoint_withdrawal_s)


def struck_s(fault: FaultEvent) -> float | None:
    """The earliest moment at which the fault can have hurt anyone; T0 itself may be seen a little late."""
    if fault.t0_s is None or fault.requested_s is None:
        return fault.t0_s
    return min(fault.requested_s, fault.t0_s)


def concerned(fault: FaultEvent, samples: Samples, next_struck_s: float = np.inf) -> Samples:
    """The requests a fault is answerable for.

    Those of its phase, those of any phase that were due before it was healed, and lost ones that were running
    when it struck: streams of the phase before are users too. For the same reason those that the next fault
    cut are not its own.
    """
    rows = samples.phase.is_in(fault.phase)
    ended = ~samples.ok & np.isfinite(samples.end)
    struck = struck_s(fault)
    if fault.t0_s is not None and struck is not None:
        until = fault.healed_s if fault.healed_s is not None else fault.t0_s
        rows |= (samples.scheduled >= fault.t0_s) & (samples.scheduled <= until)
        rows |= ended & (samples.scheduled < fault.t0_s) & (samples.end >= struck)
    rows &= ~(ended & (samples.scheduled < next_struck_s) & (samples.end >= next_struck_s))
    return samples.take(rows)


def recover(new: Samples, t0: float, promise: QuantileObjective | None, alpha: float) -> Recovery:
    """Time to recover from the requests due at T0 and later, in the order of their due times."""
    count = len(new)
    if count == 0:
        return Recovery(None, censored=True, last_bad_s=None)
    lost = ~new.ok
    slow = np.zeros(count, dtype=bool)
    if promise is not None:
        felt = new.latency("ttft")
        slow = ~lost & ~np.isnan(felt) & (felt > promise.seconds)
    bad = np.flatnonzero(lost | slow)
    q = 0.01 if promise is None else 1 - promise.quantile

    over = 0  # so many requests belong to the outage
    while (longer := _prolonged(over, bad, lost, q, alpha)) is not None:
        over = longer
    between = float(new.scheduled[-1] - new.scheduled[0]) / (count - 1) if count > 1 else 0.0
    last_bad = float(new.scheduled[bad[-1]] - t0) if bad.size else None
    ttr = 0.0 if over == 0 else float(new.scheduled[over - 1] - t0) + between
    return Recovery(ttr, censored=count - over < GOOD_AFTER, last_bad_s=last_bad)


def _prolonged(over: int, bad: Numbers, lost: Bools, q: float, alpha: float) -> int | None:
    """The new length of an outage that is `over` requests long so far, or None when nothing prolongs it."""
    ahead = bad[bad >= over]
    if ahead.size == 0:
        return None
    lost_ahead = ahead[lost[ahead]]
    if lost_ahead.size:
        return int(lost_ahead[-1]) + 1
    near = ahead[ahead < over + GOOD_AFTER]
    for number in range(near.size, 0, -1):
        reach = int(near[number - 1]) + 1
        if at_least(number, reach - over, q) <= alpha:
            return reach
    return _last_cluster(ahead, q, alpha / (lost.size - over))


def _last_cluster(slow: Numbers, q: float, alpha: float) -> int | None:
    """Where the last stretch of at most `GOOD_AFTER` requests ends in which too many are slow."""
    for last in range(slow.size - 1, 0, -1):
        end = int(slow[last]) + 1
        for first in range(last - 1, -1, -1):
            length = end - int(slow[first])
            if length > GOOD_AFTER:
                break
            if at_least(last - first + 1, length, q) <= alpha:
                return end
    return None


def time_to_detect(fault: FaultEvent, router_log: Sequence[RouterRequest] | None) -> float | None:
    """T0 until the router last sent a request to the dead pod; None without a log.

    The pod may come back under its address, and that is no mistake of the router: requests sent there after
    it was seen ready again do not count, and neither does one that it answered.
    """
    if router_log is None or fault.ip is None or fault.t0_s is None:
        return None
    back = fault.ready_s if fault.ready_s is not None else fault.healed_s
    sent = [
        row.start_s - fault.t0_s
        for row in router_log
        if row.start_s >= fault.t0_s
        and (back is None or row.start_s < back)
        and any(_same_host(host, fault.ip) for host in row.attempted)
        and (row.lost or row.upstream is None or not _same_host(row.upstream, fault.ip))
    ]
    return max(sent, default=0.0)


def _drains(fault: FaultEvent) -> tuple[Drain, ...]:
    if fault.drains or not fault.graceful:
        return fault.drains
    return (Drain(fault.pod or "?", fault.ip, fault.t0_s),)


def _drain(
    drain: Drain,
    fault: FaultEvent,
    samples: Samples,
    router_log: Sequence[RouterRequest] | None,
    endpoint_withdrawal_s: float | None,
) -> DrainResult:
    mine = samples.router.is_in(drain.pod) if fault.on_router else _at_host(samples, drain.ip)
    known = _is_known(samples, fault)
    told = _told_to_stop(drain, fault, endpoint_withdrawal_s)
    in_flight: int | None = None
    if told is not None and known:
        running = (samples.sent <= told) & (samples.end > told)
        # SIGTERM is seen a moment after it was sent; who was lost in that moment was running when it came.
        since = drain.deleted_s if drain.deleted_s is not None else told
        lost = ~samples.ok & (samples.sent <= told) & (samples.end >= since) & (samples.end <= told)
        in_flight = int((mine & (running | lost)).sum())
    last_new: float | None = None
    if drain.deleted_s is not None and (known or router_log is not None):
        since, until = drain.deleted_s, drain.gone_s if drain.gone_s is not None else np.inf
        moments = [since, *samples.sent[mine & (samples.sent >= since) & (samples.sent <= until)]]
        if router_log is not None and not fault.on_router and drain.ip is not None:
            ip = drain.ip
            moments += [
                row.start_s
                for row in router_log
                if since <= row.start_s <= until and any(_same_host(host, ip) for host in row.attempted)
            ]
        last_new = float(max(moments) - since)
    return DrainResult(drain.pod, in_flight, last_new)


def _told_to_stop(drain: Drain, fault: FaultEvent, endpoint_withdrawal_s: float | None) -> float | None:
    if drain.sigterm_s is not None:
        return drain.sigterm_s
    if fault.on_router:
        # A router drains from its preStop hook on, which starts with the deletion.
        return drain.deleted_s
    if drain.deleted_s is not None and endpoint_withdrawal_s is not None:
        # The kubelet sends SIGTERM when the hook has slept; nobody saw it, but it cannot come earlier.
        return drain.deleted_s + endpoint_withdrawal_s
    return None


def _in_flight(fault: FaultEvent, samples: Samples, drains: tuple[DrainResult, ...]) -> int | None:
    if fault.graceful:
        counts = [drain.in_flight for drain in drains]
        known = [count for count in counts if count is not None]
        if len(known) == len(counts) and known:
            return min(known)
        return fault.in_flight_at_sigterm
    struck = struck_s(fault)
    if fault.t0_s is None or struck is None or fault.ip is None:
        return fault.in_flight_at_sigterm
    mine = _at_host(samples, fault.ip)
    running = (samples.sent <= fault.t0_s) & (samples.end > fault.t0_s)
    lost = ~samples.ok & (samples.sent <= fault.t0_s) & (samples.end >= struck) & (samples.end <= fault.t0_s)
    return int((mine & (running | lost)).sum()) if _is_known(samples, fault) else fault.in_flight_at_sigterm


def _is_known(samples: Samples, fault: FaultEvent) -> bool:
    """Whether the records say at all which pod served a request."""
    return bool(((samples.router if fault.on_router else samples.replica).codes >= 0).any())


def _on_victim(fault: FaultEvent, samples: Samples) -> Bools:
    if fault.on_router:
        return samples.router.is_in(*(drain.pod for drain in fault.drains))
    mine = _at_host(samples, fault.ip)
    for drain in fault.drains:
        mine |= _at_host(samples, drain.ip)
    return mine


def _at_host(samples: Samples, ip: str | None) -> Bools:
    if ip is None:
        return np.zeros(len(samples), dtype=bool)
    return samples.replica.matches(lambda host: _same_host(host, ip))


def _same_host(host: str, ip: str) -> bool:
    return host == ip or host.rpartition(":")[0].strip("[]") == ip


def _survivors(survivors: Samples, slo: Slo) -> tuple[float | None, float | None]:
    values = survivors.latency("ttft")
    values = values[~np.isnan(values)]
    if values.size == 0:
        return None, None
    limit = slo.latency.ttft.seconds if slo.latency.ttft else np.inf
    n_eff = dependence(values, limit, 0.99).n_eff
    bounds = quantile_bounds(np.sort(values), 0.99, 1 - slo.confidence, n_eff)
    if bounds is None:
        return None, None
    return _finite(bounds.value), _finite(bounds.upper)


def _finite(value: float | None) -> float | None:
    return value if value is not None and np.isfinite(value) else None


def _largest(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return max(known) if known else None


def uncounted(kind: str, phase: str, requests: int, reason: str) -> FaultResult:
    """The result of a fault that did not happen, or of which nothing is known."""
    return FaultResult(
        kind=kind,
        phase=phase,
        verdict="invalid",
        reasons=(reason,),
        target=None,
        t0=None,
        t0_s=None,
        healed_s=None,
        requests=requests,
        new_requests=0,
        in_flight=None,
        failed_new=0,
        failed_running=0,
        cut=0,
        cut_elsewhere=0,
        failed_new_bound=1.0,
        ttd_s=None,
        ttr_s=None,
        ttr_censored=True,
        last_bad_s=None,
        last_new_request_s=None,
        survivors_p99_s=None,
        survivors_p99_bound_s=None,
        drains=(),
        examples=(),
    )


def _verdict(
    result: FaultResult,
    fault: FaultEvent,
    objective: FailoverObjective | None,
    samples: Samples,
    endpoint_withdrawal_s: float | None,
) -> FaultResult:
    invalid = list(_invalid(result, fault, samples))
    failed: list[str] = []
    unproved: list[str] = []
    if result.new_requests == 0:
        unproved.append("no request was due after it took effect")
    if objective is None:
        unproved.append(f"the SLO table promises nothing under failover.{fault.kind}")
    else:
        failed += _losses(result, objective)
        _timing("recovered", result.ttr_s, objective.time_to_recover_seconds, failed, unproved)
        _timing("detected", result.ttd_s, objective.time_to_detect_seconds, failed, unproved)
        promised = objective.time_to_recover_seconds
        if promised is not None and result.ttr_censored and result.ttr_s is not None and result.ttr_s <= promised:
            unproved.append(f"fewer than {GOOD_AFTER} requests follow the outage: the recovery was not seen to last")
    if fault.graceful and not fault.on_router:
        last = result.last_new_request_s
        if last is None:
            unproved.append("when the last new request reached the deleted pod is not known")
        elif endpoint_withdrawal_s and last >= endpoint_withdrawal_s:  # without a withdrawal nothing is promised here
            failed.append(
                f"a new request reached a deleted pod {last:.2f} s after its deletion; it must be less than "
                f"endpointWithdrawalSeconds, {endpoint_withdrawal_s:g} s"
            )
    verdict: Verdict4 = "invalid" if invalid else "fail" if failed else "inconclusive" if unproved else "pass"
    values = {name: getattr(result, name) for name in FaultResult.__dataclass_fields__}
    return FaultResult(**{**values, "verdict": verdict, "reasons": tuple(invalid + failed + unproved)})


def _invalid(result: FaultResult, fault: FaultEvent, samples: Samples) -> list[str]:
    reasons = []
    if fault.error:
        reasons.append(f"the fault did not go as planned: {fault.error}")
    if fault.healed_s is None and not fault.error:
        reasons.append("the release was not seen whole again")
    elif fault.healed_s is not None and (not len(samples) or samples.scheduled[-1] < fault.healed_s):
        reasons.append("the load ended before the release was whole again; make the phase longer")
    if result.in_flight is None:
        reasons.append("how many requests were running on the broken pod is not known")
    elif result.in_flight < LEAST_IN_FLIGHT:
        moment = "when it was told to stop" if fault.graceful else "when it broke"
        reasons.append(f"{result.in_flight} requests were running on the pod {moment}; it takes {LEAST_IN_FLIGHT}")
    return reasons


def _losses(result: FaultResult, objective: FailoverObjective) -> list[str]:
    failed = []
    if result.failed_new > objective.failed_new:
        failed.append(f"{result.failed_new} new requests failed; {objective.failed_new} may")
    lost = result.cut + result.failed_running
    if objective.cut == "inFlight":
        if result.cut_elsewhere:
            failed.append(f"{result.cut_elsewhere} requests were lost that were not running on the broken pod")
    elif lost > objective.cut:
        failed.append(f"{lost} requests were cut; {objective.cut} may be")
    return failed


def _timing(word: str, measured: float | None, promised: float | None, failed: list[str], unproved: list[str]) -> None:
    if promised is None:
        return
    if measured is None:
        unproved.append(f"when it was {word} is not known")
    elif measured > promised:
        failed.append(f"{word} after {measured:.2f} s; promised are {promised:g} s")
