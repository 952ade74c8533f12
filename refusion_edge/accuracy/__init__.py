"""The fidelity of an engine to the fp32 reference, and the accuracy gate that it has to pass."""
