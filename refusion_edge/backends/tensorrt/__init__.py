"""TensorRT and TensorRT-RTX: settings, versions, running plans, and explaining why a plan does not load.

The two products differ in their Python module and in what it offers; each difference is detected where it matters
(``hasattr``), never inferred from a version. This package contains everything that running needs; plans are compiled in
``refusion_edge.export.targets.tensorrt``.
"""
