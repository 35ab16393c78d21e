"""What the driver keeps of each batch and of each worker."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable

from .messages import Work


class Job:
    """A batch that some worker is to compute, with its history."""

    def __init__(self, work: Work, deaths: int = 0, is_sent: bool = False):
        self.work = work
        self.deaths = deaths  # of workers that had it
        self.is_sent = is_sent  # whether the files go through Ray, wherever the worker is

    def halves(self) -> list[Job]:
        """Return two jobs of this one's photographs or sentences, or [] if it has only one."""
        n = len(self.work.indices)
        return [self.part(range(n // 2)), self.part(range(n // 2, n))] if n > 1 else []

    def part(self, chosen: Iterable[int], is_sent: bool | None = None) -> Job:
        """Return a job of some of the photographs or sentences, with the same history."""
        chosen = list(chosen)
        work = self.work._replace(
            **{
                field: [values[i] for i in chosen]
                for field in ("indices", "items", "sizes", "texts")
                if (values := getattr(self.work, field))
            }
        )
        return Job(work, self.deaths, self.is_sent if is_sent is None else is_sent)


class Slot:
    """A worker and what it has to do; when it dies, another takes its slot."""

    def __init__(self, name: int):
        self.name = name
        self.failures = 0  # starts that failed in a row
        self.host = "a machine not known yet"
        self.actor = None

    def start(self, actor) -> None:
        """Let a new worker begin."""
        self.actor, self.is_active, self.pid, self.starts_at = actor, False, 0, None
        self.calls: deque[tuple[str, object]] = deque()  # (method, Ray's reference to the answer), oldest first
        self.jobs: dict[int, Job] = {}  # number of the batch -> what the worker has not answered yet
        self.sees: bool | None = None  # whether it can read the photographs of this run itself
        self.is_open = False  # whether it has started a batch that the next call will compute
        self.since = time.monotonic()  # when the oldest call began
        self.is_reported = False  # as missing
        self.call("hello")

    def stop(self, starts_at: float | None = None) -> None:
        """Forget a worker that is no more; another one starts at a time of `time.monotonic`, or never."""
        self.is_active, self.pid, self.starts_at = False, 0, starts_at
        self.calls.clear()

    @property
    def is_left(self) -> bool:
        """Whether there is a worker, or there will be."""
        return self.is_active or bool(self.calls) or self.starts_at is not None

    def call(self, method: str, *arguments) -> None:
        """Call a method of the worker; `calls` gets the answer's reference."""
        if not self.calls:
            self.since = time.monotonic()
        self.calls.append((method, getattr(self.actor, method).remote(*arguments)))
