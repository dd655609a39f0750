"""What Helm is told and what becomes of its answers, with a fake that records its command lines."""

import shlex
from pathlib import Path

import pytest

from llm_replicas.cluster.release import Release
from llm_replicas.errors import EnvironmentProblem

NOT_THERE = "echo 'Error: release: not found' >&2; exit 1"


class FakeHelm:
    """A shell script in Helm's place: takes down its arguments, then does what its first word calls for."""

    def __init__(self, folder: Path) -> None:
        self.program = folder / "helm"
        self._record = folder / "commands"
        self._folder = folder
        self.answer(status=NOT_THERE, upgrade="exit 0", uninstall="exit 0")

    def answer(self, **scripts: str) -> None:
        for word, script in scripts.items():
            (self._folder / f"{word}.sh").write_text(script)
        self.program.write_text(
            f"#!/bin/sh\nprintf '%s ' \"$@\" >> {self._record}\necho >> {self._record}\n"
            f". {self._folder}/$1.sh\n"
        )
        self.program.chmod(0o755)

    @property
    def commands(self) -> list[list[str]]:
        return [shlex.split(line) for line in self._record.read_text().splitlines()]

    @property
    def words(self) -> list[str]:
        return [command[0] for command in self.commands]


@pytest.fixture
def helm(tmp_path: Path) -> FakeHelm:
    return FakeHelm(tmp_path)


def release(helm: Path, **options: object) -> Release:
    given = {"kubeconfig": Path("/k"), "context": "there", **options}
    return Release(name="llm", namespace="team-a", chart=Path("/chart"), helm=helm, **given)  # type: ignore[arg-type]


def told(status: str) -> str:
    return f"""echo '{{"name": "llm", "info": {{"status": "{status}"}}}}'"""


def test_an_install_names_cluster_namespace_values_and_settings(helm: FakeHelm) -> None:
    release(helm.program, values=[Path("a.yaml"), Path("b.yaml")], settings=["replicas=3"]).install()

    assert helm.commands[-1] == [
        *("upgrade", "--install", "llm", "/chart", "--namespace", "team-a"),
        *("--kubeconfig", "/k", "--kube-context", "there"),
        *("--values", "a.yaml", "--values", "b.yaml", "--set", "replicas=3"),
    ]


def test_without_kubeconfig_and_context_helm_takes_its_own(helm: FakeHelm) -> None:
    release(helm.program, kubeconfig=None, context=None).install()

    assert not any("kube" in word for command in helm.commands for word in command)


@pytest.mark.parametrize(("status", "new"), [(NOT_THERE, True), (told("deployed"), False), (told("failed"), False)])
def test_an_install_tells_whether_the_release_is_new(helm: FakeHelm, status: str, new: bool) -> None:
    helm.answer(status=status)

    assert release(helm.program).install() is new


@pytest.mark.parametrize(
    ("status", "way_out"),
    [
        ("pending-upgrade", "helm rollback llm -n team-a"),
        ("pending-rollback", "helm rollback llm -n team-a"),
        ("pending-install", "helm uninstall llm -n team-a"),
    ],
)
def test_a_release_that_another_run_holds_is_left_alone(helm: FakeHelm, status: str, way_out: str) -> None:
    helm.answer(status=told(status))

    with pytest.raises(EnvironmentProblem, match=f"llm in team-a is {status}.*{way_out}"):
        release(helm.program).install()

    assert helm.words == ["status"]


def test_a_refusal_is_told_in_helms_own_words(helm: FakeHelm) -> None:
    helm.answer(upgrade="echo 'Error: values do not match the schema: at /replicas: got string' >&2; exit 1")

    with pytest.raises(EnvironmentProblem, match="at /replicas: got string"):
        release(helm.program).install()


def test_of_a_refused_first_install_nothing_is_left(helm: FakeHelm) -> None:
    helm.answer(upgrade="exit 1")

    with pytest.raises(EnvironmentProblem):
        release(helm.program).install()

    assert helm.commands[-1][:3] == ["uninstall", "llm", "--ignore-not-found"]


def test_a_refused_upgrade_leaves_the_release_that_was_there(helm: FakeHelm) -> None:
    helm.answer(status=told("deployed"), upgrade="exit 1")

    with pytest.raises(EnvironmentProblem):
        release(helm.program).install()

    assert "uninstall" not in helm.words


def test_what_keeps_helm_from_asking_is_no_missing_release(helm: FakeHelm) -> None:
    helm.answer(status="echo 'Error: the server has asked for the client to provide credentials' >&2; exit 1")

    with pytest.raises(EnvironmentProblem, match=r"helm status was refused:\n.*provide credentials"):
        release(helm.program).install()

    assert helm.words == ["status"]


def test_an_interrupted_helm_is_asked_to_stop_so_that_nothing_stays_pending(
    helm: FakeHelm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = tmp_path / "asked"
    helm.answer(upgrade=f"trap 'echo TERM > {asked}; exit 1' TERM; while :; do sleep 0.05; done")
    monkeypatch.setattr("llm_replicas.cluster.release.HELM_SECONDS", 0.5)

    with pytest.raises(EnvironmentProblem, match="no answer"):
        release(helm.program).install()

    assert asked.read_text() == "TERM\n"


def test_a_missing_helm_is_named_with_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentProblem, match=r"nowhere.*install Helm 3 or 4.*LLM_REPLICAS_HELM"):
        release(tmp_path / "nowhere").install()


def test_a_helm_that_may_not_be_run_is_named_too(helm: FakeHelm) -> None:
    helm.program.chmod(0o644)

    with pytest.raises(EnvironmentProblem, match="Permission denied"):
        release(helm.program).install()


def test_uninstalling_what_is_not_there_is_fine(helm: FakeHelm) -> None:
    release(helm.program).uninstall()

    assert "--ignore-not-found" in helm.commands[0]
