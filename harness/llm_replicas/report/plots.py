"""The report's pictures, each answering one question, as SVG that needs nothing from outside.

Colours are those of Okabe and Ito (Color Universal Design, 2008), which colour-blind readers can tell apart;
nothing is said by colour alone.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from llm_replicas.slo.dependence import dependence
from llm_replicas.slo.facts import FaultEvent, RunFacts
from llm_replicas.slo.failover import FaultResult
from llm_replicas.slo.model import Metric, QuantileObjective
from llm_replicas.slo.quantile import quantile_bounds
from llm_replicas.slo.samples import Samples
from llm_replicas.slo.verdict import METRIC_WORDS, Verdict, steady_samples

BLUE, ORANGE, GREEN, RED, PURPLE, SKY, GREY, INK = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#CC79A7",
    "#56B4E9",
    "#8A8F98",
    "#1F2933",
)
MOST_PODS = 16
MOST_POINTS = 40_000
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "xtick.color": INK,
    "ytick.color": INK,
    "svg.fonttype": "path",
    "svg.hashsalt": "llm-replicas",
    "figure.constrained_layout.use": True,
}

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Picture:
    """One picture with the words that stand in for it where it is not seen."""

    title: str
    question: str
    alt: str
    uri: str


def pictures(verdict: Verdict, facts: RunFacts) -> list[Picture]:
    """All pictures that the run has data for."""
    samples = facts.samples.with_stalls(facts.slo.stall_seconds)
    if not len(samples):
        return []
    with mpl.rc_context(STYLE):
        found = [_over_time(samples, facts), _faults_near(samples, facts, verdict)]
        found += [_percentiles(samples, facts), _in_flight(samples, facts)]
    return [picture for picture in found if picture is not None]


def _over_time(samples: Samples, facts: RunFacts) -> Picture:
    metrics: list[Metric] = ["ttft", "largestGap"]
    figure = Figure(figsize=(11, 6.6))
    axes = figure.subplots(2, 1, sharex=True)
    for ax, metric in zip(axes, metrics, strict=True):
        values = samples.latency(metric)
        applies = ~np.isnan(values)
        due, values = samples.scheduled[applies], values[applies]
        lost = np.isinf(values)
        promise = facts.slo.latency.of(metric)
        _cloud(ax, due[~lost], values[~lost])
        _rolling(ax, due, values)
        _limit(ax, promise)
        top = _ceiling(values[~lost], promise)
        if lost.any():
            place = np.full(np.count_nonzero(lost), top * 1.25)
            word = f"lost ({place.size})"
            ax.scatter(due[lost], place, marker="x", s=22, color=RED, linewidths=1.2, label=word)
        bottom = float(np.quantile(values[~lost], 0.001)) * 0.7 if not lost.all() else top / 100
        _seconds_axis(ax, max(1e-3, bottom), top)
        _phases(ax, samples, facts, named=metric == "ttft")
        _fault_marks(ax, facts.faults, named=metric == "ttft")
        ax.set_ylabel(METRIC_WORDS[metric])
        ax.set_xlim(0, float(samples.scheduled[-1]))
        _legend(ax)
    axes[-1].set_xlabel("seconds after the start of the run, by due time")
    count = int((~samples.ok).sum())
    return Picture(
        "Latency over time",
        "What did users feel, and when?",
        f"Time to first token and largest gap of each request over {samples.scheduled[-1]:.0f} seconds, "
        f"with the phases, {len(facts.faults)} fault marks and {count} lost requests marked by crosses.",
        _svg(figure),
    )


def _cloud(ax: Axes, due: Floats, values: Floats, size: float = 4) -> None:
    # The lines are made from every request; only the cloud of points is thinned.
    thin = slice(None, None, max(1, -(-due.size // MOST_POINTS)))
    ax.scatter(due[thin], values[thin], s=size, color=SKY, alpha=0.55, linewidths=0, rasterized=True)


def _faults_near(samples: Samples, facts: RunFacts, verdict: Verdict) -> Picture | None:
    events = [event for event in facts.faults if event.t0_s is not None]
    if not events:
        return None
    columns = min(2, len(events))
    rows = -(-len(events) // columns)
    figure = Figure(figsize=(11, 2.9 * rows))
    grid = figure.subplots(rows, columns, squeeze=False)
    values = samples.latency("ttft")
    promise = facts.slo.latency.ttft
    results = {(each.kind, each.phase): each for each in verdict.faults}
    for ax in grid.flat[len(events) :]:
        ax.set_visible(False)
    for ax, event in zip(grid.flat, events, strict=False):
        _near(ax, samples, values, event, result=results.get((event.kind, event.phase)), promise=promise)
    told = "; ".join(
        f"{each.kind}: {each.failed_new} new failed, {each.cut} cut" for each in verdict.faults if each.t0_s is not None
    )
    return Picture(
        "Each fault from near",
        "Who noticed the fault, and for how long?",
        f"Time to first token of each request from 5 seconds before to after each fault. {told}.",
        _svg(figure),
    )


def _near(
    ax: Axes,
    samples: Samples,
    values: Floats,
    event: FaultEvent,
    *,
    result: FaultResult | None,
    promise: QuantileObjective | None,
) -> None:
    t0 = event.t0_s or 0.0
    until = max(20.0, (event.healed_s or t0) - t0 + 5)
    near = (samples.scheduled >= t0 - 15) & (samples.scheduled <= t0 + until) & ~np.isnan(values)
    fine = near & np.isfinite(values)
    _cloud(ax, samples.scheduled[fine] - t0, values[fine], size=9)
    top = _ceiling(values[fine], promise)
    bottom = float(values[fine].min()) * 0.7 if fine.any() else top / 100
    # Unary answers have no time to first token, but a lost one is lost all the same.
    around = (samples.scheduled >= t0 - 15) & (samples.scheduled <= t0 + until)
    for mask, marker, color, word, height in (
        (around & samples.cut, "|", PURPLE, "cut", 1.5),
        (around & samples.failed, "x", RED, "failed", 1.2),
    ):
        if mask.any():
            due = samples.scheduled[mask] - t0
            place = np.full(due.size, top * height)
            ax.scatter(due, place, marker=marker, s=28, color=color, linewidths=1.2, label=f"{word} ({due.size})")
    _limit(ax, promise)
    ax.axvline(0, color=INK, linewidth=1.2)
    ax.text(0, bottom, " T0", fontsize=8, va="bottom", fontweight="bold")
    if event.healed_s is not None:
        ax.axvline(event.healed_s - t0, color=GREEN, linewidth=1.2, linestyle=":")
        ax.text(event.healed_s - t0, bottom, " whole again", color=GREEN, fontsize=8, va="bottom")
    # In a rollout each pod has a delete of its own, which only the table can tell apart.
    detected = result.ttd_s if result and len(event.drains) < 2 else None
    for value, word, color, height in (
        (result.ttr_s if result else None, "TTR", ORANGE, 0.9),
        (detected, "TTD", BLUE, 0.72),
    ):
        if value:
            ax.axvline(value, color=color, linewidth=1.1, linestyle="--")
            ax.text(value, top * height, f" {word} {value:.2f} s", color=color, fontsize=8, va="top")
    _seconds_axis(ax, bottom, top)
    ax.set_xlim(-15, until)
    ax.set_title(f"{event.kind}: {result.verdict if result else 'not judged'}")
    ax.set_xlabel("seconds after T0, by due time")
    _legend(ax)


def _percentiles(samples: Samples, facts: RunFacts) -> Picture | None:
    steady = steady_samples(samples, facts)
    metrics: list[Metric] = [metric for metric, _ in facts.slo.latency.promised()]
    metrics = [metric for metric in metrics if (~np.isnan(steady.latency(metric))).any()]
    if not metrics:
        return None
    columns = min(2, len(metrics))
    rows = -(-len(metrics) // columns)
    figure = Figure(figsize=(11, 3.9 * rows))
    grid = figure.subplots(rows, columns, squeeze=False)
    for ax in grid.flat[len(metrics) :]:
        ax.set_visible(False)
    for ax, metric in zip(grid.flat, metrics, strict=False):
        promise = facts.slo.latency.of(metric)
        if promise is not None:
            _percentile_curve(ax, steady.latency(metric), promise, facts.slo.confidence)
            ax.set_title(METRIC_WORDS[metric].capitalize())
    return Picture(
        "Percentiles with their confidence",
        "How sure are we?",
        "Latency against percentile on a logarithmic tail scale for the steady requests, with the "
        f"{facts.slo.confidence:.0%} bounds as a band and each limit as a point: " + ", ".join(metrics) + ".",
        _svg(figure),
    )


def _percentile_curve(ax: Axes, values: Floats, promise: QuantileObjective, confidence: float) -> None:
    values = values[~np.isnan(values)]
    ordered = np.sort(values)
    n_eff = dependence(values, promise.seconds, promise.quantile).n_eff
    n = ordered.size
    tail = np.unique(np.concatenate([np.geomspace(1 / n, 0.5, 90), [1 - promise.quantile]]))
    found = [quantile_bounds(ordered, 1 - share, 1 - confidence, n_eff) for share in tail]
    value = np.array([np.nan if each is None else each.value for each in found])
    # Where there is no bound the band is open: upwards without end, downwards to the smallest value.
    upper = np.array([np.inf if each is None or each.upper is None else each.upper for each in found])
    lower = np.array([ordered[0] if each is None or each.lower is None else each.lower for each in found])
    finite = ordered[np.isfinite(ordered)]
    top = max(float(finite[-1]) if finite.size else 0.0, promise.seconds) * 1.3
    ax.fill_between(
        tail,
        np.minimum(lower, top * 2),
        np.minimum(upper, top * 2),
        color=SKY,
        alpha=0.35,
        linewidth=0,
        label=f"{confidence:.0%} bounds (n_eff {n_eff:.0f})",
    )
    ax.plot(
        tail,
        np.where(np.isfinite(value), value, np.nan),
        color=BLUE,
        linewidth=1.8,
        label=f"measured (n {n})",
    )
    ax.plot(
        [1 - promise.quantile],
        [promise.seconds],
        marker="v",
        color=RED,
        markersize=9,
        linestyle="none",
        label=f"limit: p{promise.quantile * 100:g} within {promise.seconds:g} s",
    )
    ax.axhline(promise.seconds, color=RED, linewidth=0.9, linestyle="--")
    ax.axvline(1 - promise.quantile, color=GREY, linewidth=0.8, linestyle=":")
    ax.set_xscale("log")
    ax.set_xlim(0.5, 1 / n)
    ax.set_ylim(0, top)
    ax.xaxis.set_major_formatter(FuncFormatter(lambda share, _: f"p{100 * (1 - share):g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ticks = [share for share in (0.5, 0.25, 0.1, 0.05, 0.01, 0.001, 0.0001, 0.00001) if share >= 1 / n]
    ax.set_xticks(ticks)
    ax.set_ylabel("seconds")
    ax.grid(axis="y", color="#E4E7EB", linewidth=0.7)
    ax.legend(loc="upper left", fontsize=8, frameon=True, framealpha=0.9, edgecolor="none")


def _in_flight(samples: Samples, facts: RunFacts) -> Picture | None:
    hosts = samples.replica
    addresses = [word.rpartition(":")[0] or word for word in hosts.words]
    names = dict(facts.pod_names)
    by_pod: dict[str, list[int]] = {}
    for code, address in enumerate(addresses):
        by_pod.setdefault(address, []).append(code)
    tracks = []
    for address, codes in by_pod.items():
        mine = np.isin(hosts.codes, codes) & ~np.isnan(samples.sent)
        if mine.any():
            tracks.append((float(samples.sent[mine].min()), names.get(address, address), mine))
    if not tracks:
        return None
    shown = sorted(sorted(tracks, key=lambda track: -track[2].sum())[:MOST_PODS], key=lambda track: track[0])
    last = float(samples.scheduled[-1])
    moments = np.linspace(0, last, 1200)
    counts = [_running(samples, mine, moments) for _, _, mine in shown]
    most = max(1, *(int(count.max()) for count in counts))
    figure = Figure(figsize=(11, 0.62 * len(shown) + 1.3))
    axes = figure.subplots(len(shown), 1, sharex=True, squeeze=False)[:, 0]
    for number, (ax, (_, name, mine), count) in enumerate(zip(axes, shown, counts, strict=True)):
        ax.fill_between(moments, count, color=BLUE, alpha=0.8, linewidth=0, step="mid")
        ax.set_ylim(0, most * 1.05)
        ax.set_yticks([most])
        ax.tick_params(axis="y", labelsize=7)
        ax.set_ylabel(f"{name}\n{int(mine.sum())} requests", rotation=0, ha="right", va="center", fontsize=8)
        _fault_marks(ax, facts.faults, named=number == 0)
        ax.set_xlim(0, last)
    axes[-1].set_xlabel("seconds after the start of the run")
    left_out = len(tracks) - len(shown)
    return Picture(
        "Requests in flight on each pod",
        "Which pod did the work?" + (f" ({left_out} pods with fewer requests are left out)" if left_out else ""),
        f"Running requests over time, one row for each of {len(shown)} replica pods, at most {most} at once.",
        _svg(figure),
    )


def _running(samples: Samples, mine: npt.NDArray[np.bool_], moments: Floats) -> npt.NDArray[np.intp]:
    begun = np.searchsorted(np.sort(samples.sent[mine]), moments, side="right")
    ended = np.searchsorted(np.sort(samples.end[mine]), moments, side="right")
    return begun - ended


def _rolling(ax: Axes, due: Floats, values: Floats, window_s: float = 10.0) -> None:
    """The median and the p99 of each stretch of time, over all of its requests, lost ones included."""
    if due.size == 0:
        return
    edges = np.arange(due[0], due[-1] + window_s, window_s)
    slots = np.searchsorted(edges, due, side="right")
    rows = []
    for slot in np.unique(slots):
        ordered = np.sort(values[slots == slot])
        if ordered.size >= 20:
            ranks = [max(0, int(np.ceil(ordered.size * share)) - 1) for share in (0.5, 0.99)]
            rows.append((edges[slot - 1] + window_s / 2, *ordered[ranks]))
    if not rows:
        return
    table = np.array(rows)
    for column, word, color, width in ((1, "median", BLUE, 1.6), (2, "p99", ORANGE, 1.4)):
        line = np.where(np.isfinite(table[:, column]), table[:, column], np.nan)
        ax.plot(table[:, 0], line, color=color, linewidth=width, label=f"{word} of {window_s:g} s")


def _limit(ax: Axes, promise: QuantileObjective | None) -> None:
    if promise is not None:
        ax.axhline(
            promise.seconds,
            color=RED,
            linewidth=1.0,
            linestyle="--",
            label=f"limit p{promise.quantile * 100:g} {promise.seconds:g} s",
        )


def _phases(ax: Axes, samples: Samples, facts: RunFacts, *, named: bool) -> None:
    for number, phase in enumerate(facts.phases or ()):
        mine = samples.scheduled[samples.phase.is_in(phase.name)]
        if mine.size == 0:
            continue
        if number % 2 == 0:
            ax.axvspan(mine[0], mine[-1], color="#F1F3F5", zorder=0, linewidth=0)
        if named:
            _above(ax, float(mine[0]), phase.name, 2, color="#52606D", size=7.5)


def _fault_marks(ax: Axes, events: Sequence[FaultEvent], *, named: bool) -> None:
    for event in events:
        if event.t0_s is None:
            continue
        ax.axvline(event.t0_s, color=INK, linewidth=1.0)
        if event.healed_s is not None:
            ax.axvspan(event.t0_s, event.healed_s, color=ORANGE, alpha=0.13, linewidth=0)
        if named:
            _above(ax, event.t0_s, event.kind, 13, color=INK, size=8.5)


def _above(ax: Axes, at_s: float, word: str, points: float, *, color: str, size: float) -> None:
    ax.annotate(
        word,
        (at_s, 1.0),
        xycoords=("data", "axes fraction"),
        xytext=(0, points),
        textcoords="offset points",
        fontsize=size,
        color=color,
        annotation_clip=False,
    )


def _ceiling(values: Floats, promise: QuantileObjective | None) -> float:
    return max(float(values.max()) if values.size else 0.0, promise.seconds if promise else 0.0, 1e-2) * 1.1


def _seconds_axis(ax: Axes, bottom: float, top: float) -> None:
    """A logarithmic axis in seconds, with room above `top` for what has no value and for the legend."""
    ax.set_yscale("log")
    ax.set_ylim(bottom, top * 3.2)
    ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    ax.yaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{value:g} s" if value >= 1 else f"{value * 1000:g} ms")
    )
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.grid(axis="y", color="#E4E7EB", linewidth=0.7)


def _legend(ax: Axes) -> None:
    if ax.get_legend_handles_labels()[0]:
        ax.legend(loc="upper right", fontsize=8, ncols=4, frameon=True, framealpha=0.9, edgecolor="none")


def _svg(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", dpi=150, metadata={"Date": None, "Creator": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()
