"""The blocks of README.md and docs/: found, run as printed, and checked for their effect."""
