"""The parts that all benches use: cases, timing, records, plots."""
