"""Structured pruning: whole channels and attention heads, removed together with what depends on them."""
