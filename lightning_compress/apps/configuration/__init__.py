"""Hydra configs: composed, checked, instantiated, changed."""
