"""Reading of many image files by several processes, for networks that are faster than one Python process can read.

Threads decode in parallel, but the interpreter's lock lets only one of them prepare the next image: about 3,000 images
a second, however many cores there are. Each process here runs `python -m adctl.data.reading_processes`, gets lines of
JSON with paths, writes pixels into memory that all share, and answers with a line of JSON. Needs Linux.
"""

from __future__ import annotations

import json
import logging
import mmap
import os
import subprocess
import sys
from collections import deque
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from adctl.data.input_stats import measure_input
from adctl.data.loader import LoadedImage, load_image
from adctl.data.preprocess import InputSpec
from adctl.errors import ImageError
from adctl.records import Sample

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

log = logging.getLogger(__name__)

_FEWEST = 2_000
"""Images from which on starting processes, which takes a second, is worth it."""

_FEWEST_WORKERS = 4
_AHEAD = 2
"""Batches that each process is given in advance."""


def are_worthwhile(samples: Sequence[Sample], spec: InputSpec, workers: int) -> bool:
    """Return whether processes can read these images, and are likely to be faster than threads.

    Args:
        samples: The images.
        spec: Input format of the network.
        workers: Number of processes.
    """
    possible = hasattr(os, "memfd_create") and not spec.tiled and workers >= _FEWEST_WORKERS
    return possible and len(samples) >= _FEWEST and all(type(sample) is Sample for sample in samples)


def read_in_processes(
    samples: Sequence[Sample], spec: InputSpec, *, workers: int, batch_size: int
) -> Iterator[LoadedImage]:
    """Read images in order; each has its statistics, and the pixels of a batch lie side by side in memory.

    A batch whose process ended, as when memory ran out, is read in this process.

    Args:
        samples: Image files.
        spec: Input format of the network; without tiles.
        workers: Number of processes.
        batch_size: Number of images that the consumer processes at a time.
    """
    remaining = iter(samples)
    given: deque[tuple[_Process, int, list[Sample]]] = deque()
    with ExitStack() as stack:
        count = min(workers, -(-len(samples) // batch_size))
        processes = [stack.enter_context(_Process(spec, batch_size)) for _ in range(count)]
        turns = [(process, slot) for slot in range(_AHEAD) for process in processes]
        for process, slot in turns:
            _give(given, process, slot, list(islice(remaining, batch_size)))
        while given:
            process, slot, batch = given.popleft()
            items = process.take(slot, batch)
            _give(given, process, slot, list(islice(remaining, batch_size)))
            yield from items


def _give(given: deque[tuple[_Process, int, list[Sample]]], process: _Process, slot: int, batch: list[Sample]) -> None:
    if batch:
        process.give(slot, batch)
        given.append((process, slot, batch))


class _Process:
    """Process that reads batches into slots of shared memory, in the order in which they are given."""

    def __init__(self, spec: InputSpec, batch_size: int) -> None:
        self._spec = spec
        self._memory = _Memory(os.memfd_create("adctl-images"), spec, batch_size)
        command = [sys.executable, "-m", __name__, str(self._memory.descriptor), str(batch_size)]
        self._process = subprocess.Popen(  # noqa: S603 - our own interpreter
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            pass_fds=[self._memory.descriptor],
            start_new_session=True,  # Ctrl-C ends this process, which then ends the others
        )
        self._send(asdict(spec))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.kill()
        self._process.communicate()
        self._memory.close()

    def give(self, slot: int, batch: Sequence[Sample]) -> None:
        """Let the process read a batch."""
        self._send({"slot": slot, "paths": [str(sample.path) for sample in batch]})

    def take(self, slot: int, batch: Sequence[Sample]) -> list[LoadedImage]:
        """Wait for the oldest batch, and return its images."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            log.debug("A reading process ended with code %s; its images are read here.", self._process.poll())
            return [load_image(sample, self._spec) for sample in batch]
        # Copied, because the slot gets the next batch.
        pixels = self._memory.slots[slot, : len(batch)].copy()
        return [
            _loaded(sample, facts, pixels[place : place + 1][0])
            for place, (sample, facts) in enumerate(zip(batch, json.loads(line), strict=True))
        ]

    def _send(self, message: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            log.debug("A reading process ended with code %s.", self._process.poll())


def _loaded(sample: Sample, facts: dict[str, Any], pixels: NDArray[np.uint8]) -> LoadedImage:
    if "error" in facts:
        return LoadedImage(sample, None, error=ImageError(facts["error"], facts["remedy"]))
    return LoadedImage(sample, pixels, facts["width"], facts["height"], inputs=tuple(facts["inputs"]))


class _Memory:
    """Slots for the pixels of batches [slots,B,H,W,C], in a file in memory that processes share.

    Attributes:
        descriptor: Descriptor of the file.
        slots: The pixels.
    """

    def __init__(self, descriptor: int, spec: InputSpec, batch_size: int) -> None:
        self.descriptor = descriptor
        shape = (_AHEAD, batch_size, *spec.shape)
        size = int(np.prod(shape))
        os.ftruncate(descriptor, size)
        self.slots: NDArray[np.uint8] = np.frombuffer(mmap.mmap(descriptor, size), np.uint8).reshape(shape)

    def close(self) -> None:
        """Close the file; the memory is freed with the last reference to the slots."""
        os.close(self.descriptor)


@dataclass(frozen=True)
class _Reader:
    """The other side of `_Process`."""

    spec: InputSpec
    memory: _Memory

    def read(self, slot: int, paths: Sequence[str]) -> list[dict[str, Any]]:
        """Read files into a slot, and return the facts of each."""
        return [self._read(Path(path), self.memory.slots[slot, place]) for place, path in enumerate(paths)]

    def _read(self, path: Path, target: NDArray[np.uint8]) -> dict[str, Any]:
        item = load_image(Sample(path, path.name), self.spec)
        if item.error is not None:
            return {"error": item.error.message, "remedy": item.error.remedy}
        assert item.pixels is not None
        target[...] = item.pixels
        return {"width": item.width, "height": item.height, "inputs": measure_input(item)}


def main(descriptor: str, batch_size: str) -> None:
    """Run in a new process: answer each line of paths until the input ends."""
    spec = InputSpec(**_with_tuples(json.loads(sys.stdin.readline())))
    reader = _Reader(spec, _Memory(int(descriptor), spec, int(batch_size)))
    for line in sys.stdin:
        message = json.loads(line)
        sys.stdout.write(json.dumps(reader.read(message["slot"], message["paths"])) + "\n")
        sys.stdout.flush()


def _with_tuples(values: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


if __name__ == "__main__":
    main(*sys.argv[1:])
