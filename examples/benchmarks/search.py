"""Benchmark of PatchCore's nearest-neighbour search: exact, with inverted lists, and with faiss if it is installed.

    python examples/benchmarks/search.py [THREADS]

The vectors are random, as many as in one image or in a batch of 8 images of 256 pixels; the memory banks are as large
as 1 % and 10 % of the patches of 400 images. All searches take turns; the table shows median times, and the speed as a
share of a bare matrix product of the same size. `patchcore.py` measures the loss of quality by inverted lists.
"""

from __future__ import annotations

import importlib.util
import statistics
import sys
import time
from typing import TYPE_CHECKING

import torch

from adctl.detectors.components.nearest_neighbours import InvertedLists, nearest_squared

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

SIZES = ((441, 1764), (441, 17640), (3528, 1764), (3528, 17640))
LENGTH = 80
PROBES = 8
ROUNDS = 9
SECONDS = 20.0


def faiss_search(bank: Tensor, threads: int) -> Callable[[Tensor], Tensor] | None:
    """Return the exact search of faiss, or None if faiss is not installed."""
    if importlib.util.find_spec("faiss") is None:
        return None
    import faiss

    faiss.omp_set_num_threads(threads)
    index = faiss.IndexFlatL2(LENGTH)
    index.add(bank.numpy())
    return lambda queries: torch.from_numpy(index.search(queries.numpy(), 1)[0][:, 0])


def bare_product(bank: Tensor) -> Callable[[Tensor], Tensor]:
    """Return a function that computes only the matrix product, in blocks, without the search for the minimum."""

    def multiply(queries: Tensor) -> Tensor:
        product = queries.new_empty(len(queries), 512)
        for rows in bank.split(512):
            torch.mm(queries, rows.t(), out=product[:, : len(rows)])
        return product[:, 0]

    return multiply


def in_turns(searches: dict[str, Callable[[Tensor], Tensor]], queries: Tensor) -> dict[str, float]:
    """Return the median seconds of each search, over as many rounds as the time limit allows."""
    taken: dict[str, list[float]] = {name: [] for name in searches}
    beginning = time.perf_counter()
    for number in range(ROUNDS + 1):
        for name, search in searches.items():
            start = time.perf_counter()
            search(queries)
            if number:  # the first round is a warm-up
                taken[name].append(time.perf_counter() - start)
        if number and time.perf_counter() - beginning > SECONDS:
            break
    return {name: statistics.median(times) for name, times in taken.items()}


@torch.inference_mode()
def main(threads: int) -> None:
    """Measure all searches, and print the table."""
    torch.set_num_threads(threads)
    print("| queries | bank | search | ms | share of the bare product's speed |", "|---|---|---|---|---|", sep="\n")
    for count, rows in SIZES:
        generator = torch.Generator().manual_seed(0)
        queries = torch.randn(count, LENGTH, generator=generator)
        bank = torch.randn(rows, LENGTH, generator=generator)
        exact = {"exact": lambda queries, bank=bank: nearest_squared(queries, bank)}
        if (search := faiss_search(bank, threads)) is not None:
            exact["faiss, IndexFlatL2"] = search
            torch.testing.assert_close(search(queries), nearest_squared(queries, bank), rtol=1e-3, atol=1e-2)
        lists = InvertedLists(bank, PROBES)
        others = {"bare product": bare_product(bank), f"ivf, {PROBES} probes": lists.nearest_squared}
        medians = in_turns({**exact, **others}, queries)
        for name, seconds in medians.items():
            print(f"| {count} | {rows} | {name} | {seconds * 1e3:.1f} | {medians['bare product'] / seconds:.2f} |")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else torch.get_num_threads())
