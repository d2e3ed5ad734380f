"""Observers and optimizers of quantization ranges."""
