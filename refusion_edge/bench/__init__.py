"""Measuring how long fusing takes: windows that have to agree, stages, comparisons, deadlines, sensors, reports.

Belongs here: everything between an open fuser and a report. Does not belong here: building engines, live cameras.
"""
