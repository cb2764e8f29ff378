"""A wait for a job ends with the exception of a signal handler, at whatever line of the wait it is raised."""

from __future__ import annotations

import threading

import pytest
from hang_guard import Running
from interrupts import interrupt

from vitcache.device import jobs
from vitcache.device.jobs import Job

FILES = {jobs.__file__}


def test_wait_interrupted_at_any_line_raises_the_interrupt_and_the_next_wait_ends() -> None:
    line, is_interrupted = 1, True
    while is_interrupted:
        job = Job(lambda: 3)
        start = threading.Event()
        running = Running(lambda job=job, start=start: (start.wait(60), job.run()))

        def wait(job: Job[int] = job, start: threading.Event = start) -> None:
            with pytest.raises(TimeoutError):
                job.result(0.001)
            start.set()
            assert job.result() == 3

        is_interrupted = interrupt(wait, line, FILES)
        start.set()
        assert Running(job.result).results() == [3], line
        running.results()
        line += 1
    assert line > 3
