"""Which entries are the smallest: exact selection over many weights, and over many processes."""
