"""The self-test of a device: what it is, and whether each back end builds, runs and is accurate there."""
