"""Calibration in both senses: value ranges for INT8 engines, and the geometric alignment of two cameras.

Belongs here: collecting value ranges on representative pairs, and aligning two cameras. Does not belong here: editing
ONNX graphs, and live capture.
"""
