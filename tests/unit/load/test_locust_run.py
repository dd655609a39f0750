"""The generator as it is used: Locust in processes of its own, against a fake Triton that misbehaves on
request.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llm_replicas.errors import InvalidRun, LlmReplicasError, UsageError
from llm_replicas.load.records import read_records, seal
from llm_replicas.load.run import LoadRun
from llm_replicas.load.samples import read_samples
from llm_replicas.load.schedule import Due

REPOSITORY = Path(__file__).parents[3]
LOCUSTFILE = REPOSITORY / "loadtests" / "locustfile.py"
# Far below every freeze and stall in here and far above what a busy test machine adds.
ON_TIME_SECONDS = 0.3
MIX = {"generate_stream": 0.6, "grpc_stream": 0.3, "generate": 0.1}

# What a fake Triton does to a request, and what the records must say of it; by protocol.
HTTP_CASES = {
    "cut": ("cut", "closed"),
    "reset": ("cut", "reset"),
    "stall": ("stalled", "stall"),
    "error_event": ("cut", "error_event"),
    "error_first": ("failed", "error_event"),
    "truncated": ("cut", "truncated"),
    "duplicated": ("duplicated", "duplicated"),
    "gap": ("cut", "gap"),
    "excess": ("duplicated", "excess"),
    "busy": ("failed", "http_503"),
    "hangup": ("failed", "reset"),
    "slow": ("ok", None),
}
GRPC_CASES = {
    "cut": ("cut", "grpc_unavailable"),
    "stall": ("stalled", "stall"),
    "error_event": ("cut", "error_event"),
    "truncated": ("cut", "truncated"),
    "duplicated": ("duplicated", "duplicated"),
    "gap": ("cut", "gap"),
    "busy": ("failed", "grpc_unavailable"),
    "unended": ("cut", "truncated"),
}

Serve = Callable[..., Any]
MakeRun = Callable[..., tuple[Path, list[Due]]]


def rows(folder: Path) -> dict[str, dict[str, Any]]:
    return {row["request_id"]: row for row in read_records(folder).to_pylist()}


def play(folder: Path, server: Any, **options: Any) -> dict[str, dict[str, Any]]:
    with LoadRun(folder, http_url=server.http_url, grpc_url=server.grpc_url, **options) as run:
        run.wait_started()
        run.wait_finished()
    return rows(folder)


def behave(dues: list[Due]) -> dict[str, tuple[str, tuple[str, str | None]]]:
    """Give each misbehaviour to one request that is long enough to show it."""
    given: dict[str, tuple[str, tuple[str, str | None]]] = {}
    for protocol, cases in (("generate_stream", HTTP_CASES), ("grpc_stream", GRPC_CASES)):
        long = [due for due in dues if due.protocol == protocol and due.max_tokens >= 8]
        for due, (behaviour, expected) in zip(long, cases.items(), strict=False):
            given[due.request_id] = (behaviour, expected)
    assert len(given) == len(HTTP_CASES) + len(GRPC_CASES), "the schedule is too short for all cases"
    return given


def test_each_misbehaviour_has_exactly_its_outcome_and_nothing_else_is_blamed(serve: Serve, make_run: MakeRun) -> None:
    folder, dues = make_run(
        workload={"mix": MIX},
        client={"stall_seconds": 0.7},
        phases=[{"name": "a", "rate_per_second": 20, "requests": 80}],
    )
    given = behave(dues)
    server = serve(seconds_per_event=0.02, behaviours={each: case[0] for each, case in given.items()})

    found = play(folder, server)

    assert {due.request_id for due in dues} == set(found)
    expected = dict.fromkeys(found, ("ok", None)) | {each: case[1] for each, case in given.items()}
    seen = {each: (row["outcome"], row["error_class"]) for each, row in found.items()}
    assert {each: (expected[each], seen[each]) for each in seen if seen[each] != expected[each]} == {}

    for due in dues:
        row = found[due.request_id]
        assert row["sent_s"] - due.due_s < ON_TIME_SECONDS
        if row["outcome"] != "ok":
            continue
        assert row["received_tokens"] == row["wanted_tokens"] == due.max_tokens
        if due.protocol == "generate_stream":
            assert (row["replica"], row["router"], row["attempts"]) == ("10.0.0.7:8000", "router-a", 1)
        if due.protocol == "grpc_stream":
            assert (row["replica"], row["status"]) == ("10.0.0.8:8001", 0)
            assert len(row["gaps_s"]) == row["events"] - 1
    for protocol in ("generate_stream", "grpc_stream"):
        # The pace of the server, not that of a buffer: it sends an event each 20 ms.
        gaps = [gap for row in found.values() if row["protocol"] == protocol for gap in row["gaps_s"]]
        assert 0.015 < statistics.median(gaps) < 0.1
    reused = [row["connection_reused"] for row in found.values()]
    assert reused.count(True) > len(reused) / 2


def test_a_freeze_shows_in_every_request_due_meanwhile(serve: Serve, make_run: MakeRun) -> None:
    freeze_at, freeze_for = 0.5, 1.5
    folder, dues = make_run(
        phases=[{"name": "a", "arrivals": "constant", "rate_per_second": 20, "duration_seconds": 2.5}]
    )
    server = serve(seconds_per_event=0.001, freeze_at=freeze_at, freeze_for=freeze_for, grpc=False)

    found = play(folder, server)

    # The server counts from its first request; a little slack on both edges for its own work.
    thaw = dues[0].due_s + freeze_at + freeze_for
    meanwhile = [due for due in dues if thaw - freeze_for + 0.2 < due.due_s < thaw - 0.2]
    assert len(meanwhile) >= 20
    for due in meanwhile:
        row = found[due.request_id]
        assert row["sent_s"] - due.due_s < ON_TIME_SECONDS, "sent on time although nothing was answered"
        assert row["first_byte_s"] == pytest.approx(thaw, abs=0.4)


def test_what_is_open_at_the_drain_deadline_is_unfinished(serve: Serve, make_run: MakeRun) -> None:
    folder, dues = make_run(
        workload={"mix": {"generate_stream": 0.5, "grpc_stream": 0.5}},
        drain_seconds=1,
        phases=[{"name": "a", "arrivals": "constant", "rate_per_second": 20, "requests": 10}],
    )
    server = serve(behaviours={due.request_id: "stall" for due in dues})

    found = play(folder, server)

    seen = {(row["outcome"], row["error_class"]) for row in found.values()}
    assert seen == {("unfinished", "drain_deadline")}
    assert len(found) == len(dues)


def test_a_killed_generator_leaves_readable_records_and_is_invalid(serve: Serve, make_run: MakeRun) -> None:
    folder, dues = make_run(phases=[{"name": "a", "rate_per_second": 20, "duration_seconds": 60}])
    server = serve(grpc=False)
    with LoadRun(folder, http_url=server.http_url) as run:
        started = run.wait_started()
        run.wait_until(started + 2.5)
        os.kill(run.pids[0], signal.SIGKILL)
        with pytest.raises(InvalidRun, match="killed by signal 9"):
            run.wait_until(started + 60)

    found = rows(folder)
    lost = [due for due in dues if due.due_s < 2.5 - 1.0 - 0.5 and due.request_id not in found]
    assert len(found) >= 20
    assert lost == [], "only the last second may be lost"
    seal(folder)
    assert rows(folder) == found


def test_a_generator_that_is_told_to_stop_writes_its_last_records(serve: Serve, make_run: MakeRun) -> None:
    folder, dues = make_run(phases=[{"name": "a", "rate_per_second": 20, "duration_seconds": 60}])
    server = serve(grpc=False, first_event_seconds=0.5)
    with LoadRun(folder, http_url=server.http_url) as run:
        started = run.wait_started()
        run.wait_until(started + 1.5)
        run.stop()

    found = rows(folder)
    assert {due.request_id for due in dues[: len(found)]} == set(found)
    assert {row["outcome"] for row in found.values()} == {"ok", "unfinished"}
    assert {row["error_class"] for row in found.values()} == {None, "interrupted"}


def test_two_workers_play_the_same_schedule_between_them(serve: Serve, make_run: MakeRun) -> None:
    folder, dues = make_run(
        workload={"mix": MIX},
        phases=[{"name": "a", "arrivals": "constant", "rate_per_second": 20, "requests": 30}],
    )
    before = (folder / "schedule.arrow").read_bytes()

    found = play(folder, serve(), workers=2)

    assert (folder / "schedule.arrow").read_bytes() == before
    assert {due.request_id: due.due_s for due in dues} == {each: row["scheduled_s"] for each, row in found.items()}
    for index, due in enumerate(dues):
        assert found[due.request_id]["worker"] == f"worker-{index % 2}"
        assert found[due.request_id]["outcome"] == "ok"
        assert found[due.request_id]["sent_s"] - due.due_s < ON_TIME_SECONDS
    assert json.loads((folder / "started.json").read_text())["workers"] == 2
    assert set(read_samples(folder)) == {"worker-0", "worker-1"}


def test_a_lost_worker_makes_the_run_invalid(serve: Serve, make_run: MakeRun) -> None:
    folder, _ = make_run(phases=[{"name": "a", "rate_per_second": 10, "duration_seconds": 60}])
    server = serve(grpc=False)
    with LoadRun(folder, http_url=server.http_url, workers=2) as run:
        run.wait_started()
        os.kill(run.pids[2], signal.SIGKILL)
        with pytest.raises(InvalidRun, match="is gone: the run is invalid"):
            run.wait_finished(timeout_seconds=20)


def locust(*arguments: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--headless", "--only-summary", *arguments],
        cwd=folder,
        env={
            "PATH": os.environ["PATH"],
            "PYTHONPATH": f"{REPOSITORY / 'harness'}{os.pathsep}{REPOSITORY}",
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_by_hand_it_makes_its_own_run_folder_and_failures_are_no_error_of_the_tool(
    serve: Serve, make_run: MakeRun, tmp_path: Path
) -> None:
    template, dues = make_run(phases=[{"name": "a", "arrivals": "constant", "rate_per_second": 20, "requests": 20}])
    server = serve(grpc=False, behaviours={dues[3].request_id: "busy"})

    done = locust("--host", server.http_url, folder=tmp_path, LLM_PLAN=str(template / "plan.yaml"))

    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.endswith("Z-p")
    assert (folder / "schedule.arrow").read_bytes() == (template / "schedule.arrow").read_bytes()
    assert [row["outcome"] for row in rows(folder).values()].count("failed") == 1
    assert "failed: http_503" in done.stdout + done.stderr


def test_a_wrong_argument_ends_with_code_2_and_one_message(tmp_path: Path) -> None:
    done = locust("--host", "http://127.0.0.1:9", folder=tmp_path)

    assert done.returncode == 2
    assert "no plan: give --llm-plan FILE" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_folder_that_holds_a_run_is_not_used_again(make_run: MakeRun) -> None:
    folder, _ = make_run()
    (folder / "started.json").write_text("{}")

    with pytest.raises(UsageError, match="a run was made in it already"):
        LoadRun(folder, http_url="http://127.0.0.1:9").start()


def test_a_refusal_reaches_the_caller_in_its_own_words(make_run: MakeRun) -> None:
    folder, _ = make_run(workload={"mix": MIX})

    with (
        pytest.raises(LlmReplicasError, match="give --llm-grpc-host"),
        LoadRun(folder, http_url="http://127.0.0.1:9") as run,
    ):
        run.wait_started()


def test_the_generator_ends_with_the_program_that_started_it(serve: Serve, make_run: MakeRun) -> None:
    folder, _ = make_run(phases=[{"name": "a", "rate_per_second": 10, "duration_seconds": 120}])
    server = serve(grpc=False)
    code = (
        "import sys; from pathlib import Path; from llm_replicas.load.run import LoadRun\n"
        "run = LoadRun(Path(sys.argv[1]), http_url=sys.argv[2]); run.start(); run.wait_started()\n"
        "print(run.pids[0], flush=True); sys.stdin.read()"
    )
    starter = subprocess.Popen(
        [sys.executable, "-c", code, str(folder), server.http_url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert starter.stdout is not None
    generator = int(starter.stdout.readline())
    starter.kill()
    starter.communicate()

    deadline = time.monotonic() + 10
    while Path(f"/proc/{generator}").exists() and time.monotonic() < deadline:
        if "Z (zombie)" in Path(f"/proc/{generator}/status").read_text():
            break
        time.sleep(0.1)
    else:
        assert time.monotonic() < deadline, "the generator went on without its parent"
    assert rows(folder)
