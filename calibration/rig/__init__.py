"""The geometric alignment of the two cameras, and the offset between their clocks, measured from images."""
