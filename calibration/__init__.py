"""Calibration in both senses: quantization ranges for INT8 engines, and the geometric alignment of the two cameras.

Belongs here: collecting value ranges on representative pairs, and aligning two cameras. Does not belong here: editing
ONNX graphs, and live capture.
"""
