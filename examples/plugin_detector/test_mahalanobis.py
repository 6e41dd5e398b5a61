"""The contract that every detector of adctl keeps."""

from __future__ import annotations

from adctl.testing import DetectorContract


class TestMahalanobis(DetectorContract):
    """Contract tests of the detector."""

    arch = "mahalanobis"
