"""Fusing whole archives: shares for several machines, a manifest of what was done, and a cluster."""
