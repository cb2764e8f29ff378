"""`run_ranks`: runs a program of tests/support in two processes, the ranks of a process group."""

from __future__ import annotations

import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

HERE = Path(__file__).parent


def run_ranks(
    program: str, tmp_path: Path, *arguments: str, timeout: float = 120
) -> list[subprocess.CompletedProcess[str]]:
    """Run both ranks and wait for them. After `timeout` seconds, kill them and raise TimeoutExpired.

    The program reads its rank and the path of a `FileStore` from the variables RANK and STORE.
    """
    path = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "STORE": str(tmp_path / "store"), "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    command = [sys.executable, str(HERE / program), *arguments]
    ranks = [
        subprocess.Popen(
            command,
            env={**environment, "RANK": str(rank)},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for rank in range(2)
    ]
    try:
        outputs = [rank.communicate(timeout=timeout) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    return [
        subprocess.CompletedProcess(command, rank.returncode, *output)
        for rank, output in zip(ranks, outputs, strict=True)
    ]


def run_rank(main: Callable[[str], None]) -> None:
    """Run the program of a rank with its argument. If it fails, the process ends at once, with code 1.

    The threads of gloo run on: the destructors of an ordinary exit sometimes abort the process then.
    """
    try:
        main(sys.argv[1])
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


def end_rank() -> NoReturn:
    """End the process of a rank that has done its work. Its program calls it last.

    Rarely, a thread of gloo still runs when the interpreter destroys the objects of a process group, and C++
    then ends the process by `terminate`. So the process ends without these destructors.
    """
    from torch import distributed

    distributed.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
