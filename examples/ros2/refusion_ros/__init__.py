"""Fuses the image topics of an infrared and a visible camera."""
