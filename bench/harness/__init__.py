"""What every bench runs on: cases, timing, records, plots, and the command."""
