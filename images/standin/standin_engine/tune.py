"""What a replica with given numbers can promise: python -m standin_engine.tune TRACE.csv [--rate 9.7 14.5].

Runs the engine's own scheduler on a virtual clock with the real request lengths, and prints the capacity of
one replica, the unloaded percentiles and the loaded ones as multiples of them. Stand-in numbers, all of them.
"""

# ruff: noqa: T201 - a command line program; printing is what it is for
from __future__ import annotations

import argparse
import csv
import os
import random
import sys
from pathlib import Path

from standin_engine.config import load
from standin_engine.simulation import capacity, poisson_arrivals, quantile, simulate, unloaded_p99

PROMISE_FACTOR = 2.0
LONG_STREAM_SECONDS = 12.0


def read_lengths(path: Path, prompt_divisor: int, output_divisor: int) -> list[tuple[int, int]]:
    """Prompt and answer lengths of an Azure trace, scaled, at least one token each."""
    with path.open(newline="") as file:
        return [
            (
                max(1, round(int(row["ContextTokens"]) / prompt_divisor)),
                max(1, round(int(row["GeneratedTokens"]) / output_divisor)),
            )
            for row in csv.DictReader(file)
        ]


def main() -> int:
    """Parse, simulate, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace", type=Path)
    parser.add_argument("--config", type=Path, help="engine.json; STANDIN_... variables win")
    parser.add_argument("--rate", type=float, nargs="+", default=[9.7, 14.5], help="requests a second, one replica")
    parser.add_argument("--requests", type=int, default=6000)
    parser.add_argument("--prompt-divisor", type=int, default=10)
    parser.add_argument("--output-divisor", type=int, default=4)
    parser.add_argument("--slowdown", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()

    config = load(options.config, os.environ)
    lengths = read_lengths(options.trace, options.prompt_divisor, options.output_divisor)
    random.Random(options.seed).shuffle(lengths)
    alone = unloaded_p99(lengths, config)
    sample = lengths[: options.requests]
    print(config)
    print(f"capacity of one replica: {capacity(sample, config, options.seed):.1f} requests/s")
    print(f"unloaded p99: TTFT {alone.ttft_seconds:.3f} s, largest gap {alone.largest_gap_seconds:.3f} s")
    print(
        f"upper limit of a promise ({PROMISE_FACTOR:g} x unloaded): TTFT "
        f"{PROMISE_FACTOR * alone.ttft_seconds:.3f} s, gap {PROMISE_FACTOR * alone.largest_gap_seconds:.3f} s"
    )
    print(
        f"{'rate/s':>7} {'p99 TTFT':>9} {'x':>5} {'p99 gap':>8} {'x':>5} {'>12 s':>6} {'rejected':>9} "
        f"{'active':>7} {'waiting':>8} {'KV blocks':>10}"
    )
    for rate in options.rate:
        run = simulate(poisson_arrivals(rate, len(sample), options.seed), sample, config, options.slowdown)
        ttft = quantile((outcome.ttft for outcome in run.outcomes), 0.99)
        gap = quantile((o.largest_gap for o in run.outcomes if o.largest_gap is not None), 0.99)
        long = sum(outcome.duration > LONG_STREAM_SECONDS for outcome in run.outcomes) / len(sample)
        print(
            f"{rate:>7.1f} {ttft:>9.3f} {ttft / alone.ttft_seconds:>5.2f} {gap:>8.3f} "
            f"{gap / alone.largest_gap_seconds:>5.2f} {long:>6.1%} {run.rejected:>9} {run.most_active:>7} "
            f"{run.most_waiting:>8} {run.most_blocks:>10}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
