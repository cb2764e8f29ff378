"""The memory of a server's scheduler while it answers many different images."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from engine_runner import chat
from PIL import Image

from sglang_runner.server import SCHEDULER, Server

NUM_IMAGES = 1000
BETWEEN = 200  # images between two measurements
IN_A_REQUEST = 4


def own_mib(process: int) -> float:
    """The resident memory of a process without that of files: its own pages and shared ones, in MiB."""
    status = Path(f"/proc/{process}/status").read_text()
    kib = re.findall(r"^(?:RssAnon|RssShmem):\s+(\d+) kB$", status, re.MULTILINE)
    return sum(map(int, kib)) / 1024


def scheduler_mib(
    server: Server,
    ask: Callable[[Sequence[Image.Image]], object],
    after: Callable[[int], object] = lambda number: None,
) -> Iterator[float]:
    """Ask for each image once. Gives the memory of the scheduler after each `BETWEEN` images.

    `after` is called with the number of images so far, between two requests.
    """
    process = server.process(SCHEDULER)
    for first in range(0, NUM_IMAGES, IN_A_REQUEST):
        last = first + IN_A_REQUEST
        ask([chat.image(number) for number in range(first, last)])
        after(last)
        if last % BETWEEN == 0:
            yield own_mib(process)
