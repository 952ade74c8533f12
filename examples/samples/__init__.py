"""Procedural scenes behind the sample pairs which ship with the package."""
