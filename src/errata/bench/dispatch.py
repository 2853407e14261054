"""Dispatch: the cells of a plan file (model x data x seed x method), carried out by workers on a Ray cluster.

A worker is a Ray actor: a process of its own, which loads one model and keeps it, with the CPUs and the part of a GPU that
were asked for. It is given one cell after another, and says each row as it is found. This process alone writes them down,
in the results file of the local engine, and needs no weights. A worker that dies is replaced, and its cell is tried again
for the rows that it has not found: nothing is kept twice, and nothing that was kept is measured again.
"""

import json
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import errata
from errata.bench import record
from errata.bench.cluster import PATIENCE, Cluster, Share
from errata.bench.plan import Plan
from errata.bench.plan_file import PlanFile, Stream
from errata.bench.record import Row
from errata.bench.stream import Bench
from errata.bench.worker import Worker
from errata.errors import ErrataError, Interrupted, UsageError

RETRIES = 2
"""How often a cell is tried again whose worker has died."""


class Told(NamedTuple):
    """What a progress callback is told: a cell has ended, or its worker has died."""

    done: int
    """Cells that are done, those included whose rows were there before ..."""
    total: int
    """... of so many."""
    case: str
    plan: Plan
    edits: tuple[int, int]
    """Edits of the cells that were carried out here, and of those still to do."""
    again: str = ""
    """Why the cell is tried again ..."""
    refused: str = ""
    """... or could not be run."""


@dataclass
class Job:
    """The cells of one model."""

    model: str
    plans: Sequence[Plan]
    """On an outline of the model: what its cells are known by, without weights."""
    made_of: dict[str, str] | None = None
    """See `provenance.of_base`; told by the first worker that has loaded the model."""
    benches: list[Bench] = field(default_factory=list)
    todo: deque[int] = field(default_factory=deque)
    deaths: Counter[int | None] = field(default_factory=Counter)
    """How often a worker has died at a cell; at None, while it loaded the model."""


@dataclass
class Hand:
    """A worker, and what it is at."""

    job: Job
    actor: Any
    saying: Any
    """What it will say next: a reference, or a generator of them."""
    cell: int | None = None
    """None while it loads the model."""
    problem: str = ""
    """Why its cell could not be run."""
    name: str = "a worker"


class Dispatch:
    """The cells of a plan file being carried out."""

    def __init__(
        self, cluster: Cluster, file: PlanFile, streams: Sequence[Stream], models: Sequence[tuple[str, Sequence[Plan]]],
        output: Path | None, share: Share, tell: Callable[[Told], None] = lambda _: None,
    ) -> None:  # fmt: skip
        """`models` are those of the file, with plans on outlines. Raises `BadOption` for a share that fits nowhere."""
        self.cluster, self.ray, self.file, self.output, self.tell = cluster, cluster.ray, file, output, tell
        self.share = cluster.fitting(share)
        self.jobs = [Job(model, plans) for model, plans in models]
        self.known = {row.key: row for row in record.kept(output)}
        if output is not None:
            record.ready(output)
        self.streams = self.ray.put(list(streams))
        self.hands: list[Hand] = []
        self.refused: list[str] = []
        self.total = sum(len(job.plans) for job in self.jobs)
        self.done = self.edits_done = self.edits_left = 0

    def carry_out(self) -> tuple[list[Row], list[str]]:
        """The rows of the plan in its order, and what could not be run, with the reasons.

        Raises `Interrupted` on Ctrl-C, `ErrataError` where the cluster is gone, or all of it that could be used; what was
        found until then is kept.
        """
        if self.output is None:
            kept = "no output was given: nothing is kept"
        else:
            kept = f"the rows found so far are in {self.output}, and the same command takes up from there"
        try:
            while self._hire():
                self.cluster.look()
                ready, _ = self.ray.wait([hand.saying for hand in self.hands], timeout=PATIENCE)
                heard = {id(saying) for saying in ready}
                for hand in [hand for hand in self.hands if id(hand.saying) in heard]:
                    self._hear(hand)
        except KeyboardInterrupt:
            raise Interrupted(f"stopped after {self.done} of {self.total} cells; {kept}") from None
        except ErrataError as error:
            raise error if isinstance(error, UsageError) else ErrataError(f"{error}; {kept}") from None
        finally:
            for hand in list(self.hands):
                self._dismiss(hand)
        return [row for job in self.jobs for bench in job.benches for row in bench.rows()], self.refused

    # -- who works ---------------------------------------------------------------------------------------------------

    def _hire(self) -> bool:
        """As many workers as there is room and use for, and none without use. Whether any is at work."""
        for hand in [hand for hand in self.hands if hand.cell is None and hand.job.made_of is not None]:
            if not hand.job.todo:
                self._dismiss(hand)
        # One for each model first, so that it becomes known which of its cells are to do.
        wanting = [job for job in self.jobs if job.made_of is None and not self._loading(job)]
        for job in self.jobs:
            wanting += [job] * (len(job.todo) - self._loading(job))
        if wanting:
            room = self.cluster.room(self.share) - len(self.hands)
            for job in wanting[: max(room, 0)]:
                self._start(job)
            if not self.hands:
                raise ErrataError(f"no machine of the Ray cluster is left that has {self.share}")
        return bool(self.hands)

    def _loading(self, job: Job) -> int:
        """Workers that will soon take a cell of a model."""
        return sum(hand.job is job and hand.cell is None for hand in self.hands)

    def _start(self, job: Job) -> None:
        share = self.share
        device = share.device or (None if share.gpus else "cpu")
        # Without restarts: one that dies is replaced here, where it is known which rows it has found.
        kind = self.ray.remote(Worker).options(
            num_cpus=share.cpus, num_gpus=share.gpus, max_restarts=0, max_task_retries=0
        )
        asked = {"device": device, "dtype": share.dtype, "threads": share.cpus}
        actor = self.cluster.ask(lambda: kind.remote(self.file, self.streams, job.model, **asked))
        self.hands.append(Hand(job, actor, actor.describe.remote()))

    def _dismiss(self, hand: Hand) -> None:
        self.hands.remove(hand)
        if not self.cluster.gone:
            self.cluster.ask(lambda: self.ray.kill(hand.actor))

    def _died(self, hand: Hand) -> None:
        """Its cell is to do again, unless it has cost too many workers."""
        self._dismiss(hand)
        job, cell = hand.job, hand.cell
        job.deaths[cell] += 1
        if cell is None:
            if job.deaths[None] > RETRIES:
                raise ErrataError(f"{job.deaths[None]} workers have died while they loaded {job.model}: out of memory?")
        elif job.deaths[cell] > RETRIES:
            self._end(job, cell, f"its worker has died {job.deaths[cell]} times: out of memory?")
        else:
            job.todo.appendleft(cell)
            self._report(job, cell, again=f"{hand.name} has died")

    # -- what they say -----------------------------------------------------------------------------------------------

    def _hear(self, hand: Hand) -> None:
        """The next thing that a worker says."""
        errors = self.ray.exceptions
        try:
            said = json.loads(self.ray.get(hand.saying if hand.cell is None else next(hand.saying)))
        except StopIteration:
            assert hand.cell is not None
            self._end(hand.job, hand.cell, hand.problem)
            self._give(hand)
        except errors.RayTaskError as error:  # an error that is not ours; those are said
            if hand.cell is None:
                raise ErrataError(f"{hand.job.model} cannot be loaded by a worker: {_line(error)}") from None
            self._end(hand.job, hand.cell, _line(error))
            self._give(hand)
        except errors.RayError:
            self._died(hand)
        else:
            self._take(hand, said)

    def _take(self, hand: Hand, said: dict[str, Any]) -> None:
        if "row" in said:
            assert hand.cell is not None
            row = record.from_record(said["row"])
            if self.output is not None:
                record.append(self.output, [row])
            hand.job.benches[hand.cell].finished[row.key] = row
        elif "made_of" in said:
            self._meet(hand, said)
            self._give(hand)
        elif hand.cell is not None:
            hand.problem = said["refused"]
        else:  # the model cannot be loaded
            raise (UsageError if said["exit_code"] == UsageError.exit_code else ErrataError)(said["refused"])

    def _meet(self, hand: Hand, said: dict[str, Any]) -> None:
        """A worker has loaded its model. The first to do so makes known which rows are there."""
        job, machine = hand.job, said["machine"]
        hand.name = f"worker {said['pid']} on {machine}"
        if said["errata"] != errata.__version__:
            raise UsageError(
                f"{machine} has errata {said['errata']}, and this is {errata.__version__}: install the same"
            )
        if job.made_of is None:
            job.made_of = said["made_of"]
            job.benches = [Bench(plan, self.known, made_of=job.made_of) for plan in job.plans]
            job.todo.extend(i for i, bench in enumerate(job.benches) if len(bench.rows()) < len(bench.wanted))
            self.done += len(job.benches) - len(job.todo)
            self.edits_left += sum(job.plans[i].edits_to_make for i in job.todo)
        for name, value in job.made_of.items():
            if said["made_of"][name] != value:
                raise ErrataError(f"{job.model} on {machine} is not that of the other machines: it has another {name}")

    def _give(self, hand: Hand) -> None:
        """The next cell of its model; without one, it may go."""
        if not hand.job.todo:
            self._dismiss(hand)
            return
        hand.cell, hand.problem = hand.job.todo.popleft(), ""
        known = [json.dumps(row.to_record()) for row in hand.job.benches[hand.cell].rows()]
        hand.saying = hand.actor.cell.remote(hand.cell, known)

    def _end(self, job: Job, cell: int, problem: str) -> None:
        self.done += 1
        self.edits_done += job.plans[cell].edits_to_make
        self.edits_left -= job.plans[cell].edits_to_make
        if problem:
            self.refused.append(f"{self._case(cell)}: {problem}")
        self._report(job, cell, refused=problem)

    def _report(self, job: Job, cell: int, again: str = "", refused: str = "") -> None:
        edits = self.edits_done, self.edits_left
        self.tell(Told(self.done, self.total, self._case(cell), job.plans[cell], edits, again, refused))

    def _case(self, cell: int) -> str:
        return str(self.file.cases[cell % len(self.file.cases)])


def _line(error: BaseException) -> str:
    """The error of a worker's Python."""
    cause = getattr(error, "cause", None) or error
    return f"{type(cause).__name__}: {' '.join(str(cause).split())}"
