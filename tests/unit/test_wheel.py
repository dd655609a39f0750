"""The wheel works where nothing else of the repository is."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel with the build backend of this environment, so that no network is needed."""
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)

    assert result.returncode == 0, result.stdout + result.stderr
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel alone into an empty folder; what it depends on comes from this environment."""
    folder = tmp_path_factory.mktemp("installed")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*command, "--target", str(folder), str(wheel)], check=True)
    return folder


def names_in(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as packed:
        return packed.namelist()


def test_holds_the_package_and_the_load_tests_and_no_tests(wheel: Path) -> None:
    tops = {name.split("/")[0] for name in names_in(wheel) if ".dist-info/" not in name}

    assert tops == {"llm_replicas", "loadtests"}


def test_carries_plans_the_trace_and_the_licence(wheel: Path) -> None:
    names = names_in(wheel)

    assert any(name.startswith("loadtests/plans/") and name.endswith(".yaml") for name in names)
    assert any(name.startswith("loadtests/traces/") for name in names)
    assert any(name.endswith("/licenses/LICENSE") for name in names)
    assert "llm_replicas/py.typed" in names


@pytest.mark.parametrize("arguments", [["--help"], ["load", "--help"], ["judge", "--help"]])
def test_runs_from_an_empty_folder(installed: Path, tmp_path: Path, arguments: list[str]) -> None:
    result = subprocess.run(
        [str(installed / "bin" / "llm-replicas"), *arguments],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert result.returncode == 0, result.stderr
    assert "Usage: llm-replicas" in " ".join(result.stdout.split())


def test_a_command_that_needs_the_repository_says_so(installed: Path, tmp_path: Path) -> None:
    program = "from llm_replicas.cluster.images import build_image; build_image('pause')"
    result = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed), "LLM_REPLICAS_ROOT": ""},
        capture_output=True,
        text=True,
        check=False,
    )

    assert "Run ci/llm-replicas in a clone" in result.stderr
