"""Tracing: which states of a model carry a fact from its subject to its answer.

Causal tracing: Meng, Bau, Andonian, Belinkov, "Locating and Editing Factual Associations in GPT", NeurIPS 2022,
arXiv 2202.05262. WISE (arXiv 2405.14768) reads off it which layers to edit.

The model answers a prompt with probability p. With noise on the embeddings of the subject it answers so with p*. One
clean state is put back into the corrupted run, at one token and one layer: the answer returns to p*(token, layer).

    indirect effect  IE = p*(token, layer) - p*            total effect  TE = p - p*

Averaged over facts and over tokens of like role this is the AIE. What is put back is the state after a block, or what
the feed-forward or attention maps of a window of blocks have written.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from errata.edit import Edit
from errata.errors import BadOption, UnknownName
from errata.sites import find_blocks, find_mixers, find_sites
from errata.suffix import _forward

if TYPE_CHECKING:
    from errata.model import EditedModel

KINDS = ("states", "mlp", "attention")
ROLES = ("first subject", "middle subject", "last subject", "first after", "further", "last")
"""Of the tokens of a prompt [ROME, figure 2]; those before the subject know nothing of the noise."""
PAPER_WINDOW = 10 / 48
"""Blocks of a window, as a share of the blocks [ROME: 10 of 48]."""


class Prompt(NamedTuple):
    """A fact as the model reads it."""

    ids: tuple[int, ...]
    subject: range
    """The tokens of the subject."""
    answer: int
    """The token that the model says next, of itself ..."""
    probability: float
    """... with this probability p."""

    @property
    def roles(self) -> list[tuple[int, str]]:
        """Each token from the subject on, with its role; the last token of the prompt is `last`, whatever else it is."""
        first, end, last = self.subject.start, self.subject.stop, len(self.ids) - 1
        found = []
        for token in range(first, last + 1):
            if token == last:
                role = "last"
            elif token >= end:
                role = "first after" if token == end else "further"
            elif token == end - 1:
                role = "last subject"
            else:
                role = "first subject" if token == first else "middle subject"
            found.append((token, role))
        return found


@dataclass(frozen=True)
class Traced:
    """What was found for one fact."""

    prompt: Prompt
    corrupted: float
    """p*, the mean over the samples of the noise."""
    restored: dict[str, Tensor]
    """By kind, (tokens from the subject on, layers): the mean over the samples of p*(token, layer)."""


class Tracing:
    """Causal tracing of one unedited model."""

    def __init__(
        self, model: "EditedModel", *, noise: float = 3.0, samples: int = 10, window: int | None = None,
        kinds: Sequence[str] = KINDS, rows: int = 256,
    ) -> None:  # fmt: skip
        """`noise` is in units of the standard deviation of subject embeddings [paper: 3], of which `samples` are drawn
        [paper: 10]; `window` counts blocks; `rows` of the corrupted run are restored at once.

        Raises `UnknownName` for a kind that is none of `KINDS`, `BadOption` for numbers out of range.
        """
        base = model.base
        self.model, self.noise, self.samples, self.kinds, self.rows = model, noise, samples, tuple(kinds), rows
        self.prefix, self.blocks = find_blocks(base)
        self.window = window or max(1, round(len(self.blocks) * PAPER_WINDOW))
        for kind in self.kinds or ("",):
            if kind not in KINDS:
                raise UnknownName("kind of state", kind, KINDS)
        if noise < 0 or samples < 1 or rows < 1:
            raise BadOption(f"noise={noise} must not be negative; samples={samples} and rows={rows}: at least 1")
        paths = {
            "mlp": [site.path for site in find_sites(base)],
            "attention": [site.path for site in find_mixers(base)],
        }
        self.places: dict[str, list[nn.Module]] = {"states": list(self.blocks)}
        self.places |= {kind: [base.get_submodule(path) for path in those] for kind, those in paths.items()}

    # -- the facts -----------------------------------------------------------------------------------------------------

    def known(self, facts: Sequence[Edit]) -> list[Prompt]:
        """The facts that the model knows: where one says what is true (`target_old`), the model says that as well.

        Raises `BadOption` where it knows none.
        """
        found = []
        for fact in facts:
            prompt = self.prompt(fact)
            if fact.target_old is None or self.model.tokens.pair(fact.prompt, fact.target_old)[1][0] == prompt.answer:
                found.append(prompt)
        if not found:
            raise BadOption(f"the model knows none of these {len(facts)} facts, so there is nothing to trace")
        return found

    @torch.no_grad()
    def prompt(self, fact: Edit) -> Prompt:
        """A fact, and what the model says."""
        assert fact.subject is not None
        tokens, start = self.model.tokens, fact.prompt.index(fact.subject)
        ids = tokens.prompt(fact.prompt)
        before, last = len(fact.prompt[:start].rstrip()), tokens.subject_last(fact.prompt, fact.subject)
        subject = range(min(tokens.until(fact.prompt, before) + 1, last), last + 1)
        p = self.run(torch.tensor([ids], device=self.model.device))[0]
        return Prompt(tuple(ids), subject, int(p.argmax()), float(p.max()))

    @torch.no_grad()
    def scale(self, prompts: Sequence[Prompt]) -> float:
        """The standard deviation of the embeddings of all subjects' tokens."""
        embed = self.model.base.get_input_embeddings()  # type: ignore[operator]
        ids = [torch.tensor([[p.ids[i] for i in p.subject]], device=self.model.device) for p in prompts]
        return float(torch.cat([embed(each)[0].float().flatten() for each in ids]).std())

    # -- one fact ------------------------------------------------------------------------------------------------------

    def trace(self, prompt: Prompt, scale: float, index: int = 0) -> Traced:
        """Every token from the subject on, at every layer. `index` is that of the fact, which decides its noise."""
        runs = self.runs(prompt, scale, index)
        tokens = torch.tensor([token for token, _ in prompt.roles], device=runs.ids.device)
        each = max(1, self.rows // self.samples)
        restored = {kind: torch.zeros(len(tokens), len(self.blocks), dtype=torch.float64) for kind in self.kinds}
        for kind in self.kinds:
            for layer in range(len(self.blocks)):
                parts = [nn.functional.one_hot(some, len(prompt.ids)).bool() for some in tokens.split(each)]
                p = torch.cat([self.restore(runs, kind, layer, part)[..., prompt.answer] for part in parts])
                restored[kind][:, layer] = p.double().mean(1).cpu()
        return Traced(prompt, float(runs.corrupted[:, prompt.answer].double().mean()), restored)

    @torch.no_grad()
    def runs(self, prompt: Prompt, scale: float, index: int = 0) -> "Runs":
        """The clean and the corrupted run of a fact, with what every place has written."""
        ids = torch.tensor([prompt.ids], device=self.model.device)
        width = self.model.base.get_input_embeddings().embedding_dim  # type: ignore[operator]
        generator = self.model.sampling.generator("tracing", index)
        drawn = torch.randn(self.samples, len(prompt.subject), width, generator=generator)
        noise = torch.zeros(self.samples, len(prompt.ids), width)
        noise[:, prompt.subject.start : prompt.subject.stop] = drawn * self.noise * scale
        noise = noise.to(ids.device)
        clean: dict[nn.Module, Any] = {}
        dirty: dict[nn.Module, Any] = {}
        with self._kept(clean):
            p = self.run(ids)
        with self._kept(dirty), self._noisy(noise):
            corrupted = self.run(ids.expand(self.samples, -1))
        return Runs(ids, noise, clean, dirty, p, corrupted)

    @torch.no_grad()
    def restore(self, runs: "Runs", kind: str, layer: int, where: Tensor) -> Tensor:
        """P(next token), (cases, samples, vocabulary), of corrupted runs where the tokens `where` (cases, seq; bool) are
        put back to their clean states at a layer, or in a window around it.

        Blocks below the first that is touched answer from the record of the corrupted run.
        """
        cases = len(where)
        rows = where.repeat_interleave(self.samples, 0)[..., None]
        touched = self.touched(kind, layer)
        with ExitStack() as stack:
            for block in self.blocks[: touched.start]:
                stack.enter_context(_forward(block, _answering(runs.dirty[block], cases)))
            for i in touched:
                module = self.places[kind][i]
                stack.callback(module.register_forward_hook(_put(_first(runs.clean[module]), rows)).remove)
            stack.enter_context(self._noisy(runs.noise.repeat(cases, 1, 1)))
            p = self.run(runs.ids.expand(cases * self.samples, -1))
        return p.unflatten(0, (cases, self.samples))

    def touched(self, kind: str, layer: int) -> range:
        """The blocks whose states are put back: one, or those of the window [l - w / 2, l + w / 2) [released]."""
        if kind == "states":
            return range(layer, layer + 1)
        first = layer - self.window // 2
        return range(max(0, first), min(len(self.blocks), first + self.window))

    # -- forward calls -------------------------------------------------------------------------------------------------

    def run(self, ids: Tensor) -> Tensor:
        """P(next token) after the last position, (batch, vocabulary) float32; the head sees that position alone."""
        base = self.model.base
        head = base.get_output_embeddings()  # type: ignore[operator]
        with ExitStack() as stack:
            stack.enter_context(self.model.steady())
            if head is not None:
                full = head.forward
                stack.enter_context(_forward(head, lambda h, *_, **__: full(h[:, -1:])))
            logits = self.model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
        p: Tensor = logits[:, -1].float().softmax(-1)
        return p

    @contextmanager
    def _noisy(self, noise: Tensor) -> Iterator[None]:
        """Scope: noise (batch, seq, width) is added to the embeddings."""
        embed = self.model.base.get_input_embeddings()  # type: ignore[operator]
        hook = embed.register_forward_hook(lambda _module, _args, output: output + noise.to(output))
        try:
            yield
        finally:
            hook.remove()

    @contextmanager
    def _kept(self, into: dict[nn.Module, Any]) -> Iterator[None]:
        """Scope: what every place gives back is kept."""

        def keep(module: nn.Module, args: Any, output: Any) -> None:
            into[module] = output

        with ExitStack() as stack:
            for kind in {"states", *self.kinds}:
                for module in self.places[kind]:
                    stack.callback(module.register_forward_hook(keep).remove)
            yield


class Runs(NamedTuple):
    """A fact's clean and corrupted run; `clean` and `dirty` are what each place gave back."""

    ids: Tensor
    """(1, seq)"""
    noise: Tensor
    """(samples, seq, width)"""
    clean: dict[nn.Module, Any]
    dirty: dict[nn.Module, Any]
    p: Tensor
    """(1, vocabulary) the probabilities of the clean run ..."""
    corrupted: Tensor
    """... and (samples, vocabulary) those of the corrupted one."""


def _first(output: Any) -> Tensor:
    tensor: Tensor = output[0] if isinstance(output, tuple) else output
    return tensor


def _with_first(output: Any, tensor: Tensor) -> Any:
    return (tensor, *output[1:]) if isinstance(output, tuple) else tensor


def _answering(output: Any, cases: int) -> Callable[..., Any]:
    """A forward that answers what was recorded, once for each case."""
    answer = _with_first(output, _first(output).repeat(cases, 1, 1))
    return lambda *_, **__: answer


def _put(clean: Tensor, rows: Tensor) -> Callable[[nn.Module, Any, Any], Any]:
    """A hook that puts clean states (1, seq, model) where `rows` (batch, seq, 1) holds."""

    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        y = _first(output)
        put = torch.where(rows, clean.reshape(1, rows.shape[1], -1), y.reshape(*rows.shape[:2], -1))
        return _with_first(output, put.reshape(y.shape))

    return hook
