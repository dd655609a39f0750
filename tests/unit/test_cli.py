"""How the command ends: exit codes, messages and help are a contract with scripts and newcomers."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
import yaml

from llm_replicas import cli
from llm_replicas.errors import EnvironmentProblem, InvalidRun, LlmReplicasError, UsageError

ROOT = Path(__file__).parents[2]

# What a newcomer must find in the help of each command.
HELP = {
    (): ["gate", "judge", "load", "fault", "check", "up", "down", "tools", "--version"],
    ("gate",): ["--cluster", "native", "existing", "--context", "--plan", "--json", "PASS", "INVALID", "--keep"],
    ("judge",): ["run folder", "--slo", "after a crash"],
    ("report",): ["report.html", "junit.xml"],
    ("load",): ["--url", "--plan", "smoke plan", "run folder"],
    ("fault",): ["podDelete", "podKill", "replicaRollout", "routerRollout", "--namespace"],
    ("check",): ["--values", "schema"],
    ("up",): ["--nodes", "--name", "native"],
    ("down",): ["--name", "crashed"],
    ("tools",): ["build", "bundle"],
    ("tools", "build"): ["--no-images"],
    ("tools", "bundle"): ["without package registries"],
}


@pytest.fixture(autouse=True)
def wide_terminal_and_same_handlers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Messages are not wrapped; the command sets its own signal handler and the test run keeps its."""
    monkeypatch.setenv("COLUMNS", "200")
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def ended(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Run the command in this process; returns its exit code."""
    monkeypatch.setattr(sys, "argv", ["llm-replicas", *(str(each) for each in arguments)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert isinstance(end.value.code, int)
    return end.value.code


def judged(monkeypatch: pytest.MonkeyPatch, folder: Path, error: BaseException) -> int:
    """Run ``judge`` with an error in the judge's place."""

    def decide(*_given: object, **_options: object) -> None:
        raise error

    monkeypatch.setattr("llm_replicas.judge.judge", decide)
    return ended(monkeypatch, "judge", folder)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("given x; accepted y"), 2),
        (EnvironmentProblem("given x; accepted y"), 2),
        (LlmReplicasError("given x; accepted y"), 2),
        (InvalidRun("given x; accepted y"), 4),
    ],
)
def test_each_kind_of_error_has_its_exit_code_and_no_trace(
    error: LlmReplicasError,
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert judged(monkeypatch, tmp_path, error) == code == error.exit_code

    said = capsys.readouterr()
    assert "given x; accepted y" in said.err
    assert "Traceback" not in said.err
    assert said.out == ""


def test_square_brackets_in_a_message_are_told_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # As the API server lists several faults of one object.
    words = '[metadata.name: Invalid value: "A", spec.replicas: Required value] and [/metrics]'

    assert judged(monkeypatch, tmp_path, EnvironmentProblem(words)) == 2

    assert words in capsys.readouterr().err


def test_an_unexpected_exception_is_an_error_of_ours_with_its_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert judged(monkeypatch, tmp_path, ZeroDivisionError("by [nothing]")) == 2

    said = capsys.readouterr().err
    assert "ZeroDivisionError: by [nothing]" in said
    assert "test_cli.py" in said
    assert "a fault of llm-replicas itself" in said


def test_ctrl_c_ends_with_130(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert judged(monkeypatch, tmp_path, KeyboardInterrupt()) == 130

    assert capsys.readouterr().err.split() == ["interrupted"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_running_command_with_130(number: signal.Signals, tmp_path: Path) -> None:
    busy = (
        "import signal, time, llm_replicas.judge as j\n"
        # A test run in the background of a shell would hand down an ignored SIGINT.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "j.judge = lambda *a, **k: (print('at work', flush=True), time.sleep(60))\n"
        "from llm_replicas.cli import main; main()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", busy, "judge", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "harness")},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "at work\n"

    process.send_signal(number)
    _, said = process.communicate(timeout=20)

    assert process.returncode == 130
    assert said.split() == ["interrupted"]


@pytest.mark.parametrize("command", HELP, ids=lambda command: " ".join(command) or "llm-replicas")
def test_the_help_tells_a_newcomer_what_there_is(
    command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(monkeypatch, *command, "--help") == 0

    said = " ".join(capsys.readouterr().out.split())
    assert [word for word in HELP[command] if word not in said] == []


def test_every_command_has_its_help_tested() -> None:
    groups: list[tuple[tuple[str, ...], typer.Typer]] = [((), cli.app), (("tools",), cli.tools_app)]
    commands = {
        (*path, each.name or each.callback.__name__)
        for path, group in groups
        for each in group.registered_commands
        if each.callback
    }

    assert commands <= HELP.keys()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("gate", "--colour", "red"), "--colour"),
        (("gate", "--cluster", "docker"), "'native', 'kind', 'existing'"),
        (("up", "--nodes", "0"), "greater than or equal to 1"),
        (("deploy",), "deploy"),
        (("judge",), "'run'"),
        (("fault", "podEat"), "podDelete, podKill, replicaRollout, routerRollout"),
    ],
)
def test_what_is_not_accepted_is_named_with_what_is(
    arguments: tuple[str, ...], named: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(monkeypatch, *arguments) == 2

    assert named in capsys.readouterr().err


def test_the_version_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(monkeypatch, "--version") == 0

    assert capsys.readouterr().out.startswith("llm-replicas ")


@pytest.mark.parametrize("command", ["judge", "report"])
def test_a_missing_run_folder_is_a_usage_error(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(monkeypatch, command, tmp_path / "nowhere") == 2

    assert str(tmp_path / "nowhere") in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_records_gets_a_verdict_that_is_no_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(monkeypatch, "judge", tmp_path, "--json") in {1, 3, 4}

    assert '"verdict": "pass"' not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("option", "content", "named"),
    [
        ("--plan", {"name": "p", "sed": 1}, "sed"),
        ("--slo", {"latency": {"tftt": {"quantile": 0.99, "seconds": 1}}}, "tftt"),
        ("--baseline", {"errorRatio": "much"}, "errorRatio"),
        ("--values", None, "no such file"),
    ],
)
def test_a_wrong_file_is_told_before_a_cluster_is_asked_for_anything(
    option: str,
    content: object,
    named: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "given.yaml"
    if content is not None:
        file.write_text(yaml.safe_dump(content))
    monkeypatch.setattr("llm_replicas.places.make_cluster", lambda *_a, **_k: pytest.fail("a cluster was asked"))

    assert ended(monkeypatch, "gate", "--cluster", "existing", option, file, "--runs", tmp_path / "runs") == 2

    assert named in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
