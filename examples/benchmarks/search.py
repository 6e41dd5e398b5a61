"""How long PatchCore's search takes: exact, by inverted lists, and faiss where it is installed.

    python examples/benchmarks/search.py [THREADS]

Random vectors with the sizes of an image of 256 pixels against banks of 1 % and 10 % of 400 images, and of a batch of
eight. The exact ones are checked to agree; all take turns, and the table holds medians, also as a share of what a bare
matrix product of that size reaches. How much inverted lists lose depends on the data: `patchcore.py` measures it.
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
    """Faiss's exact search, or None without faiss."""
    if importlib.util.find_spec("faiss") is None:
        return None
    import faiss

    faiss.omp_set_num_threads(threads)
    index = faiss.IndexFlatL2(LENGTH)
    index.add(bank.numpy())
    return lambda queries: torch.from_numpy(index.search(queries.numpy(), 1)[0][:, 0])


def bare_product(bank: Tensor) -> Callable[[Tensor], Tensor]:
    """The matrix product alone, in blocks, without looking for a minimum."""

    def multiply(queries: Tensor) -> Tensor:
        product = queries.new_empty(len(queries), 512)
        for rows in bank.split(512):
            torch.mm(queries, rows.t(), out=product[:, : len(rows)])
        return product[:, 0]

    return multiply


def in_turns(searches: dict[str, Callable[[Tensor], Tensor]], queries: Tensor) -> dict[str, float]:
    """Median seconds of each; as many rounds as the time allows."""
    taken: dict[str, list[float]] = {name: [] for name in searches}
    begun = time.perf_counter()
    for number in range(ROUNDS + 1):
        for name, search in searches.items():
            start = time.perf_counter()
            search(queries)
            if number:  # the first round warms up
                taken[name].append(time.perf_counter() - start)
        if number and time.perf_counter() - begun > SECONDS:
            break
    return {name: statistics.median(times) for name, times in taken.items()}


@torch.inference_mode()
def main(threads: int) -> None:
    """Measure and print."""
    torch.set_num_threads(threads)
    print("| queries | bank | search | ms | of the bare product |", "|---|---|---|---|---|", sep="\n")
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
