#!/usr/bin/env python3
"""Measures the detector on recorded traffic and prints a Markdown table: what came, what is required.

    report.py DATA [--binary PATH] [--surges N] [--jobs N] [--tables FOLDER...] [--out FOLDER]

DATA holds whole days of counts as day*.csv or day*.csv.zst (columns ts, attributes, count: the product
statistics of the AIOps Challenge 2019) and a total by the minute as worldcup98-minute.csv[.zst] (period,
count). Every part draws scenarios from a fixed seed and plays them with `tidegate simulate`: what is
counted here is what that program says.

--tables names folders with tables for `tidegate blame` and their known causes (injection_info.csv or
truth.csv), where there are any.
"""

import argparse
import bisect
import concurrent.futures
import csv
import json
import math
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile
import time

import blame_score

SEED = 20260731
RATE = 1000  # requests a second of the background
SURGES_A_SCENARIO = 40
SURGE_S = 30  # how long a surge goes on after its ramp
CALM_S = 45  # from one surge's end to the next one's ramp: release takes 20 s, learning again the rest
FIRST_S = 30
USUAL = 1 / 20  # requests a second of one client of the background
CUT_MIN = 0.3
COLLATERAL_MAX = 0.01


def unpack(data, name, folder):
    """Returns the path of a table without compression."""
    for plain in [data / name, *data.glob(f"*/{name}")]:
        if plain.exists():
            return plain.resolve()
    packed = next((path for path in [data / f"{name}.zst", *data.glob(f"*/{name}.zst")] if path.exists()), None)
    if packed is None:
        sys.exit(f"{data}: there is neither {name} nor {name}.zst; name the folder with the recorded counts")
    out = folder.resolve() / name
    with open(out, "wb") as file:
        subprocess.run(["zstd", "-dcq", str(packed)], stdout=file, check=True)
    return out


class Day:
    """One day of counts: per hour the events of each combination of values."""

    def __init__(self, path):
        self.path = path
        self.hours = [{} for _ in range(24)]
        with open(path, newline="", encoding="utf-8") as file:
            rows = csv.reader(file)
            header = next(rows)
            self.attributes = header[1:-1]
            first = None
            for row in rows:
                ts = int(row[0])
                first = ts if first is None else first
                hour = self.hours[(ts - first) // 3600 % 24]
                leaf = tuple(row[1:-1])
                hour[leaf] = hour.get(leaf, 0) + float(row[-1])


def share(leaves, total, source):
    """Returns the share of a source, a dict of attribute places to values."""
    hit = sum(n for leaf, n in leaves.items() if all(leaf[at] == value for at, value in source.items()))
    return hit / total


def draw_source(rng, day, hour):
    """Draws a source in which each value cuts at least CUT_MIN of the baseline, or a value that is new."""
    leaves = day.hours[hour]
    total = sum(leaves.values())
    keys = list(leaves)
    sums = []
    running = 0
    for key in keys:
        running += leaves[key]
        sums.append(running)
    for _ in range(200):
        wanted = rng.randint(1, min(4, len(day.attributes)))
        # Half by traffic, half any combination.
        if rng.random() < 0.5:
            leaf = keys[bisect.bisect(sums, rng.random() * total) % len(keys)]
        else:
            leaf = rng.choice(keys)
        at = rng.sample(range(len(day.attributes)), wanted)
        source = {place: leaf[place] for place in at}
        new = rng.random() < 0.25
        if new:
            source[rng.choice(at)] = f"new-{rng.randrange(10**6)}"
            return source, 0.0, True
        base = share(leaves, total, source)
        cuts = all(
            base <= (1 - CUT_MIN) * share(leaves, total, {k: v for k, v in source.items() if k != place})
            for place in source
        )
        if cuts and base < 0.3:
            return source, base, False
    sys.exit("no source could be drawn; is this a table of counts?")


def surges_scenario(rng, day, name, count):
    """Draws a scenario of surges one after the other; returns its text and what was drawn."""
    hour = rng.randrange(24)
    t = FIRST_S
    events, drawn = [], []
    for at in range(count):
        source, base, new = draw_source(rng, day, hour)
        times = 0.5 * 40 ** rng.random()  # 0.5 to 20, evenly on a log scale
        ramp = rng.choice([0, 5, 60])
        others = [a for a in range(len(day.attributes)) if a not in source]
        cycled = [day.attributes[a] for a in rng.sample(others, min(len(others), rng.randint(0, 3)))]
        rate = max(1, round(times * RATE))
        # Each client sends 5 to 50 times its usual rate.
        clients = max(1, int(rate / (USUAL * 5 * 10 ** rng.random())))
        event = {
            "surge": f"s{at}",
            "from": f"{t}s",
            "until": f"{t + ramp + SURGE_S}s",
            "rate": f"{rate}/s",
            "ramp": f"{ramp}s",
            "source": {day.attributes[a]: v for a, v in sorted(source.items())},
            "clients": clients,
        }
        if cycled:
            event["cycle"] = cycled
        events.append(event)
        drawn.append({"base": base, "new": new, "times": times, "ramp": ramp, "values": len(source), "cycled": len(cycled)})
        t += ramp + SURGE_S + CALM_S
    scenario = {
        "name": name,
        "seed": rng.randrange(2**31),
        "duration": f"{t}s",
        "background": {"table": str(day.path), "begin": f"{hour * 3600}s", "rate": f"{RATE}/s"},
        "events": events,
    }
    return scenario, drawn


class Runner:
    def __init__(self, binary, folder, jobs):
        self.binary, self.folder = binary, folder
        self.pool = concurrent.futures.ThreadPoolExecutor(jobs)

    def submit(self, scenario):
        """Plays a scenario; JSON is YAML, so that is how it is written."""
        return self.pool.submit(self.play, scenario)

    def play(self, scenario):
        path = self.folder / f"{scenario['name']}.yaml"
        out = self.folder / f"{scenario['name']}.json"
        path.write_text(json.dumps(scenario, indent=1), encoding="utf-8")
        run = subprocess.run(
            [self.binary, "simulate", str(path), "--json", str(out)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        if run.returncode not in (0, 1) or not out.exists():
            sys.exit(f"{path}: exit {run.returncode}: {run.stderr[-2000:]}")
        print(f"  {scenario['name']}", file=sys.stderr, flush=True)
        return json.loads(out.read_text(encoding="utf-8"))


def quantile(values, q):
    """Returns a quantile; what never came counts as infinitely late."""
    values = sorted(math.inf if value is None else value for value in values)
    if not values:
        return math.nan
    return values[min(len(values) - 1, int(q * len(values)))]


def ratio(hits, of):
    hits = list(hits)
    return sum(hits) / max(1, len(list(of)))


def seconds(value):
    return "never" if math.isinf(value) else f"{value:.1f} s"


def percent(value):
    return f"{100 * value:.2f} %"


class Report:
    def __init__(self):
        self.rows = []

    def add(self, what, came, required, met):
        self.rows.append((what, came, required, "yes" if met else "**no**"))

    def note(self, what, came):
        self.rows.append((what, came, "", ""))

    def text(self):
        lines = ["| what | measured | required | met |", "|---|---|---|---|"]
        lines += [f"| {' | '.join(row)} |" for row in self.rows]
        return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=pathlib.Path)
    parser.add_argument("--binary", default="target/release/tidegate")
    parser.add_argument("--surges", type=int, default=1000)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=SEED, help="other surges: the figures must not hang on these")
    parser.add_argument("--tables", type=pathlib.Path, nargs="*", default=[])
    parser.add_argument("--out", type=pathlib.Path, help="keep scenarios and results here")
    options = parser.parse_args()
    began = time.time()
    folder = options.out or pathlib.Path(tempfile.mkdtemp(prefix="detection-report-"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        report = measure(options, folder)
    finally:
        if not options.out:
            shutil.rmtree(folder, ignore_errors=True)
    print(report.text())
    print(f"\n{time.time() - began:.0f} s in all; seed {options.seed}, {RATE} requests a second of background.")
    missed = [row[0] for row in report.rows if row[3] == "**no**"]
    sys.exit(1 if missed else 0)


def measure(options, folder):
    days = [unpack(options.data, f"day{at:02}.csv", folder) for at in range(3)]
    worldcup = unpack(options.data, "worldcup98-minute.csv", folder)
    rng = random.Random(options.seed)
    read = [Day(path) for path in days]
    runner = Runner(options.binary, folder, options.jobs)

    batches = []
    left = options.surges
    while left > 0:
        count = min(SURGES_A_SCENARIO, left)
        left -= count
        scenario, drawn = surges_scenario(rng, read[len(batches) % 3], f"surges-{len(batches)}", count)
        batches.append((runner.submit(scenario), drawn))
    forged = [(runner.submit(forged_scenario(rng, read[at % 3], at)), at) for at in range(12)]
    calm = [runner.submit(calm_scenario(path, f"day-{at}")) for at, path in enumerate(days)]
    shaped = [runner.submit(shaped_scenario(rng, days[at % 3], worldcup, at)) for at in range(6)]
    rollouts = [runner.submit(rollout_scenario(rng, read[at % 3], at)) for at in range(6)]

    report = Report()
    surges(report, [(future.result(), drawn) for future, drawn in batches])
    forgeries(report, [future.result() for future, _ in forged])
    nothing(report, "three whole days without a surge", [future.result() for future in calm], "no rule", False)
    nothing(report, "the mix shaped by the World Cup's minutes", [f.result() for f in shaped], "no block", True)
    nothing(report, "version rollouts, 0 to 60 % in 10 min", [f.result() for f in rollouts], "no rule", False)
    for tables in options.tables:
        blame_score.score(report, options.binary, tables, percent)
    return report


def surges(report, batches):
    pairs = [pair for outcome, drawn in batches for pair in zip(outcome["surges"], drawn, strict=True)]
    n = len(pairs)
    detected = [surge["detected_after_s"] for surge, _ in pairs]
    throttled = [surge["throttled_after_s"] for surge, _ in pairs]
    exact = [surge["exact"] for surge, _ in pairs]
    report.add(f"{n} surges: detected, p50", seconds(quantile(detected, 0.5)), "0.5 s", quantile(detected, 0.5) <= 0.5)
    report.add("detected, p99", seconds(quantile(detected, 0.99)), "3 s", quantile(detected, 0.99) <= 3)
    report.note("throttled, p50 / p99", f"{seconds(quantile(throttled, 0.5))} / {seconds(quantile(throttled, 0.99))}")
    blocked = [surge["blocked_after_s"] for surge, drawn in pairs if drawn["base"] <= COLLATERAL_MAX]
    report.note("blocked, where collateral allows, p50 / p99", f"{seconds(quantile(blocked, 0.5))} / {seconds(quantile(blocked, 0.99))}")
    report.add("exact", percent(sum(exact) / n), "95 %", sum(exact) / n >= 0.95)
    for label, key, values in [
        ("values in the source", "values", range(1, 5)),
        ("attributes cycled", "cycled", range(0, 4)),
        ("ramp in seconds", "ramp", [0, 5, 60]),
    ]:
        parts = []
        for value in values:
            of = [surge["exact"] for surge, drawn in pairs if drawn[key] == value]
            if of:
                parts.append(f"{value}: {100 * sum(of) / len(of):.1f} %")
        report.note(f"exact by {label}", ", ".join(parts))
    small = [(s, d) for s, d in pairs if d["base"] <= COLLATERAL_MAX]
    large = [(s, d) for s, d in pairs if d["base"] > COLLATERAL_MAX]

    def refused(part, key):
        bad = sum(s["requests"] for s, _ in part)
        return sum((s[key] or 0) * s["requests"] for s, _ in part) / max(1, bad)

    part = refused(small, "bad_refused_ratio")
    report.add(f"bad requests refused, share of normal traffic within {COLLATERAL_MAX:.0%} ({len(small)})", percent(part), "99 %", part >= 0.99)
    report.note("the same, from the first refusal on", percent(refused(small, "refused_since_first_ratio")))
    if large:
        part = refused(large, "bad_refused_ratio")
        report.add(f"bad requests refused, larger share ({len(large)})", percent(part), "95 %", part >= 0.95)
    whole = sum(outcome["requests"] for outcome, _ in batches)
    legitimate = sum(outcome["legitimate_refused_ratio"] for outcome, _ in batches) / len(batches)
    report.add("legitimate requests refused", percent(legitimate), "0.1 %", legitimate <= 0.001)
    blocked = [s for s, _ in pairs if s["blocked_after_s"] is not None]
    known = [(s["known_source_legitimate_served_ratio"], s["source_legitimate_requests"]) for s in blocked]
    known = [(served, of) for served, of in known if served is not None]
    served = sum(a * b for a, b in known) / max(1, sum(b for _, b in known))
    report.add(f"honest users of a blocked source, known before, served ({len(known)} surges have such)", percent(served), "90 %", served >= 0.9)
    false = sum(outcome["false_rules"] for outcome, _ in batches)
    report.note("rules that hit no surge's source", str(false))
    speed = sum(o["requests"] + o["requests_trained"] for o, _ in batches) / sum(o["wall_s"] for o, _ in batches)
    report.note("requests played", f"{whole}, {speed / 1e6:.1f} million a second and process")


def forged_scenario(rng, day, at):
    """A flood under an app's identity: instances forged for each request, or new ones."""
    hour = rng.randrange(24)
    leaves = day.hours[hour]
    total = sum(leaves.values())
    while True:
        leaf = rng.choice(list(leaves))
        places = rng.sample(range(len(day.attributes)), 3)
        source = {place: leaf[place] for place in places}
        if 0.0005 < share(leaves, total, source) < COLLATERAL_MAX:
            break
    rate = round(RATE * rng.uniform(1, 10))
    event = {
        "surge": "forged",
        "from": "60s",
        "until": "180s",
        "rate": f"{rate}/s",
        "ramp": f"{rng.choice([0, 5])}s",
        "source": {day.attributes[a]: v for a, v in sorted(source.items())},
    }
    if at % 2 == 0:
        event |= {"instances": "forged", "clients": 200, "addresses": 200}
    else:
        event |= {"clients": max(1, int(rate / (USUAL * 10)))}
    return {
        "name": f"forged-{at}",
        "seed": rng.randrange(2**31),
        "duration": "220s",
        "background": {"table": str(day.path), "begin": f"{hour * 3600}s", "rate": f"{RATE}/s"},
        "events": [event],
    }


def forgeries(report, outcomes):
    for label, part in [("a new instance for each request", outcomes[0::2]), ("new instances", outcomes[1::2])]:
        surges_of = [outcome["surges"][0] for outcome in part]
        honest = [s["known_source_legitimate_served_ratio"] for s in surges_of]
        honest = [value for value in honest if value is not None]
        worst = 1 - min(honest, default=1)
        report.add(f"forged identity, {label}: requests that its known users lose, worst of {len(honest)}", percent(worst), "10 %", worst <= 0.1)
        bad = sum(s["bad_refused_ratio"] for s in surges_of) / len(surges_of)
        report.note(f"forged identity, {label}: the flood's requests refused", percent(bad))


def calm_scenario(path, name):
    """A whole day, 30 times as fast: its shifts are 30 times as steep as they were."""
    return {
        "name": name,
        "seed": 1,
        "duration": f"{86400 // 30}s",
        "background": {"table": str(path), "speed": 30},
    }


def shaped_scenario(rng, path, worldcup, at):
    """Half a day of the World Cup's minutes, 20 times as fast, over the days with its flash crowds."""
    day = 44 + at * 5
    return {
        "name": f"shaped-{at}",
        "seed": at + 1,
        "duration": f"{43200 // 20}s",
        "background": {
            "table": str(path),
            "shape": str(worldcup),
            "speed": 20,
            "begin": f"{day * 86400 + rng.randrange(12) * 3600}s",
            "rate": f"{RATE}/s",
        },
    }


def rollout_scenario(rng, day, at):
    """60 % of the clients of one sdk move to a new one within ten minutes."""
    leaves = day.hours[12]
    totals = {}
    place = day.attributes.index("app")
    for leaf, n in leaves.items():
        totals[leaf[place]] = totals.get(leaf[place], 0) + n
    app = sorted(totals, key=totals.get, reverse=True)[at % 4]
    return {
        "name": f"rollout-{at}",
        "seed": at + 1,
        "duration": "720s",
        "background": {"table": str(day.path), "begin": "43200s", "rate": f"{RATE}/s"},
        "events": [{"rollout": "next", "from": "30s", "ramp": "600s", "share": "60%", "source": {"app": app, "sdk": "next"}}],
    }


def nothing(report, what, outcomes, required, may_throttle):
    rules = [rule for outcome in outcomes for rule in outcome["rules"]]
    counted = [rule for rule in rules if rule["blocked_at_s"] is not None] if may_throttle else rules
    hours = sum(outcome["duration_s"] for outcome in outcomes) / 3600
    came = f"{len(rules)} rules, {sum(r['blocked_at_s'] is not None for r in rules)} blocks in {len(outcomes)} runs ({hours:.1f} h of virtual time)"
    report.add(what, came, required, not counted)


if __name__ == "__main__":
    main()
