"""Subcommands of ``lightning-compress`` that work on files."""
