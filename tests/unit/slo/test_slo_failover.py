from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from llm_replicas.slo.facts import Drain, FaultEvent, RouterRequest
from llm_replicas.slo.failover import GOOD_AFTER, FaultResult, judge_fault
from llm_replicas.slo.model import load_slo
from tests.unit.slo.requests_by_hand import cut, failed, request, samples

RATE = 20.0
T0 = 10.0
LASTS = 2.0
UNTIL = 40.0
PODS = ("10.0.0.1", "10.0.0.2", "10.0.0.3")
VICTIM = PODS[0]
WITHDRAWAL = 7.0
SIGTERM = T0 + WITHDRAWAL
LIMIT = 1.0
BETWEEN = 1 / RATE
IN_FLIGHT = int(LASTS * RATE / len(PODS))  # Little's law, on one pod

SLO = load_slo(
    {
        "latency": {"ttft": {"quantile": 0.99, "seconds": LIMIT}},
        "failover": {
            "podDelete": {"failedNew": 0, "cut": 0, "timeToRecoverSeconds": 1},
            "podKill": {"failedNew": 0, "cut": "inFlight", "timeToRecoverSeconds": 1},
            "routerRollout": {"failedNew": 0, "cut": 0},
        },
    }
)
KILL = FaultEvent(
    "podKill",
    "fault",
    requested_s=T0 - 0.05,
    t0_s=T0,
    healed_s=T0 + 12,
    ready_s=T0 + 8,
    pod="pod-0",
    ip=VICTIM,
)
DELETE = FaultEvent(
    "podDelete",
    "fault",
    requested_s=T0,
    t0_s=T0,
    healed_s=T0 + 12,
    pod="pod-0",
    ip=VICTIM,
    drains=(Drain("pod-0", VICTIM, T0, SIGTERM, SIGTERM + 3),),
)


def steady(**given: Any) -> list[dict[str, Any]]:
    """Evenly spaced requests, each pod in turn, all answered well."""
    count = int(UNTIL * RATE)
    return [
        request(number * BETWEEN, lasts=LASTS, phase="fault", replica=f"{PODS[number % 3]}:8000", **given)
        for number in range(count)
    ]


def killed(fault: FaultEvent = KILL) -> list[dict[str, Any]]:
    """As `steady`, with the streams of the victim cut at T0 and none sent there afterwards."""
    rows = []
    for row in steady():
        on_victim = row["replica"].startswith(VICTIM)
        if on_victim and row["sent_s"] <= T0 < row["end_s"]:
            rows.append(cut(row["scheduled_s"], at=T0 - 0.01, phase="fault", replica=row["replica"]))
            continue
        if on_victim and row["sent_s"] > T0:
            row["replica"] = f"{PODS[1]}:8000"
        rows.append(row)
    return rows


def at(rows: list[dict[str, Any]], due: float) -> int:
    """The number of the first request that was due at a moment or later."""
    return next(number for number, row in enumerate(rows) if row["scheduled_s"] >= due - 1e-9)


def judged(rows: list[dict[str, Any]], fault: FaultEvent, **given: Any) -> FaultResult:
    given.setdefault("endpoint_withdrawal_s", WITHDRAWAL)
    return judge_fault(fault, samples(rows), SLO, **given)


class TestKill:
    def test_streams_running_on_the_victim_may_be_cut_and_nothing_else_happened(self) -> None:
        result = judged(killed(), KILL)

        assert result.verdict == "pass", result.reasons
        assert result.in_flight == pytest.approx(IN_FLIGHT, abs=1)
        assert result.cut == result.in_flight
        assert result.cut_elsewhere == 0
        assert result.failed_new == 0
        assert result.new_requests == int((UNTIL - T0) * RATE)
        assert result.failed_new_bound == pytest.approx(3 / result.new_requests, rel=0.01)
        assert result.ttr_s == 0.0
        assert not result.ttr_censored

    def test_a_stream_cut_on_another_pod_fails(self) -> None:
        rows = killed()
        number = next(n for n, row in enumerate(rows) if row["replica"].startswith(PODS[1]) and row["end_s"] > T0)
        rows[number] = cut(rows[number]["scheduled_s"], at=T0, phase="fault", replica=rows[number]["replica"])

        result = judged(rows, KILL)

        assert result.verdict == "fail"
        assert result.cut_elsewhere == 1

    def test_a_new_request_that_fails_fails(self) -> None:
        rows = killed()
        rows[at(rows, T0)] = failed(T0, phase="fault")

        result = judged(rows, KILL)

        assert result.verdict == "fail"
        assert result.failed_new == 1
        assert result.failed_running == 0

    def test_a_running_request_lost_before_its_first_token_counts_as_lost_in_flight(self) -> None:
        due = T0 - BETWEEN
        rows = killed()
        number = at(rows, due)
        lost = failed(due, phase="fault", lasts=2 * BETWEEN)

        on_victim, elsewhere = rows.copy(), rows.copy()
        on_victim[number] = {**lost, "replica": f"{VICTIM}:8000"}
        elsewhere[number] = {**lost, "replica": f"{PODS[1]}:8000"}

        assert judged(on_victim, KILL).verdict == "pass"
        assert judged(on_victim, KILL).failed_running == 1
        assert judged(elsewhere, KILL).verdict == "fail"

    def test_a_request_of_the_phase_that_failed_before_the_fault_counts_too(self) -> None:
        rows = killed()
        rows[at(rows, 1.0)] = failed(1.0, phase="fault")

        assert judged(rows, KILL).verdict == "fail"

    def test_streams_of_the_phase_before_are_users_too(self) -> None:
        rows = killed()
        rows += [cut(T0 - 1, at=T0, phase="before", replica=f"{PODS[2]}:8000")]

        result = judged(rows, KILL)

        assert result.verdict == "fail"
        assert result.cut_elsewhere == 1

    def test_what_the_next_fault_cut_is_not_charged_to_this_one(self) -> None:
        rows = killed()
        rows[at(rows, UNTIL - 1)] = cut(UNTIL - 1, at=UNTIL + 0.5, phase="fault", replica=f"{PODS[2]}:8000")

        assert judged(rows, KILL).verdict == "fail"
        assert judged(rows, KILL, next_struck_s=UNTIL + 0.4).verdict == "pass"

    def test_too_few_running_requests_prove_nothing(self) -> None:
        rows = [row for row in killed() if not row["replica"].startswith(VICTIM)]

        result = judged(rows, KILL)

        assert result.verdict == "invalid"
        assert result.in_flight == 0

    def test_load_that_ends_before_the_release_is_whole_again_is_invalid(self) -> None:
        rows = [row for row in killed() if row["scheduled_s"] < T0 + 11]

        assert judged(rows, KILL).verdict == "invalid"

    def test_a_fault_that_went_wrong_is_invalid(self) -> None:
        assert judged(killed(), replace(KILL, error="no such pod")).verdict == "invalid"
        assert judged(killed(), replace(KILL, t0_s=None)).verdict == "invalid"
        assert judged(killed(), replace(KILL, healed_s=None)).verdict == "invalid"


class TestDelete:
    def test_a_drain_that_loses_nothing_passes(self) -> None:
        result = judged(drained(), DELETE)

        assert result.verdict == "pass", result.reasons
        assert result.cut == 0
        assert result.in_flight == pytest.approx(IN_FLIGHT, abs=1)
        assert result.last_new_request_s == pytest.approx(SIGTERM - LASTS / 2 - T0, abs=3 * BETWEEN)

    def test_one_cut_stream_fails(self) -> None:
        rows = drained()
        number = next(n for n, row in enumerate(rows) if row["sent_s"] <= SIGTERM < row["end_s"])
        rows[number] = cut(rows[number]["scheduled_s"], at=SIGTERM, phase="fault", replica=rows[number]["replica"])

        result = judged(rows, DELETE)

        assert result.verdict == "fail"
        assert result.cut == 1

    def test_streams_cut_just_before_sigterm_was_seen_were_in_flight(self) -> None:
        rows = []
        for row in drained():
            lost = row["replica"].startswith(VICTIM) and row["sent_s"] <= SIGTERM < row["end_s"]
            end = cut(row["scheduled_s"], at=SIGTERM - 0.02, phase="fault", replica=row["replica"])
            rows.append(end if lost else row)

        result = judged(rows, DELETE)

        assert result.verdict == "fail"
        assert result.in_flight == result.cut

    def test_a_pod_that_gets_new_requests_until_sigterm_fails(self) -> None:
        result = judged(drained(), DELETE, endpoint_withdrawal_s=2.0)

        assert result.verdict == "fail"
        assert "endpointWithdrawalSeconds" in " ".join(result.reasons)

    def test_the_routers_log_shows_attempts_that_the_answers_do_not(self) -> None:
        attempt = RouterRequest(T0 + 6.9, "r", f"{PODS[1]}:8000", (f"{VICTIM}:8000", f"{PODS[1]}:8000"))

        result = judged(drained(), DELETE, router_log=(attempt,))

        assert result.last_new_request_s == pytest.approx(6.9)

    def test_no_stream_in_flight_at_sigterm_is_invalid(self) -> None:
        rows = [row for row in drained() if not (row["replica"].startswith(VICTIM) and row["scheduled_s"] > T0)]

        assert judged(rows, DELETE).verdict == "invalid"

    def test_an_unseen_sigterm_comes_when_the_hook_has_slept(self) -> None:
        unseen = replace(DELETE, drains=(replace(DELETE.drains[0], sigterm_s=None),))

        assert judged(drained(), unseen).in_flight == judged(drained(), DELETE).in_flight
        assert judged(drained(), unseen, endpoint_withdrawal_s=None).verdict == "invalid"

    def test_without_knowing_which_pod_answered_nothing_is_claimed(self) -> None:
        rows = [{**row, "replica": None} for row in drained()]

        result = judged(rows, DELETE)

        assert result.in_flight is None
        assert result.verdict == "invalid"


def drained() -> list[dict[str, Any]]:
    """As `steady`; the victim gets new requests until one second before SIGTERM and all of them end well."""
    rows = steady()
    for row in rows:
        if row["replica"].startswith(VICTIM) and row["sent_s"] > SIGTERM - LASTS / 2:
            row["replica"] = f"{PODS[1]}:8000"
    # Streams long enough to be running at SIGTERM, as many as the pod holds at any time.
    for row in [row for row in rows if row["replica"].startswith(VICTIM) and row["sent_s"] >= T0][-IN_FLIGHT:]:
        row["end_s"] = SIGTERM + 2
    return rows


class TestRecovery:
    OUTAGE_S = 3.0

    def outage(self, **bad: Any) -> list[dict[str, Any]]:
        rows = killed()
        for number in range(at(rows, T0), at(rows, T0 + self.OUTAGE_S)):
            rows[number] |= bad
        return rows

    def test_takes_until_the_last_slow_request_was_due(self) -> None:
        rows = self.outage(first_byte_s=T0 + 100.0, end_s=T0 + 101.0)

        result = judged(rows, KILL)

        assert result.ttr_s == pytest.approx(self.OUTAGE_S - BETWEEN + BETWEEN)
        assert result.verdict == "fail"

    def test_takes_until_the_last_lost_request_was_due(self) -> None:
        rows = killed()
        rows[at(rows, T0 + 2)] = failed(T0 + 2, phase="fault")

        assert judged(rows, KILL).ttr_s == pytest.approx(2 + BETWEEN)

    def test_requests_due_before_the_fault_do_not_count(self) -> None:
        rows = killed()
        rows[at(rows, T0 - 1)]["first_byte_s"] = T0 + 5

        assert judged(rows, KILL).ttr_s == 0.0

    def test_a_single_slow_request_long_after_is_no_outage_but_is_told(self) -> None:
        rows = killed()
        rows[at(rows, T0 + 6)] |= {"first_byte_s": T0 + 6 + 2 * LIMIT}

        result = judged(rows, KILL)

        assert result.ttr_s == 0.0
        assert result.last_bad_s == pytest.approx(6.0)

    def test_a_few_slow_requests_close_together_are_an_outage(self) -> None:
        rows = killed()
        first = at(rows, T0 + 2)
        for number in range(first, first + 4):
            rows[number] |= {"first_byte_s": rows[number]["scheduled_s"] + 2 * LIMIT}

        assert judged(rows, KILL).ttr_s == pytest.approx(2 + 3 * BETWEEN + BETWEEN)

    def test_an_outage_that_begins_late_is_one_too(self) -> None:
        begins, lasts = 8.0, 2.0
        rows = killed()
        for number in range(at(rows, T0 + begins), at(rows, T0 + begins + lasts), 3):
            rows[number] |= {"first_byte_s": rows[number]["scheduled_s"] + 2 * LIMIT}

        result = judged(rows, KILL)

        assert result.ttr_s == pytest.approx(begins + lasts, abs=3 * BETWEEN)
        assert result.verdict == "fail"

    def test_slow_requests_as_rare_as_promised_are_no_outage(self) -> None:
        rows = killed()
        for number in range(at(rows, T0) + 99, len(rows), 100):
            rows[number] |= {"first_byte_s": rows[number]["scheduled_s"] + 2 * LIMIT}

        assert judged(rows, KILL).ttr_s == 0.0

    def test_is_unknown_unless_enough_requests_follow(self) -> None:
        enough = [row for row in killed() if row["scheduled_s"] < T0 + GOOD_AFTER * BETWEEN]
        fault = replace(KILL, healed_s=T0 + 1)

        assert judged(enough, fault).verdict == "pass"
        assert not judged(enough, fault).ttr_censored
        assert judged(enough[:-1], fault).ttr_censored
        assert judged(enough[:-1], fault).verdict == "inconclusive"


class TestDetection:
    def row(self, after: float, *, upstream: str | None = None, lost: bool = False) -> RouterRequest:
        attempted = (f"{VICTIM}:8000",) if upstream is None else (f"{VICTIM}:8000", upstream)
        return RouterRequest(T0 + after, "r", upstream or f"{VICTIM}:8000", attempted, lost)

    def test_takes_until_the_last_request_sent_to_the_dead_pod(self) -> None:
        log = (self.row(0.1, upstream=f"{PODS[1]}:8000"), self.row(0.4, upstream=f"{PODS[1]}:8000"))

        assert judged(killed(), KILL, router_log=log).ttd_s == pytest.approx(0.4)

    def test_requests_before_the_fault_and_after_the_restart_do_not_count(self) -> None:
        log = (self.row(-0.1), self.row(7.9), self.row(8.1, lost=True))

        assert judged(killed(), KILL, router_log=log).ttd_s == 0.0

    def test_a_request_lost_on_the_dead_pod_counts(self) -> None:
        assert judged(killed(), KILL, router_log=(self.row(0.7, lost=True),)).ttd_s == pytest.approx(0.7)

    def test_is_unknown_without_a_log(self) -> None:
        assert judged(killed(), KILL).ttd_s is None


class TestRouterRollout:
    def test_counts_what_ran_on_each_router(self) -> None:
        drains = tuple(Drain(f"router-{number}", None, T0 + 5 * number) for number in range(2))
        fault = replace(DELETE, kind="routerRollout", pod="llm-router", ip=None, drains=drains)
        rows = steady()
        for number, row in enumerate(rows):
            gone = [row["sent_s"] > T0 + 0.2, row["sent_s"] > T0 + 5.2]
            row["router"] = "router-2" if gone[number % 2] else f"router-{number % 2}"

        result = judged(rows, fault)

        assert result.verdict == "pass", result.reasons
        assert [drain.in_flight for drain in result.drains] == [pytest.approx(LASTS * RATE / 2, abs=2)] * 2
        assert result.in_flight == min(drain.in_flight or 0 for drain in result.drains)
        assert result.last_new_request_s == pytest.approx(0.2, abs=2 * BETWEEN)
