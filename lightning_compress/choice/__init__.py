"""Choosing a compression: jobs of a sweep, what they came to, the Pareto front, and a choice with its reasons."""
