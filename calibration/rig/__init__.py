"""Finding the alignment of two cameras from pairs of images."""
