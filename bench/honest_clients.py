"""Honest clients: many devices, each about one request a second, of several apps, SDKs and versions.

They send on a schedule that does not wait for answers, and latency counts from the moment when a
request was due, so a stalled proxy cannot hide behind clients that it holds up.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from dataclasses import dataclass, field

CONNECTIONS = 64
TIMEOUT_S = 5.0
SEED = 7

SDKS = {
    "chat-android": (["3.1.0", "3.2.0", "3.2.1", "3.3.0"], [3, 4, 2, 1], ["okhttp/3.12.2", "okhttp/4.9.0"]),
    "chat-ios": (["2.9.0", "3.0.1", "3.2.1"], [2, 4, 1], ["CFNetwork/1220.1 Darwin/20.3.0"]),
    "web": (["5.0.2", "5.1.0"], [1, 3], ["Mozilla/5.0 (X11; Linux x86_64)", "Mozilla/5.0 (Macintosh)"]),
}
SDK_WEIGHTS = [5, 4, 3]
APPS = ["acme", "birch", "cedar", "delta", "ember", "fjord", "grove", "heron", "iris", "juno"]
APP_WEIGHTS = [1 / rank**0.8 for rank in (3, 1, 2, 4, 5, 6, 7, 8, 9, 10)]  # acme is neither first nor last
HOSTS = ["eu.api.example.com", "us.api.example.com", "ap.api.example.com"]
PATHS = ["/c/v1/chat/settings", "/c/v1/chat/sessions", "/kb/v1/articles", "/p/v1/auth/session"]
PATH_WEIGHTS = [5, 4, 3, 1]


def address(number: int) -> str:
    """Returns a device's address within 198.18.0.0/15, which is set aside for benchmarks (RFC 2544)."""
    return f"198.{18 + number % 2}.{number // 2 % 256}.{1 + number // 512 % 254}"


@dataclass(frozen=True)
class Device:
    """One installation: what it says about itself in every request."""

    sdk: str
    sdk_version: str
    app: str
    tenant: str
    user_agent: str
    head: bytes

    def attributes(self) -> dict[str, str]:
        """Returns its values under the names of the settings."""
        return {"sdk": self.sdk, "sdk_version": self.sdk_version, "app": self.app, "tenant": self.tenant,
                "user_agent": self.user_agent}


@dataclass
class Outcome:
    """One request: when it was due, how it ended (0: no answer), how long that took."""

    due: float
    of_looping_source: bool
    status: int
    seconds: float


@dataclass
class Result:
    """All requests of a run, in the order in which they ended."""

    outcomes: list[Outcome] = field(default_factory=list)


def devices(count: int) -> list[Device]:
    """Draws the population; the same for the same count."""
    draw = random.Random(SEED)
    drawn = []
    for number in range(count):
        sdk = draw.choices(list(SDKS), SDK_WEIGHTS)[0]
        versions, weights, agents = SDKS[sdk]
        version, agent = draw.choices(versions, weights)[0], draw.choice(agents)
        app, host = draw.choices(APPS, APP_WEIGHTS)[0], draw.choice(HOSTS)
        head = (f"Host: {host}\r\nUser-Agent: {agent}\r\nx-kustomer-client: {sdk}\r\n"
                f"x-kustomer-version: release-v{version}\r\nx-app-id: {app}\r\n"
                f"x-kustomer-tracking-token: {draw.getrandbits(96):024x}\r\nx-forwarded-for: {address(number)}\r\n\r\n")
        drawn.append(Device(sdk, version, app, host.partition(".")[0], agent, head.encode()))
    return drawn


class Clients:
    """Sends the devices' requests over a bounded number of connections."""

    def __init__(self, population: list[Device], port: int, looping: dict[str, str]) -> None:
        self.population, self.port = population, port
        self.looping = [looping.items() <= device.attributes().items() for device in population]
        self.draw = random.Random(SEED + 1)
        self.result = Result()

    async def run(self, until: float) -> Result:
        """Sends until then (monotonic time); each device about once a second, as a Poisson process."""
        # Open loop: the queue holds at most what falls due in TIMEOUT_S, then counts as failed.
        due_requests: asyncio.Queue[tuple[float, int]] = asyncio.Queue(int(len(self.population) * TIMEOUT_S))
        senders = [asyncio.create_task(self.send(due_requests)) for _ in range(CONNECTIONS)]
        due = time.monotonic()
        while due < until:
            due += self.draw.expovariate(len(self.population))
            wait = due - time.monotonic()
            if wait > 0:
                await asyncio.sleep(wait)
            number = self.draw.randrange(len(self.population))
            try:
                due_requests.put_nowait((due, number))
            except asyncio.QueueFull:
                self.record(due, number, 0)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(due_requests.join(), TIMEOUT_S)
        for sender in senders:
            sender.cancel()
        await asyncio.gather(*senders, return_exceptions=True)
        return self.result

    def record(self, due: float, number: int, status: int) -> None:
        """Notes how one request ended."""
        self.result.outcomes.append(Outcome(due, self.looping[number], status, time.monotonic() - due))

    async def send(self, due_requests: asyncio.Queue[tuple[float, int]]) -> None:
        """One connection: sends what falls due, reconnects when it is closed."""
        reader: asyncio.StreamReader | None = None
        writer: asyncio.StreamWriter | None = None
        while True:
            due, number = await due_requests.get()
            status, keep = 0, False
            try:
                async with asyncio.timeout(TIMEOUT_S):
                    if reader is None or writer is None:
                        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
                    path = self.draw.choices(PATHS, PATH_WEIGHTS)[0]
                    writer.write(b"GET " + path.encode() + b" HTTP/1.1\r\n" + self.population[number].head)
                    status, keep = await answer(reader)
            except (OSError, TimeoutError, ValueError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
                status, keep = 0, False
            self.record(due, number, status)
            if not keep and writer is not None:
                writer.close()
                reader = writer = None
            due_requests.task_done()


async def answer(reader: asyncio.StreamReader) -> tuple[int, bool]:
    """Reads one answer; returns its status and whether the connection can be used again."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    status = int(head[9:12])
    keep = b"\r\nconnection: close" not in head
    _, found, rest = head.partition(b"\r\ncontent-length:")
    if found:
        await reader.readexactly(int(rest.partition(b"\r\n")[0]))
    elif b"\r\ntransfer-encoding: chunked" in head:
        while size := int(await reader.readuntil(b"\r\n"), 16):
            await reader.readexactly(size + 2)
        await reader.readuntil(b"\r\n")
    else:
        keep = False
    return status, keep


def run(port: int, count: int, looping: dict[str, str], until: float, pipe) -> None:
    """Runs them in a process of their own and sends the result through the pipe."""
    result = asyncio.run(Clients(devices(count), port, looping).run(until))
    pipe.send(result)
    pipe.close()
