"""Runs what `POST /v1/predict` brings: arrays in and out, the gate that lets in as much as the cores can do, and the runtimes
of the bundles. ONNX Runtime is imported with the first request, after the processes have been forked.
"""

from selector.service.predict.predictor import PredictOptions, Predictor

__all__ = ["PredictOptions", "Predictor"]
