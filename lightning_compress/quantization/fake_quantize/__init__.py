"""Fake quantization kernels: reference, C++ for the CPU, LSQ, and their autograd functions."""
