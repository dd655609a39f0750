"""The story of one run: deploy, load, break, judge, report.

Reads as the run goes. Everything that is arithmetic lives in `llm_replicas.slo`, everything that touches a
cluster in `llm_replicas.cluster` and `llm_replicas.faults`; this module only puts them in order and keeps the
raw records whatever happens.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from kubernetes import client

from llm_replicas import __version__
from llm_replicas.cluster.client import explain
from llm_replicas.cluster.release import Release, ensure_namespace, progress_deadline, remove_namespace, wait_ready
from llm_replicas.errors import InvalidRun, LlmReplicasError, UsageError
from llm_replicas.faults import FAULTS, Fault, Target
from llm_replicas.invocation import command_name
from llm_replicas.judge import judge
from llm_replicas.load.plan import Plan, load_plan
from llm_replicas.load.records import seal
from llm_replicas.load.run import LoadRun
from llm_replicas.load.schedule import phase_windows, write_schedule
from llm_replicas.runfolder import new_run_folder, write_json, write_yaml
from llm_replicas.slo.model import Slo, digest, load_slo
from llm_replicas.slo.verdict import Verdict
from llm_replicas.telemetry.clusterwatch import ClusterWatch
from llm_replicas.telemetry.routerlogs import RouterLogs

Say = Callable[[str], None]


@dataclass
class Deployment:
    """A release that serves: how to reach its API server and its traffic."""

    api: client.ApiClient
    release: Release
    fullname: str
    http_url: str
    grpc_url: str

    @property
    def target(self) -> Target:
        """The release as the faults see it."""
        return Target(self.api, self.release.namespace, self.fullname, self.release.name)


@dataclass
class GateOptions:
    """What one gate is asked to do."""

    plan: Path
    runs: Path = Path("runs")
    name: str = "gate"
    slo: Path | None = None
    baseline: Path | None = None
    acknowledge_looser: bool = False
    invalid_retries: int = 1
    install: bool = True
    ready_timeout_seconds: float | None = None
    """None: as long as the release itself gives a rollout (its progress deadline)."""
    environment: dict[str, Any] = field(default_factory=dict)

    def check(self) -> None:
        """Read every file once, so that a mistake in one is told before anything is deployed."""
        load_plan(self.plan)
        for table in (self.slo, self.baseline):
            if table is not None:
                load_slo(table)


def deploy(deployment: Deployment, ready_timeout_seconds: float | None, say: Say, *, keep: bool = False) -> None:
    """Install or upgrade the release in its namespace and wait until every pod of it serves.

    What this call was the first to make is taken away again when it does not come to that, unless told to
    `keep` it.
    """
    api, release = deployment.api, deployment.release
    with ExitStack() as undo:
        if ensure_namespace(api, release.namespace) and not keep:
            undo.callback(remove_namespace, api, release.namespace)
        say(f"installing {release.name} into namespace {release.namespace}")
        if release.install() and not keep:
            undo.callback(release.discard)
        wait_serving(deployment, ready_timeout_seconds, say)
        undo.pop_all()


def wait_serving(deployment: Deployment, ready_timeout_seconds: float | None, say: Say) -> None:
    """Wait until every pod of the release serves."""
    if ready_timeout_seconds is None:
        ready_timeout_seconds = progress_deadline(deployment.api, deployment.release.namespace, deployment.fullname)
    names = [f"{deployment.fullname}-replica", f"{deployment.fullname}-router"]
    wait_ready(deployment.api, deployment.release.namespace, names, ready_timeout_seconds, say)


def resolve_slo(deployment: Deployment, given: Path | None) -> tuple[Slo, str]:
    """The table of objectives and where it came from: ``given`` wins over the release's ConfigMap."""
    if given is not None:
        return load_slo(given), str(given)
    name = f"{deployment.fullname}-slo"
    namespace = deployment.release.namespace
    try:
        found = client.CoreV1Api(deployment.api).read_namespaced_config_map(name, namespace, _request_timeout=10)
    except client.ApiException as error:
        if error.status == 404:
            raise UsageError(
                f"ConfigMap {name} is not in {namespace}: this release was not made by the chart; give --slo FILE"
            ) from error
        raise explain(error, f"reading ConfigMap {name}") from error
    return load_slo(yaml.safe_load(found.data["slo.yaml"])), f"configmap/{namespace}/{name}"


def run_gate(deployment: Deployment, options: GateOptions, say: Say) -> tuple[Verdict, Path]:
    """Load, break and judge a release that serves; an invalid run is repeated, a failed one never is."""
    for attempt in range(options.invalid_retries + 1):
        verdict, folder = run_once(deployment, options, say)
        if verdict.verdict != "invalid" or attempt == options.invalid_retries:
            return verdict, folder
        say("the run is invalid (the generator or the machine fell short, not the system): trying once more")
        if options.install:
            deploy(deployment, options.ready_timeout_seconds, say)
        else:
            wait_serving(deployment, options.ready_timeout_seconds, say)
    raise AssertionError("unreachable")


def run_once(deployment: Deployment, options: GateOptions, say: Say) -> tuple[Verdict, Path]:
    """One run into a fresh folder; the raw records are sealed and judged also when the run broke off."""
    plan = load_plan(options.plan)
    slo, source = resolve_slo(deployment, options.slo)
    folder = new_run_folder(options.runs, options.name)
    promised: dict[str, Any] = {"source": source, "digest": digest(slo), "slo": slo.as_yaml()}
    if options.baseline is not None:
        promised["baseline"] = load_slo(options.baseline).as_yaml()
        promised["looser_acknowledged"] = options.acknowledge_looser
    try:
        write_yaml(folder / "slo.yaml", promised)
        write_yaml(folder / "plan.yaml", plan.as_yaml())
        say(f"run folder {folder}")
        write_json(folder / "environment.json", {**describe(deployment), **options.environment})
        write_schedule(plan, folder)
        execute(deployment, plan, folder, say)
    except InvalidRun as error:
        say(f"the run broke off: {error}")
    except BaseException:
        seal(folder)
        say(f"broke off; the records so far are in {folder}: judge them with: {command_name()} judge {folder}")
        raise
    seal(folder)
    return judge(folder), folder


def execute(deployment: Deployment, plan: Plan, folder: Path, say: Say) -> None:
    """Send the plan's load and inject its faults at their places."""
    target = deployment.target
    faults: list[Fault] = []
    with ExitStack() as stack:
        stack.enter_context(ClusterWatch(deployment.api, target.namespace, folder / "cluster.jsonl"))
        stack.enter_context(
            RouterLogs(deployment.api, target.namespace, target.selector("router"), folder / "router-access.jsonl")
        )
        load = stack.enter_context(
            LoadRun(folder, http_url=deployment.http_url, grpc_url=deployment.grpc_url)
        )
        started = load.wait_started(timeout_seconds=60)
        for window in phase_windows(plan):
            phase = plan.phase(window.name)
            say(f"phase {window.name}: {window.end_s - window.start_s:.0f} s at {phase.rate_per_second:g} requests/s")
            if phase.fault is not None:
                load.wait_until(started + window.start_s + phase.fault.after_seconds)
                fault = FAULTS[phase.fault.kind](target, window.name)
                faults.append(fault)

                def keep() -> None:
                    write_json(folder / "faults.json", [each.record.as_dict() for each in faults])

                inject(fault, started + window.end_s, keep, say)
            load.wait_until(started + window.end_s)
        say("load sent; waiting for the last streams")
        load.wait_finished()
        # The router's log lines of the last requests are a moment behind the requests themselves.
        time.sleep(1.0)
    write_json(folder / "faults.json", [each.record.as_dict() for each in faults])


def inject(fault: Fault, end_wall: float, keep: Callable[[], None], say: Say) -> None:
    """One fault from precondition to healing; what goes wrong with it is kept in its record and judged.

    ``keep`` writes down what is known, as soon as it is known: a run may be interrupted while it waits.
    """
    try:
        fault.precondition()
        fault.inject()
        keep()
        say(f"  {fault.kind}: {describe_target(fault)}")
        # Healing may outlast the phase a little without spoiling the next one, which leaves some quiet at its
        # start; whether the load covered the whole fault is judged from the moments.
        fault.wait_healed(max(10.0, end_wall - time.time() + 5.0))
        healed, t0 = fault.record.healed_wall, fault.record.t0_wall
        if healed and t0:
            say(f"  {fault.kind}: whole again {healed - t0:.1f} s after it took effect")
    except InvalidRun as error:
        fault.record.error = str(error)
        say(f"  {fault.kind}: {error}")
    except LlmReplicasError as error:
        # The cluster cannot be asked any more (an expired token, say): nothing after this would be a measurement.
        fault.record.error = str(error)
        raise
    finally:
        keep()


def describe_target(fault: Fault) -> str:
    """A few words on what was broken."""
    target = fault.record.target
    return f"{target['pod']} ({target['ip']})" if "pod" in target else str(target.get("deployment"))


def describe(deployment: Deployment) -> dict[str, Any]:
    """What a reader needs to know of where and on what the run was made."""
    target = deployment.target
    try:
        replica = target.apps.read_namespaced_deployment(f"{target.fullname}-replica", target.namespace)
        router = target.apps.read_namespaced_deployment(f"{target.fullname}-router", target.namespace)
        version = client.VersionApi(deployment.api).get_code().git_version
    except Exception as error:
        raise explain(error, f"reading release {target.release} in {target.namespace}") from error
    spec = replica.spec.template.spec
    hook = spec.containers[0].lifecycle
    sleep = hook.pre_stop.sleep.seconds if hook and hook.pre_stop and hook.pre_stop.sleep else 0
    return {
        "llm_replicas": __version__,
        "commit": _commit(),
        "kubernetes": version,
        "replicas": replica.spec.replicas,
        "routers": router.spec.replicas,
        "replica_image": spec.containers[0].image,
        "router_image": router.spec.template.spec.containers[0].image,
        "endpoint_withdrawal_seconds": sleep,
        "grace_seconds": spec.termination_grace_period_seconds,
        "stand_in": "standin" in spec.containers[0].image,
        "host": {
            "cpus": os.cpu_count(),
            "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
            "kernel": platform.release(),
        },
    }


def _commit() -> str | None:
    git = shutil.which("git")
    if git is None:
        return None
    command = [git, "describe", "--always", "--dirty"]
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None
