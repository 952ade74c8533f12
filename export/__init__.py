"""From weights to ONNX to an engine bundle.

Belongs here: tracing, parity, building. Does not belong here: the definition of the network.
"""
