"""From weights to an ONNX model: tracing, INT8, uint8 inputs and outputs."""
