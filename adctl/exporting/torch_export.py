"""Export to a `torch.export` archive (.pt2) without pickled data."""

from __future__ import annotations

import copy
import io
from typing import TYPE_CHECKING

import torch

from adctl import files
from adctl.runtimes.metadata import METADATA
from adctl.runtimes.torch_export import refuse_pickles

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from adctl.exporting.graph import ExportSource


def write(source: ExportSource, target: Path, precision: str, images: Sequence[NDArray[np.uint8]]) -> None:
    """Export to a `torch.export` archive, atomically.

    Args:
        source: The model.
        target: The `.pt2` file.
        precision: Always `fp32`.
        images: Not used.

    Raises:
        OutputError: The target cannot be written.
    """
    del precision, images
    program = copy.copy(source.program)
    program._example_inputs = None  # noqa: SLF001 - they would be pickled, and no public function removes them
    content = io.BytesIO()
    torch.export.save(program, content, extra_files={METADATA: source.metadata("fp32")})
    refuse_pickles(content.getvalue(), target)
    files.write_bytes(target, content.getvalue())
