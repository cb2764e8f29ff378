"""A script: stores entries in a disk tier until it is killed, or until it has stored enough bytes.

    python writer.py FOLDER MAX_BYTES SEED NUM_ENTRIES ROW_BYTES

NUM_ENTRIES 0: without an end. The keys of two writers overlap. It prints a line before its first entry, and
one after each of its stores.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from tiers.scene import name_of, store_rows, transfer_of
from vitcache.tiers import DiskTier

NUM_KEYS = 16


def write(folder: str, max_bytes: int, seed: int, num_entries: int, row_bytes: int) -> None:
    rng = random.Random(seed)
    tier = DiskTier(folder, max_bytes)
    tier.open()
    print("started", flush=True)
    done = 0
    while done < num_entries or not num_entries:
        names = [name_of(rng.randrange(NUM_KEYS), rng.randrange(1, 4), row_bytes) for _ in range(3)]
        store_rows(tier, names)
        tier.fetch([transfer_of(names[0])])
        if not rng.randrange(20):
            tier.erase(key=names[1].key)
        done += 3
        print("stored", flush=True)
    tier.close()


if __name__ == "__main__":
    write(sys.argv[1], *map(int, sys.argv[2:]))
