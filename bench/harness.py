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


def require(tools: list[str], binary: Path | None = None) -> None:
    """Ends the program with the line that installs what is missing."""
    # Debian keeps servers in /usr/sbin, which is not on every user's PATH.
    os.environ["PATH"] += os.pathsep + "/usr/sbin"
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if missing:
        packages = " ".join(PACKAGES[tool] for tool in missing)
        print(f"missing: {', '.join(missing)}; install with: apt-get install -y {packages}", file=sys.stderr)
    if binary is not None and not os.access(binary, os.X_OK):
        print(f"missing: {binary}; build it with: cargo build --release --locked", file=sys.stderr)
        missing.append(str(binary))
    if missing:
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


def wrk_command(script: str, port: int, seconds: float, connections: int, core: int | None) -> list[str]:
    """Returns the command line of one wrk run with a script of this folder."""
    pin = [] if core is None else ["taskset", "-c", str(core)]
    # wrk takes whole seconds.
    duration = f"{max(1, round(seconds))}s"
    wrk = ["wrk", "-t1", f"-c{connections}", f"-d{duration}", "--timeout", "5s", "-s", str(BENCH / script)]
    return [*pin, *wrk, f"http://127.0.0.1:{port}/"]


def wrk_result(output: str) -> Load:
    """Reads the line of JSON that the scripts' `done` prints last."""
    line = output.strip().rpartition("\n")[2]
    try:
        return Load(**json.loads(line))
    except (ValueError, TypeError) as problem:
        raise BenchError(f"wrk printed no result: {output[-500:]!r}") from problem


def get_json(port: int, path: str) -> object:
    """Fetches JSON from an admin address on loopback."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        body = response.read()
        if response.status != 200:
            raise BenchError(f"GET {path} answered {response.status}: {body[:200]!r}")
        return json.loads(body)
    finally:
        connection.close()
