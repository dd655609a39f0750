"""Every refusal: what is just accepted renders, what is not fails with its exact message."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from llm_replicas.errors import UsageError
from tests.chart.chart_places import CHART, Renderer

WAY = "or set lifecycle.acceptDroppedRequests to true and lose requests"
TRITON = {"engine": "triton", "image.tag": "1.0", "image.serverVersion": "2.51.0"}


@dataclass(frozen=True)
class Case:
    name: str
    accepted: dict[str, Any]
    refused: dict[str, Any]
    message: str


CASES = [
    Case(
        "name a Service can have",
        {"fullnameOverride": "llm-1"},
        {"fullnameOverride": "1llm"},
        'fullnameOverride: objects would be named "1llm"; a Service\'s name takes lower-case letters, '
        "digits and dashes "
        "and starts with a letter, so give a fullnameOverride (or a release name) that does",
    ),
    Case(
        "name short enough",
        {"fullnameOverride": "a" * 50},
        {"fullnameOverride": "a" * 51},
        f'fullnameOverride: "{"a" * 51}" has 51 characters; at most 50 are accepted, so that suffixes fit '
        f"into the 63 "
        "of a Service's name",
    ),
    Case(
        "replica tag fixed",
        {"image.tag": "latest", "image.digest": "sha256:" + "0" * 64, "image.serverVersion": "2.71.0"},
        {"image.tag": "latest", "image.serverVersion": "2.71.0"},
        'image.tag: got "latest", which names no fixed image; give a version tag or image.digest',
    ),
    Case(
        "router tag fixed",
        {"router.image.tag": "v1.41.2"},
        {"router.image.tag": ""},
        'router.image.tag: got "", which names no fixed image; give a version tag or router.image.digest',
    ),
    Case(
        "router image with bash",
        {"router.image.tag": "v1.40.1"},
        {"router.image.tag": "distroless-v1.40.1"},
        'router.image.tag: got "distroless-v1.40.1"; distroless images have no bash, and the drain hook '
        "needs it, so "
        "take the plain image of the same version",
    ),
    Case(
        "router new enough",
        {"router.image.tag": "1.40.0"},
        {"router.image.tag": "v1.39.4"},
        'router.image.tag: got "v1.39.4"; the configuration is written for Envoy 1.40 or newer',
    ),
    Case(
        "server version known",
        {"image.tag": "team-7", "image.serverVersion": "2.72.0"},
        {"image.tag": "team-7"},
        'image.serverVersion: not given, and image.tag "team-7" does not start with an NVIDIA release '
        "from 24.10 to "
        "26.07; give the version of tritonserver in the image, such as 2.71.0",
    ),
    Case(
        "server above the engine's floor",
        {"image.tag": "26.07-trtllm-python-py3"},
        {"image.tag": "26.06-trtllm-python-py3"},
        "image.serverVersion: server 2.70.0 is older than 2.71.0 (release 26.07), the oldest that engine "
        "trtllm is "
        "deployed with: NVIDIA bulletin 5875 (September 2026) is fixed there",
    ),
    Case(
        "server above the table's first version",
        TRITON,
        {**TRITON, "image.serverVersion": "2.50.0"},
        "image.serverVersion: server 2.50.0 is older than 2.51.0 (release 24.10), the oldest that engine "
        "triton is "
        "deployed with: the flag table starts there",
    ),
    Case(
        "flag not computed",
        {"serverFlags.http-thread-count": "16"},
        {"serverFlags.http-port": "80"},
        'serverFlags.http-port: the chart computes this flag (here "8000"); change the value it comes '
        "from instead",
    ),
    Case(
        "flag known to this version",
        {**TRITON, "image.serverVersion": "2.59.0", "serverFlags.http-max-input-size": "1024"},
        {**TRITON, "image.serverVersion": "2.58.0", "serverFlags.http-max-input-size": "1024"},
        "serverFlags.http-max-input-size: server 2.58.0 does not know this flag; it came with 2.59.0",
    ),
    Case(
        "flag known at all",
        {"serverFlags.rate-limit": "off"},
        {"serverFlags.rate-limits": "off"},
        "serverFlags.rate-limits: tritonserver has no such flag; accepted: the flags of `tritonserver "
        "--help`, without "
        "dashes in front",
    ),
    Case(
        "GPU for TensorRT-LLM",
        {**TRITON, "gpu.mode": "none"},
        {"gpu.mode": "none"},
        "gpu.mode: got none with engine trtllm; TensorRT-LLM needs GPUs, so take exclusive, or engine "
        "triton for models "
        "that run on CPUs",
    ),
    Case(
        "GPUs counted once",
        {"resources.limits": {"ephemeral-storage": "1Gi"}},
        {"resources.limits": {"nvidia.com/gpu": 2}},
        "resources.limits.nvidia.com/gpu: GPUs are counted by gpu.count alone; remove it here",
    ),
    Case(
        "a model to reach",
        {"model.names": ["one"]},
        {"model.names": []},
        "model.names: got an empty list; name at least one model that callers may reach",
    ),
    Case(
        "model names that fit a path",
        {"model.names": ["bert-large.en_v2"]},
        {"model.names": ["a/b"]},
        'model.names: got "a/b"; letters, digits, underscores, dashes and single dots are accepted, '
        "because the name "
        "becomes part of a path",
    ),
    Case(
        "model names without climbing",
        {"model.names": ["a.b"]},
        {"model.names": ["a..b"]},
        'model.names: got "a..b"; letters, digits, underscores, dashes and single dots are accepted, '
        "because the name "
        "becomes part of a path",
    ),
    Case(
        "model source known",
        {"model.source": "pvc://claim/sub/folder"},
        {"model.source": "s3://bucket/model"},
        'model.source: got "s3://bucket/model"; accepted: pvc://CLAIM, pvc://CLAIM/SUBPATH or image://',
    ),
    Case(
        "model source without climbing",
        {"model.source": "pvc://claim/sub"},
        {"model.source": "pvc://claim/../other"},
        'model.source: got "pvc://claim/../other"; a path with .. is not accepted',
    ),
    Case(
        "HOME left alone",
        {"extraEnv.HOMEPAGE": "x"},
        {"extraEnv.HOME": "/root"},
        "extraEnv.HOME: is /tmp, the only writable path of a replica; remove it here",
    ),
    Case(
        "startup probed more than once",
        {"lifecycle.startupBudgetSeconds": 10, "lifecycle.startupPeriodSeconds": 10},
        {"lifecycle.startupBudgetSeconds": 10, "lifecycle.startupPeriodSeconds": 11},
        "lifecycle.startupPeriodSeconds: got 11, above lifecycle.startupBudgetSeconds 10; a replica "
        "would be probed "
        "once at most",
    ),
    Case(
        "withdrawal covers discovery",
        {"lifecycle.endpointWithdrawalSeconds": 32},
        {"lifecycle.endpointWithdrawalSeconds": 31},
        "lifecycle.endpointWithdrawalSeconds: got 31; routers may send to a leaving replica for 32 s "
        f"(router.discovery.dnsTtlSeconds 30 + router.discovery.refreshSeconds 1 + 1), so give at least "
        f"that, {WAY}",
    ),
    Case(
        "a drain there is",
        {"lifecycle.drainSeconds": 1},
        {"lifecycle.drainSeconds": 0},
        "lifecycle.drainSeconds: got 0; every request in flight would be cut when a replica leaves, so "
        "give the "
        f"duration of your longest answers, {WAY}",
    ),
    Case(
        "routers drain as long as replicas",
        {"router.drainSeconds": 300},
        {"router.drainSeconds": 299},
        "router.drainSeconds: got 299, below lifecycle.drainSeconds 300; a leaving router would cut "
        "answers that a "
        f"leaving replica lets end, so give at least as much, {WAY}",
    ),
    Case(
        "somebody serves during a rollout",
        {"rollout.mode": "inPlace", "replicas": 2},
        {"rollout.mode": "inPlace", "replicas": 1},
        "rollout.mode: got inPlace with 1 replica; nothing serves while it is replaced, so take surge or "
        "more "
        f"replicas, {WAY}",
    ),
    Case(
        "no idle timeout below the SLO",
        {"traffic.streamIdleTimeoutSeconds": 10},
        {"traffic.streamIdleTimeoutSeconds": 9},
        "traffic.streamIdleTimeoutSeconds: got 9, below slo.stallSeconds 10; the router would end "
        "streams that the SLO "
        "still allows",
    ),
    Case(
        "two ports",
        {"router.service.grpcPort": 80},
        {"router.service.grpcPort": 8080},
        "router.service.grpcPort: got 8080, the same as router.service.httpPort; the two need different "
        "ports",
    ),
    Case(
        "node ports where there are any",
        {"router.service.type": "NodePort", "router.service.httpNodePort": 30080},
        {"router.service.httpNodePort": 30080},
        "router.service.httpNodePort: got 30080, but a ClusterIP Service has no node ports; set "
        "router.service.type to "
        "NodePort or LoadBalancer, or this to 0",
    ),
    Case(
        "two node ports",
        {
            "router.service.type": "NodePort",
            "router.service.httpNodePort": 30080,
            "router.service.grpcNodePort": 30081,
        },
        {
            "router.service.type": "NodePort",
            "router.service.httpNodePort": 30080,
            "router.service.grpcNodePort": 30080,
        },
        "router.service.grpcNodePort: got 30080, the same as router.service.httpNodePort; the two need "
        "different ports",
    ),
    Case(
        "one source of account names",
        {"serviceAccount.create": False, "serviceAccount.name": "team"},
        {"serviceAccount.name": "team"},
        'serviceAccount.name: got "team" while serviceAccount.create is true; a created account is named '
        "after its "
        "component, so remove one of the two",
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_accepts_what_is_just_right(case: Case, rendered: Renderer) -> None:
    assert len(rendered(case.accepted)) > 0


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_refuses_with_its_message_alone(case: Case, rendered: Renderer) -> None:
    with pytest.raises(UsageError) as refused:
        rendered(case.refused)

    assert str(refused.value) == f"llm-replicas refuses these values:\n  - {case.message}"


def test_every_refusal_of_the_template_has_a_case() -> None:
    template = (CHART / "templates" / "requirements.yaml").read_text(encoding="utf-8")
    refusals = re.findall(r"append \$refusals \(?(?:printf )?\"((?:[^\"\\]|\\.)*)\"", template)
    assert len(refusals) == template.count("append $refusals")

    uncovered = [text for text in refusals if not any(_matches(text, case.message) for case in CASES)]

    assert uncovered == []


def _matches(form: str, message: str) -> bool:
    """Whether a printf format could have made this message."""
    parts = re.split(r"%[qdsv]", form.replace('\\"', '"'))
    return re.fullmatch(".*".join(map(re.escape, parts)), message) is not None


def test_all_refusals_are_told_at_once(rendered: Renderer) -> None:
    with pytest.raises(UsageError) as refused:
        rendered({"gpu.mode": "none", "lifecycle.drainSeconds": 0, "model.names": []})

    assert str(refused.value).count("\n  - ") == 3


@pytest.mark.parametrize(
    "loosened",
    [
        {"lifecycle.endpointWithdrawalSeconds": 0},
        {"lifecycle.drainSeconds": 0},
        {"router.drainSeconds": 0},
        {"rollout.mode": "inPlace", "replicas": 1},
    ],
    ids=str,
)
def test_accepting_dropped_requests_lifts_the_refusal(loosened: dict[str, Any], rendered: Renderer) -> None:
    assert len(rendered({**loosened, "lifecycle.acceptDroppedRequests": True})) > 0


@pytest.mark.parametrize("version", ["1.30.9", "1.38.0"])
def test_kubernetes_outside_the_range_is_refused(version: str, rendered: Renderer) -> None:
    with pytest.raises(UsageError, match=r"kubeVersion: >=1\.31\.0-0 <1\.38\.0-0"):
        rendered(kube_version=version)


@pytest.mark.parametrize("version", ["1.31.0", "1.34.1-gke.1200", "1.37.3"])
def test_kubernetes_inside_the_range_is_accepted(version: str, rendered: Renderer) -> None:
    assert len(rendered(kube_version=version)) > 0


def test_a_missing_helm_says_what_to_give(tmp_path: Path) -> None:
    from llm_replicas.chart.render import render

    with pytest.raises(UsageError, match="is not there; give a Helm 3 or Helm 4 binary"):
        render(CHART, tmp_path / "helm")
