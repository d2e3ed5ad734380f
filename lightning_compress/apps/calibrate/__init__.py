"""Quantizing a trained network without training, and whether that is enough."""
