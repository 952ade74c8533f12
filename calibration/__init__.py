"""Calibration in both meanings: quantisation ranges for INT8 engines, and the camera rig.

Belongs here: collecting value ranges on representative pairs, and aligning two cameras. Does not belong here: editing
ONNX graphs, and live capture.
"""
