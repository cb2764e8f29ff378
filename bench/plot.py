"""``python -m vitcache.bench.plot FILE...``: a picture beside each result file."""

from vitcache.bench.harness.plot import draw_ratios, main, plot

__all__ = ["draw_ratios", "main", "plot"]

if __name__ == "__main__":
    main()
