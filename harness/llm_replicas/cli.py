"""The ``llm-replicas`` command: parse, call, print. Exit codes are the same everywhere (design: exit codes).

0 pass, 1 fail, 2 usage or environment error, 3 inconclusive, 4 invalid run, 130 interrupted.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from llm_replicas import __version__
from llm_replicas.errors import InvalidRun, LlmReplicasError, UsageError
from llm_replicas.invocation import command_name

EXIT_CODES = {"pass": 0, "fail": 1, "inconclusive": 3, "invalid": 4}
INTERRUPTED = 130
WORDS = {"pass": "green", "fail": "red", "inconclusive": "yellow", "invalid": "magenta"}

app = typer.Typer(
    name="llm-replicas",
    help="Run one large language model as N identical replicas on Kubernetes, and prove that they keep their "
    "promises: p99 latency, failover, rollouts that drop nothing.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
tools_app = typer.Typer(help="The tools that the native cluster is made of.", no_args_is_help=True)
app.add_typer(tools_app, name="tools")

err = Console(stderr=True, highlight=False)


class ClusterKind(StrEnum):
    """Where the release runs."""

    NATIVE = "native"
    KIND = "kind"
    EXISTING = "existing"


ClusterOption = Annotated[
    ClusterKind,
    typer.Option(
        help="native: a real Kubernetes on this machine without Docker; kind: one that kind makes; "
        "existing: the one of your kubeconfig."
    ),
]
NameOption = Annotated[str, typer.Option(help="Name of the native or kind cluster.")]
NodesOption = Annotated[int, typer.Option(min=1, max=9, help="Nodes of a native or kind cluster.")]
KubeconfigOption = Annotated[Path | None, typer.Option(help="Kubeconfig of an existing cluster.")]
ContextOption = Annotated[str | None, typer.Option(help="Context of the kubeconfig.")]
NamespaceOption = Annotated[str, typer.Option(help="Namespace of the release.")]
ReleaseOption = Annotated[str, typer.Option(help="Helm release; its objects carry this name.")]
JsonOption = Annotated[bool, typer.Option("--json", help="End with one JSON object on the last line of stdout.")]


def say(text: str) -> None:
    """Progress for a person, on stderr, with the time since the command began."""
    _tell(escape(text))


_BEGAN = time.monotonic()


def _tell(marked: str) -> None:
    err.print(f"[dim]{time.monotonic() - _BEGAN:6.1f} s[/dim]  {marked}", soft_wrap=True)


@contextmanager
def steps(title: str) -> Iterator[None]:
    """Frame a long step with its duration."""
    began = time.monotonic()
    _tell(f"[bold]{escape(title)}[/bold]")
    yield
    _tell(f"[dim]{escape(title)}: {time.monotonic() - began:.1f} s[/dim]")


def emit(data: dict[str, Any]) -> None:
    """The last line on stdout is one JSON object."""
    sys.stdout.write(json.dumps(data, default=str) + "\n")
    sys.stdout.flush()


def version(value: bool) -> None:
    """Print the version and leave."""
    if value:
        sys.stdout.write(f"llm-replicas {__version__}\n")
        raise typer.Exit


@app.callback()
def root(
    _version: Annotated[
        bool, typer.Option("--version", callback=version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options of every command."""


# --- clusters -----------------------------------------------------------------------------------------------------


@app.command()
def up(
    cluster: ClusterOption = ClusterKind.NATIVE,
    name: NameOption = "llm-replicas",
    nodes: NodesOption = 3,
    as_json: JsonOption = False,
) -> None:
    """Bring up a cluster on this machine; one of that name that is already up and healthy is kept."""
    from llm_replicas.places import make_cluster

    made = make_cluster(cluster.value, name=name, nodes=nodes, say=say)
    with steps(f"cluster {name}"):
        made.up()
    if as_json:
        emit({"name": name, "kubeconfig": str(made.kubeconfig)})
    else:
        sys.stdout.write(f"export KUBECONFIG={made.kubeconfig}\n")


@app.command()
def down(cluster: ClusterOption = ClusterKind.NATIVE, name: NameOption = "llm-replicas") -> None:
    """Remove a cluster and everything that it made on this machine, also what a crashed run left behind."""
    from llm_replicas.places import make_cluster

    with steps(f"removing cluster {name}"):
        make_cluster(cluster.value, name=name, nodes=1, say=say, build=False).down()


# --- the chart ----------------------------------------------------------------------------------------------------


@app.command()
def check(
    values: Annotated[list[Path], typer.Option("--values", "-f", help="Values file; may be repeated.")] = [],  # noqa: B006
    chart: Annotated[Path | None, typer.Option(help="The chart; default: the one beside this command.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Check what the chart makes of these values: schema, rules, and whether the timing can keep the SLO."""
    from llm_replicas.chart.check import check_values
    from llm_replicas.places import chart_folder, helm_binary

    findings = check_values(chart or chart_folder(), values, helm_binary(say))
    for finding in findings:
        err.print(f"[red]{finding.rule}[/red] {escape(f'{finding.where}: {finding.message}')}", soft_wrap=True)
    if as_json:
        emit({"verdict": "fail" if findings else "pass", "findings": [finding.as_dict() for finding in findings]})
    elif not findings:
        sys.stdout.write("PASS\n")
    raise typer.Exit(1 if findings else 0)


# --- load and faults ----------------------------------------------------------------------------------------------


@app.command()
def load(
    plan: Annotated[Path | None, typer.Option(help="Plan of phases; default: the shipped smoke plan.")] = None,
    url: Annotated[str, typer.Option(help="Where the HTTP requests go.")] = "http://127.0.0.1:8080",
    grpc_url: Annotated[
        str | None, typer.Option(help="host:port of the gRPC requests; default: HTTP's host, 8081.")
    ] = None,
    runs: Annotated[Path, typer.Option(help="Where run folders go.")] = Path("runs"),
    name: Annotated[str, typer.Option(help="Name of the run folder.")] = "load",
    workers: Annotated[int, typer.Option(min=1, max=64, help="Locust processes that share the schedule.")] = 1,
    as_json: JsonOption = False,
) -> None:
    """Send a plan's load to a running server and keep one raw record a request; breaks nothing, judges nothing."""
    from llm_replicas.load.send import load_only

    folder = load_only(plan, url, grpc_url, runs, name, workers, say)
    if as_json:
        emit({"run": str(folder)})
    else:
        sys.stdout.write(f"{folder}\n")


@app.command()
def fault(
    kind: Annotated[str, typer.Argument(help="podDelete, podKill, replicaRollout or routerRollout.")],
    kubeconfig: KubeconfigOption = None,
    context: ContextOption = None,
    namespace: NamespaceOption = "llm",
    release: ReleaseOption = "llm",
    timeout_seconds: Annotated[float, typer.Option(help="How long healing may take.")] = 300.0,
) -> None:
    """Break one thing in a release and say when it took effect and when all was whole again (JSON)."""
    from llm_replicas.cluster.client import api_client
    from llm_replicas.cluster.release import fullname_of
    from llm_replicas.faults import FAULTS, Target

    if kind not in FAULTS:
        raise UsageError(f"fault {kind!r} is not known; accepted: {', '.join(FAULTS)}")
    api = api_client(kubeconfig, context)
    made = FAULTS[kind](Target(api, namespace, fullname_of(api, namespace, release), release), "manual")
    made.precondition()
    made.inject()
    try:
        made.wait_healed(timeout_seconds)
    finally:
        emit(made.record.as_dict())


# --- the gate -----------------------------------------------------------------------------------------------------


@app.command()
def gate(
    cluster: ClusterOption = ClusterKind.NATIVE,
    name: NameOption = "llm-replicas",
    nodes: NodesOption = 3,
    kubeconfig: KubeconfigOption = None,
    context: ContextOption = None,
    namespace: NamespaceOption = "llm",
    release: ReleaseOption = "llm",
    values: Annotated[
        list[Path], typer.Option("--values", "-f", help="Values over the stand-in's; replaces them with --no-stand-in.")
    ] = [],  # noqa: B006
    stand_in: Annotated[bool, typer.Option(help="Install the CPU stand-in replica.")] = True,
    install: Annotated[bool, typer.Option(help="Install the chart; --no-install judges what is already there.")] = True,
    settings: Annotated[list[str], typer.Option("--set", help="A single value, as with helm.")] = [],  # noqa: B006
    plan: Annotated[Path | None, typer.Option(help="Plan of phases; default: the shipped gate plan.")] = None,
    slo: Annotated[Path | None, typer.Option(help="Table of objectives that wins over the release's own.")] = None,
    baseline: Annotated[Path | None, typer.Option(help="Table that the objectives may not be looser than.")] = None,
    acknowledge_looser: Annotated[bool, typer.Option(help="Accept objectives looser than --baseline.")] = False,
    url: Annotated[str | None, typer.Option(help="HTTP address of the router, when it cannot be found out.")] = None,
    grpc_url: Annotated[str | None, typer.Option(help="gRPC host:port of the router.")] = None,
    allow_node_faults: Annotated[bool, typer.Option(help="Permit node faults on an existing cluster.")] = False,
    runs: Annotated[Path, typer.Option(help="Where run folders go.")] = Path("runs"),
    keep: Annotated[bool, typer.Option(help="Leave the cluster up, and also what did not come up.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Deploy, load, break, judge: ends with PASS, FAIL, INCONCLUSIVE or INVALID and an HTML report."""
    from llm_replicas.gate import GateOptions, deploy, run_gate
    from llm_replicas.load.send import shipped_plan
    from llm_replicas.places import Place

    place = Place(
        kind=cluster.value,
        name=name,
        nodes=nodes,
        kubeconfig=kubeconfig,
        context=context,
        namespace=namespace,
        release=release,
        values=values,
        settings=settings,
        stand_in=stand_in,
        url=url,
        grpc_url=grpc_url,
        allow_node_faults=allow_node_faults,
        keep=keep,
        say=say,
    )
    options = GateOptions(
        plan=plan or shipped_plan("gate"),
        runs=runs,
        slo=slo,
        baseline=baseline,
        acknowledge_looser=acknowledge_looser,
        install=install,
    )
    options.check()
    with place as ready:
        deployment = ready.deployment()
        if install:
            deploy(deployment, options.ready_timeout_seconds, say, keep=keep)
        verdict, folder = run_gate(ready.addressed(deployment), options, say)
    finish(verdict.verdict, verdict.summary(), folder, as_json)


@app.command("judge")
def judge_command(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    slo: Annotated[Path | None, typer.Option(help="Judge against this table instead of the run's own.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Judge a run folder from its raw records alone, also years later or after a crash."""
    from llm_replicas.judge import judge

    if not run.is_dir():
        raise UsageError(f"run folder {run} is not there; accepted: a folder that gate or load made (see runs/)")
    verdict = judge(run, slo=slo)
    finish(verdict.verdict, verdict.summary(), run, as_json)


@app.command()
def report(run: Annotated[Path, typer.Argument(help="A run folder.")]) -> None:
    """Write report.html and junit.xml of a judged run anew."""
    from llm_replicas.judge import write_reports

    if not (run / "verdict.json").is_file():
        raise UsageError(f"{run} holds no verdict.json; judge it first with: {command_name()} judge {run}")
    sys.stdout.write(f"{write_reports(run)}\n")


def tell_github(run: Path) -> None:
    """On GitHub Actions: annotations on the run and a summary on the job's page."""
    if os.environ.get("GITHUB_ACTIONS") != "true":
        return
    from llm_replicas.report.github import annotation_lines, job_summary
    from llm_replicas.report.verdict_json import read_verdict

    judged = read_verdict(run / "verdict.json")
    for line in annotation_lines(judged):
        sys.stdout.write(line + "\n")
    if page := os.environ.get("GITHUB_STEP_SUMMARY"):
        with Path(page).open("a", encoding="utf-8") as summary:
            summary.write(job_summary(judged))


def finish(verdict: str, summary: list[str], run: Path, as_json: bool) -> None:
    """Print the verdict and leave with its exit code."""
    for line in summary:
        err.print(line, soft_wrap=True, markup=False)
    err.print(f"report: {run / 'report.html'}", soft_wrap=True, markup=False)
    tell_github(run)
    if as_json:
        emit({"verdict": verdict, "run": str(run)})
    else:
        Console(highlight=False).print(f"[bold {WORDS[verdict]}]{verdict.upper()}[/]")
    raise typer.Exit(EXIT_CODES[verdict])


# --- tools --------------------------------------------------------------------------------------------------------


@tools_app.command("build")
def tools_build(
    images: Annotated[bool, typer.Option(help="Build the container images too.")] = True,
) -> None:
    """Build the tools and images that the native cluster needs; what is built already is skipped."""
    from llm_replicas.places import build_images, build_tools

    with steps("tools"):
        folder = build_tools(say)
    if images:
        with steps("images"):
            build_images(say)
    sys.stdout.write(f"{folder}\n")


@tools_app.command("bundle")
def tools_bundle(out: Annotated[Path, typer.Argument(help="The archive to write (.tar.xz).")]) -> None:
    """Pack the tools for a host without package registries."""
    from llm_replicas.places import bundle_tools

    bundle_tools(out, say)


def main() -> None:
    """Entry point: turns every way of ending into its exit code and one clear message."""
    for number in (signal.SIGTERM, signal.SIGHUP):  # a CI that gives up, a terminal that is gone
        signal.signal(number, _interrupt)
    try:
        # Typer tells usage errors itself and leaves by SystemExit, also on Ctrl-C; ours pass through it.
        app(prog_name="llm-replicas")
        code = 0
    except SystemExit as leave:
        code = leave.code if isinstance(leave.code, int) else int(leave.code is not None)
        if code == INTERRUPTED:
            err.print("interrupted")
    except InvalidRun as error:
        err.print(f"[magenta]invalid run:[/magenta] {escape(str(error))}", soft_wrap=True)
        code = EXIT_CODES["invalid"]
    except LlmReplicasError as error:
        err.print(f"[red]error:[/red] {escape(str(error))}", soft_wrap=True)
        code = 2
    except Exception:
        err.print_exception()
        err.print("[red]error:[/red] this is a fault of llm-replicas itself; the lines above say where")
        code = 2
    sys.stdout.flush()
    sys.exit(code)


def _interrupt(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    # A closed pipe (``| head``) is no error of ours.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    main()
