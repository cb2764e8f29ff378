"""The program of one of two ranks that check the changes of sharded models. test_page_rows_sharded starts it.

It prints one line of JSON per change: its row, its name, and the error, which is empty for a success.
"""

from __future__ import annotations

import json
import os
from datetime import timedelta

import torch
from model_changes import CHANGES
from model_changes.checks import check
from ranks import end_rank
from torch import distributed


def main() -> None:
    torch.backends.mkldnn.enabled = False  # see `plain_kernels`
    store = distributed.FileStore(os.environ["STORE"], 2)
    distributed.init_process_group(
        "gloo", store=store, rank=int(os.environ["RANK"]), world_size=2, timeout=timedelta(seconds=20)
    )
    for change in CHANGES.values():
        if 2 in change.ranks:
            error = ""
            try:
                check(change, *change.families)
            except BaseException as raised:
                error = repr(raised)
            print(json.dumps([change.row, change.name, error]), flush=True)
    end_rank()


if __name__ == "__main__":
    main()
