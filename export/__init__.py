"""Exporting weights to ONNX and building engine bundles.

Belongs here: tracing, parity, building. Does not belong here: the definition of the network.
"""
