"""What clusters change for the whole machine is put back by the last of them."""

from pathlib import Path

import pytest

from llm_replicas.cluster.native import hostwide

BEFORE = 128


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in place of /run and of the kernel's setting."""
    (tmp_path / "watchers").write_text(f"{BEFORE}\n")
    monkeypatch.setattr(hostwide, "NOTES", tmp_path / "llm-replicas")
    monkeypatch.setattr(hostwide, "NAMESPACES", tmp_path / "netns")
    monkeypatch.setattr(hostwide, "WATCHERS", tmp_path / "watchers")
    return tmp_path


def limit(machine: Path) -> int:
    return int((machine / "watchers").read_text())


def test_the_last_cluster_puts_everything_back(machine: Path) -> None:
    hostwide.prepare()
    (machine / "netns").mkdir()

    hostwide.restore()

    assert limit(machine) == BEFORE
    assert sorted(path.name for path in machine.iterdir()) == ["watchers"]


def test_nothing_is_put_back_while_another_cluster_stands(machine: Path) -> None:
    hostwide.prepare()
    (machine / "netns").mkdir()
    (machine / "netns" / "llmr-abcdef-cp").touch()
    hostwide.prepare()

    hostwide.restore()

    assert limit(machine) == hostwide.ENOUGH_WATCHERS
    assert (machine / "netns").exists()


def test_a_second_cluster_does_not_take_the_first_ones_limit_for_the_machines(machine: Path) -> None:
    hostwide.prepare()
    hostwide.prepare()

    hostwide.restore()

    assert limit(machine) == BEFORE


def test_a_limit_that_is_high_enough_is_left_alone(machine: Path) -> None:
    (machine / "watchers").write_text("4096")

    hostwide.prepare()
    hostwide.restore()

    assert limit(machine) == 4096


def test_a_limit_that_somebody_else_has_set_since_stays(machine: Path) -> None:
    hostwide.prepare()
    (machine / "watchers").write_text("2048")

    hostwide.restore()

    assert limit(machine) == 2048


def test_a_namespaces_folder_that_others_use_stays(machine: Path) -> None:
    hostwide.prepare()
    (machine / "netns").mkdir()
    (machine / "netns" / "vpn").touch()

    hostwide.restore()

    assert (machine / "netns" / "vpn").exists()
