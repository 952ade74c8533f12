"""Where fused frames go: window, browser, video, RTSP, image folder, recording."""
