"""Measure `adctl serve` on loopback beside the bare runtime: speed, overload, memory, reloads and kill -9.

    python examples/benchmarks/serve.py MODEL IMAGES throughput latency overload --seconds 10
    python examples/benchmarks/serve.py MODEL IMAGES memory --requests 100000
    python examples/benchmarks/serve.py MODEL IMAGES reload --times 50
    python examples/benchmarks/serve.py MODEL IMAGES kill --times 30

MODEL is a model file, IMAGES a folder of PNG or JPEG files. The load generator runs on the same cores. Server and bare
runtime are measured in alternation, and ratios are those of medians over the rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import selectors
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil

from adctl.data.loader import BytesSample, load_image, stack_pixels
from adctl.runtimes.loading import open_runtime
from adctl.serve.history import Filters, History

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_BATCH = 8
_NAME = "bench"


class Serving:
    """`adctl serve` in a process of its own."""

    def __init__(self, model: Path, runs: Path, *options: str) -> None:
        self.log = runs.parent / "server.log"
        words = [sys.executable, "-m", "adctl", "serve", f"{_NAME}={model.absolute()}", "--runs", str(runs)]
        with self.log.open("w") as log:
            self.process = subprocess.Popen([*words, "--port", "0", *options], stderr=log, stdout=subprocess.DEVNULL)
        while "Listening" not in (text := self.log.read_text()):
            if self.process.poll() is not None:
                raise SystemExit(text)
            time.sleep(0.05)
        self.port = int(text.split("Listening on http://127.0.0.1:")[1].split(".")[0])

    def stop(self) -> None:
        """End the server in order."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)


@dataclass
class Tally:
    """Answers of one round: the seconds and identifiers of accepted requests, and the seconds of refused ones."""

    accepted: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def p95(self) -> float:
        """Return the 95th percentile of accepted requests in milliseconds."""
        return float(1000 * np.percentile(self.accepted, 95))


async def post(reader: Any, writer: Any, path: str, body: bytes) -> tuple[int, bytes]:
    """Send one request on an open connection, and return the status and the body of its answer."""
    writer.write(request(path, body))
    await writer.drain()
    lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    lengths = [int(line.split(":")[1]) for line in lines if line.lower().startswith("content-length:")]
    return int(lines[0].split()[1]), await reader.readexactly(lengths[0])


@asynccontextmanager
async def connection(port: int) -> AsyncIterator[tuple[Any, Any]]:
    """Open a connection to the server."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.close()


async def caller(port: int, images: list[bytes], until: float, tally: Tally) -> None:
    """Send one image after the other until a time; a refused caller waits a little."""
    number = 0
    while time.perf_counter() < until:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            async with connection(port) as (reader, writer):
                while time.perf_counter() < until:
                    began = time.perf_counter()
                    status, body = await post(reader, writer, f"/v1/models/{_NAME}/score", images[number % len(images)])
                    number += 1
                    note(tally, status, body, time.perf_counter() - began)


def note(tally: Tally, status: int, body: bytes, seconds: float) -> None:
    """Count one answer."""
    if status == 429:  # noqa: PLR2004 - Too Many Requests
        tally.refused.append(seconds)
    elif status == 200:  # noqa: PLR2004 - OK
        tally.accepted.append(seconds)
        tally.ids.append(json.loads(body)["results"][0]["id"])
    else:
        tally.failed.append(f"{status} {body[:200]!r}")


async def load(port: int, images: list[bytes], callers: int, seconds: float) -> Tally:
    """Ask with several callers at once."""
    tally, until = Tally(), time.perf_counter() + seconds
    await asyncio.gather(*(caller(port, images, until, tally) for _ in range(callers)))
    return tally


async def offer(port: int, images: list[bytes], rate: float, seconds: float) -> Tally:
    """Send requests at a fixed rate, whatever the answers are; each on a connection of its own."""
    tally, tasks, start = Tally(), [], time.perf_counter()

    async def one(number: int) -> None:
        try:
            async with connection(port) as (reader, writer):
                began = time.perf_counter()
                found = await post(reader, writer, f"/v1/models/{_NAME}/score", images[number % len(images)])
                note(tally, *found, time.perf_counter() - began)
        except (ConnectionError, asyncio.IncompleteReadError) as error:
            tally.failed.append(repr(error))

    for number in range(int(rate * seconds)):
        await asyncio.sleep(max(0.0, start + number / rate - time.perf_counter()))
        tasks.append(asyncio.create_task(one(number)))
    await asyncio.gather(*tasks)
    return tally


class Bare:
    """The runtime without a server."""

    def __init__(self, model: Path, images: list[bytes]) -> None:
        self.runtime = open_runtime(model)
        self.samples = [BytesSample(Path("x"), "x", data=data) for data in images]
        self.pixels = stack_pixels(map(self.decode, self.samples))

    def decode(self, sample: BytesSample) -> Any:
        """Decode one image as the server does."""
        return load_image(sample, self.runtime.input)

    def rate(self) -> float:
        """Return images per second: decoding in threads, then ready tensors in batches."""
        with ThreadPoolExecutor(2) as pool:
            start = time.perf_counter()
            list(pool.map(self.decode, self.samples))
            batches = [self.pixels[at : at + _BATCH] for at in range(0, len(self.pixels), _BATCH)]
            list(pool.map(self.runtime.predict, batches))
            return len(self.samples) / (time.perf_counter() - start)

    def single(self, first: int, end: int) -> list[float]:
        """Return the seconds of decoding and predicting, for each of some images alone."""
        times = []
        for sample in self.samples[first:end]:
            start = time.perf_counter()
            self.runtime.predict(stack_pixels([self.decode(sample)]))
            times.append(time.perf_counter() - start)
        return times


def throughput(bench: Bench) -> dict[str, Any]:
    """Compare images per second at 8 callers with those of the bare runtime, and the processor time of an image."""
    served, bare, server, generator, alone = [], [], [], [], []
    with bench.serving() as port:
        process = psutil.Process(bench.process.pid)
        for number in range(bench.rounds + 1):
            own, before = time.process_time(), processor_time(process)
            count = drive(port, bench.images, bench.seconds)
            rows = [count / bench.seconds, processor_time(process) - before, time.process_time() - own]
            own = time.process_time()
            rates = [bench.bare.rate() for _ in range(3)]
            if number:  # the first round warms up
                served.append(rows[0])
                server.append(1000 * rows[1] / count)
                generator.append(1000 * rows[2] / count)
                bare.append(statistics.median(rates))
                alone.append(1000 * (time.process_time() - own) / (3 * len(bench.images)))
    return {
        "served": statistics.median(served),
        "bare": statistics.median(bare),
        "ratio": statistics.median(served) / statistics.median(bare),
        "wanted": "at least 0.75",
        "processor_ms_an_image": {
            "server": statistics.median(server),
            "load_generator": statistics.median(generator),
            "bare": statistics.median(alone),
        },
    }


def processor_time(process: psutil.Process) -> float:
    """Return the seconds that a process has used the processor."""
    times = process.cpu_times()
    return float(times.user + times.system)


def drive(port: int, images: list[bytes], seconds: float) -> int:
    """Keep 8 callers busy at the least processor time of their own; return the number of answers."""
    path = f"/v1/models/{_NAME}/score"
    requests = itertools.cycle([request(path, image) for image in images])
    count, until = 0, time.perf_counter() + seconds
    with selectors.DefaultSelector() as selector, ExitStack() as stack:
        for _ in range(_BATCH):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            selector.register(client, selectors.EVENT_READ, (client, bytearray()))
            client.sendall(next(requests))
        while time.perf_counter() < until:
            for key, _ in selector.select(0.1):
                client, answer = key.data
                answer += client.recv(1 << 16)
                if b"\r\n\r\n" in answer and len(answer) >= expected(answer):
                    if not answer.startswith(b"HTTP/1.1 200"):
                        raise SystemExit(answer.decode())
                    answer.clear()
                    count += 1
                    client.sendall(next(requests))
    return count


def latency(bench: Bench) -> dict[str, Any]:
    """Compare one caller with the bare runtime: a few images with one, then the same with the other, and so on."""
    served: list[float] = []
    bare: list[float] = []
    with bench.serving() as port, socket.create_connection(("127.0.0.1", port)) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        until = time.perf_counter() + bench.rounds * bench.seconds
        for number in itertools.count():
            at = number * _BATCH % len(bench.images)
            times = [ask(client, image) for image in bench.images[at : at + _BATCH]]
            alone = bench.bare.single(at, at + _BATCH)
            if number:  # the first ones warm up
                served += times[1:]
                bare += alone[1:]
            if time.perf_counter() > until:
                break
    served_p95, bare_p95 = (1000 * float(np.percentile(times, 95)) for times in (served, bare))
    served_median, bare_median = (1000 * statistics.median(times) for times in (served, bare))
    return {
        "requests": len(served),
        "served_median_ms": served_median,
        "served_p95_ms": served_p95,
        "bare_median_ms": bare_median,
        "bare_p95_ms": bare_p95,
        "ratio_of_medians": served_median / bare_median,
        "ratio_of_p95": served_p95 / bare_p95,
        "p95_by_median": served_p95 / bare_median,
        "wanted": "at most 1.25",
    }


def ask(client: socket.socket, image: bytes) -> float:
    """Send one image on an open connection; return the seconds until the whole answer is there."""
    began = time.perf_counter()
    client.sendall(request(f"/v1/models/{_NAME}/score", image))
    answer = client.recv(1 << 16)
    while b"\r\n\r\n" not in answer or len(answer) < expected(answer):
        answer += client.recv(1 << 16)
    return time.perf_counter() - began


def expected(answer: bytes | bytearray) -> int:
    """Return the length of an answer whose headers are there."""
    head, _, _ = answer.partition(b"\r\n\r\n")
    return len(head) + 4 + int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])


def request(path: str, body: bytes) -> bytes:
    """Return the bytes of a request."""
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def overload(bench: Bench) -> dict[str, Any]:
    """Measure answers and refusals when requests come at three times the rate that the server can answer."""
    rows = []
    with bench.serving() as port:
        for _ in range(bench.rounds):
            normal = asyncio.run(load(port, bench.images, _BATCH, bench.seconds))
            capacity = len(normal.accepted) / bench.seconds
            over = asyncio.run(offer(port, bench.images, 3 * capacity, bench.seconds))
            refused = 1000 * float(np.percentile(over.refused, 95)) if over.refused else 0.0
            rows.append((normal.p95(), over.p95(), refused, len(over.refused), len(over.accepted), len(over.failed)))
    normal_p95, over_p95, refused, *counts = (statistics.median(column) for column in zip(*rows, strict=True))
    return {
        "p95_ms_at_capacity": normal_p95,
        "accepted_p95_ms": over_p95,
        "ratio": over_p95 / normal_p95,
        "refused_p95_ms": refused,
        **dict(zip(("refused", "accepted", "failed"), counts, strict=True)),
        "wanted": "ratio at most 2, refused within 50 ms",
    }


def memory(bench: Bench) -> dict[str, Any]:
    """Send many requests, and show the memory of the server as it goes."""
    curve: list[tuple[int, int]] = []
    ids: list[str] = []
    failed: list[str] = []
    with bench.serving() as port:
        process = psutil.Process(bench.process.pid)
        while len(ids) < bench.requests:
            tally = asyncio.run(load(port, bench.images, _BATCH, bench.seconds))
            ids += tally.ids
            failed += tally.failed
            curve.append((len(ids), process.memory_info().rss >> 20))
            print(json.dumps({"requests": curve[-1][0], "MiB": curve[-1][1], "failed": len(failed)}), file=sys.stderr)
    stored = bench.stored()
    return {
        "curve_requests_MiB": curve,
        "failed": failed[:10],
        "lost": len(set(ids) - set(stored)),
        "twice": len(stored) - len(set(stored)),
    }


def reload(bench: Bench) -> dict[str, Any]:
    """Load the model again and again under load."""

    async def run(port: int) -> tuple[Tally, int]:
        tally, times = Tally(), 0
        until = time.perf_counter() + 3600
        callers = [asyncio.create_task(caller(port, bench.images, until, tally)) for _ in range(4)]
        for _ in range(bench.times):
            async with connection(port) as (reader, writer):
                status, _ = await post(reader, writer, f"/v1/models/{_NAME}/load", b"")
                times += status == 200  # noqa: PLR2004 - OK
        for one in callers:
            one.cancel()
        await asyncio.gather(*callers, return_exceptions=True)
        return tally, times

    with bench.serving() as port:
        tally, times = asyncio.run(run(port))
    return {"reloads": times, "scored": len(tally.accepted), "failed": tally.failed}


def kill(bench: Bench) -> dict[str, Any]:
    """Kill the server under load, again and again, and look for each acknowledged verdict."""
    told: list[str] = []
    for _ in range(bench.times):
        with bench.serving(ends=False) as port:
            tally = Tally()

            async def run(port: int = port, tally: Tally = tally) -> None:
                until = time.perf_counter() + 2
                callers = [asyncio.create_task(caller(port, bench.images, until, tally)) for _ in range(_BATCH)]
                await asyncio.sleep(1)
                bench.process.kill()
                await asyncio.wait(callers, timeout=3)

            asyncio.run(run())
            told += tally.ids
    stored = bench.stored()
    return {
        "kills": bench.times,
        "acknowledged": len(told),
        "lost": len(set(told) - set(stored)),
        "twice": len(stored) - len(set(stored)),
    }


PARTS = {part.__name__: part for part in (throughput, latency, overload, memory, reload, kill)}


class Bench:
    """Model, images, settings and server of a measurement, for all of its parts."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.model, self.runs = options.model, folder / "runs"
        self.rounds, self.seconds = options.rounds, options.seconds
        self.requests, self.times = options.requests, options.times
        files = sorted(path for path in options.images.rglob("*") if path.suffix.lower() in (".png", ".jpg"))
        self.images = [path.read_bytes() for path in files[:64]]
        self.bare = Bare(self.model, self.images)
        self._server: Serving | None = None

    @property
    def process(self) -> Any:
        """Process of the server."""
        assert self._server is not None
        return self._server.process

    def serving(self, *, ends: bool = True) -> Any:
        """Return a context with a server; its value is the port."""
        self._server = server = Serving(self.model, self.runs)

        class _Context:
            def __enter__(self) -> int:
                return server.port

            def __exit__(self, *_: object) -> None:
                if ends:
                    server.stop()
                else:
                    server.process.kill()
                    server.process.wait()

        return _Context()

    def stored(self) -> list[str]:
        """Return the identifiers of all verdicts in the history."""
        with closing(History(self.runs)) as history:
            rows, _ = history.find(Filters(), None, 10_000_000)
        return [row["id"] for row in rows]


def main() -> None:
    """Run the named parts and print their results as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("parts", nargs="+", choices=PARTS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--times", type=int, default=5)
    options = parser.parse_args()
    for part in options.parts:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps({part: PARTS[part](Bench(options, Path(folder)))}), flush=True)


if __name__ == "__main__":
    main()
