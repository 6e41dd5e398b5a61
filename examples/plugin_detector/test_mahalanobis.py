"""Contract tests that every detector of adctl must pass."""

from __future__ import annotations

from adctl.testing import DetectorContract


class TestMahalanobis(DetectorContract):
    """Contract tests of the Mahalanobis detector."""

    arch = "mahalanobis"
