import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from llm_replicas.errors import UsageError
from llm_replicas.load.plan import load_plan
from llm_replicas.load.records import Record, RecordWriter
from llm_replicas.load.samples import HostReading, Sample, host_shares, read_samples
from llm_replicas.load.schedule import dues, read_schedule, write_schedule
from llm_replicas.load.selfcheck import SelfCheck, check, check_run, quantile

GOOD = Sample(1.0, 1.0, 0.002, 0.2, 5, 30, 0.5, 0.0, 0.1)


def checked(
    late: float = 0.001, sample: Sample = GOOD, recorded: int = 1000, sent: int = 1000, missing: int = 0
) -> SelfCheck:
    return check(
        scheduled=1000,
        lateness_s=[late] * sent,
        recorded=recorded,
        samples=[sample] * 30,
        workers_missing=missing,
    )


def test_a_punctual_generator_on_an_idle_host_is_valid() -> None:
    assert checked().valid
    assert checked().late_p99_ms == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (checked(late=0.030), "requests left late: p99 30.0 ms, limit 25 ms"),
        (checked(sample=replace(GOOD, hub_lag_s=0.2)), "own loop lagged: p99 200.0 ms"),
        (checked(recorded=990), "only 990 of 1000"),
        (checked(sent=0), "no request was sent"),
        (checked(missing=1), "1 workers left no record"),
        (checked(sample=replace(GOOD, cpu_share=0.95)), "process was busy: p95 95.0 %"),
        (checked(sample=replace(GOOD, host_steal_share=0.2)), "hypervisor took CPU time: mean 20.0 %"),
        (checked(sample=replace(GOOD, host_pressure_share=0.9)), "seconds 100.0 %, limit 5 %"),
    ],
)
def test_each_shortfall_makes_the_run_invalid_and_is_named(found: SelfCheck, reason: str) -> None:
    assert not found.valid
    assert len(found.reasons) == 1
    assert reason in found.reasons[0]


def test_no_data_is_never_valid() -> None:
    assert not check(scheduled=0, lateness_s=[], recorded=0, samples=[]).valid


def test_one_late_request_in_a_hundred_is_not_yet_the_99th_percentile() -> None:
    late = [0.001] * 99 + [5.0]

    assert quantile(late, 0.99) == 0.001
    assert quantile(late, 1.0) == 5.0
    assert quantile([], 0.5) is None


def test_figures_that_the_kernel_does_not_show_are_unknown_and_not_zero() -> None:
    found = checked(sample=replace(GOOD, host_steal_share=None, host_pressure_share=None))

    assert found.valid
    assert found.host_steal_share is None


def test_host_shares_come_from_the_difference_of_the_counters(tmp_path: Path) -> None:
    pressure = "some avg10=0.00 avg60=0.00 avg300=0.00 total={}\nfull x\n"
    (tmp_path / "pressure").mkdir()
    (tmp_path / "stat").write_text("cpu  100 0 50 800 50 0 0 0 0 0\ncpu0 1\n")
    (tmp_path / "pressure" / "cpu").write_text(pressure.format(1_000_000))
    before = HostReading.take(tmp_path)
    (tmp_path / "stat").write_text("cpu  150 0 60 820 60 0 0 10 0 0\ncpu0 1\n")
    (tmp_path / "pressure" / "cpu").write_text(pressure.format(1_250_000))

    shares = host_shares(before, HostReading.take(tmp_path), 1.0)

    assert [round(share or 0, 6) for share in shares] == [0.7, 0.1, 0.25]


def test_a_kernel_without_pressure_figures_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "stat").write_text("cpu  100 0 50 800 50 0 0 0 0 0\n")

    reading = HostReading.take(tmp_path)
    assert reading is not None
    assert reading.pressure_us is None
    assert HostReading.take(tmp_path / "nowhere") is None


def run_folder(tmp_path: Path, *, late: float = 0.001) -> Path:
    plan = load_plan(
        {
            "name": "p",
            "seed": 1,
            "model": "ensemble",
            "phases": [{"name": "a", "rate_per_second": 10, "requests": 50}],
        }
    )
    write_schedule(plan, tmp_path)
    writer = RecordWriter(tmp_path, "worker-0")
    for due in dues(read_schedule(tmp_path)):
        sent = due.due_s + late
        row = Record(due.request_id, "worker-0", due.phase, due.protocol, due.due_s, 0.0, 1, 1, "ok", sent)
        writer.add(row)
    writer.close()
    (tmp_path / "generator").mkdir()
    lines = "".join(json.dumps(asdict(GOOD)) + "\n" for _ in range(5))
    (tmp_path / "generator" / "worker-0.jsonl").write_text(lines + '{"t": 5.0, "wa')
    return tmp_path


def test_a_run_is_checked_from_its_folder_alone(tmp_path: Path) -> None:
    found = check_run(run_folder(tmp_path))

    assert found.valid
    assert (found.scheduled, found.recorded, found.sent) == (50, 50, 50)


def test_a_late_run_is_invalid_from_its_folder_alone(tmp_path: Path) -> None:
    assert not check_run(run_folder(tmp_path, late=0.5)).valid


def test_a_worker_that_left_no_record_is_missed(tmp_path: Path) -> None:
    run_folder(tmp_path)
    (tmp_path / "started.json").write_text('{"wall_start": 0.0, "monotonic_start": 0.0, "workers": 2}')

    assert check_run(tmp_path).reasons == ["1 workers left no record"]


def test_a_sample_line_cut_by_a_crash_is_left_out_and_a_wrong_one_is_named(tmp_path: Path) -> None:
    assert len(read_samples(run_folder(tmp_path))["worker-0"]) == 5
    (tmp_path / "generator" / "worker-0.jsonl").write_text('{"x": 1}\n')

    with pytest.raises(UsageError, match=r"worker-0\.jsonl, line 1"):
        read_samples(tmp_path)


def test_one_starved_minute_in_ten_is_enough_although_the_mean_looks_fine() -> None:
    quiet = [replace(GOOD, host_pressure_share=0.2)] * 540
    starved = [replace(GOOD, host_pressure_share=0.9)] * 60

    found = check(scheduled=100, lateness_s=[0.001] * 100, recorded=100, samples=quiet + starved)

    assert found.host_pressure_share is not None and found.host_pressure_share < 0.3
    assert any("starved" in reason for reason in found.reasons)
