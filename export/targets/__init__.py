"""From an ONNX model to what each back end loads."""
