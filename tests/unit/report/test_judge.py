from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from llm_replicas.errors import UsageError
from llm_replicas.judge import decide, judge, write_reports
from llm_replicas.slo.verdict import Verdict
from tests.unit.report import synthetic_run as synthetic
from tests.unit.report.synthetic_run import SyntheticRun, build, cut, fail


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("runs") / "healthy")


@pytest.fixture(scope="module")
def verdict(healthy: Path) -> Verdict:
    return judge(healthy)


@pytest.fixture
def copy(healthy: Path, tmp_path: Path) -> Path:
    """A run folder to spoil."""
    return Path(shutil.copytree(healthy, tmp_path / "copy"))


class TestAHealthyRun:
    def test_passes(self, verdict: Verdict) -> None:
        assert verdict.verdict == "pass", verdict.reasons

    def test_counts_every_request_once(self, verdict: Verdict) -> None:
        others = sum(int(seconds * synthetic.RATE) for _, seconds, _ in synthetic.PHASES if seconds is not None)

        assert verdict.steady_requests == synthetic.STEADY_REQUESTS
        assert verdict.requests == synthetic.STEADY_REQUESTS + others
        assert sum(phase.requests for phase in verdict.phases) == verdict.requests

    def test_only_the_kill_cut_streams_and_only_on_its_pod(self, verdict: Verdict) -> None:
        cuts = {fault.kind: (fault.cut, fault.cut_elsewhere) for fault in verdict.faults}

        assert cuts.pop("podKill") == (verdict.cut, 0)
        assert verdict.cut > 20
        assert set(cuts.values()) == {(0, 0)}
        assert verdict.failed == 0

    def test_measures_how_long_deleted_pods_got_new_requests(self, verdict: Verdict) -> None:
        graceful = [fault for fault in verdict.faults if fault.kind in {"podDelete", "replicaRollout"}]

        for fault in graceful:
            assert fault.last_new_request_s == pytest.approx(synthetic.LAST_NEW_SECONDS, abs=0.3)

    def test_measures_how_long_the_killed_pod_was_tried(self, verdict: Verdict) -> None:
        kill = next(fault for fault in verdict.faults if fault.kind == "podKill")

        assert kill.ttd_s is not None
        assert 0 < kill.ttd_s <= synthetic.DETECT_SECONDS + 0.01
        assert kill.ttr_s is not None
        assert kill.ttr_s <= 1

    def test_holds_what_others_read(self, healthy: Path, verdict: Verdict) -> None:
        found = json.loads((healthy / "verdict.json").read_text())

        assert {"verdict", "requests", "failed", "cut", "objectives", "faults", "generator"} <= found.keys()
        for objective in found["objectives"]:
            assert {
                "name", "threshold", "unit", "n", "n_eff", "exceedances", "bound", "verdict"
            } <= objective.keys()  # fmt: skip
        for fault in found["faults"]:
            assert {
                "kind", "t0", "in_flight", "failed_new", "cut", "ttd_s", "ttr_s", "verdict"
            } <= fault.keys()  # fmt: skip
        assert {"late_p99_ms", "valid"} <= found["generator"].keys()
        assert found["faults"][0]["t0"] == pytest.approx(synthetic.WALL_START + (verdict.faults[0].t0_s or 0), abs=1e-3)

    def test_is_judged_alike_before_it_is_sealed(self, verdict: Verdict, tmp_path: Path) -> None:
        unsealed, _ = decide(build(tmp_path / "unsealed", sealed=False))

        assert unsealed.objectives == verdict.objectives
        assert unsealed.faults == verdict.faults

    def test_its_reports_can_be_written_anew(self, copy: Path) -> None:
        for name in ("report.html", "junit.xml"):
            (copy / name).unlink()

        assert write_reports(copy) == copy / "report.html"
        assert (copy / "junit.xml").is_file()


class TestRedTwins:
    """A run with one thing wrong must not pass; each would pass if its control were dropped."""

    def judged(self, folder: Path, edit: synthetic.Edit) -> Verdict:
        return decide(build(folder / "red", edit))[0]

    def test_one_stream_cut_by_a_graceful_delete(self, tmp_path: Path) -> None:
        def edit(run: SyntheticRun) -> None:
            victim, t0 = run.fault("podDelete")["target"]["ip"], run.fault("podDelete")["t0_wall"]
            sigterm = t0 - synthetic.WALL_START + synthetic.WITHDRAWAL_SECONDS
            stream = next(
                record
                for record in run.of_phase("pod-delete")
                if record.replica == f"{victim}:8000"
                and record.protocol == "generate_stream"
                and (record.first_byte_s or 0) + 1 < sigterm < (record.end_s or 0) - 1
            )
            cut(stream, sigterm + 0.5)

        verdict = self.judged(tmp_path, edit)

        assert verdict.verdict == "fail"
        assert {fault.kind: fault.verdict for fault in verdict.faults}["podDelete"] == "fail"

    def test_one_new_request_failed_after_the_kill(self, tmp_path: Path) -> None:
        def edit(run: SyntheticRun) -> None:
            t0 = run.fault("podKill")["t0_wall"] - synthetic.WALL_START
            fail(next(record for record in run.of_phase("pod-kill") if record.scheduled_s > t0 + 0.1))

        verdict = self.judged(tmp_path, edit)

        assert verdict.verdict == "fail"
        assert sum(fault.failed_new for fault in verdict.faults) == 1

    def test_slow_steady_requests(self, tmp_path: Path) -> None:
        def edit(run: SyntheticRun) -> None:
            for record in run.of_phase("steady")[::50]:
                record.first_byte_s = record.scheduled_s + synthetic.SLOW_TTFT_SECONDS
                record.end_s = max(record.end_s or 0, record.first_byte_s)

        verdict = self.judged(tmp_path, edit)

        assert verdict.verdict == "fail"
        assert verdict.objectives[0].verdict == "fail"

    def test_cut_steady_streams_are_slow_ones(self, tmp_path: Path) -> None:
        def edit(run: SyntheticRun) -> None:
            streams = [record for record in run.of_phase("steady") if record.events > 6]
            for record in streams[::40]:
                cut(record, (record.first_byte_s or 0) + 1.0)

        verdict = self.judged(tmp_path, edit)

        assert [each.verdict for each in verdict.objectives] == ["fail", "fail", "fail"]

    def test_a_late_generator_is_invalid_and_not_a_fail(self, tmp_path: Path) -> None:
        def edit(run: SyntheticRun) -> None:
            for record in run.records[::20]:
                record.sent_s = record.scheduled_s + 0.5

        verdict = self.judged(tmp_path, edit)

        assert verdict.verdict == "invalid"
        assert not verdict.generator.valid

    def test_a_lost_worker_is_invalid(self, tmp_path: Path) -> None:
        def edit(run: SyntheticRun) -> None:
            del run.records[1000:1100]

        verdict = self.judged(tmp_path, edit)

        assert verdict.verdict == "invalid"
        assert verdict.generator.missing == 100

    def test_a_pod_that_is_sent_requests_until_its_end(self, tmp_path: Path) -> None:
        def edit(run: SyntheticRun) -> None:
            run.environment["endpoint_withdrawal_seconds"] = synthetic.LAST_NEW_SECONDS / 2

        assert self.judged(tmp_path, edit).verdict == "fail"

    def test_streams_too_short_to_test_a_drain(self, tmp_path: Path) -> None:
        def edit(run: SyntheticRun) -> None:
            run.environment["endpoint_withdrawal_seconds"] = 60.0

        assert self.judged(tmp_path, edit).verdict == "invalid"


class TestBrokenFolders:
    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("slo.yaml", "inconclusive"),
            ("plan.yaml", "inconclusive"),
            ("schedule.arrow", "inconclusive"),
            ("records.parquet", "invalid"),
            ("faults.json", "invalid"),
            ("environment.json", "inconclusive"),
        ],
    )
    def test_a_missing_file_is_a_reason_and_no_pass(self, name: str, expected: str, copy: Path) -> None:
        (copy / name).unlink()

        verdict = judge(copy)

        assert verdict.verdict == expected
        assert verdict.reasons
        assert (copy / "report.html").is_file()

    @pytest.mark.parametrize(
        "name",
        [
            "slo.yaml",
            "plan.yaml",
            "schedule.arrow",
            "records.parquet",
            "faults.json",
            "environment.json",
            "started.json",
        ],
    )
    @pytest.mark.parametrize("content", [b"", b"\x00\xff garbage", b"[1, 2", b"[3]", b"null"])
    def test_a_garbled_file_is_a_reason_and_no_pass(self, name: str, content: bytes, copy: Path) -> None:
        (copy / name).write_bytes(content)

        verdict, _ = decide(copy)

        assert verdict.verdict in {"inconclusive", "invalid"}
        assert verdict.reasons

    def test_a_garbled_router_log_is_done_without(self, copy: Path) -> None:
        (copy / "router-access.jsonl").write_bytes(b"{]\n\xff\xfe\n" * 20)

        kill = next(fault for fault in decide(copy)[0].faults if fault.kind == "podKill")

        assert kill.ttd_s is None

    def test_a_segment_cut_at_any_byte_is_judged(self, tmp_path: Path) -> None:
        folder = build(tmp_path / "crashed", sealed=False)
        segment = next((folder / "segments").glob("*.arrow"))
        whole = segment.read_bytes()
        for share in (0.0, 0.001, 0.3, 0.77, 0.999):
            segment.write_bytes(whole[: int(len(whole) * share)])

            verdict, _ = decide(folder)

            assert verdict.verdict == "invalid"
            assert verdict.generator.missing > 0

    def test_a_changed_table_is_noticed(self, copy: Path) -> None:
        text = (copy / "slo.yaml").read_text()
        (copy / "slo.yaml").write_text(text.replace("seconds: 1.2", "seconds: 12.0"))

        verdict, _ = decide(copy)

        assert verdict.verdict == "inconclusive"
        assert "changed after the run" in verdict.reasons[0]

    def test_an_empty_folder_is_judged(self, tmp_path: Path) -> None:
        verdict = judge(tmp_path)

        assert verdict.verdict in {"inconclusive", "invalid"}

    def test_a_folder_that_is_not_there_is_an_error_of_use(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="is not there"):
            judge(tmp_path / "absent")


class TestTables:
    def test_a_given_table_wins(self, copy: Path, tmp_path: Path) -> None:
        table = tmp_path / "strict.yaml"
        table.write_text(json.dumps({"latency": {"ttft": {"quantile": 0.99, "seconds": 0.2}}}))

        assert decide(copy, slo=table)[0].verdict == "fail"

    def test_a_table_looser_than_the_baseline_fails_unless_acknowledged(self, copy: Path, tmp_path: Path) -> None:
        baseline = tmp_path / "baseline.yaml"
        strict = json.loads(json.dumps(synthetic.SLO))
        strict["slo"]["latency"]["ttft"]["seconds"] = 1.1
        baseline.write_text(json.dumps(strict))

        refused, _ = decide(copy, baseline=baseline)

        assert refused.verdict == "fail"
        assert "latency.ttft.seconds" in refused.reasons[0]
        assert judge(copy, baseline=baseline, acknowledge_looser=True).verdict == "pass"
