"""The geometric alignment of the two cameras: the model, its file, and the warp of frames to registered views."""
