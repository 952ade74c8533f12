"""Images on disk and in memory: reading and writing, color, pairs, montages, the bundled sample pairs."""
