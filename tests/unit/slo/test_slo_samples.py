from __future__ import annotations

import math

import numpy as np
import pytest

from llm_replicas.slo.model import METRICS
from llm_replicas.slo.samples import Labels
from tests.unit.slo.requests_by_hand import cut, failed, request, samples


class TestLatency:
    def test_counts_from_the_moment_the_request_was_due(self) -> None:
        late = request(10.0, ttft=0.2, lasts=3.0, sent_s=10.15)

        found = samples([late])

        assert found.latency("ttft")[0] == pytest.approx(0.2)
        assert found.latency("e2e")[0] == pytest.approx(3.0)
        assert found.lateness[0] == pytest.approx(0.15)

    def test_tpot_is_the_mean_time_after_the_first_token(self) -> None:
        found = samples([request(0.0, ttft=0.5, lasts=2.3, received_tokens=10)])

        assert found.latency("tpot")[0] == pytest.approx((2.3 - 0.5) / 9)

    @pytest.mark.parametrize("outcome", ["failed", "cut", "stalled", "duplicated", "unfinished"])
    @pytest.mark.parametrize("metric", METRICS)
    def test_whatever_did_not_end_well_took_for_ever(self, outcome: str, metric: str) -> None:
        found = samples([request(0.0, outcome=outcome)])

        assert math.isinf(found.latency(metric)[0])  # type: ignore[arg-type]

    def test_answers_of_one_event_have_no_gap_and_no_time_per_token(self) -> None:
        found = samples([request(0.0, received_tokens=1, events=1, gap=None)])

        assert np.isnan(found.latency("largestGap")[0])
        assert np.isnan(found.latency("tpot")[0])
        assert found.latency("ttft")[0] == pytest.approx(0.2)

    def test_answers_given_at_once_have_only_an_end(self) -> None:
        found = samples([request(0.0, protocol="generate"), failed(1.0, protocol="generate")])

        assert np.isnan(found.latency("ttft")).all()
        assert np.isnan(found.latency("largestGap")).all()
        assert found.latency("e2e")[0] == pytest.approx(2.0)
        assert math.isinf(found.latency("e2e")[1])

    def test_a_good_answer_without_its_first_moment_does_not_look_fast(self) -> None:
        found = samples([request(0.0, ttft=None)])

        assert math.isinf(found.latency("ttft")[0])


class TestColumns:
    def test_come_in_the_order_of_their_due_times(self) -> None:
        found = samples([request(2.0), request(1.0), request(3.0)])

        assert list(found.request_id) == ["r1", "r0", "r2"]

    def test_workers_that_count_from_different_moments_are_put_on_one_line(self) -> None:
        first = samples([request(1.0)])
        rows = {"request_id": ["a", "b"], "origin_wall": 100.0}
        columns = {
            name: [value, value] for name, value in request(1.0).items() if name not in {"wall_start", "request_id"}
        }
        from llm_replicas.slo.samples import from_columns

        found = from_columns({**columns, **rows, "wall_start": [100.0, 100.5]})

        assert found.scheduled - first.scheduled[0] == pytest.approx([0.0, 0.5])
        assert found.latency("ttft") == pytest.approx([0.2, 0.2])

    def test_a_request_still_open_at_the_end_has_no_end(self) -> None:
        found = samples([request(0.0, outcome="unfinished", end_s=None)])

        assert math.isinf(found.end[0])

    def test_lost_requests_are_failed_without_tokens_and_cut_with_some(self) -> None:
        found = samples([request(0.0), failed(1.0), cut(2.0, at=3.0), request(3.0, outcome="stalled")])

        assert found.failed.tolist() == [False, True, False, False]
        assert found.cut.tolist() == [False, False, True, True]

    def test_a_stream_silent_for_too_long_has_stalled_even_if_it_ended_well(self) -> None:
        found = samples([request(0.0, gap=10.5), request(1.0, gap=9.5)]).with_stalls(10.0)

        assert found.ok.tolist() == [False, True]
        assert math.isinf(found.latency("largestGap")[0])


class TestLabels:
    def test_hold_words_and_gaps(self) -> None:
        labels = Labels.of(["b", None, "a", "b"])

        assert [labels.at(row) for row in range(4)] == ["b", None, "a", "b"]
        assert labels.is_in("b", "z").tolist() == [True, False, False, True]
        assert labels.put(np.array([False, True, False, False]), "c").at(1) == "c"
        assert labels.take(np.array([1, 2])).used() == ("a",)
