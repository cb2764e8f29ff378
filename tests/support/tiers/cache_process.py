"""A script: a cache with a tier, which runs the commands on its standard input until it is killed.

    python cache_process.py PLACE OPTIONS

PLACE is a folder, or the address of a master. OPTIONS are a JSON object: arguments of `tier_cache`, and
`max_bytes` of the disk tier. Each line of the input
is a JSON list: a name of a function of `Commands`, and its arguments. A line of the output answers each.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from tiers.tier_cache import LONG, is_right, key_of, put, rows_of, stats_of, tier_cache
from vitcache.tiers import DiskTier, MooncakeTier


class Commands:
    """The commands. Every result can be written as JSON."""

    def __init__(self, place: str, max_bytes: int = 64 << 20, **options: Any) -> None:
        sizes = {"device_pages": 256, "host_pages": 256}
        is_folder = Path(place).is_absolute()
        tier = DiskTier(place, max_bytes) if is_folder else MooncakeTier(place, worth=None)
        self.cache = tier_cache(tier, **(sizes | options))

    def put(self, *numbers: int, **options: Any) -> int:
        """Store entries, and return how many this process has stored so far."""
        put(self.cache, *numbers, **options)
        return stats_of(self.cache).stored

    def put_for_ever(self, num_keys: int, num_rows: int) -> None:
        """Put entries without an end, and print a line after each 32."""
        number = 0
        while True:
            number += 1
            key = number % num_keys
            self.cache.put(key_of(key), rows_of(key, num_rows))
            if number % 32 == 0:
                self.cache.flush(LONG)
                print(json.dumps(number), flush=True)
            if number % num_keys == 0:
                self.cache.discard(key_of(number // num_keys % num_keys))

    def found(self, *numbers: int, num_rows: int = 2, **options: Any) -> list[int]:
        """Return the numbers of the entries that a tier has; their rows must be right."""
        self.cache.fetch([key_of(number) for number in numbers], num_rows, **options)
        return [number for number in numbers if is_right(self.cache, number, num_rows)]

    def call(self, method: str, *arguments: Any, **options: Any) -> Any:
        """Call a method of the cache; a number in place of a key."""
        keys = [key_of(each) if isinstance(each, int) else each for each in arguments]
        return getattr(self.cache, method)(*keys, **options)


class CacheProcess:
    """The script as a process. `do` waits for the answer."""

    def __init__(self, place: Path | str, **options: Any) -> None:
        command = [sys.executable, __file__, str(place), json.dumps(options)]
        self.process = Popen(command, stdin=PIPE, stdout=PIPE, text=True)
        assert self.read() == "ready"

    def begin(self, name: str, *arguments: Any, **options: Any) -> None:
        assert self.process.stdin
        print(json.dumps([name, arguments, options]), file=self.process.stdin, flush=True)

    def read(self) -> Any:
        assert self.process.stdout
        return json.loads(self.process.stdout.readline())

    def do(self, name: str, *arguments: Any, **options: Any) -> Any:
        self.begin(name, *arguments, **options)
        return self.read()

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()


@contextmanager
def cache_process(place: Path | str, **options: Any) -> Iterator[CacheProcess]:
    """A process that is killed at the end of the block."""
    process = CacheProcess(place, **options)
    try:
        yield process
    finally:
        process.kill()


def _run(place: str, options: str) -> None:
    commands = Commands(place, **json.loads(options))
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        name, arguments, keywords = json.loads(line)
        print(json.dumps(getattr(commands, name)(*arguments, **keywords)), flush=True)


if __name__ == "__main__":
    _run(*sys.argv[1:])
