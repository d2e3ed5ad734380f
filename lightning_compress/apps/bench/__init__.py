"""Latency and peak memory of written files, side by side."""
