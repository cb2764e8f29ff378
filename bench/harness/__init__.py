"""What every bench runs on: cases, timing, records, plots."""
