#!/usr/bin/env python3
"""The 2020 incident against `tidegate run`, with an upstream and clients that are not ours.

nginx is the upstream, wrk is the loop, and a few hundred honest devices go on asking about once a
second each. After a calm phase one version of one SDK inside one app begins to loop on all its
devices. Nothing in the rules folder knows it: Tidegate has to find out. The admin API is asked every
100 ms which rules it has.

Exit status: 0 throttled within 3 s, blocked within 10 s, and the source named exactly; 1 not so;
2 something is not installed.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import multiprocessing
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import honest_clients
from harness import (BINARY, BenchError, Server, free_port, get_json, render, request_text, require, start_wrk,
                     status_of, user_line, workplace, wrk_result)

LOOP = {"sdk": "chat-android", "sdk_version": "3.2.1", "app": "acme"}
LOOP_PATHS = ["/c/v1/chat/settings", "/c/v1/chat/sessions", "/kb/v1/articles"]
LOOP_CONNECTIONS = 300
FIRST_LOOPER = 40_000  # numbers of devices: the honest ones come before it

THROTTLED_WITHIN_S, BLOCKED_WITHIN_S = 3.0, 10.0
LEGITIMATE_SUCCESS_MIN = 0.999
POLL_S = 0.1
CALM_EXTRA_S = 4.0
"""Calm after the warm-up, so that a baseline exists when the loop begins."""
READY_TIMEOUT_S = 10.0
SAMPLE_DEVICES = 20_000
"""Drawn from the same distribution, to weigh what normal traffic a rule would hit."""
SERVICES = {"/c/v1/": "chat", "/kb/v1/": "kb", "/p/v1/auth/": "login"}

Attributes = dict[str, str]


@dataclass
class Seen:
    """A detected rule in force, as first read from the admin API."""

    after: float
    rule: dict

    def when(self) -> dict:
        """Returns its condition."""
        return self.rule.get("when") or {}


def holds(condition: object, value: str | None) -> bool:
    """Judges one condition of a rule as the rule files define it; raises for kinds not known here."""
    match condition:
        case str() | int() | float():
            return value == str(condition).removeprefix("=").strip()
        case list():
            return any(holds(one, value) for one in condition)
        case {"prefix": str(prefix)}:
            return value is not None and value.startswith(prefix)
        case {"present": bool(present)}:
            return (value is not None) == present
        case {"not": inner}:
            return not holds(inner, value)
    raise BenchError(f"a detected rule has a condition that is not understood here: {condition!r}")


def share(when: dict, population: list[Attributes]) -> float:
    """Returns the share of a population that a rule matches."""
    hits = sum(all(holds(condition, one.get(name)) for name, condition in when.items()) for one in population)
    return hits / len(population)


def of_request(who: Attributes, host: str, path: str) -> Attributes:
    """Adds what a request says to what its client says."""
    route = next(prefix for prefix in SERVICES if path.startswith(prefix))
    return who | {"host": host, "method": "GET", "service": SERVICES[route], "route": route}


class Loop:
    """The looping devices: their requests, and their attributes."""

    def __init__(self, clients: int) -> None:
        self.requests: list[str] = []
        self.population: list[Attributes] = []
        # Hosts and user agents of everybody, so that neither tells the loop from the honest.
        agents = honest_clients.SDKS[LOOP["sdk"]][2]
        for number in range(clients):
            host, agent = honest_clients.HOSTS[number % 3], agents[number % 2]
            who = LOOP | {"tenant": host.partition(".")[0], "user_agent": agent}
            for path in LOOP_PATHS:
                self.requests.append(request_text(path, {
                    "Host": host, "User-Agent": agent, "x-kustomer-client": LOOP["sdk"],
                    "x-kustomer-version": f"release-v{LOOP['sdk_version']}", "x-app-id": LOOP["app"],
                    "x-kustomer-tracking-token": f"100b{number * 2654435761 + 1:020x}",
                    "x-forwarded-for": honest_clients.address(FIRST_LOOPER + number),
                }))
                self.population.append(of_request(who, host, path))


class Judge:
    """Says what a rule hits: the loop, and normal traffic."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop.population
        self.normal = []
        for number, device in enumerate(honest_clients.devices(SAMPLE_DEVICES)):
            path = honest_clients.PATHS[number % len(honest_clients.PATHS)]
            host = next(h for h in honest_clients.HOSTS if h.startswith(device.tenant))
            self.normal.append(of_request(device.attributes(), host, path))
        self.source_share = share(LOOP, self.normal)

    def is_exact(self, when: dict) -> bool:
        """At least 99 % of the loop, and at most 1.05 times the source's own normal traffic."""
        return share(when, self.loop) >= 0.99 and share(when, self.normal) <= 1.05 * self.source_share


class Watch:
    """Asks the admin API what Tidegate has done by itself."""

    def __init__(self, admin: int) -> None:
        self.admin = admin
        self.seen: dict[tuple[str, str, str], Seen] = {}
        self.incidents: list[dict] = []

    def poll(self, began: float) -> list[Seen]:
        """Reads rules and incidents once; returns what is new."""
        asked = time.monotonic()
        rules = get_json(self.admin, "/api/v1/rules")
        self.incidents = get_json(self.admin, "/api/v1/incidents") or self.incidents
        new = []
        for rule in rules:
            if rule.get("origin") == "detected" and rule.get("mode", "enforce") == "enforce":
                key = (rule["name"], str(rule["action"]), json.dumps(rule.get("when"), sort_keys=True))
                if key not in self.seen:
                    self.seen[key] = Seen(asked - began, rule)
                    new.append(self.seen[key])
        return new

    def first(self, actions: set[str], population: list[Attributes]) -> Seen | None:
        """Returns the first rule with one of these actions that hits the loop."""
        hits = (seen for seen in self.seen.values()
                if seen.rule["action"] in actions and share(seen.when(), population) >= 0.99)
        return min(hits, key=lambda seen: seen.after, default=None)


def wait_until_ready(admin: int, server: Server) -> None:
    """Waits for /readyz."""
    deadline = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline and server.process.poll() is None:
        with contextlib.suppress(OSError, http.client.HTTPException):
            if status_of(admin, "/readyz") == 200:
                return
        time.sleep(0.05)
    raise BenchError(f"/readyz does not answer 200: {server.complaint()}")


def source_text(when: dict) -> str:
    """Writes a condition the way logs do."""
    return ", ".join(f"{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in when.items())


def start_upstream(folder: Path, capacity: int) -> Server:
    """Starts nginx as the upstream; with a capacity, what is above it is answered 503."""
    port, home = free_port(), folder / "upstream"
    home.mkdir()
    body = '{"settings":"' + "x" * 1000 + '"}'
    values = {"capacity_zone": "", "capacity": "", "answer": f"return 200 '{body}';"}
    if capacity:
        (home / "body.json").write_text(body)
        values = {"capacity_zone": f"limit_req_zone $server_name zone=capacity:1m rate={capacity}r/s;",
                  "capacity": f"limit_req zone=capacity burst={max(1, capacity // 10)} nodelay;",
                  "answer": f"root {home}; try_files /body.json =500;"}
    configuration = render("upstream.conf", home / "nginx.conf", user=user_line(), folder=home, port=port, **values)
    return Server.start("upstream", ["nginx", "-c", str(configuration)], port, None, home)


def start_tidegate(options: argparse.Namespace, folder: Path, upstream: int) -> tuple[Server, int]:
    """Starts `tidegate run`; returns it and its admin port."""
    port, admin, home = free_port(), free_port(), folder / "tidegate"
    render("incident-rules.yaml", home / "rules" / "limits.yaml")
    settings = render("incident.yaml", home / "tidegate.yaml", port=port, admin=admin, upstream=upstream,
                      folder=home, detection=options.detection, warmup=options.warmup)
    server = Server.start("tidegate", [str(options.tidegate), "run", "--config", str(settings)], port, None, home)
    wait_until_ready(admin, server)
    return server, admin


def watch_the_loop(watch: Watch, began: float, seconds: float) -> None:
    """Polls while the loop runs, and prints what is new as it comes."""
    while (now := time.monotonic()) < began + seconds:
        for seen in watch.poll(began):
            print(f"{seen.after:6.1f} s  {seen.rule['action']}: {source_text(seen.when())}", flush=True)
        time.sleep(max(0.0, POLL_S - (time.monotonic() - now)))


def percentile_ms(outcomes: list[honest_clients.Outcome], share_below: int) -> float:
    """Returns a percentile of latency."""
    seconds = [outcome.seconds for outcome in outcomes]
    return statistics.quantiles(seconds, n=100)[share_below - 1] * 1000 if len(seconds) > 1 else 0.0


def print_honest(result: honest_clients.Result, began: float, blocked: float | None) -> float:
    """Prints how the honest fared, phase by phase; returns the success ratio since the loop began."""
    phases = [("calm", float("-inf"), began)]
    phases += [("loop, until blocked", began, began + blocked), ("loop, blocked", began + blocked, float("inf"))] \
        if blocked is not None else [("loop", began, float("inf"))]
    legitimate = [outcome for outcome in result.outcomes if not outcome.of_looping_source]
    for name, first, last in phases:
        phase = [outcome for outcome in legitimate if first <= outcome.due < last]
        succeeded = sum(outcome.status == 200 for outcome in phase)
        refused = sum(outcome.status in (403, 429) for outcome in phase)
        print(f"honest, {name:20} {len(phase):6} requests, {succeeded / max(1, len(phase)):8.3%} succeeded, "
              f"{refused} refused, p50 {percentile_ms(phase, 50):.1f} ms, p99 {percentile_ms(phase, 99):.1f} ms")
    own = [outcome for outcome in result.outcomes if outcome.of_looping_source and outcome.due >= began]
    if own:
        print(f"honest users of the looping source: {sum(o.status == 200 for o in own)} of {len(own)} succeeded")
    since = [outcome for outcome in legitimate if outcome.due >= began]
    return sum(outcome.status == 200 for outcome in since) / max(1, len(since))


def run(options: argparse.Namespace) -> int:
    """Runs the incident; returns the exit status."""
    loop = Loop(options.loopers)
    judge = Judge(loop)
    calm = options.warmup + CALM_EXTRA_S
    print(f"calm for {calm:.0f} s with {options.honest} honest devices, then {options.loopers} loopers at about "
          f"{options.loop_rate}/s for {options.seconds} s", flush=True)
    with workplace() as (folder, stack):
        upstream = start_upstream(folder, options.capacity)
        stack.callback(upstream.stop)
        tidegate, admin = start_tidegate(options, folder, upstream.port)
        stack.callback(tidegate.stop)
        requests = folder / "loop.txt"
        requests.write_text("".join(loop.requests), newline="")
        receiver, sender = multiprocessing.Pipe(duplex=False)
        end = time.monotonic() + calm + options.seconds
        honest = multiprocessing.Process(target=honest_clients.run,
                                         args=(tidegate.port, options.honest, LOOP, end, sender), daemon=True)
        honest.start()
        sender.close()
        watch = Watch(admin)
        watch_the_loop(watch, time.monotonic(), calm)
        false_alarms = len(watch.seen)
        watch.seen.clear()
        began = time.monotonic()
        print("   0.0 s  the loop begins", flush=True)
        # Each connection pauses so that all together send the wanted rate.
        delay_ms = round(1000 * LOOP_CONNECTIONS / options.loop_rate) if options.loop_rate else 0
        generator = start_wrk(requests, tidegate.port, options.seconds, LOOP_CONNECTIONS, delay_ms=delay_ms)
        stack.callback(generator.kill)
        watch_the_loop(watch, began, options.seconds)
        load = wrk_result(generator, 20)
        if not receiver.poll(honest_clients.TIMEOUT_S * 3):
            raise BenchError("the honest clients did not end in time")
        result = receiver.recv()
        honest.join(5)
        memory = tidegate.resident_mib()
    return verdict(options, judge, watch, result, began, load, false_alarms, memory)


def verdict(options, judge, watch, result, began, load, false_alarms, memory) -> int:
    """Prints what was promised and what happened; returns the exit status."""
    throttled = watch.first({"throttle", "block"}, judge.loop)
    blocked = watch.first({"block"}, judge.loop)
    named = blocked or throttled
    exact = named is not None and judge.is_exact(named.when())
    others = [seen for seen in watch.seen.values() if share(seen.when(), judge.loop) == 0]
    print(f"\nloop: {load.requests} requests ({load.requests / load.seconds:.0f}/s, "
          f"{load.requests / load.seconds / options.loopers:.0f}/s per device), "
          f"{load.failed_status / max(1, load.requests):.1%} refused or failed")
    ratio = print_honest(result, began, blocked.after if blocked else None)
    print(f"incidents: {len(watch.incidents)}; rules during calm: {false_alarms}; rules that hit no looper: {len(others)}; "
          f"Tidegate's resident memory: {memory:.0f} MiB")

    def line(what: str, value: str, wanted: str, held: bool) -> None:
        print(f"{what:18} {value:52} {wanted:22} {'held' if held else 'MISSED'}")

    print()
    in_time = throttled is not None and throttled.after <= THROTTLED_WITHIN_S
    line("throttled after", f"{throttled.after:.1f} s" if throttled else "never", f"<= {THROTTLED_WITHIN_S:.0f} s", in_time)
    stopped = blocked is not None and blocked.after <= BLOCKED_WITHIN_S
    line("blocked after", f"{blocked.after:.1f} s" if blocked else "never", f"<= {BLOCKED_WITHIN_S:.0f} s", stopped)
    line("source", source_text(named.when()) if named else "none found", "exact", exact)
    line("honest success", f"{ratio:.3%}", f">= {LEGITIMATE_SUCCESS_MIN:.1%} (told only)", ratio >= LEGITIMATE_SUCCESS_MIN)
    if options.json:
        options.json.write_text(json.dumps({
            "throttled_after_s": throttled.after if throttled else None,
            "blocked_after_s": blocked.after if blocked else None,
            "source_found": named.when() if named else None, "exact": exact, "legitimate_success_ratio": ratio,
            "rules_during_calm": false_alarms, "rules_that_hit_no_looper": len(others), "incidents": watch.incidents,
        }, indent=2) + "\n")
    return 0 if in_time and stopped and exact else 1


def main() -> int:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tidegate", type=Path, default=BINARY, help="the binary")
    parser.add_argument("--build", action="store_true", help="build the release binary first")
    parser.add_argument("--honest", type=int, default=400, help="honest devices, about one request a second each")
    parser.add_argument("--loopers", type=int, default=300, help="devices that loop")
    parser.add_argument("--loop-rate", type=int, default=6000, help="requests per second of the loop; 0: all it can")
    parser.add_argument("--seconds", type=int, default=15, help="how long the loop runs")
    parser.add_argument("--warmup", type=int, default=8, help="Tidegate's detection.warmup in seconds")
    parser.add_argument("--capacity", type=int, default=0, help="requests per second of the upstream; 0: all it can")
    parser.add_argument("--detection", default="auto", help="Tidegate's detection.mode; `off` must miss")
    parser.add_argument("--json", type=Path, help="write the outcome to this file")
    options = parser.parse_args()
    if not 1 <= options.honest <= FIRST_LOOPER or not 1 <= options.loopers <= FIRST_LOOPER or options.seconds < 1:
        parser.error(f"--honest and --loopers take 1 to {FIRST_LOOPER}, --seconds starts at 1")
    if sys.version_info < (3, 11):
        print("needs Python 3.11 or newer", file=sys.stderr)
        return 2
    require(["nginx", "wrk"], options.tidegate, options.build)
    try:
        return run(options)
    except (BenchError, OSError) as problem:
        print(f"not measured: {problem}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
