"""The fusion network: its parameters, layers and layouts, the ONNX graph, checkpoints and the bundled weights."""

NETWORK_NAMES = ("refusion", "fast")
"""Names of the networks, known without loading any of them; ``family`` describes each."""
