"""From a pair of frames to a fused image: thermal gain, warp, color, output range."""
