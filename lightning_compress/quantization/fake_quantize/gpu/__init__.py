"""Kernels for CUDA and ROCm, and the operators over them."""
