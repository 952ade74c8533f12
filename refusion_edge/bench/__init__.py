"""Latency of fusion: stages, stable windows, comparisons, frame rates, machine sensors and reports.

Belongs here: everything between an open fuser and a report. Does not belong here: building engines, live cameras.
"""
