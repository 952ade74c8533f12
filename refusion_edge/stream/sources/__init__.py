"""Where frames come from: cameras, video files, image folders, and a synthetic pair."""
