"""A stream while it runs: threads, bounded queues, statistics, and one clear end."""
