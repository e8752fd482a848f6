"""What the benchmarks share: tools, templates, pinned processes, CPU time, wrk. Measures nothing itself."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

BENCH = Path(__file__).resolve().parent
ROOT = BENCH.parent

PACKAGES = {"nginx": "nginx-light", "haproxy": "haproxy", "wrk": "wrk", "taskset": "util-linux"}
EXIT_MISSING = 2
"""Exit status when a tool or the binary is missing, so that a caller can tell it from a bad result."""

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
START_TIMEOUT_S = 10.0
STOP_TIMEOUT_S = 5.0


class BenchError(Exception):
    """A run that would not be worth its numbers; the text says what was wrong."""


TARGET = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
BINARY = TARGET / "release" / "tidegate"
BUILD = ["cargo", "build", "--release", "--locked", "--bin", "tidegate"]


def require(tools: list[str], binary: Path | None, build: bool) -> None:
    """Ends the program with the line that installs what is missing; builds the binary if asked to."""
    # Debian keeps servers in /usr/sbin, which is not on every user's PATH.
    os.environ["PATH"] += os.pathsep + "/usr/sbin"
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if missing:
        packages = " ".join(PACKAGES[tool] for tool in missing)
        print(f"missing: {', '.join(missing)}; install with: apt-get install -y {packages}", file=sys.stderr)
        sys.exit(EXIT_MISSING)
    if build and binary is not None and subprocess.run(BUILD, cwd=ROOT, check=False).returncode != 0:
        print("the binary does not build", file=sys.stderr)
        sys.exit(EXIT_MISSING)
    if binary is not None and not os.access(binary, os.X_OK):
        print(f"missing: {binary}; build it with: {' '.join(BUILD)}", file=sys.stderr)
        sys.exit(EXIT_MISSING)


def render(template: str, into: Path, **values: object) -> Path:
    """Writes `bench/<template>` with every `@name@` filled in; an unknown name is an error."""
    text = (BENCH / template).read_text()
    filled = re.sub(r"@(\w+)@", lambda found: str(values[found.group(1)]), text)
    into.parent.mkdir(parents=True, exist_ok=True)
    into.write_text(filled)
    return into


def free_port() -> int:
    """Returns a TCP port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def user_line() -> str:
    """Returns nginx's `user` line: its workers must be able to read the temporary folder."""
    return "user root;" if os.geteuid() == 0 else ""


@dataclass
class Server:
    """One server process, its children, and where it listens."""

    name: str
    port: int
    process: subprocess.Popen[bytes]
    folder: Path

    @classmethod
    def start(cls, name: str, command: list[str], port: int, core: int | None, folder: Path) -> Server:
        """Starts it on one core and waits until it accepts connections."""
        folder.mkdir(parents=True, exist_ok=True)
        pinned = command if core is None else ["taskset", "-c", str(core), *command]
        # O_APPEND: the logs are cut to nothing between measurements.
        with open(folder / "stdout.log", "ab") as out, open(folder / "stderr.log", "ab") as err:
            process = subprocess.Popen(pinned, stdout=out, stderr=err, stdin=subprocess.DEVNULL)
        server = cls(name, port, process, folder)
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            if process.poll() is not None:
                break
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.2):
                return server
            time.sleep(0.02)
        server.stop()
        raise BenchError(f"{name} did not start: {server.complaint()}")

    def complaint(self) -> str:
        """Returns the end of what it wrote to stderr."""
        return (self.folder / "stderr.log").read_text(errors="replace")[-2000:].strip()

    def pids(self) -> list[int]:
        """Returns the process and all its descendants."""
        children: dict[int, list[int]] = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                    children.setdefault(parent, []).append(int(entry.name))
        found = [self.process.pid]
        for pid in found:
            found.extend(children.get(pid, []))
        return found

    def cpu_seconds(self) -> float:
        """Returns user and system time of the whole tree, all threads; the kernel's step is 10 ms."""
        ticks = 0
        for pid in self.pids():
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                ticks += int(fields[11]) + int(fields[12])
        return ticks / TICKS_PER_SECOND

    def cpu_nanoseconds(self) -> int:
        """Returns the same to the nanosecond, from the scheduler; threads that have ended are not in it."""
        total = 0
        for pid in self.pids():
            with contextlib.suppress(OSError):
                for thread in Path(f"/proc/{pid}/task").iterdir():
                    with contextlib.suppress(OSError):
                        total += int((thread / "schedstat").read_text().split()[0])
        return total

    def resident_mib(self) -> float:
        """Returns the resident memory of the whole tree."""
        pages = 0
        for pid in self.pids():
            with contextlib.suppress(OSError):
                pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)

    def cut_logs(self) -> None:
        """Empties its logs, so that minutes of full load do not fill the disk."""
        for log in self.folder.glob("*.log"):
            os.truncate(log, 0)

    def log_bytes(self) -> int:
        """Returns what its logs occupy, in whole blocks.

        Not their length: HAProxy drops O_APPEND from its stdout, so after `cut_logs` it goes on behind a hole.
        """
        return sum(log.stat().st_blocks * 512 for log in self.folder.glob("*.log"))

    def stop(self) -> None:
        """Ends it, politely first."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


@contextlib.contextmanager
def workplace():
    """Yields a temporary folder and a stack that ends every server before the folder goes."""
    with tempfile.TemporaryDirectory(prefix="tidegate-bench-") as folder, contextlib.ExitStack() as stack:
        yield Path(folder), stack


@dataclass
class Load:
    """What wrk counted."""

    requests: int
    failed_status: int
    socket_errors: int
    seconds: float
    p50_us: float
    p99_us: float


def request_text(path: str, headers: dict[str, str]) -> str:
    """Returns a GET as it goes over the wire."""
    return f"GET {path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in headers.items()) + "\r\n"


def start_wrk(requests: Path, port: int, seconds: int, connections: int, core: int | None = None,
              delay_ms: int = 0) -> subprocess.Popen[str]:
    """Starts wrk with one thread, sending the requests of a file in turn."""
    pin = [] if core is None else ["taskset", "-c", str(core)]
    command = [*pin, "wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "5s", "-s",
               str(BENCH / "requests.lua"), f"http://127.0.0.1:{port}/"]
    environment = os.environ | {"BENCH_REQUESTS": str(requests), "BENCH_DELAY_MS": str(delay_ms)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wrk_result(process: subprocess.Popen[str], timeout: float) -> Load:
    """Waits for wrk and reads the line of JSON that the script's `done` prints last."""
    try:
        output, complaint = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired as problem:
        process.kill()
        process.communicate()
        raise BenchError("wrk did not end in time") from problem
    try:
        return Load(**json.loads(output.strip().rpartition("\n")[2]))
    except (ValueError, TypeError) as problem:
        raise BenchError(f"wrk printed no result: {output[-500:]!r} {complaint[-500:]!r}") from problem


def fetch(port: int, path: str) -> tuple[int, bytes]:
    """Fetches from an admin address on loopback; returns status and body."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    with contextlib.closing(connection):
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()


def status_of(port: int, path: str) -> int:
    """Returns the status of a GET."""
    return fetch(port, path)[0]


def get_json(port: int, path: str) -> object:
    """Fetches JSON."""
    status, body = fetch(port, path)
    if status != 200:
        raise BenchError(f"GET {path} answered {status}: {body[:200]!r}")
    return json.loads(body)
