"""Live camera pairs: sources, pairing by sensor time, thermal gain, the running pipeline, and where its pictures go.

Every module has one job and none but ``runner`` knows the others' threads. What moves between them are the data classes
of ``frames``. Pictures are in OpenCV's order here (BGR), because cameras deliver it and every output takes it.
"""
