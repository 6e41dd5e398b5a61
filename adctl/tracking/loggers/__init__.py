"""Loggers of a training: TensorBoard, MLflow and Weights & Biases, chosen by `adctl train --log`.

MLflow and Weights & Biases run in a process of their own, so that a server that hangs cannot delay a training.
"""
