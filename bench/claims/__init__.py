"""One file per claim: a bench, and a target that its results can miss."""
