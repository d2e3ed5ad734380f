"""A training job from a config, its outcome, and the jobs of a sweep."""
