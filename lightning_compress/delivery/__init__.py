"""What `CompressedExport` does at the end of a fit: write, verify, measure, compare, report."""
