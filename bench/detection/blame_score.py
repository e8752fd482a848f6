"""Scores `tidegate blame` on a folder of tables with known causes.

Micro F1 over whole combinations, as the papers on these tables have it: a cause counts as found only if
it is named with exactly its values. Exact: tables all of whose causes were found, and nothing else.
"""

import csv
import json
import subprocess
import time


def causes(text):
    """Reads `a=1&b=2;c=3` as a set of combinations."""
    return {frozenset(one.split("&")) for one in text.split(";") if one}


def known_causes(folder):
    """Returns the causes of each table by its name."""
    for name, column in [("injection_info.csv", "timestamp"), ("truth.csv", "case")]:
        path = folder / name
        if path.exists():
            with open(path, newline="", encoding="utf-8") as file:
                return {row[column]: causes(row["set"]) for row in csv.DictReader(file)}
    return None


def score(report, binary, folder, percent):
    """Adds one row a folder, and for a folder of folders one a subfolder."""
    known = known_causes(folder)
    if known is None:
        for inner in sorted(path for path in folder.iterdir() if path.is_dir()):
            score(report, binary, inner, percent)
        return
    files = sorted(path for path in folder.glob("*.csv") if path.stem in known)
    began = time.time()
    run = subprocess.run([binary, "blame", "--json", *map(str, files)], capture_output=True, text=True, check=False)
    if run.returncode != 0:
        report.note(f"tables of {folder.name}", f"`tidegate blame` ended with {run.returncode}")
        return
    answers = [json.loads(line) for line in run.stdout.splitlines() if line.strip()]
    right = wrong = missed = exact = first = 0
    for file, answer in zip(files, answers, strict=True):
        truth = known[file.stem]
        found = [frozenset(f"{k}={v}" for k, v in cause["source"].items()) for cause in answer["causes"]]
        right += len(truth & set(found))
        wrong += len(set(found) - truth)
        missed += len(truth - set(found))
        exact += set(found) == truth
        first += bool(found) and found[0] in truth
    f1 = 2 * right / max(1, 2 * right + wrong + missed)
    count = max(1, len(files))
    mean_ms = sum(answer["elapsed_ms"] for answer in answers) / count
    came = f"F1 {f1:.3f}, exact {percent(exact / count)}, first right {percent(first / count)}, {mean_ms:.1f} ms a table"
    report.note(f"tables of {folder.name} ({len(files)}, {time.time() - began:.1f} s)", came)
