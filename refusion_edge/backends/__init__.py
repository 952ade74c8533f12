"""Back ends: what can run the fusion network, and whether it can do so on this machine."""
