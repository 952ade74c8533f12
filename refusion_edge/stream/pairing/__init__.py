"""Which frames of the two cameras belong together, and what happens while one camera is lost or frozen."""
