"""Compare a running stand-in replica with its cost model, and see what it costs.

  benchmark.py throughput --url http://127.0.0.1:8000     tokens a second by batch size, measured / model
  benchmark.py cpu --url http://127.0.0.1:8000 --pid PID  share of a core for some streams

Needs nothing but Python and the `standin_engine` folder beside it. The engine's own configuration is given by
the same file and variables as to the replica (--config, STANDIN_...).
"""

# ruff: noqa: T201 - a command line program; printing is what it is for
from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from standin_engine.config import EngineConfig, load

TOLERANCE = 0.05
RAMP_SECONDS = 0.02


@dataclass
class Stream:
    """One answer as it arrived: when, and how many tokens came."""

    events: list[tuple[float, int]] = field(default_factory=list)
    error: str | None = None

    @property
    def tokens(self) -> int:
        """All tokens received."""
        return sum(count for _, count in self.events)


async def read_stream(url: str, model: str, prompt: str, max_tokens: int, delay: float) -> Stream:
    """After a delay, ask for one streamed answer over plain HTTP and time its events."""
    await asyncio.sleep(delay)
    address = urlsplit(url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    body = json.dumps({"text_input": prompt, "max_tokens": max_tokens, "stream": True}).encode()
    writer.write(
        (
            f"POST /v2/models/{model}/generate_stream HTTP/1.1\r\nHost: {address.netloc}\r\n"
            f"Connection: close\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        ).encode()
        + body
    )
    stream = Stream()
    async for line in reader:
        if line.startswith(b"data:"):
            event = json.loads(line[5:])
            if "error" in event:
                stream.error = event["error"]
                break
            stream.events.append((time.monotonic(), len(event["text_output"].split())))
            if stream.tokens >= max_tokens:
                break
    writer.close()
    return stream


def model_tokens_per_second(config: EngineConfig, streams: int) -> float:
    """What the cost model says for so many decoding sequences spread evenly over the lanes."""
    cost = config.cost_model()
    spread = [streams // config.stages + (lane < streams % config.stages) for lane in range(config.stages)]
    return sum(sequences / cost.step_seconds(sequences, 0) for sequences in spread if sequences)


def measured_tokens_per_second(streams: list[Stream]) -> float:
    """The rate while all streams were decoding: after the last first event, before the first last one."""
    # Two events are skipped at either end, so that only whole groups of tokens are counted.
    start = max(stream.events[1][0] for stream in streams)
    end = min(stream.events[-2][0] for stream in streams)
    total = 0.0
    for stream in streams:
        inside = [(at, count) for at, count in stream.events if start <= at <= end]
        total += sum(count for _, count in inside[1:]) / (inside[-1][0] - inside[0][0])
    return total


async def run_streams(url: str, model: str, streams: int, max_tokens: int) -> list[Stream]:
    """Many streams side by side, a prompt of one word each so that prefill does not disturb."""
    # Started one after the other: all at once would test the waiting queue instead.
    starts = (read_stream(url, model, f"w{number}", max_tokens, number * RAMP_SECONDS) for number in range(streams))
    return list(await asyncio.gather(*starts))


def throughput(options: argparse.Namespace, config: EngineConfig) -> int:
    """Print measured over modelled throughput for each batch size."""
    print(f"{'streams':>8} {'model tok/s':>12} {'measured':>9} {'ratio':>6}")
    worst = 0.0
    for streams in options.streams:
        results = asyncio.run(run_streams(options.url, options.model, streams, options.tokens))
        failed = [result.error for result in results if result.error or result.tokens != options.tokens]
        if failed:
            print(f"{streams:>8} {len(failed)} streams failed, first: {failed[0]}")
            return 1
        expected = model_tokens_per_second(config, streams)
        measured = measured_tokens_per_second(results)
        worst = max(worst, abs(measured / expected - 1))
        print(f"{streams:>8} {expected:>12.1f} {measured:>9.1f} {measured / expected:>6.3f}")
    print(f"largest deviation {worst:.1%}, allowed {TOLERANCE:.0%}")
    return 0 if worst <= TOLERANCE else 1


def cpu_seconds(pid: int) -> float:
    """User and system time of a process and all its descendants."""
    parents: dict[int, int] = {}
    times: dict[int, float] = {}
    ticks = os.sysconf("SC_CLK_TCK")
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        process = int(path.parent.name)
        parents[process] = int(fields[1])
        times[process] = (int(fields[11]) + int(fields[12])) / ticks
    total = 0.0
    for process, seconds in times.items():
        ancestor = process
        while ancestor not in (pid, 0, 1):
            ancestor = parents.get(ancestor, 0)
        if ancestor == pid:
            total += seconds
    return total


def cpu(options: argparse.Namespace, config: EngineConfig) -> int:
    """Print the share of a core that the replica takes while streams are flowing."""
    before, started = cpu_seconds(options.pid), time.monotonic()
    results = asyncio.run(run_streams(options.url, options.model, options.streams[0], options.tokens))
    elapsed = time.monotonic() - started
    share = (cpu_seconds(options.pid) - before) / elapsed
    tokens = sum(result.tokens for result in results)
    events = sum(len(result.events) for result in results)
    print(
        f"{options.streams[0]} streams, {tokens / elapsed:.0f} tokens/s in {events / elapsed:.0f} events/s "
        f"over {elapsed:.1f} s: {share:.1%} of a core"
    )
    return 0


def main() -> int:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["throughput", "cpu"])
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--model", default="tensorrt_llm_bls")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8, 32, 96, 160])
    parser.add_argument("--tokens", type=int, default=100, help="answer length")
    parser.add_argument("--pid", type=int, help="process id of tritonserver, for cpu")
    parser.add_argument("--config", type=Path, default=Path(__file__).parent / "engine.json")
    options = parser.parse_args()
    if options.what == "cpu" and options.pid is None:
        parser.error("cpu needs --pid")
    config = load(options.config, os.environ)
    return {"throughput": throughput, "cpu": cpu}[options.what](options, config)


if __name__ == "__main__":
    sys.exit(main())
