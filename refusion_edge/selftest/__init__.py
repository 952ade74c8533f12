"""The self-test of a device: its description, and whether each back end builds, runs and is accurate on it."""
