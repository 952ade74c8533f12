"""Outputs of fused frames: window, browser, video, RTSP, image folder; and the recording of raw frames."""
