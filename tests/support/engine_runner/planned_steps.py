"""`PlannedSteps`: counts of the steps that the scheduler of an engine planned."""

from __future__ import annotations

from typing import Any


class PlannedSteps:
    """Counts steps while it watches every scheduler of the process.

    `splits` are steps that end inside of an item, `preemptions` are requests that lost their place, and
    `most_requests` is the largest number of requests with items that one step computed rows for.
    """

    def __init__(self) -> None:
        self.splits = 0
        self.preemptions = 0
        self.most_requests = 0

    def watch(self) -> None:
        """Count from now on. Call it before the engine starts."""
        from vllm.v1.core.sched.scheduler import Scheduler

        schedule = Scheduler.schedule

        def counted(scheduler: Any, *arguments: Any, **keywords: Any) -> Any:
            planned = schedule(scheduler, *arguments, **keywords)
            self._count(scheduler.requests, planned)
            return planned

        Scheduler.schedule = counted

    def counts(self) -> dict[str, int]:
        return dict(vars(self))

    def _count(self, requests: dict[str, Any], planned: Any) -> None:
        with_items = 0
        for name, count in planned.num_scheduled_tokens.items():
            last = requests[name].num_computed_tokens  # the step is in it already
            spans = [
                (item.mm_position.offset, item.mm_position.length) for item in requests[name].mm_features
            ]
            self.splits += any(offset < last < offset + length for offset, length in spans)
            with_items += any(offset < last and last - count < offset + length for offset, length in spans)
        self.preemptions += len(planned.preempted_req_ids or ())
        self.most_requests = max(self.most_requests, with_items)
