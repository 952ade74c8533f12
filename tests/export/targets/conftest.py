"""The fake of ``tensorrt``, installed for a test that asks for it."""

from tests.fakes.tensorrt import fake_trt

__all__ = ["fake_trt"]
