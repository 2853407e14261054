"""Suffix: run a model from one memory upwards, on states that were computed once.

Below a memory nothing changes while it is being trained. So the model runs once in full and every module that finishes
before the memory is called is recorded; afterwards the same forward runs again with those modules answering from the
record, and with the output head on the wanted positions alone. The arithmetic above the memory is untouched, hence
losses and gradients are those of the full forward, on every architecture, for the price of the layers above the site.

A method that corrects a few tokens of a row, as ROME does at the end of the subject, says which. What is before them never
changes: attention still reads it, and the feed-forward networks, most of the work, do not work it out again.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from errata.errors import NoSite
from errata.memory import Gated, Memory
from errata.routing import Routing
from errata.sites import Layout

Correction = Callable[[Tensor, Tensor], Tensor]
"""(a, y) -> corrected y, what is tried in place of the memory's own forward."""


class Suffix:
    """The part of a model above one memory, for one batch.

    `a` (batch, seq, ff) and `y` (batch, seq, model) are the memory's inputs; neither carries gradient.
    """

    a: Tensor
    y: Tensor

    def __init__(
        self, model: nn.Module, layout: Layout, memory: Memory, routing: Routing, ids: Tensor, attention: Tensor,
        prompt: Tensor, wanted: Tensor, touched: Tensor | None = None,
    ) -> None:  # fmt: skip
        """Run the model once on `ids` and record all below `memory`.

        `ids`, `attention`, `prompt`, `wanted`, `touched`: (batch, seq); `wanted` marks the positions whose next token
        matters, `touched` those at which the memory's output may differ from one call of `logits` to the next, by default
        all. The batch must be padded on the right.
        """
        self._model, self._layout, self._memory, self._routing = model, layout, memory, routing
        self._inputs = {"input_ids": ids, "attention_mask": attention, "use_cache": False}
        self._prompt = prompt
        self._wanted = wanted.flatten().nonzero().squeeze(1)
        self._moving: Tensor | None = None
        if touched is not None:
            moving = touched.cumsum(1).bool() & attention.bool()
            self._moving = moving.flatten().nonzero().squeeze(1)
        self._still: dict[nn.Module, Tensor] = {}
        """Outputs (batch, seq, model) of feed-forward networks from the first call, for what does not move."""
        self._record()

    def logits(self, correction: Correction | None = None) -> Tensor:
        """Logits (wanted, vocabulary) with `correction` in the memory's place, or with the memory itself."""
        with ExitStack() as stack:
            for module, outputs in self._recorded.items():
                stack.enter_context(_forward(module, _replay(outputs, module.forward)))
            if correction is not None:
                stack.enter_context(_forward(self._memory, lambda *_, **__: correction(self.a, self.y)))
            stack.enter_context(self._routing.prompt_is(self._prompt))
            for module, last in self._ffns_above:
                if last:
                    stack.enter_context(_forward(module, self._at(self._wanted, module)))
                elif self._moving is not None:
                    stack.enter_context(_forward(module, self._at(self._moving, module, self._still)))
            head = self._model.get_output_embeddings()  # type: ignore[operator]
            if head is None:
                logits = self._model(**self._inputs).logits
                return torch.as_tensor(logits).flatten(0, 1)[self._wanted]
            full = head.forward
            stack.enter_context(_forward(head, lambda h, *_, **__: full(_picked(h, self._wanted))))
            result: Tensor = self._model(**self._inputs).logits
            return result

    @cached_property
    def _ffns_above(self) -> list[tuple[nn.Module, bool]]:
        """Feed-forward networks in blocks above the memory that are modules of their own, and whether it is the last block.

        They work position by position, unless a memory in them decides by the whole row. Nothing after the last one mixes
        positions, so it need only see the wanted ones.
        """
        found = []
        for site in self._layout.sites:
            path = site.path if site.role == "moe_block" else site.path.rpartition(".")[0]
            if site.layer > self._memory.site.layer and path != f"{self._layout.blocks}.{site.layer}":
                module = self._model.get_submodule(path)
                if not any(isinstance(part, Gated) for part in module.modules()):
                    found.append((module, site is self._layout.sites[-1]))
        return found

    def _at(
        self, places: Tensor, module: nn.Module, known: dict[nn.Module, Tensor] | None = None
    ) -> Callable[..., Any]:
        """A module's forward that sees some positions of (batch, seq) alone, as one row.

        At the others its output is what is `known` from the first call, which sees all, or 0 where that is None.
        """
        forward = module.forward

        def pick(value: Any) -> Any:
            return _picked(value, places)[None] if isinstance(value, Tensor) and value.dim() == 3 else value

        def answer(h: Tensor, *rest: Any, **named: Any) -> Any:
            if known is not None and module not in known:
                found = forward(h, *rest, **named)
                known[module] = _output(found).detach().clone()  # Falcon adds to it in place
                return found
            found = forward(pick(h), *map(pick, rest), **{name: pick(value) for name, value in named.items()})
            y = _output(found)
            others = y.new_zeros(*h.shape[:2], y.shape[-1]) if known is None else known[module]
            full = others.flatten(0, 1).index_put((places.to(y.device),), y[0]).view(*h.shape[:2], -1)
            return (full, *found[1:]) if isinstance(found, tuple) else full

        return answer

    def _record(self) -> None:
        """One pass that keeps the output of every outermost module that ends before the memory begins."""
        modules = dict(self._model.named_modules())
        path = next((p for p, m in modules.items() if m is self._memory), None)
        if path is None:
            raise NoSite("the memory is not installed in this model")
        above = {path.rsplit(".", i)[0] for i in range(path.count(".") + 1)} | {""}
        self._recorded: dict[nn.Module, list[Any]] = {}
        reached: list[tuple[Tensor, Tensor]] = []

        def keep(module: nn.Module, args: Any, output: Any) -> None:
            self._recorded.setdefault(module, []).append(output)

        def arrive(module: nn.Module, args: tuple[Tensor, Tensor]) -> None:
            reached.append(args)
            raise _Reached

        callers = above | _lists(modules, above)
        with ExitStack() as stack:
            for name, module in modules.items():
                called = name not in above and name.rpartition(".")[0] in callers
                if called and not isinstance(module, nn.ModuleList):
                    stack.callback(module.register_forward_hook(keep).remove)
            stack.callback(self._memory.register_forward_pre_hook(arrive).remove)
            stack.enter_context(self._routing.prompt_is(self._prompt))
            stack.enter_context(torch.no_grad())
            with suppress(_Reached):
                self._model(**self._inputs)
        if not reached:
            raise NoSite(f"the model's forward never reaches {path}")
        self.a, self.y = reached[0]


def _picked(h: Tensor, places: Tensor) -> Tensor:
    """Some positions of (batch, seq, width), which may be on another device: (places, width)."""
    return h.flatten(0, 1)[places.to(h.device)]


def _output(found: Any) -> Tensor:
    """What a module gives back, without what comes with it."""
    y: Tensor = found[0] if isinstance(found, tuple) else found
    return y


class _Reached(Exception):
    """Ends the recording pass at the memory."""


def _lists(modules: Mapping[str, nn.Module], above: set[str]) -> set[str]:
    """Module lists beside the path to the memory, whose items are called directly."""
    return {
        name
        for name, module in modules.items()
        if isinstance(module, nn.ModuleList) and name not in above and name.rpartition(".")[0] in above
    }


def _replay(outputs: list[Any], forward: Callable[..., Any]) -> Callable[..., Any]:
    """A forward that answers the first calls from the record and computes later ones (a module may serve both)."""
    rest = iter(outputs)

    def answer(*args: Any, **kwargs: Any) -> Any:
        for output in rest:
            return output
        return forward(*args, **kwargs)

    return answer


@contextmanager
def _forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Scope: calling `module` calls `forward` instead. Restores what was there, an instance's own forward included."""
    own = module.__dict__.get("forward")
    object.__setattr__(module, "forward", forward)
    try:
        yield
    finally:
        if own is None:
            del module.__dict__["forward"]
        else:
            object.__setattr__(module, "forward", own)
