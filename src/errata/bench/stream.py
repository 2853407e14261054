"""Stream: run one method over one stream of edits and score it on the way. The base model is as it was on return."""

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from errata.bench import provenance, record
from errata.bench.answering import answering
from errata.bench.plan import Plan, Run
from errata.bench.record import PROPERTIES, Row
from errata.bench.resume import Log, Sample, Samples, Unfinished
from errata.edit import Edit
from errata.editor import Receipt
from errata.errors import EditFailed, Interrupted
from errata.metrics import SCORERS, Perplexity, Reference, Triple, immediate, mean, measure
from errata.model import EditedModel
from errata.outcomes import together


class Step(NamedTuple):
    """What a progress callback is told, after each edit and before each measurement."""

    stage: str
    """`edit` or `measure`."""
    done: int
    """Edits made so far in this run, failed ones included ..."""
    total: int
    """... of so many."""
    edits: tuple[Edit, ...] = ()
    """Those of this step: one, or a batch."""
    receipts: tuple[Receipt, ...] = ()
    failed: str | None = None
    """Why the edits could not be made."""
    immediate: tuple[Mapping[str, float], ...] = ()
    """Scores of these edits on their own prompts, right after them."""


Progress = Callable[[Step], None]


def run(
    plan: Plan, output: Path | None = None, progress: Progress | None = None, reference: Reference | None = None
) -> list[Row]:
    """The rows of a plan, one a checkpoint, in order. With `output`, those already there are not measured again.

    An edit that fails is counted and the stream goes on. Rows are appended to `output`/results.jsonl as they are found;
    an interruption raises `Interrupted`, and the same call then takes up from the rows that are there, and from where its
    stream was last kept (`errata.bench.resume`). Plans on one base model may share a `reference`, so that the unedited
    model is asked only once. Raises `StoreError` for an `output` that cannot be written, before anything is measured.
    """
    bench = Bench(plan, {row.key: row for row in record.kept(output)}, progress, reference, output=output)
    if output is not None and bench.unfinished():
        record.ready(output)
    try:
        with closing(bench.found()) as found:
            for row in found:
                if output is not None:
                    record.append(output / record.FILE, [row])
    except KeyboardInterrupt:
        kept = f"the rows found so far are in {output}, and" if output else "no output was given:"
        again = "the same command takes up from there" if output else "nothing is kept"
        raise Interrupted(f"stopped after {bench.done} of {bench.total} edits; {kept} {again}") from None
    return bench.rows()


class Bench:
    """One plan being carried out.

    `known` rows, by their keys, are not measured again. With `made_of` (see `provenance.of_base`) the base may be an
    outline, for as long as nothing is measured. Streams that are not over are kept in `output`, if that is given.
    """

    def __init__(
        self,
        plan: Plan,
        known: Mapping[str, Row] = MappingProxyType({}),
        progress: Progress | None = None,
        reference: Reference | None = None,
        made_of: Mapping[str, str] | None = None,
        output: Path | None = None,
    ) -> None:
        self.output = output
        self.plan, self.progress, self.reference = plan, progress or (lambda _: None), reference or Reference()
        self.made_of = made_of or provenance.of_base(plan.base)
        self.prefixes: tuple[str, ...] | None = None
        self.wanted = [self._blank(r, t).key for r in plan.runs() for t in r.checkpoints]
        self.finished = {key: known[key] for key in self.wanted if key in known}
        self.done = 0
        self.total = 0

    def rows(self) -> list[Row]:
        """The rows that there are, in the order of the plan."""
        return [self.finished[key] for key in self.wanted if key in self.finished]

    def unfinished(self) -> bool:
        """Whether there is anything to measure."""
        return len(self.finished) < len(self.wanted)

    def found(self) -> Generator[Row]:
        """Measure what is missing; each row as it is found."""
        todo = [(r, missing) for r in self.plan.runs() if (missing := self._missing(r))]
        self.total = sum(missing[-1] * len(r.starts) for r, missing in todo)
        for r, missing in todo:
            for row in self._carry_out(r, missing):
                self.finished[row.key] = row
                yield row

    def _missing(self, r: Run) -> list[int]:
        """The checkpoints that have no row yet."""
        return [t for t in r.checkpoints if self._blank(r, t).key not in self.finished]

    def _carry_out(self, r: Run, missing: Sequence[int]) -> Iterator[Row]:
        """Make the edits up to the last checkpoint that has no row, and find the rows that there are not."""
        kept = Unfinished(self.output, self._blank(r, missing[-1]).key)
        samples: Samples = {t: kept.samples.get(t, []) if len(r.starts) > 1 else [] for t in missing}
        provenance.reset_peak_memory()
        over = min(map(len, samples.values()))
        self.done += over * missing[-1]
        for start in r.starts[over:]:
            edits = self.plan.edits[start : start + missing[-1]]
            with self._model(r.length) as model:
                log = kept.resume(model, start, missing[0])
                self.done += log.done
                for t in self._edited(model, edits, r.checkpoints, log):
                    kept.keep(model, start, log, samples, now=t in missing)
                    if t not in missing:
                        continue
                    self.progress(Step("measure", self.done, self.total))
                    samples[t].append(self._sample(model, edits[:t], log))
                    if start == r.starts[-1]:
                        yield self._filled(self._blank(r, t), samples[t], model, edits[:t])
            if start != r.starts[-1]:
                kept.next(samples)
        kept.forget()

    @contextmanager
    def _model(self, length: int) -> Iterator[EditedModel]:
        """A fresh edited model around the one base, which is bare again afterwards."""
        plan = self.plan
        model = EditedModel(
            plan.base, plan.tokenizer, plan.editor, irrelevant=plan.irrelevant, prefixes=self.prefixes, expected=length,
            seed=plan.seed, base_name=plan.model, chat=plan.chat,
        )  # fmt: skip
        try:
            yield model
            self.prefixes = model.sampling.prefixes
        finally:
            model.detach()

    def _edited(self, model: EditedModel, edits: Sequence[Edit], checkpoints: Sequence[int], log: Log) -> Iterator[int]:
        """Make the edits that are not done by this log; yields how many are done, after each batch of them."""
        if log.done in checkpoints:
            yield log.done
        for batch, end in batches(edits, self.plan.batch_size, checkpoints):
            if end <= log.done:
                continue
            if self.plan.editor is not None:
                step = self._step(model, batch, log)
            else:
                step = Step("edit", 0, 0, tuple(batch), immediate=tuple(immediate(model, batch)))
            self.done += len(batch)
            log.done = end
            log.immediate.extend(step.immediate)
            self.progress(step._replace(done=self.done, total=self.total))
            yield end

    def _step(self, model: EditedModel, batch: Sequence[Edit], log: Log) -> Step:
        failed = None
        receipts: list[Receipt] = []
        try:
            receipts = model.edit_batch(batch)
            log.seconds.extend(receipt.seconds for receipt in receipts)
        except EditFailed as error:
            failed = str(error)
            log.failed.extend(edit.id for edit in batch)
        return Step("edit", 0, 0, tuple(batch), tuple(receipts), failed, tuple(immediate(model, batch)))

    def _sample(self, model: EditedModel, edits: Sequence[Edit], log: Log) -> Sample:
        sites = {memory.site.path: memory for memory in model.memories.values()}
        return Sample(
            measure(model, edits, self.reference, self.plan.rows_at_once),
            mean(log.seconds),
            {name: mean(hit[name] for hit in log.immediate) for name in log.immediate[0]},
            tuple(log.failed),
            model.nbytes(),
            sum(memory.weights() for memory in sites.values()) / 1e6,
            ", ".join(sites) or None,
        )

    def _blank(self, r: Run, t: int) -> Row:
        """The row of one checkpoint before anything is measured: all that its key is made of."""
        plan = self.plan
        edits = [edit for start in r.starts for edit in plan.edits[start : start + t]]
        return Row(
            method=plan.method, model=plan.model, data=plan.data, edits=t, stream=r.length, seed=plan.seed,
            batch_size=plan.batch_size, chunks=len(r.starts), chat=plan.chat,
            options=plan.editor.options() if plan.editor is not None else {},
            scores={}, locality_by_kind={}, perplexity={}, immediate={}, seconds_per_edit=None, peak_memory_mb=None,
            memory_bytes=0, edits_per_million_weights=None, scored=0, superseded=0, failed=0, failed_ids=(),
            provenance={
                **self.made_of,
                "data_sha256": provenance.hash_of_edits(edits),
                "irrelevant_sha256": provenance.hash_of_probes(plan.irrelevant),
            },
        )  # fmt: skip

    def _filled(self, blank: Row, samples: Sequence[Sample], model: EditedModel, edits: Sequence[Edit]) -> Row:
        """The row with the numbers of its chunks: means, and sums of what is counted. Answers are timed in the last."""
        peak, peak_of = provenance.peak_memory(model.device)
        measured = [sample.measured for sample in samples]
        failed = tuple(identity for sample in samples for identity in sample.failed)
        more = {"site": samples[0].site, "peak_memory_of": peak_of, "seed": self.plan.seed}
        found: dict[str, Any] = {
            "scores": {name: _scores([m.scores[name] for m in measured]) for name in SCORERS},
            "locality_by_kind": _means([m.locality_by_kind for m in measured]),
            "perplexity": _means([_by_name(m.perplexity) for m in measured]),
            "ood": _means([m.ood._asdict() for m in measured]),
            "portability": _means([m.portability for m in measured]),
            "immediate": _means([sample.immediate for sample in samples]),
            "outcomes": together(m.outcomes for m in measured),
            "answering": answering(model, edits),
            "seconds_per_edit": _mean(sample.seconds for sample in samples),
            "peak_memory_mb": peak,
            "memory_bytes": mean(sample.memory_bytes for sample in samples),
            "edits_per_million_weights": blank.edits / samples[0].millions if samples[0].millions else None,
            "scored": sum(m.scored for m in measured),
            "superseded": sum(m.superseded for m in measured),
            "failed": len(failed),
            "failed_ids": failed,
            "provenance": {**blank.provenance, **provenance.surroundings(self.plan.base), **more},
        }
        return record.from_record(Row(**{**vars(blank), **found}).to_record())


def batches(edits: Sequence[Edit], size: int, checkpoints: Sequence[int]) -> Iterator[tuple[Sequence[Edit], int]]:
    """Batches of at most `size` edits with the number of edits up to their end; a batch ends at every checkpoint."""
    start = 0
    while start < len(edits):
        end = min([start + size, len(edits), *(t for t in checkpoints if t > start)])
        yield edits[start:end], end
        start = end


def _scores(triples: Sequence[Triple]) -> dict[str, float | None]:
    return {name: _mean(getattr(triple, name) for triple in triples) for name in PROPERTIES}


def _by_name(perplexity: Perplexity) -> dict[str, float | None]:
    return perplexity._asdict()


def _means(tables: Sequence[Mapping[str, float | None]]) -> dict[str, float | None]:
    return {name: _mean(table[name] for table in tables) for name in tables[0]}


def _mean(values: Iterable[float | None]) -> float | None:
    """Mean over the chunks that have a value."""
    return mean(value for value in values if value is not None)
