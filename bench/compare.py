#!/usr/bin/env python3
"""Compares what a request costs in Tidegate, nginx and HAProxy: same core, same upstream, same rules.

Each proxy runs with one worker on core 0; wrk and the upstream share core 1. Every proxy adds
X-Forwarded-For, keeps a pool of upstream connections, writes an access log to a file, has two keyed
limits (per address, per x-app-id) sized so that they never refuse, and refuses `x-app-id: banned`
with 403. Tidegate runs its detection and metrics besides.

CPU per request is the user and system time of the proxy and all its children over the interval,
divided by the answers that wrk counted. Rounds are interleaved (every proxy and kind once a round),
and ratios are taken within a round, so that a noisy neighbour hits all of them alike.

Exit status: 0 measured; 1 a run was not worth its numbers, or with --assert a ratio was missed;
2 something is not installed.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import re
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from harness import (BINARY, BenchError, Load, Server, free_port, get_json, render, request_text, require, start_wrk,
                     user_line, workplace, wrk_result)

PROXY_CORE, LOAD_CORE = 0, 1
CONNECTIONS = 64
POOL = 64  # upstream connections kept: as many as clients, so nobody reconnects
NEVER = 1_000_000  # requests per second and burst of a limit that must not refuse
TIGHT_RATE, TIGHT_BURST, TIGHT_REQUESTS = 5, 5, 200  # a limit that must refuse: 10 s of it are 50 requests
PATH = "/c/v1/chat/settings"
DEVICES = 2048  # that take turns, so that no proxy measures one hot cache line
KINDS = {"forwarded": ("acme", 200), "refused": ("banned", 403)}
TARGETS = {"forwarded": 1.0, "refused": 0.8}
WARMUP_S = 1
SETTLE_S = 0.1
BUSY_WANTED = 0.85
"""Below this share of its core, a proxy was not what limited the requests per second."""
LOGGED_MIN = 50.0  # bytes of access log per forwarded request; who writes less does less work
SECONDS_MAX = 240
"""The whole comparison ends within this, or refuses to start."""


@dataclass
class Sample:
    """One proxy, one kind, one round."""

    proxy: str
    kind: str
    round: int
    requests_per_second: float
    cpu_us_per_request: float
    core_busy: float
    p50_us: float
    p99_us: float
    log_bytes_per_request: float


class Proxies:
    """Writes each proxy's configuration and starts it."""

    def __init__(self, options: argparse.Namespace, folder: Path, upstream: int) -> None:
        self.options, self.folder, self.upstream = options, folder, upstream
        self.admin = 0

    def start(self, name: str, address_rate: int = NEVER, app_rate: int = NEVER, label: str = "") -> Server:
        """Starts one with these limits."""
        port, folder = free_port(), self.folder / f"{name}{label}"
        values = {
            "user": user_line(), "folder": folder, "port": port, "upstream": self.upstream, "pool": POOL,
            "address_rate": address_rate, "address_burst": NEVER if address_rate == NEVER else TIGHT_BURST,
            "app_rate": app_rate, "app_burst": NEVER if app_rate == NEVER else TIGHT_BURST,
        }
        if name == "nginx":
            command = ["nginx", "-c", str(render("nginx.conf", folder / "nginx.conf", **values))]
        elif name == "haproxy":
            command = ["haproxy", "-db", "-f", str(render("haproxy.cfg", folder / "haproxy.cfg", **values))]
        else:
            self.admin = free_port()
            values |= {"admin": self.admin, "detection": self.options.detection}
            render("rules.yaml", folder / "rules" / "rules.yaml", **values)
            settings = render("tidegate.yaml", folder / "tidegate.yaml", **values)
            command = [str(self.options.tidegate), "run", "--config", str(settings)]
        return Server.start(name, command, port, PROXY_CORE, folder)


def headers(app: str, device: int) -> dict[str, str]:
    """Returns what a chat SDK sends when its app opens."""
    return {
        "Host": "acme.api.example.com", "User-Agent": "okhttp/3.12.2", "x-kustomer-client": "customer-android",
        "x-kustomer-version": "release-v0.2.5", "x-app-id": app,
        "x-kustomer-tracking-token": f"5e9f{device * 2654435761:020x}", "accept-language": "en-US,en;q=0.9",
    }


def probe(port: int, app: str, times: int) -> tuple[list[int], int, dict[str, str]]:
    """Sends requests one after the other; returns statuses, connections used, and the last answer's headers."""
    statuses, connections, last = [], 0, {}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    with contextlib.closing(connection):
        for _ in range(times):
            connections += connection.sock is None
            connection.request("GET", PATH, headers=headers(app, 0))
            response = connection.getresponse()
            response.read()
            statuses.append(response.status)
            last = {name.lower(): value for name, value in response.getheaders()}
    return statuses, connections, last


def prove(server: Server) -> str:
    """Checks that a proxy does the work that is to be compared; returns what it does after a refusal."""
    statuses, connections, seen = probe(server.port, "acme", 20)
    if statuses != [200] * 20 or connections != 1:
        raise BenchError(f"{server.name}: forwarding gave {statuses} over {connections} connections")
    if "127.0.0.1" not in seen.get("x-seen-forwarded-for", ""):
        raise BenchError(f"{server.name}: the upstream saw no X-Forwarded-For")
    if int(seen.get("x-seen-on-connection", "0")) < 2:
        raise BenchError(f"{server.name}: does not keep its upstream connections")
    statuses, connections, _ = probe(server.port, "banned", 5)
    if statuses != [403] * 5:
        raise BenchError(f"{server.name}: the deny rule gave {statuses}")
    return "keeps the connection" if connections == 1 else "closes the connection"


def prove_limits(proxies: Proxies, name: str) -> None:
    """The negative control: with either limit made tight, the same proxy must refuse."""
    for label, rates in (("address", (TIGHT_RATE, NEVER)), ("app", (NEVER, TIGHT_RATE))):
        server = proxies.start(name, *rates, label=f"-tight-{label}")
        try:
            statuses, _, _ = probe(server.port, "acme", TIGHT_REQUESTS)
        finally:
            server.stop()
        if 429 not in statuses or 200 not in statuses:
            raise BenchError(f"{name}: the limit per {label} is not in force: {sorted(set(statuses))}")


def start_upstream(folder: Path, stack: contextlib.ExitStack) -> int:
    """Starts nginx as the upstream of all, 1 KB of JSON for every request; returns its port."""
    port, folder = free_port(), folder / "upstream"
    answer = 'return 200 \'{"settings":"' + "x" * 1000 + '"}\';'
    configuration = render("upstream.conf", folder / "nginx.conf", folder=folder, user=user_line(), port=port,
                           answer=answer, capacity="", capacity_zone="")
    upstream = Server.start("upstream", ["nginx", "-c", str(configuration)], port, LOAD_CORE, folder)
    stack.callback(upstream.stop)
    return port


class Generator:
    """wrk on its core, with the requests of each kind written out once."""

    def __init__(self, folder: Path) -> None:
        self.files = {}
        for app, _ in KINDS.values():
            self.files[app] = folder / f"requests-{app}.txt"
            text = "".join(request_text(PATH, headers(app, device)) for device in range(1, DEVICES + 1))
            self.files[app].write_text(text, newline="")

    def load(self, port: int, app: str, seconds: int) -> Load:
        """Sends as fast as the answers come."""
        return wrk_result(start_wrk(self.files[app], port, seconds, CONNECTIONS, LOAD_CORE), seconds + 20)


def measure(generator: Generator, server: Server, kind: str, turn: int, seconds: int) -> Sample:
    """Measures one proxy and kind once."""
    app, status = KINDS[kind]
    server.cut_logs()
    time.sleep(SETTLE_S)
    before, began = server.cpu_seconds(), time.monotonic()
    load = generator.load(server.port, app, seconds)
    cpu, elapsed = server.cpu_seconds() - before, time.monotonic() - began
    expected_failures = load.requests if status >= 400 else 0
    # wrk's last answers may be cut off by its own end: at most one per connection.
    if abs(load.failed_status - expected_failures) > CONNECTIONS or load.requests == 0:
        wrong = f"{load.failed_status} of {load.requests} answers were errors, {expected_failures} expected"
        raise BenchError(f"{server.name}, {kind}: {wrong}")
    logged = server.log_bytes() / load.requests
    if status < 400 and logged < LOGGED_MIN:
        raise BenchError(f"{server.name}: wrote {logged:.0f} B of access log per forwarded request; is it on?")
    return Sample(server.name, kind, turn, load.requests / load.seconds, cpu / load.requests * 1e6, cpu / elapsed,
                  load.p50_us, load.p99_us, logged)


def spread(values: list[float], digits: int) -> str:
    """Returns `median (min-max)`."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def ratios(samples: list[Sample], kind: str, rivals: list[str]) -> list[float]:
    """Returns, per round, Tidegate's CPU per request divided by the best rival's."""
    found = []
    for turn in sorted({sample.round for sample in samples}):
        cost = {s.proxy: s.cpu_us_per_request for s in samples if s.round == turn and s.kind == kind}
        if "tidegate" in cost and all(rival in cost for rival in rivals):
            found.append(cost["tidegate"] / min(cost[rival] for rival in rivals))
    return found


def report(samples: list[Sample], names: list[str], after_refusal: dict[str, str]) -> dict[str, dict[str, float]]:
    """Prints the table and the ratios; returns the ratios."""
    print(f"\n{'':10} {'':10} {'requests/s':>24} {'CPU µs/request':>22} {'p99 ms':>20} {'core busy':>10} {'log B/request':>14}")
    for kind in KINDS:
        for name in names:
            mine = [s for s in samples if s.kind == kind and s.proxy == name]
            print(f"{kind:10} {name:10} {spread([s.requests_per_second for s in mine], 0):>24} "
                  f"{spread([s.cpu_us_per_request for s in mine], 1):>22} "
                  f"{spread([s.p99_us / 1000 for s in mine], 2):>20} "
                  f"{statistics.median(s.core_busy for s in mine):>10.0%} "
                  f"{statistics.median(s.log_bytes_per_request for s in mine):>14.0f}")
    print("median (min-max) over the rounds; after a refusal: "
          + "; ".join(f"{name} {what}" for name, what in after_refusal.items()))
    for kind in KINDS:
        for name in names:
            busy = statistics.median(s.core_busy for s in samples if s.kind == kind and s.proxy == name)
            if busy < BUSY_WANTED:
                print(f"note: {name}, {kind}: its core was only {busy:.0%} busy, so the load or the machine was the "
                      "limit: believe its CPU per request, not its requests/s")
    result = {}
    for kind, rivals in (("forwarded", ["nginx", "haproxy"]), ("refused", ["haproxy"])):
        found = ratios(samples, kind, [rival for rival in rivals if rival in names])
        if found and any(rival in names for rival in rivals):
            median, target = statistics.median(found), TARGETS[kind]
            against = "the better of nginx and HAProxy" if len(rivals) > 1 else "HAProxy's deny"
            word = "held" if median <= target else "MISSED"
            print(f"{kind}: Tidegate costs {spread(found, 2)} x {against}; at most {target} wanted: {word}")
            result[kind] = {"median": median, "min": min(found), "max": max(found), "target": target}
    return result


def explain(proxies: Proxies) -> str:
    """Asks Tidegate which detected rules it has: the likely reason when it refuses the load."""
    with contextlib.suppress(OSError, BenchError, ValueError, TypeError):
        rules = get_json(proxies.admin, "/api/v1/rules")
        detected = [rule["name"] for rule in rules if rule.get("origin") == "detected"]
        if detected:
            return f" (Tidegate's detector installed {', '.join(detected)}; --detection suggest keeps it from acting)"
    return ""


def run(options: argparse.Namespace) -> int:
    """Runs everything; returns the exit status."""
    names: list[str] = options.only
    slots = len(names) * len(KINDS)
    planned = slots * (WARMUP_S + options.rounds * (options.seconds + 0.3)) + 10
    if planned > SECONDS_MAX:
        raise BenchError(f"this would take {planned:.0f} s; at most {SECONDS_MAX} s: lower --rounds or --seconds")
    print(f"{len(names)} proxies, {len(KINDS)} kinds, {options.rounds} rounds of {options.seconds} s, "
          f"{CONNECTIONS} connections: about {planned:.0f} s", flush=True)
    samples: list[Sample] = []
    with workplace() as (folder, stack):
        upstream_port = start_upstream(folder, stack)
        proxies = Proxies(options, folder, upstream_port)
        servers, after_refusal = {}, {}
        for name in names:
            prove_limits(proxies, name)
            servers[name] = proxies.start(name)
            stack.callback(servers[name].stop)
            after_refusal[name] = prove(servers[name])
            print(f"{name}: forwards, denies, both limits refuse when made tight; after a refusal {after_refusal[name]}",
                  flush=True)
        generator = Generator(folder)
        direct = generator.load(upstream_port, "acme", WARMUP_S)
        print(f"upstream alone: {direct.requests / direct.seconds:.0f} requests/s, sharing its core with wrk", flush=True)
        try:
            for server in servers.values():
                for app, _ in KINDS.values():
                    generator.load(server.port, app, WARMUP_S)
            for turn in range(1, options.rounds + 1):
                # Another order each round: nobody always follows the same neighbour.
                order = names[turn % len(names):] + names[:turn % len(names)]
                for kind in KINDS:
                    for name in order:
                        sample = measure(generator, servers[name], kind, turn, options.seconds)
                        samples.append(sample)
                        print(f"round {turn}/{options.rounds} {kind:9} {name:8} {sample.requests_per_second:8.0f}/s "
                              f"{sample.cpu_us_per_request:6.1f} µs CPU  p99 {sample.p99_us / 1000:6.2f} ms", flush=True)
        except BenchError as problem:
            raise BenchError(f"{problem}{explain(proxies) if 'tidegate' in servers else ''}") from problem
        memory = {name: server.resident_mib() for name, server in servers.items()}
    result = report(samples, names, after_refusal)
    print("resident memory: " + ", ".join(f"{name} {mib:.0f} MiB" for name, mib in memory.items()))
    if options.json:
        written = {"samples": [asdict(sample) for sample in samples], "ratios": result, "resident_mib": memory,
                   "after_refusal": after_refusal, "versions": versions(options)}
        options.json.write_text(json.dumps(written, indent=2) + "\n")
    missed = any(ratio["median"] > ratio["target"] for ratio in result.values())
    return 1 if options.assert_ratios and missed else 0


def versions(options: argparse.Namespace) -> dict[str, str]:
    """Returns each program's own words about its version."""
    found = {}
    for name, command in (("nginx", ["nginx", "-v"]), ("haproxy", ["haproxy", "-v"]),
                          ("tidegate", [str(options.tidegate), "--version"])):
        if name in options.only:
            done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
            found[name] = (done.stdout + done.stderr).strip().partition("\n")[0]
    return found


def names_of(text: str) -> list[str]:
    """Reads `--only`."""
    names = [name for name in re.split(r"[, ]+", text) if name]
    unknown = set(names) - {"tidegate", "nginx", "haproxy"}
    if unknown or not names:
        raise argparse.ArgumentTypeError("names from tidegate,nginx,haproxy")
    return names


def main() -> int:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tidegate", type=Path, default=BINARY, help="the binary")
    parser.add_argument("--build", action="store_true", help="build the release binary first")
    parser.add_argument("--only", type=names_of, default=["tidegate", "nginx", "haproxy"], help="proxies to run")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=4, help="of load per proxy, kind and round")
    parser.add_argument("--detection", default="auto", help="Tidegate's detection.mode (default: auto)")
    parser.add_argument("--json", type=Path, help="write samples and ratios to this file")
    parser.add_argument("--assert", dest="assert_ratios", action="store_true", help="exit 1 when a ratio is missed")
    options = parser.parse_args()
    if options.rounds < 1 or options.seconds < 1:
        parser.error("--rounds and --seconds start at 1")
    require(["nginx", "wrk", "taskset", *(["haproxy"] if "haproxy" in options.only else [])],
            options.tidegate if "tidegate" in options.only else None, options.build)
    if len(os.sched_getaffinity(0)) < 2:
        print("needs two cores: one for the proxy, one for the load", file=sys.stderr)
        return 2
    try:
        return run(options)
    except BenchError as problem:
        print(f"not measured: {problem}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
