"""Procedural scenes of the sample pairs that ship with the package."""
