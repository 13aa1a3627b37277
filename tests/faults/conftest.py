"""Fixtures of the tests of faults."""

from tests.worker.conftest import rig

__all__ = ["rig"]
