"""Turning weights into an ONNX model: tracing, INT8, uint8 inputs and outputs."""
