"""A written file measured again on the data of its run."""
