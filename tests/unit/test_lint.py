"""Style and types are part of what the tests promise."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TYPED = ["harness/llm_replicas", "loadtests"]
SCRIPTS = ["ci/llm-replicas", "ci/gate", "ci/test", "ci/lib/setup.sh", ".ci/run", "images/router/healthcheck"]


def test_ruff_has_nothing_to_say() -> None:
    result = run([sys.executable, "-m", "ruff", "check", "--no-cache", "."])

    assert result.returncode == 0, result.stdout


def test_mypy_strict_has_nothing_to_say() -> None:
    result = run([sys.executable, "-m", "mypy", "--strict", *TYPED])

    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("script", SCRIPTS)
def test_shell_scripts_parse(script: str) -> None:
    result = run(["bash", "-n", script])

    assert result.returncode == 0, result.stderr


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
@pytest.mark.parametrize("script", SCRIPTS)
def test_shellcheck_has_nothing_to_say(script: str) -> None:
    result = run(["shellcheck", "--external-sources", "--source-path=.", script])

    assert result.returncode == 0, result.stdout


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
