"""The driver's side: batches go to workers, rows come back, and what a dead worker had is given to another."""

from __future__ import annotations

import itertools
import logging
import time
from collections import deque
from collections.abc import Iterable, Iterator

import numpy as np
import ray
from ray.exceptions import RayError, RayTaskError

from jclip.features import Encoded

from ..errors import TaskError
from . import messages
from .files import read_content
from .jobs import Job, Slot
from .machines import Plan
from .messages import ELSEWHERE, Done, Setup, Work
from .worker import Worker

logger = logging.getLogger("fewshot")

N_BATCHES = 3  # that a worker has at a time: one computed, one decoded, one that waits
MAX_DEATHS = 2  # of workers that a photograph may cause
MAX_STARTS = 5  # that may fail in a row
# Deaths, and more for each worker, with no batch finished in between: then no photograph is to blame. To find a
# poisonous one among 32 takes 8 deaths, and a cluster may lose all its workers at once.
DEATHS_IN_A_ROW, DEATHS_PER_WORKER = 16, 4
TICK = 1.0  # seconds between two looks at the clock
PATIENCE_SECONDS = 20.0  # without a worker, until that is explained
SCHEDULE_SECONDS = 300.0  # until a worker that Ray has no room for counts as missing
START_SECONDS = 1800.0  # for loading weights, and for compiling Jittor for CUDA on a slow machine
# For a batch, or SLOW times the slowest one until now, if that is longer: 32 of the largest photographs that are read
# take minutes to decode.
STEP_SECONDS = 600.0
SLOW = 10
# What Ray says where it takes the driver for dead, because only one of the two uses a token
CANCELLED = "cancelled before it started running"
TOKEN_HINT = " The cluster may have been started without the token in ~/.ray/auth_token; set RAY_AUTH_MODE=disabled"
MAX_REASON = 300  # characters of one of Ray's messages that are shown


class Pool:
    """Workers on the machines of a Ray cluster.

    Parameters
    ----------
    plan : Plan
    setup : Setup
    facts : dict of str to str
        What workers must have in common with the driver (`messages.facts`).
    read_weights : callable
        Returns (state, settings), for machines without the file.
    worker : class
        `Worker`, or a subclass of it.
    """

    def __init__(self, plan: Plan, setup: Setup, facts: dict[str, str], read_weights, worker: type = Worker):
        gpus = int(plan.device == "cuda")
        self._make = ray.remote(num_cpus=plan.cpus, num_gpus=gpus, max_restarts=0, max_task_retries=0)(worker).remote
        self._setup, self._facts, self._read_weights = setup, facts, read_weights
        self._sent_weights = None  # Ray's reference, once a worker needs it
        self._numbers = itertools.count()
        self._probe: tuple[str, int, str] | None = None  # a file by which workers find out whether they see the files
        self._said: set[str] = set()
        self._slowest = 0.0
        self._deaths = 0  # since a batch was finished
        self._begun = time.monotonic()
        self._source: Iterator[Work] = iter(())
        self._next: Work | None = None  # of the source
        self._again: deque[Job] = deque()  # to be computed before the rest of the source
        self._suspects: deque[Job] = deque()  # with which workers have died; computed last, each alone
        self._finished: deque[tuple[list[int], Encoded]] = deque()
        self.slots = [Slot(name) for name in range(1, plan.workers + 1)]
        for slot in self.slots:
            slot.start(self._make(setup))

    @property
    def n_active(self) -> int:
        """How many workers are at work."""
        return sum(slot.is_active for slot in self.slots)

    def wait_for_all(self) -> None:
        """Wait until every worker is ready; `run` begins with the first one."""
        while any(slot.is_left and not slot.is_active for slot in self.slots):
            self._wait()

    def run(self, works: Iterable[Work], probe: tuple[str, int, str] | None) -> Iterator[tuple[list[int], Encoded]]:
        """Let the workers compute batches and yield the indices and rows of each, in any order.

        Parameters
        ----------
        works : iterable of Work
        probe : (path, size, SHA-256) of a file, or None
            Workers that find this file read the photographs themselves.

        Raises
        ------
        TaskError
            If no worker is left, or one reports an error.
        """
        self._probe, self._source = probe, iter(works)
        for queue in (self._again, self._suspects, self._finished):
            queue.clear()
        for slot in self.slots:
            slot.sees = None
            slot.jobs.clear()  # of a run that was left before its end; the answers are ignored
            if slot.is_active and slot.is_open:  # what it has started is finished, so that its files are removed
                slot.call("step", None)
                slot.is_open = False
            if slot.is_active:
                self._ask_whether_it_sees(slot)
        self._next = next(self._source, None)
        while True:
            self._hand_out()
            if not self._has_work():
                break
            self._wait()
            while self._finished:
                yield self._finished.popleft()

    def close(self) -> None:
        """End the workers."""
        for slot in self.slots:
            ray.kill(slot.actor)

    # ---- batches ----

    def _has_work(self) -> bool:
        waiting = self._next is not None or self._again or self._suspects
        return bool(waiting or any(slot.jobs for slot in self.slots))

    def _hand_out(self) -> None:
        """Give jobs to the workers that have the fewest, and let those that get no more compute what they have."""
        free = [slot for slot in self.slots if slot.is_active and slot.sees is not None]
        for n in range(N_BATCHES):
            for slot in free:
                if len(slot.jobs) == n and not self._is_alone(slot) and (job := self._next_job(is_alone=n == 0)):
                    self._send(slot, job)
        for slot in self.slots:
            if slot.jobs and slot.is_open and (self._next is None and not self._again or self._is_alone(slot)):
                slot.call("step", None)
                slot.is_open = False

    def _is_alone(self, slot: Slot) -> bool:
        """Return whether the worker has a batch with which another one died, beside which it gets no others."""
        return any(job.deaths for job in slot.jobs.values())

    def _next_job(self, is_alone: bool) -> Job | None:
        """Return the next job; those with which workers have died come last, for a worker that has nothing else."""
        if self._again:
            return self._again.popleft()
        if self._next is not None:
            work, self._next = self._next, next(self._source, None)
            return Job(work)
        return self._suspects.popleft() if self._suspects and is_alone else None

    def _send(self, slot: Slot, job: Job) -> None:
        is_sent = bool(job.work.items) and (job.is_sent or not slot.sees)
        contents = [read_content(photo.path) for photo, _ in job.work.items] if is_sent else None
        number = next(self._numbers)
        slot.jobs[number] = job
        slot.is_open = True
        slot.call("step", job.work._replace(number=number, contents=contents))

    def _take(self, slot: Slot, done: Done) -> None:
        job = slot.jobs.pop(done.number, None)
        if job is None:  # of a run that was left
            return
        elsewhere = [i for i, cause in done.encoded.failures.items() if cause == ELSEWHERE]
        if not elsewhere:
            self._finished.append((job.work.indices, done.encoded))
            return
        self._say("parts", f"{slot.host} lacks some of the photographs; they get there through Ray")
        (self._suspects if job.deaths else self._again).append(job.part(elsewhere, is_sent=True))
        kept = [i for i in range(len(job.work.indices)) if i not in elsewhere]
        if kept:
            failures = {kept.index(i): cause for i, cause in done.encoded.failures.items() if i in kept}
            indices = [job.work.indices[i] for i in kept]
            self._finished.append((indices, Encoded(done.encoded.rows[kept], failures)))

    # ---- answers ----

    def _wait(self) -> None:
        """Wait for answers for a moment, and deal with those that are there and with workers that are late."""
        calls = {call: (slot, method) for slot in self.slots for method, call in itertools.islice(slot.calls, 1)}
        if calls:
            ready, _ = ray.wait(list(calls), num_returns=1, timeout=TICK)
            if ready:
                ready, _ = ray.wait(list(calls), num_returns=len(calls), timeout=0)
            for call in ready:
                self._receive(*calls[call], call)
        else:
            time.sleep(TICK)
        for slot in self.slots:
            self._check_time(slot)
        if not self.n_active and time.monotonic() - self._begun > PATIENCE_SECONDS:
            self._say("wait", "no worker is ready yet; on a machine's first use Jittor compiles its core for minutes")

    def _receive(self, slot: Slot, method: str, call) -> None:
        now = time.monotonic()
        seconds, slot.since = now - slot.since, now
        slot.calls.popleft()
        try:
            answer = ray.get(call)
        except RayTaskError as error:
            cause = f"{slot.host}: {_reason(error.cause or error)}"
            if method == "step":
                raise TaskError(f"a worker cannot go on; {cause}") from error
            self._replace(slot, cause)
        except RayError as error:
            self._lose(slot, _reason(error) + (TOKEN_HINT if CANCELLED in str(error) else ""))
        else:
            getattr(self, f"_after_{method}")(slot, answer, seconds)

    def _after_hello(self, slot: Slot, answer: tuple[str, int], seconds: float) -> None:
        slot.host, slot.pid = answer
        slot.call("start")

    def _after_start(self, slot: Slot, there: dict[str, str] | None, seconds: float) -> None:
        if there is None:
            self._say("weights", f"{slot.host} lacks {self._setup.weights}; the weights get there through Ray")
            self._sent_weights = self._sent_weights or ray.put(self._read_weights())
            slot.call("start", self._sent_weights)
            return
        different = messages.differences(self._facts, there)
        if different:
            self._refuse(slot, f"{slot.host}: {different}")
            return
        slot.is_active, slot.failures = True, 0
        self._ask_whether_it_sees(slot)

    def _after_sees(self, slot: Slot, answer: bool, seconds: float) -> None:
        slot.sees = answer
        if self._probe and answer:
            self._say("path", f"photographs: workers read the files themselves ({slot.host} has {self._probe[0]})")
        elif self._probe:
            self._say("Ray", f"photographs go through Ray where {self._probe[0]} is missing, as on {slot.host}")

    def _after_step(self, slot: Slot, done: Done | None, seconds: float) -> None:
        if done is not None:
            self._slowest, self._deaths = max(self._slowest, seconds), 0
            self._take(slot, done)

    def _ask_whether_it_sees(self, slot: Slot) -> None:
        if self._probe:
            slot.call("sees", *self._probe)
        else:
            slot.sees = False

    # ---- faults ----

    def _check_time(self, slot: Slot) -> None:
        if slot.starts_at is not None and time.monotonic() >= slot.starts_at:
            slot.start(self._make(self._setup))
        if not slot.calls:
            return
        late = time.monotonic() - slot.since
        method = slot.calls[0][0]
        if method == "hello":
            self._check_schedule(slot, late)
        elif late > (START_SECONDS if method == "start" else max(STEP_SECONDS, SLOW * self._slowest)):
            ray.kill(slot.actor)
            self._lose(slot, f"it gave no answer for {late:.0f} s")

    def _check_schedule(self, slot: Slot, late: float) -> None:
        """Say that Ray has no room for a worker; raise TaskError if it has none for any."""
        if late < SCHEDULE_SECONDS:
            return
        begun = sum(bool(slot.pid) for slot in self.slots)
        free = ray.available_resources()
        room = f"free are {free.get('CPU', 0):g} CPUs and {free.get('GPU', 0):g} GPUs"
        if not begun:
            raise TaskError(f"no worker could start in {SCHEDULE_SECONDS:.0f} s: {room}; others may use the cluster")
        if not slot.is_reported:
            slot.is_reported = True
            workers = f"{begun} of {len(self.slots)} workers go on"
            logger.warning("Ray has no room for worker %d now (%s); %s", slot.name, room, workers)

    def _lose(self, slot: Slot, reason: str) -> None:
        """Give what a dead worker had to others, and start another one."""
        jobs, slot.jobs = list(slot.jobs.values()), {}
        self._deaths += bool(jobs)
        if self._deaths > DEATHS_IN_A_ROW + DEATHS_PER_WORKER * len(self.slots):
            raise TaskError(f"workers die of every batch; {reason} If memory is full, choose a smaller --batch-size")
        for job in jobs:
            job.deaths += 1
            self._suspects.extend(self._judge(job))
        self._replace(slot, f"{slot.host}: {reason}")

    def _judge(self, job: Job) -> list[Job]:
        """Return what is to be computed of a job with which a worker has died.

        The first time, other batches were there, too. If a worker with nothing else dies as well, the batch is divided,
        until a photograph is left that kills every worker.
        """
        if job.deaths < MAX_DEATHS:
            return [job]
        halves = job.halves()
        for half in halves:
            half.deaths = 1
        if not halves:
            self._give_up(job)
        return halves

    def _give_up(self, job: Job) -> None:
        if not job.work.items:
            raise TaskError(f"workers die of the sentence {job.work.texts[0]!r}")
        rows = np.full((1, 1), np.nan, np.float32)
        self._finished.append(
            (job.work.indices, Encoded(rows, {0: f"the worker that read it died, {MAX_DEATHS} times"}))
        )

    def _replace(self, slot: Slot, reason: str) -> None:
        """Start another worker in a slot, unless this has failed too often."""
        was_active = slot.is_active
        slot.failures += not was_active
        if slot.failures >= MAX_STARTS:
            self._refuse(slot, reason)
            return
        logger.warning("worker %d %s, %s; another one starts", slot.name, "died" if was_active else "failed", reason)
        ray.kill(slot.actor)
        slot.stop(time.monotonic() + (2**slot.failures - 1))

    def _refuse(self, slot: Slot, reason: str) -> None:
        """Go on without a worker, or raise TaskError if it was the last one."""
        ray.kill(slot.actor)
        slot.stop()
        left = sum(slot.is_left for slot in self.slots)
        if not left:
            raise TaskError(f"no worker can be used; {reason}")
        logger.warning("worker %d is refused, %s; %d of %d go on", slot.name, reason, left, len(self.slots))

    def _say(self, topic: str, message: str) -> None:
        """Log a message, once for each topic."""
        if topic not in self._said:
            self._said.add(topic)
            logger.info("%s", message)


def _reason(error: Exception) -> str:
    """Return the last line of a message, which in Ray's says why, without the list of common causes."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].partition(" Some common causes")[0][-MAX_REASON:] if lines else type(error).__name__
