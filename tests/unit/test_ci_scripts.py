"""The set-up that the commands in ci/ share, on machines that lack something."""

import os
import shlex
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SETUP = ROOT / "ci" / "lib" / "setup.sh"


def bash(program: str, path: str | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a few lines after setup.sh was read, optionally with another PATH for those lines."""
    lines = ["set -euo pipefail", f"source {shlex.quote(str(SETUP))}"]
    if path is not None:
        lines.append(f"PATH={shlex.quote(path)}")
    return subprocess.run(
        ["/bin/bash", "-c", "\n".join([*lines, program])],
        env={"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/root"), **variables},
        capture_output=True,
        text=True,
        check=False,
    )


def program_in(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(f"#!/bin/bash\n{text}\n")
    (folder / name).chmod(0o755)


class TestNativeClusterIsSetUp:
    @pytest.mark.parametrize(
        "arguments",
        [
            "gate",
            "gate --json",
            "up --nodes 3",
            "down",
            "tools build",
            "gate --cluster kind --cluster native",
        ],
    )
    def test_for_commands_that_use_it(self, arguments: str) -> None:
        assert bash(f"wants_native {arguments}").returncode == 0

    @pytest.mark.parametrize(
        "arguments",
        [
            "",
            "--help",
            "gate --help",
            "judge runs/x",
            "load --url http://localhost:8080",
            "gate --cluster native --cluster existing --context prod",
            "gate --cluster=kind",
        ],
    )
    def test_not_for_others(self, arguments: str) -> None:
        assert bash(f"wants_native {arguments}").returncode == 1


class TestMissingPackages:
    def test_are_found_by_command_file_and_library(self, tmp_path: Path) -> None:
        needs = (
            "no-such-command|alpha|first\n/no/such/file|beta|second\nno-such.a|gamma|third\nbash|bash|here"
        )

        result = bash(f"missing_packages '{needs}'")

        assert result.stdout.splitlines() == ["alpha|first", "beta|second", "gamma|third"]

    def test_are_installed_and_named_with_their_reason_on_stderr(self, tmp_path: Path) -> None:
        program_in(tmp_path, "apt-get", f'echo "$@" >>{tmp_path}/calls; echo noise')
        setup = "is_root() { true; }"

        result = bash(
            f"{setup}\ninstall_packages $'no-such-package|holds the data\\nother-package|moves it'",
            path=f"{tmp_path}:{os.environ['PATH']}",
        )

        if result.returncode != 0 and os.geteuid() != 0:
            pytest.skip("only root may say which services do not start")
        assert result.returncode == 0, result.stderr
        assert "no-such-package (holds the data)" in result.stderr
        assert result.stdout == ""
        update, install = (tmp_path / "calls").read_text().splitlines()
        assert update.startswith("update")
        assert install.endswith("--no-install-recommends no-such-package other-package")

    def test_without_apt_are_named_with_the_next_step(self, tmp_path: Path) -> None:
        result = bash("install_packages 'etcd-server|holds the data'", path=str(tmp_path))

        assert result.returncode == 2
        assert "lacks etcd-server, and there is no apt-get" in result.stderr
        assert "LLM_REPLICAS_BIN" in result.stderr

    def test_without_root_are_named_with_the_command_to_run(self, tmp_path: Path) -> None:
        program_in(tmp_path, "apt-get", "exit 1")

        result = bash(
            "is_root() { false; }; install_packages 'etcd-server|holds the data'",
            path=f"{tmp_path}:{os.environ['PATH']}",
        )

        assert result.returncode == 2
        assert "sudo apt-get install etcd-server" in result.stderr

    def test_that_apt_cannot_install_end_with_its_output(self, tmp_path: Path) -> None:
        program_in(tmp_path, "apt-get", "echo E: Unable to locate package >&2; exit 100")

        result = bash(
            "is_root() { true; }; install_packages 'etcd-server|holds the data'",
            path=f"{tmp_path}:{os.environ['PATH']}",
        )

        assert result.returncode == 2
        assert "Unable to locate package" in result.stderr
        assert "apt-get could not install: etcd-server" in result.stderr


class TestRefusals:
    def test_no_root_names_the_alternative(self) -> None:
        result = bash("is_root() { false; }; setup_native")

        assert result.returncode == 2
        assert "needs root" in result.stderr
        assert "--cluster existing" in result.stderr

    def test_no_go_says_where_to_get_it(self, tmp_path: Path) -> None:
        result = bash("is_root() { true; }; setup_native", path=str(tmp_path))

        assert result.returncode == 2
        assert "no go in PATH" in result.stderr

    def test_old_python_says_what_is_needed(self, tmp_path: Path) -> None:
        program_in(tmp_path, "python3", "exit 1")

        result = bash("find_python", path=str(tmp_path))

        assert result.returncode == 2
        assert "Python 3.11 or newer is needed" in result.stderr


class TestEnvironment:
    def test_that_is_complete_is_taken_as_it_is(self, tmp_path: Path) -> None:
        found = bash(
            f"find_python; make_venv {ROOT} 2>/dev/null; echo $VENV",
            LLM_REPLICAS_CACHE=str(tmp_path),
            PATH=f"{fake_python(tmp_path)}:{os.environ['PATH']}",
        )
        again = bash(
            f"find_python; make_venv {ROOT}; echo $VENV",
            LLM_REPLICAS_CACHE=str(tmp_path),
            PATH=f"{tmp_path / 'path'}:{os.environ['PATH']}",
        )

        assert found.returncode == 0, found.stderr
        assert again.stdout == found.stdout
        assert again.stderr == ""
        assert (tmp_path / "made").read_text() == "made\n"

    def test_that_pip_could_not_fill_is_not_left_behind(self, tmp_path: Path) -> None:
        result = bash(
            f"find_python; make_venv {ROOT}",
            LLM_REPLICAS_CACHE=str(tmp_path),
            PATH=f"{fake_python(tmp_path, pip='exit 1')}:{os.environ['PATH']}",
        )

        assert result.returncode == 2
        assert "PIP_INDEX_URL" in result.stderr
        assert [entry.name for entry in (tmp_path / "venv").iterdir()] == [".lock"]


def fake_python(folder: Path, pip: str = "exit 0") -> Path:
    """Put a python3 in a folder of its own that makes virtual environments with the given pip."""
    path = folder / "path"
    path.mkdir()
    python = path / "python3"
    program_in(
        path,
        "python3",
        f"""case "$1 $2" in
  '-c '*executable*) echo {python} ;;
  '-m venv') mkdir -p "$3/bin"; cp {python} "$3/bin/python"; echo made >>{folder}/made ;;
  '-m pip') {pip} ;;
  '-VV '*) echo Python 3.11.99 ;;
esac""",
    )
    return path
