"""How close an engine is to the fp32 reference, and the gate that it has to pass."""
