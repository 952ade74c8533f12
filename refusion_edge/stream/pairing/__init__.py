"""Pairing the frames of the two cameras, and failover while one camera is lost or frozen."""
