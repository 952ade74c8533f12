"""Turning an ONNX model into the engine file of each back end."""
