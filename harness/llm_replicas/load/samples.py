"""What the generator notes about itself and its host each second, in ``generator/<worker>.jsonl``."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import gevent

from llm_replicas.errors import UsageError

FOLDER = "generator"
TICK_SECONDS = 0.1
TICKS_PER_SAMPLE = 10


@dataclass(frozen=True)
class Sample:
    """One second of the generator's life. Shares are of one core for the process and of the host for the
    rest.
    """

    t: float
    wall: float
    hub_lag_s: float
    cpu_share: float
    in_flight: int
    due: int
    host_busy_share: float | None = None
    host_steal_share: float | None = None
    host_pressure_share: float | None = None


@dataclass(frozen=True)
class HostReading:
    """Counters of the host at one moment: jiffies in all, idle and stolen, and microseconds under CPU
    pressure.
    """

    total: int
    idle: int
    steal: int
    pressure_us: int | None

    @classmethod
    def take(cls, proc: Path = Path("/proc")) -> HostReading | None:
        """Read the counters; None where the kernel does not show them."""
        try:
            line = (proc / "stat").read_text(encoding="ascii").splitlines()[0]
        except OSError:
            return None
        jiffies = [int(word) for word in line.split()[1:9]]
        # user nice system idle iowait irq softirq steal
        return cls(sum(jiffies), jiffies[3] + jiffies[4], jiffies[7], _pressure(proc / "pressure" / "cpu"))


def _pressure(path: Path) -> int | None:
    try:
        line = path.read_text(encoding="ascii").splitlines()[0]
    except OSError:
        return None
    return int(line.rpartition("total=")[2])


def host_shares(
    before: HostReading | None, after: HostReading | None, seconds: float
) -> tuple[float | None, float | None, float | None]:
    """Busy, stolen and under-pressure shares between two readings."""
    if before is None or after is None or after.total <= before.total or seconds <= 0:
        return None, None, None
    total = after.total - before.total
    pressure = None
    if before.pressure_us is not None and after.pressure_us is not None:
        pressure = (after.pressure_us - before.pressure_us) / 1e6 / seconds
    return 1 - (after.idle - before.idle) / total, (after.steal - before.steal) / total, pressure


def sample_regularly(
    run: Path,
    worker: str,
    *,
    wall_start: float,
    in_flight: Callable[[], int],
    due: Callable[[], int],
    each_second: Callable[[], None],
) -> None:
    """Sample until the greenlet is killed. The hub's lag is how late a sleeper of 100 ms wakes up."""
    folder = run / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{worker}.jsonl").open("a", encoding="utf-8", buffering=1) as file:
        host, cpu, then = HostReading.take(), time.process_time(), time.monotonic()
        while True:
            worst = 0.0
            for _ in range(TICKS_PER_SAMPLE):
                asleep = time.monotonic()
                gevent.sleep(TICK_SECONDS)  # the sleep itself is what is measured
                worst = max(worst, time.monotonic() - asleep - TICK_SECONDS)
            now, host_now, cpu_now, wall = (
                time.monotonic(),
                HostReading.take(),
                time.process_time(),
                time.time(),
            )
            busy, steal, pressure = host_shares(host, host_now, now - then)
            sample = Sample(
                round(wall - wall_start, 6),
                wall,
                round(worst, 6),
                round((cpu_now - cpu) / (now - then), 4),
                in_flight(),
                due(),
                busy,
                steal,
                pressure,
            )
            file.write(json.dumps(asdict(sample)) + "\n")
            host, cpu, then = host_now, cpu_now, now
            each_second()


def read_samples(run: Path) -> dict[str, list[Sample]]:
    """The samples of each worker; a line cut by a crash is left out, any other bad line is an error."""
    found: dict[str, list[Sample]] = {}
    for path in sorted((run / FOLDER).glob("*.jsonl")):
        lines = path.read_text(encoding="utf-8").split("\n")
        samples = found.setdefault(path.stem, [])
        for number, line in enumerate(lines[:-1], start=1):
            try:
                samples.append(Sample(**json.loads(line)))
            except (json.JSONDecodeError, TypeError) as error:
                raise UsageError(f"{path}, line {number}: not a sample of the generator: {error}") from error
    return found
