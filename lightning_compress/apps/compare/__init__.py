"""The jobs of a sweep side by side: table, Pareto front, choice, page."""
