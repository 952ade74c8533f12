"""The fusion network: its parameters, layers and layouts, the ONNX graph, checkpoints and the bundled weights."""
