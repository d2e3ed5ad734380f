"""Modules that fake-quantize weights, activations and biases."""
