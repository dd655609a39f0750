from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llm_replicas.errors import InvalidRun, UsageError
from llm_replicas.load.schedule import Due
from loadtests.part import Assignment, Part, prepare

MIX = {"generate_stream": 0.9, "grpc_stream": 0.1}
URL = "http://127.0.0.1:9"

MakeRun = Callable[..., tuple[Path, list[Due]]]


@pytest.mark.parametrize(
    ("plan", "url", "grpc", "words"),
    [
        (False, URL, "127.0.0.1:9", "no plan: give --llm-plan FILE"),
        (True, "", "127.0.0.1:9", "no URL: give --host"),
        (True, "127.0.0.1:9", "127.0.0.1:9", "accepted is http://HOST"),
        (True, URL, "", "give --llm-grpc-host HOST:PORT"),
        (True, URL, "nowhere", "accepted is HOST:PORT"),
    ],
)
def test_what_is_missing_is_told_and_nothing_is_written(
    make_run: MakeRun,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    plan: bool,
    url: str,
    grpc: str,
    words: str,
) -> None:
    monkeypatch.setattr("llm_replicas.triton.grpc_stream.prepare_for_gevent", lambda: None)
    monkeypatch.chdir(tmp_path)
    template, _ = make_run(workload={"mix": MIX})

    with pytest.raises(UsageError, match=words):
        prepare(str(template / "plan.yaml") if plan else "", "", url, grpc)

    assert not (tmp_path / "runs").exists()


def test_a_folder_is_completed_with_plan_and_schedule(make_run: MakeRun, tmp_path: Path) -> None:
    template, _ = make_run()

    run = prepare(str(template / "plan.yaml"), str(tmp_path / "new"), URL, None)

    assert run == prepare("", str(tmp_path / "new"), URL, None)
    assert (tmp_path / "new" / "schedule.arrow").read_bytes() == (template / "schedule.arrow").read_bytes()


def test_a_folder_of_another_plan_is_refused(make_run: MakeRun, tmp_path: Path) -> None:
    template, _ = make_run()
    other = tmp_path / "other.yaml"
    other.write_text((template / "plan.yaml").read_text().replace("seed: 1", "seed: 2"))

    with pytest.raises(UsageError, match="is another plan than"):
        prepare(str(other), str(template), URL, None)


def test_a_worker_with_another_schedule_refuses_to_play(make_run: MakeRun) -> None:
    folder, _ = make_run()
    run = prepare("", str(folder), URL, None)
    message = Assignment(run, 1, 2, 0.0).as_message()
    message["run"]["digest"] = "0" * 64

    def ignore(*_: Any) -> None:
        return None

    with pytest.raises(InvalidRun, match="worker-1 has another schedule than the master"):
        Part(Assignment.from_message(message), on_record=ignore, each_second=ignore)


def test_a_worker_without_the_folder_makes_the_same_schedule(make_run: MakeRun, tmp_path: Path) -> None:
    folder, dues = make_run()
    message = Assignment(prepare("", str(folder), URL, None), 1, 2, 0.0).as_message()
    message["run"]["folder"] = str(tmp_path / "elsewhere")

    part = Part(Assignment.from_message(message), on_record=lambda _: None, each_second=lambda: None)

    assert part.worker == "worker-1"
    assert list(part.dispatcher._dues) == dues[1::2]
