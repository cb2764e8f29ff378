"""For tests of tiers: names and rows, a tier with planted faults, and processes that write and are killed."""
