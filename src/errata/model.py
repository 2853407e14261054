"""EditedModel: a pretrained model, the memories beside it, and the edits that made them."""

import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from errata import methods
from errata.captured import recording
from errata.chat import ChatTokens
from errata.edit import Edit, Probe
from errata.editor import Editor, Receipt
from errata.errors import BadOption, RoutingError
from errata.fitting import Trace
from errata.memory import Delta, Edited, LowRank, Memory
from errata.objective import target_log_probability
from errata.parallel import main_device
from errata.room import room_for, smaller_edit
from errata.routing import Routing
from errata.sampling import Sampling, draw_prefixes
from errata.sites import Layout, Site, layout, relative_layer
from errata.states import States, gather
from errata.suffix import Suffix
from errata.tokens import Rows, Tokens, positions

if TYPE_CHECKING:
    from errata.replay import How

UNSUPPORTED = {
    "assistant_model": "speculative decoding",
    "prompt_lookup_num_tokens": "speculative decoding",
    "prefill_chunk_size": "chunked prefill",
}
"""Arguments of `generate` under which a row's prompt cannot be known."""


class State(NamedTuple):
    """What edits make of a model: references, so that putting them back is exact and free."""

    wrapped: dict[str, Edited]
    memories: dict[str, Memory]
    history: list[Edit]
    batches: list[int]
    irrelevant: dict[str, States]
    gains: dict[str, float]


class EditedModel:
    """A causal LM with one editing method beside it.

    `base` is the pretrained model; its weights are never written. `edits` are in force, `history` are all that were made,
    `batches` of them at a time. What reads or edits holds `alone`, so that a thread which generates sees one state from its
    first token to its last; hold it to see one over several calls. `kept_in` is the store that it was loaded from, if it
    was; `notes` say what was damaged.
    """

    def __init__(
        self,
        base: nn.Module,
        tokenizer: Any,
        method: str | Editor | None = None,
        *,
        irrelevant: Sequence[Probe] = (),
        prefixes: Sequence[str] | None = None,
        expected: int | None = None,
        seed: int = 0,
        base_name: str | None = None,
        chat: bool = False,
        recorded: bool = False,
    ) -> None:
        """Wrap `base`; nothing is installed until the method needs it.

        `irrelevant` are prompts that stand for what edits must leave alone (built-in ones by default); `expected` is the
        length of the stream, for methods that plan by it; `base_name` is how the base is found again when the edits are
        loaded elsewhere (its own name or path by default). With `chat`, prompts are the user's turns of the tokenizer's
        chat template, in edits as in questions. `recorded`, on a GPU: the steps of an edit are recorded once and replayed
        (`errata.captured`).
        """
        self.base = base
        self.base_name = base_name or str(getattr(getattr(base, "config", None), "_name_or_path", ""))
        self.tokens = (ChatTokens if chat else Tokens)(tokenizer, positions(base))
        self.chat, self.recorded = chat, recorded
        self.routing = Routing(self._request)
        self.sampling = Sampling(irrelevant, prefixes, seed)
        self.expected = expected
        self.history: list[Edit] = []
        self.batches: list[int] = []
        self.alone = threading.RLock()
        self.kept_in: Path | None = None
        self.notes: tuple[str, ...] = ()
        self.memories: dict[str, Memory] = {}
        self._wrapped: dict[str, Edited] = {}
        self._irrelevant: dict[str, States] = {}
        self._gains: dict[str, float] = {}
        self._hook = base.register_forward_pre_hook(self.routing.observe, with_kwargs=True)
        self.editor = methods.make(method) if isinstance(method, str) else method
        if self.editor is not None:
            try:
                with self.steady():
                    self.editor.prepare(self)
            except BaseException:
                self.detach()
                raise

    # -- the model as it is ------------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """Where inputs go, and where memories are."""
        return main_device(self.base)

    @property
    def ends(self) -> frozenset[int]:
        """The tokens that end a text: those of the generation configuration, the tokenizer's, and a turn's."""
        named = getattr(getattr(self.base, "generation_config", None), "eos_token_id", None)
        several = named if isinstance(named, list) else [named]
        ends = (*several, self.tokens.tokenizer.eos_token_id, *self.tokens.end)
        return frozenset(int(end) for end in ends if end is not None)

    @property
    def edits(self) -> list[Edit]:
        """The edits in force, in order: the latest for each prompt."""
        latest = {edit.prompt: i for i, edit in enumerate(self.history)}
        return [self.history[i] for i in sorted(latest.values())]

    @property
    def sites(self) -> list[Site]:
        """Where this model can be edited."""
        return list(self.layout.sites)

    @cached_property
    def layout(self) -> Layout:
        """Where the base has its blocks and sites; looked up once."""
        return layout(self.base)

    def nbytes(self) -> int:
        """Bytes of all that the edits have added."""
        return sum(memory.nbytes() for memory in self.memories.values())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The base model's forward, edited. All real tokens count as prompt unless `routing.prompt_is` says otherwise."""
        with self.alone:
            return self.base(*args, **kwargs)

    def generate(self, input_ids: Tensor, **kwargs: Any) -> Tensor:
        """The base model's `generate`, edited; the decisions are made on `input_ids` and held.

        With a cache of earlier turns, `input_ids` holds all turns and the new ones decide. Raises `RoutingError` for
        what cannot be routed: speculative decoding, chunked prefill. No more than `max_new_tokens` are asked of a model
        than it has positions for.
        """
        for name, what in UNSUPPORTED.items():
            if kwargs.get(name) or getattr(kwargs.get("generation_config"), name, None):
                raise RoutingError(f"{what} ({name}) is not supported on an edited model; use `with model.lifted()`")
        if "max_new_tokens" in kwargs:
            kwargs["max_new_tokens"] = self.tokens.room(input_ids.shape[1], kwargs["max_new_tokens"])
        with self.alone, self.routing.first_columns(input_ids.shape[1]):
            out: Tensor = self.base.generate(input_ids=input_ids, **kwargs)  # type: ignore[operator]
        return out

    def answer(self, prompts: Sequence[str], max_new_tokens: int = 16, *, system: str | None = None) -> list[str]:
        """Greedy answers to a batch of prompts, as text up to where the model stops; in a chat, behind a system prompt."""
        ids, attention = self.tokens.prompts(prompts, device=self.device, system=system)
        with self.steady():
            said = self._greedy(ids, attention, max_new_tokens)
        return [self.tokens.decode(row).strip() for row in said]

    def _request(self, ids: Tensor, prompt: Tensor) -> tuple[Tensor, Tensor] | None:
        """What memories decide on where prompts hold more than their requests; None where they do not, or none decides."""
        always = all(isinstance(memory, Delta | LowRank) for memory in self.memories.values())
        return None if always else self.tokens.alone(ids, prompt)

    def _greedy(self, ids: Tensor, attention: Tensor, longest: int) -> Tensor:
        """Greedy continuations, (rows, at most `longest`) new tokens, of prompts padded on the left."""
        out = self.generate(
            ids, attention_mask=attention, do_sample=False, max_new_tokens=longest, pad_token_id=self.tokens.filler,
            eos_token_id=sorted(self.ends) or None,
        )  # fmt: skip
        return out[:, ids.shape[1] :]

    # -- what editors use --------------------------------------------------------------------------------------------

    def site(self, editor: Editor) -> Site:
        """Where an editor works: its own choice, the published layer of a published model, or the same relative depth."""
        if editor.layer is not None:
            return self.layout.at(editor.layer)
        layers = len(self.layout.sites)
        kind = getattr(getattr(self.base, "config", None), "model_type", "")
        default = relative_layer(editor.depth, layers)
        return self.layout.at(editor.published_layers.get((kind, layers), default))

    def install(self, name: str, memory: Memory) -> None:
        """Put a memory beside its site, after those that are there."""
        if name in self.memories:
            raise BadOption(f"a memory called {name!r} is already installed")
        memory.name, memory.routing = name, self.routing
        path = memory.site.path
        if path not in self._wrapped:
            self._wrapped[path] = memory.beside(self.base.get_submodule(path))
            _put_module(self.base, path, self._wrapped[path])
        self._wrapped[path].memories.append(memory)
        self.memories[name] = memory

    def prefixes(self) -> tuple[str, ...]:
        """The context prefixes, written by the unedited model the first time they are needed."""
        if self.sampling.prefixes is None:
            with self.lifted(), torch.no_grad():
                self.sampling.prefixes = draw_prefixes(self.base, self.tokens, self.sampling.seed)
        return self.sampling.prefixes

    def contexts(self, prompt: str, wording: Callable[[], str] | None = None) -> list[str]:
        """The bare prompt, then behind each context prefix the prompt, or a `wording` of it."""
        prefixes = self.prefixes()
        return [prompt, *self.tokens.contexts([prompt if wording is None else wording() for _ in prefixes], prefixes)]

    def rows(self, pairs: Sequence[tuple[str, str]], end: bool = False) -> Rows:
        """Rows "prompt target" to learn from; with `end`, the end of the text is learnt with the target."""
        return self.tokens.rows(pairs, self.device, end)

    def asked(self, edits: Sequence[Edit]) -> Rows:
        """The prompts and targets of edits as rows. Raises `BadEdit` for one that cannot be made."""
        for edit in edits:
            self.tokens.check(edit.prompt)
        return self.rows([(edit.prompt, edit.target) for edit in edits])

    def suffix(
        self, memory: Memory, rows: Rows, *, wanted: Tensor | None = None, touched: Tensor | None = None
    ) -> Suffix:
        """The model above a memory on these rows; runs the part below once.

        `wanted`, by default the positions that say the targets, and `touched` are as for `Suffix`.
        """
        wanted = rows.wanted if wanted is None else wanted
        texts = rows.ids, rows.attention, rows.prompt
        return Suffix(self.base, self.layout, memory, self.routing, *texts, wanted, touched)

    def read(self, memory: Memory, prompts: Sequence[str], batch: int = 64) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """What a memory reads on prompts: in batches, a (batch, seq, ff), y (batch, seq, model), prompt (batch, seq).

        Runs only the part of the model below the memory; `routing` knows the prompt tokens while a batch is looked at.
        """
        for i in range(0, len(prompts), batch):
            rows = self.tokens.rows_of_ids([(self.tokens.prompt(p), []) for p in prompts[i : i + batch]], self.device)
            below = self.suffix(memory, rows)
            with self.routing.reading(rows.prompt):
                yield below.a, below.y, rows.prompt

    def irrelevant_states(self, memory: Memory) -> States:
        """What a memory reads on the irrelevant prompts; computed once."""
        if memory.name not in self._irrelevant:
            prompts = [probe.prompt for probe in self.sampling.irrelevant]
            self._irrelevant[memory.name] = gather(list(self.read(memory, prompts)))
        return self._irrelevant[memory.name]

    def gain(self, memory: Memory) -> float:
        """|y| / |a|: the mean norm of a site's output over that of its input, on some irrelevant prompts."""
        if memory.name not in self._gains:
            prompts = [probe.prompt for probe in self.sampling.irrelevant[:64]]
            some = gather(list(self.read(memory, prompts)))
            self._gains[memory.name] = some.output_norm / float(some.states.norm(dim=-1).mean())
        return self._gains[memory.name]

    def entry(self, memory: Memory) -> float:
        """The size of a typical entry of a site's map, |y| / (|a| sqrt(model)): a unit for shifts, without reading it."""
        return self.gain(memory) / math.sqrt(memory.site.out_features)

    # -- editing -----------------------------------------------------------------------------------------------------

    def edit(self, edit: Edit) -> Receipt:
        """Make one correction. On any failure, an interruption included, the model is as it was before."""
        return self.edit_batch([edit])[0]

    def edit_many(
        self, edits: Iterable[Edit], done: Callable[[Receipt], None] | None = None, *, batch_size: int = 1
    ) -> list[Receipt]:
        """One correction after another, or `batch_size` at a time. `done` is told of each.

        An edit that fails ends the stream, together with those of its batch; earlier ones stay.
        """
        if batch_size < 1:
            raise BadOption(f"batch_size is {batch_size}; it must be at least 1")
        receipts: list[Receipt] = []
        rest = iter(edits)
        while batch := list(islice(rest, batch_size)):
            for receipt in self.edit_batch(batch):
                receipts.append(receipt)
                if done is not None:
                    done(receipt)
        return receipts

    def edit_batch(self, edits: Sequence[Edit]) -> list[Receipt]:
        """Corrections that are made together, by methods that can."""
        if self.editor is None:
            raise BadOption("this model has no editing method: EditedModel(base, tokenizer, method='memoir')")
        with self.alone:
            return self._edited(edits, self.editor)

    def _edited(self, edits: Sequence[Edit], editor: Editor) -> list[Receipt]:
        """A receipt of each edit, of which those in force already were not made again."""
        asked = {edit.prompt for edit in edits}
        in_force = {old.prompt: old for old in self.history if old.prompt in asked}
        new = [edit for edit in edits if edit.prompt not in in_force or in_force[edit.prompt].id != edit.id]
        made = dict(zip((edit.id for edit in new), self._made(new, in_force), strict=True)) if new else {}
        held = Receipt("", editor.name, 0.0, note="already in force: nothing was done")
        return [made.get(edit.id, replace(held, edit_id=edit.id)) for edit in edits]

    def _made(self, edits: Sequence[Edit], in_force: dict[str, Edit]) -> list[Receipt]:
        """Make these edits, and measure what became of their targets."""
        rows = self.asked(edits)
        start = time.perf_counter()
        with self.steady(), self._as_before_on_failure():
            before = self.target_probability(rows)
            name, trace = self._apply(edits)
            after = self.target_probability(rows)
        seconds = (time.perf_counter() - start) / len(edits)
        receipts = []
        traces = trace.each or (trace,) * len(edits)
        for edit, own, p, q in zip(edits, traces, before, after, strict=True):
            old = in_force.get(edit.prompt)
            note = ""
            if old is not None and edit.contradicts(old):
                note = f"replaces {old.target!r}, the answer of an earlier edit of this prompt"
            ends = own.losses[0], own.losses[-1]
            receipts.append(Receipt(edit.id, name, seconds, own.steps, *ends, p, q, old.id if old else None, note))
        return receipts

    def _apply(self, edits: Sequence[Edit]) -> tuple[str, Trace]:
        """Let the editor work, without looking at what comes of it."""
        if self.editor is None:
            raise BadOption("this model has no editing method: EditedModel(base, tokenizer, method='memoir')")
        self.history.extend(edits)
        self.batches.append(len(edits))
        editor = self.editor

        def smaller() -> list[str]:
            half = next(self.base.parameters()).dtype.itemsize <= 2
            return smaller_edit(editor.options(), len(edits), half=half)

        with room_for("this edit", smaller), recording(self.recorded):
            return editor.name, editor.edit(self, edits)

    @contextmanager
    def _as_before_on_failure(self) -> Iterator[None]:
        """Scope: any exception puts back all that edits have written."""
        held, history, batches = self._tensors(), list(self.history), list(self.batches)
        try:
            yield
        except BaseException:
            self._put_tensors(held)
            self.history, self.batches = history, batches
            raise

    def _tensors(self) -> dict[str, dict[str, Tensor]]:
        """All that the edits have written, by memory. A snapshot: tensors are replaced, never changed in place."""
        return {name: memory.tensors() for name, memory in self.memories.items()}

    def _put_tensors(self, held: dict[str, dict[str, Tensor]]) -> None:
        for name, tensors in held.items():
            self.memories[name].put(tensors)

    def revert(self, edit_id: str) -> "How":
        """Make this a model that never had an edit, bit for bit: the others are made anew. Not recorded in any store."""
        from errata import replay

        return replay.revert(self, edit_id)

    def at_revision(self, revision: int) -> AbstractContextManager[Self]:
        """Scope: the model as it was at an earlier revision, of its store or else after so many edits were made."""
        from errata import replay

        return replay.at_revision(self, revision)

    @torch.no_grad()
    def target_probability(self, rows: Rows) -> list[float]:
        """P(target | prompt) of each row, routed as in use."""
        with self.alone, self.routing.prompt_is(rows.prompt):
            logits = self.base(input_ids=rows.ids, attention_mask=rows.attention, use_cache=False).logits
        found: list[float] = target_log_probability(logits[rows.wanted], rows.labels, rows.row_of_label).exp().tolist()
        return found

    # -- looking at it -----------------------------------------------------------------------------------------------

    @contextmanager
    def lifted(self) -> Iterator[nn.Module]:
        """Scope: the pretrained model, bit for bit and module for module; the edits come back on leaving, always."""
        with self.alone:
            self._hook.remove()
            for path, wrapped in self._wrapped.items():
                _put_module(self.base, path, wrapped.base)
            try:
                yield self.base
            finally:
                for path, wrapped in self._wrapped.items():
                    _put_module(self.base, path, wrapped)
                self._hook = self.base.register_forward_pre_hook(self.routing.observe, with_kwargs=True)

    disable_edits = lifted

    def detach(self) -> nn.Module:
        """Take everything off for good and give back the pretrained model, bit for bit."""
        self._hook.remove()
        self._put_state(None)
        return self.base

    def _state(self) -> "State":
        """All that the edits have made of this model; `_put_state` brings it back."""
        return State(self._wrapped, self.memories, self.history, self.batches, self._irrelevant, self._gains)

    def _put_state(self, state: "State | None") -> None:
        """Put a state in the place of the one that is there; None is the model without memories."""
        for path, wrapped in self._wrapped.items():
            _put_module(self.base, path, wrapped.base)
        state = state or State({}, {}, [], [], {}, {})
        self._wrapped, self.memories, self.history, self.batches, self._irrelevant, self._gains = state
        for path, wrapped in self._wrapped.items():
            _put_module(self.base, path, wrapped)

    def explain(self, prompt: str, *, system: str | None = None) -> dict[str, Any]:
        """Why the model answers as it does: the answers with and without edits, and what each memory decided."""
        ids, attention = self.tokens.prompts([prompt], device=self.device, system=system)
        with self.alone, self.steady(), torch.no_grad():
            self.base(input_ids=ids, attention_mask=attention)
            decisions = self.routing.decisions
            (answer,) = self.answer([prompt], system=system)
        with self.lifted():
            (unedited,) = self.answer([prompt], system=system)
        found = [self._explained(name, decisions) for name in self.memories]
        return {"prompt": prompt, "answer": answer, "unedited": unedited, "memories": found}

    def _explained(self, name: str, decisions: dict[str, Any]) -> dict[str, Any]:
        memory, decision = self.memories[name], decisions.get(name)
        told: dict[str, Any] = {"memory": name, "site": memory.site.path}
        if decision is None:
            return told | {"answers": True, "why": "always on: this method changes the weight for every prompt"}
        told["answers"] = bool(decision.rows[0])
        if decision.score is not None:
            told |= {"score": float(decision.score[0]), "threshold": float(decision.threshold[0])}
        if decision.other is not None and bool(decision.other[0]) and not told["answers"]:
            asked = getattr(memory, "relation", None) is not None
            told["why"] = "asks about another subject than the nearest edit does" + ", or for something else" * asked
        if decision.near is not None:
            scores, picks = decision.near[0][0].tolist(), decision.near[1][0]
            edits = [self.history[owner] for owner in torch.as_tensor(memory.owners)[picks].tolist()]
            told["nearest"] = [
                {"id": e.id, "prompt": e.prompt, "target": e.target, "score": score}
                for e, score in zip(edits, scores, strict=True)
            ]
        return told

    # -- keeping it --------------------------------------------------------------------------------------------------

    def save_pretrained(self, directory: str | Path) -> None:
        """Save the edits (not the base model) to a directory. The files there before survive any failure."""
        from errata import checkpoint

        checkpoint.save(self, Path(directory))

    def push_to_hub(self, repo_id: str, *, private: bool = True) -> str:
        """Publish what `save_pretrained` writes on the Hugging Face Hub, and give back its address."""
        from errata import hub

        return hub.push(self, repo_id, private=private)

    @classmethod
    def from_pretrained(cls, directory: str | Path, base: nn.Module | None = None, **kwargs: Any) -> Self:
        """The edited model that was saved; its base is loaded by name unless given. Same logits, bit for bit."""
        from errata import checkpoint, ledger, replay

        load = replay.load if ledger.exists(Path(directory)) else checkpoint.load
        return load(cls, Path(directory), base, **kwargs)

    @contextmanager
    def steady(self) -> Iterator[None]:
        """Scope: evaluation mode (no dropout), restored on leaving."""
        training = [module for module in self.base.modules() if module.training]
        self.base.eval()
        try:
            yield
        finally:
            for module in training:
                module.training = True


def _put_module(root: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, leaf = path.rpartition(".")
    setattr(root.get_submodule(parent), leaf, module)
