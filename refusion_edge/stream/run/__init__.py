"""The running stream: threads, bounded queues, settings, and an orderly end."""
