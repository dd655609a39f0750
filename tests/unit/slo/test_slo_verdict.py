from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.signal import lfilter

from llm_replicas.slo.facts import FaultEvent, Phase, RunFacts, SelfCheck
from llm_replicas.slo.model import Loosened, load_slo
from llm_replicas.slo.verdict import EXIT_CODES, judge
from tests.unit.slo.requests_by_hand import failed, request, samples

N = 3000
RATE = 30.0
LIMIT = 1.0
MOST_TO_PASS = 20  # of 3000 at p99 and 95 %
FEWEST_TO_FAIL = 40

SLO = load_slo({"latency": {"ttft": {"quantile": 0.99, "seconds": LIMIT}}, "errorRatio": 0.01})
PHASES = (Phase("warm-up", judged=False), Phase("steady", judged=True))


def facts(rows: list[dict[str, Any]] | None = None, **given: Any) -> RunFacts:
    given.setdefault("phases", PHASES)
    return RunFacts(slo=given.pop("slo", SLO), samples=samples(steady() if rows is None else rows), **given)


def steady(slow: int = 0, lost: int = 0, count: int = N) -> list[dict[str, Any]]:
    """Requests of which some, spread evenly at random, are slow or lost."""
    rng = np.random.default_rng(0)
    rows = [request(number / RATE, ttft=float(rng.uniform(0.1, 0.3))) for number in range(count)]
    chosen = rng.permutation(count)[: slow + lost]
    for number in chosen[:slow]:
        rows[number]["first_byte_s"] = rows[number]["scheduled_s"] + 1.5 * LIMIT
    for number in chosen[slow:]:
        rows[number] = failed(rows[number]["scheduled_s"])
    return rows


class TestObjectives:
    def test_few_slow_requests_are_proved_to_be_few(self) -> None:
        verdict = judge(facts(steady(slow=MOST_TO_PASS - 5)))

        assert verdict.verdict == "pass", verdict.reasons
        objective = verdict.objectives[0]
        assert (objective.name, objective.n, objective.exceedances) == ("ttft_p99", N, MOST_TO_PASS - 5)
        assert objective.bound is not None
        assert objective.bound <= LIMIT
        assert objective.headroom == pytest.approx(LIMIT / objective.value)  # type: ignore[operator]

    def test_many_slow_requests_refute(self) -> None:
        verdict = judge(facts(steady(slow=FEWEST_TO_FAIL + 10)))

        assert verdict.verdict == "fail"
        assert verdict.exit_code == 1

    def test_in_between_it_is_inconclusive_and_says_how_many_more(self) -> None:
        verdict = judge(facts(steady(slow=MOST_TO_PASS + 3)))

        assert verdict.verdict == "inconclusive"
        assert verdict.objectives[0].more_requests
        assert "more would decide it" in verdict.reasons[0]

    def test_lost_requests_count_as_infinitely_slow(self) -> None:
        verdict = judge(facts(steady(lost=FEWEST_TO_FAIL + 10)))

        ttft, errors = verdict.objectives
        assert ttft.exceedances == errors.exceedances == FEWEST_TO_FAIL + 10
        assert ttft.verdict == errors.verdict == "fail"
        assert ttft.value is None

    def test_too_few_requests_prove_nothing(self) -> None:
        verdict = judge(facts(steady(count=250)))

        assert verdict.verdict == "inconclusive"
        assert verdict.objectives[0].bound is None
        assert 299 - 250 <= (verdict.objectives[0].more_requests or 0) <= 299

    def test_only_steady_judged_phases_decide(self) -> None:
        rows = steady()
        rows += [request(N / RATE + number / RATE, ttft=5.0, phase="warm-up") for number in range(500)]

        verdict = judge(facts(rows))

        assert verdict.verdict == "pass"
        assert verdict.steady_requests == N
        assert verdict.requests == N + 500

    def test_requests_due_during_a_fault_do_not_decide_latency(self) -> None:
        fault = FaultEvent("podKill", "elsewhere", t0_s=10.0, healed_s=20.0)

        verdict = judge(facts(faults=(fault,)))

        assert verdict.steady_requests == pytest.approx(N - 10 * RATE, abs=2)

    def test_neighbours_too_alike_are_never_a_pass(self) -> None:
        rng = np.random.default_rng(0)
        alike = lfilter([1], [1, -0.9], rng.standard_normal(5 * N))
        rows = [request(number / RATE, ttft=0.3 + 0.01 * value) for number, value in enumerate(alike)]

        verdict = judge(facts(rows))

        assert verdict.verdict == "inconclusive"
        assert "too alike" in verdict.reasons[0]


class TestCombination:
    def test_invalid_outranks_fail(self) -> None:
        verdict = judge(facts(steady(slow=N // 10), self_check=SelfCheck(("sent late",))))

        assert verdict.verdict == "invalid"
        assert verdict.reasons == ("sent late",)

    def test_fail_outranks_inconclusive(self) -> None:
        verdict = judge(facts(steady(slow=N // 10), problems=("something was unreadable",)))

        assert verdict.verdict == "fail"

    @pytest.mark.parametrize(
        ("spoilt", "expected"),
        [
            ({"missing": ("r1",), "scheduled": N + 1}, "invalid"),
            ({"repeated": 1}, "invalid"),
            ({"unscheduled": 1}, "invalid"),
            ({"problems": ("plan.yaml is missing",)}, "inconclusive"),
            ({"phases": None}, "inconclusive"),
            ({"phases": (Phase("steady", judged=False),)}, "inconclusive"),
            ({"loosened": (Loosened("errorRatio", 0.01, 0.5),)}, "fail"),
            ({"slo": load_slo({})}, "inconclusive"),
        ],
    )
    def test_whatever_is_missing_keeps_it_from_passing(self, spoilt: dict[str, Any], expected: str) -> None:
        assert judge(facts(**spoilt)).verdict == expected

    def test_no_request_at_all_is_no_pass(self) -> None:
        assert judge(facts([])).verdict == "inconclusive"

    def test_a_planned_fault_that_did_not_happen_is_invalid(self) -> None:
        phases = (*PHASES, Phase("kill", judged=True, fault="podKill"))

        verdict = judge(facts(phases=phases))

        assert verdict.verdict == "invalid"
        assert verdict.faults[0].kind == "podKill"

    def test_promises_that_the_plan_does_not_test_are_named(self) -> None:
        slo = load_slo({**SLO.as_yaml(), "failover": {"podKill": {"failedNew": 0, "cut": 0}}})

        assert judge(facts(slo=slo)).not_tested == ("failover.podKill",)

    def test_every_verdict_has_its_exit_code(self) -> None:
        assert EXIT_CODES == {"pass": 0, "fail": 1, "inconclusive": 3, "invalid": 4}


class TestLongStreams:
    WITHDRAWAL = 7.0

    def verdict_with(self, share: float) -> str:
        rows = steady()
        for row in rows[: int(share * N)]:
            row["end_s"] = row["sent_s"] + self.WITHDRAWAL + 5.5
        fault = FaultEvent("podDelete", "elsewhere", t0_s=1e6, healed_s=1e6)
        found = judge(facts(rows, faults=(fault,), endpoint_withdrawal_s=self.WITHDRAWAL))
        return next(condition for condition in found.conditions if condition.name == "long streams").verdict

    def test_enough_streams_outlast_the_withdrawal(self) -> None:
        assert self.verdict_with(0.06) == "pass"

    def test_too_few_make_the_run_invalid(self) -> None:
        assert self.verdict_with(0.04) == "invalid"

    def test_is_asked_of_runs_that_drain_only(self) -> None:
        assert judge(facts()).conditions == ()


class TestAccounts:
    def test_what_was_lost_is_grouped_by_phase_and_cause_with_examples(self) -> None:
        rows = steady()
        for number in (5, 6, 7, 8):
            rows[number] = failed(rows[number]["scheduled_s"])
        rows[9] = failed(rows[9]["scheduled_s"], error_class="connect")

        lost = judge(facts(rows)).lost

        assert [(row.error_class, row.count) for row in lost] == [("http_503", 4), ("connect", 1)]
        assert lost[0].examples == ("r5", "r6", "r7")

    def test_every_objective_and_fault_is_in_the_summary(self) -> None:
        fault = FaultEvent("podKill", "steady", error="no such pod")

        lines = "\n".join(judge(facts(faults=(fault,))).summary())

        assert "ttft_p99" in lines
        assert "errorRatio" in lines
        assert "podKill" in lines

    def test_the_verdict_does_not_depend_on_the_order_of_the_records(self) -> None:
        rows = [{"request_id": f"q{number}", **row} for number, row in enumerate(steady(slow=15))]
        one, other = judge(facts(rows)), judge(facts(rows[::-1]))

        assert replace(one, provenance={}) == replace(other, provenance={})
