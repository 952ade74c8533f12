"""Fusing whole archives: shards for several machines, a manifest of the results, and a cluster."""
