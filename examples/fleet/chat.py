"""One vitcache process of the fleet: a chat with a small Qwen3-VL, and a cache with the shared store.

`run.py` starts it. Each line of its input is the number of a turn; it answers the turn and prints its counts
so far as a line of JSON. It ends with its input.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

import torch

import vitcache
from vitcache.adapters.vision_tower import row_width
from vitcache.demo.conversation import Prompt, build_prompt
from vitcache.demo.families import FAMILIES
from vitcache.demo.logits import compare_logits
from vitcache.demo.model import share_weights
from vitcache.demo.stock_side import StockSide
from vitcache.demo.turns import build, one_thread, process_photos
from vitcache.demo.vitcache_side import CachedSide

CPU = torch.device("cpu")
FLUSH_S = 10.0


def open_cache(model: Any, master: str) -> vitcache.EmbeddingCache:
    """Return a cache of the rows of a model. Its entries are also in the store of this master."""
    return vitcache.EmbeddingCache(
        row_width(model.config),
        dtype=model.dtype,
        device=CPU,
        device_bytes="16MiB",
        host_bytes="16MiB",  # a fetch needs pages in host memory
        # worth=None: fetch each entry. The encodes are counted, so they must not depend on measured times.
        tiers=[vitcache.MooncakeTier(master, worth=None)],
        # Equal in each process whose weights are equal: the fleet finds an entry by it.
        weights_name="tiny Qwen3-VL, seed 0",
        write_back=vitcache.WriteBack(hits=0),  # store each entry when it is inserted
        fetch_timeout_s=10.0,  # a busy machine must not change the counts; the default is 0.1 s
    )


def answer(side: CachedSide, stock: StockSide, prompt: Prompt) -> tuple[int, bool]:
    """Run one turn; return the number of encodes, and whether its logits are those of the stock model."""
    turn = side.answer(prompt)
    reference = stock.model, stock.answer_one_at_a_time(prompt)
    equal, _ = compare_logits(reference, (side.model, turn.hidden))
    return turn.encoded, equal


def main() -> None:
    """Answer turns until the input ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--master", required=True, metavar="HOST:PORT")
    parser.add_argument("--turns", type=int, required=True)
    options = parser.parse_args()
    with torch.no_grad(), one_thread():
        family = FAMILIES["qwen3_vl"]
        model = build(family, CPU)
        processor, pictures = process_photos(family, model, options.turns)
        stock = StockSide(share_weights(model))  # modules of its own: the side counts the encodes of `model`
        with open_cache(model, options.master) as cache:
            side = CachedSide(model, processor, cache)
            print(json.dumps({"images": len(pictures)}), flush=True)
            encoded, equal = 0, True
            for line in sys.stdin:
                prompt = build_prompt(pictures[: int(line)], model.config)
                new, is_equal = answer(side, stock, prompt)
                encoded, equal = encoded + new, equal and is_equal
                is_stored = cache.flush(FLUSH_S)  # the next process asks for the rows now
                tier = cache.stats().tiers[0]
                counts = {
                    "encoded": encoded,
                    "fetched": tier.hits,
                    "fetched_bytes": tier.fetched_bytes,
                    "stored": tier.stored,
                    "stored_bytes": tier.stored_bytes,
                    "failures": tier.failures + tier.late + (not is_stored),
                    "equal": equal,
                }
                print(json.dumps(counts), flush=True)


if __name__ == "__main__":
    main()
