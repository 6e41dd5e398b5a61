"""Fashion-MNIST (Xiao et al., 2017): the files of MNIST with garments for digits."""

from __future__ import annotations

from adctl.fetching.converters.mnist import find, read

__all__ = ["find", "read"]
