"""Quantizers of weights, activations and biases."""
