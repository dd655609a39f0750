"""The command lines for kind, against a recording fake; kind itself is not run."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from llm_replicas.cluster.kind import KindCluster, run
from llm_replicas.errors import EnvironmentProblem, UsageError


class Recorder:
    """Takes down every command line and answers `kind get clusters`."""

    def __init__(self, clusters: str = "", fail_on: str = "") -> None:
        self.commands: list[list[str]] = []
        self.configuration: dict[str, object] = {}
        self._clusters = clusters
        self._fail_on = fail_on

    def __call__(self, command: Sequence[str]) -> str:
        self.commands.append(list(command))
        if "--config" in command:
            self.configuration = yaml.safe_load(Path(command[list(command).index("--config") + 1]).read_text())
        if self._fail_on and self._fail_on in command:
            raise EnvironmentProblem("no")
        return self._clusters if command[:3] == ["kind", "get", "clusters"] else ""


def cluster(recorder: Recorder, folder: Path, **options: object) -> KindCluster:
    return KindCluster("gate", state_root=folder, runner=recorder, **options)  # type: ignore[arg-type]


def test_up_creates_a_cluster_with_a_kubeconfig_of_its_own(tmp_path: Path) -> None:
    recorder = Recorder()

    cluster(recorder, tmp_path, nodes=2, zones=["a", "b"], image="kindest/node:v1.36.0").up()

    create = recorder.commands[1]
    config = create[create.index("--config") + 1]
    kubeconfig = str(tmp_path / "kind" / "gate.kubeconfig")
    assert create == [
        *("kind", "create", "cluster", "--name", "gate", "--config", config),
        *("--kubeconfig", kubeconfig, "--wait", "180s", "--image", "kindest/node:v1.36.0"),
    ]
    assert recorder.configuration["nodes"] == [
        {"role": "control-plane"},
        {"role": "worker", "labels": {"topology.kubernetes.io/zone": "a"}},
        {"role": "worker", "labels": {"topology.kubernetes.io/zone": "b"}},
    ]


def test_up_takes_up_a_cluster_of_that_name(tmp_path: Path) -> None:
    recorder = Recorder(clusters="other\ngate\n")

    cluster(recorder, tmp_path).up()

    assert [command[:3] for command in recorder.commands] == [
        ["kind", "get", "clusters"],
        ["kind", "export", "kubeconfig"],
    ]


def test_an_up_that_fails_deletes_what_it_began(tmp_path: Path) -> None:
    recorder = Recorder(fail_on="create")

    with pytest.raises(EnvironmentProblem):
        cluster(recorder, tmp_path).up()

    assert recorder.commands[-1][:3] == ["kind", "delete", "cluster"]
    assert not (tmp_path / "kind").exists()


def test_images_are_loaded_from_their_archive(tmp_path: Path) -> None:
    recorder = Recorder()

    cluster(recorder, tmp_path).load_image(Path("/images/a.tar"))

    assert recorder.commands == [["kind", "load", "image-archive", "/images/a.tar", "--name", "gate"]]


def test_a_killed_node_goes_dark_before_it_dies(tmp_path: Path) -> None:
    recorder = Recorder()

    cluster(recorder, tmp_path).kill_node("gate-worker")

    assert recorder.commands == [
        ["docker", "exec", "gate-worker", "ip", "link", "set", "eth0", "down"],
        ["docker", "kill", "gate-worker"],
    ]


def test_pause_resume_and_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KIND_EXPERIMENTAL_PROVIDER", "podman")
    recorder = Recorder()
    made = cluster(recorder, tmp_path)

    made.pause_node("gate-worker")
    made.resume_node("gate-worker")
    made.start_node("gate-worker")

    assert [command[:2] for command in recorder.commands[:3]] == [
        ["podman", "pause"],
        ["podman", "unpause"],
        ["podman", "start"],
    ]
    assert "node/gate-worker" in recorder.commands[3]


def test_a_missing_program_points_to_the_native_cluster() -> None:
    with pytest.raises(EnvironmentProblem, match="--cluster native, which needs neither"):
        run(["no-such-program-as-kind"])


def test_a_cluster_needs_a_node(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nodes: 0"):
        cluster(Recorder(), tmp_path, nodes=0)
