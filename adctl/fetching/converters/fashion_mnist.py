"""Fashion-MNIST (Xiao et al., 2017): garments in the file format of MNIST."""

from __future__ import annotations

from adctl.fetching.converters.mnist import find, read

__all__ = ["find", "read"]
