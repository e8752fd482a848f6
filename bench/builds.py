#!/usr/bin/env python3
"""Compares what a forwarded request costs in two or more builds of Tidegate, to about 1 %.

All builds run at once on one core, with the configuration of compare.py, and take turns of a second: the
load goes to one while the others idle. Each turn's CPU per request is divided by that of the first build in
the same round, and the median of these ratios is what counts; how fast the machine is at the moment cancels
out. The same build named twice shows how far the figures can be believed.

    git worktree add /tmp/before REVISION && (cd /tmp/before && cargo build --release --locked)
    make bench-builds BUILDS="/tmp/before/target/release/tidegate target/release/tidegate"

Exit status: 0 measured; 1 it could not be, or with --at-most a build costs more; 2 something is missing.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

from compare import SETTLE_S, WARMUP_S, Generator, Proxies, prove, start_upstream
from harness import BenchError, Server, require, workplace

APP = "acme"  # forwarded by bench/rules.yaml


def cost(generator: Generator, server: Server, seconds: int) -> float:
    """Returns CPU microseconds per forwarded request, over one turn of load."""
    server.cut_logs()
    time.sleep(SETTLE_S)
    before = server.cpu_nanoseconds()
    load = generator.load(server.port, APP, seconds)
    spent = server.cpu_nanoseconds() - before
    if load.requests == 0 or load.failed_status > 0:
        raise BenchError(f"{server.name}: {load.failed_status} of {load.requests} answers were errors")
    if spent <= 0:
        raise BenchError(f"{server.name}: the kernel tells no CPU time in /proc/PID/task/*/schedstat")
    return spent / load.requests / 1000


def run(options: argparse.Namespace) -> list[float]:
    """Measures all builds; returns the median ratio of each to the first."""
    costs: list[list[float]] = [[] for _ in options.builds]
    with workplace() as (folder, stack):
        upstream = start_upstream(folder, stack)
        servers = []
        for number, build in enumerate(options.builds):
            # Bursts are what it measures with, and no build may take them for a flood.
            settings = argparse.Namespace(tidegate=build, detection="suggest")
            server = Proxies(settings, folder / str(number), upstream).start("tidegate")
            server.name = str(build)
            stack.callback(server.stop)
            prove(server)
            servers.append(server)
        generator = Generator(folder)
        for server in servers:
            generator.load(server.port, APP, WARMUP_S)
        for turn in range(options.rounds):
            # Everybody follows everybody equally often.
            first = turn % len(servers)
            order = [*range(first, len(servers)), *range(first)]
            if turn // len(servers) % 2:
                order.reverse()
            for number in order:
                costs[number].append(cost(generator, servers[number], options.seconds))
            print(f"round {turn + 1}/{options.rounds}: " + "  ".join(f"{mine[-1]:.2f}" for mine in costs) + " µs",
                  flush=True)
    print(f"\n{'CPU µs/request':>16} {'x the first':>12} {'quartiles':>16}  build")
    medians = []
    for build, mine in zip(options.builds, costs, strict=True):
        ratios = [one / first for one, first in zip(mine, costs[0], strict=True)]
        low, median, high = statistics.quantiles(ratios, n=4)
        medians.append(median)
        print(f"{statistics.median(mine):16.2f} {median:12.4f} {low:8.4f}-{high:.4f}  {build}")
    return medians


def main() -> int:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("builds", type=Path, nargs="+", metavar="BUILD", help="binaries; the first is what the others are compared with")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--seconds", type=int, default=1, help="of load per build and round")
    parser.add_argument("--at-most", type=float, help="exit 1 when a build costs more than this many times the first")
    options = parser.parse_args()
    if len(options.builds) < 2 or options.rounds < 4 or options.seconds < 1:
        parser.error("two builds at least, and --rounds from 4, --seconds from 1 on")
    for build in options.builds:
        require(["nginx", "wrk", "taskset"], build, build=False)
    try:
        medians = run(options)
    except BenchError as problem:
        print(f"not measured: {problem}", file=sys.stderr)
        return 1
    return int(options.at_most is not None and max(medians[1:]) > options.at_most)


if __name__ == "__main__":
    sys.exit(main())
