"""Entropy coding of quantized weights: mask, values, byte planes."""
