"""Scorer: the three things that lm-eval asks of a model, asked of an edited model, with its edits routed as in use."""

from collections.abc import Iterable, Sequence

import torch
from torch.nn.functional import cross_entropy

from errata.model import EditedModel
from errata.objective import target_log_probability

Pair = tuple[list[int], list[int]]
"""Token ids of a context and of the continuation to be scored."""


class Scorer:
    """One model; `longest` tokens fit into its context."""

    def __init__(self, model: EditedModel, batch_size: int = 32) -> None:
        self.model, self.batch_size = model, batch_size
        self.longest = int(getattr(getattr(model.base, "config", None), "max_position_embeddings", None) or 2048)

    @torch.no_grad()
    def log_likelihoods(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
        """For each (context, continuation): log P(continuation | context), and whether it is what is said greedily.

        The context is the prompt, by which edits are routed. What does not fit is cut off at its beginning.
        """
        encoded = [self._fitted(self._encoded(*pair)) for pair in pairs]
        order = sorted(range(len(pairs)), key=lambda i: len(encoded[i][0]) + len(encoded[i][1]))
        found: list[tuple[float, bool]] = [(0.0, True)] * len(pairs)
        scored = [i for i in order if encoded[i][1]]
        for start in range(0, len(scored), self.batch_size):
            places = scored[start : start + self.batch_size]
            for i, one in zip(places, self._scored([encoded[i] for i in places]), strict=True):
                found[i] = one
        return found

    @torch.no_grad()
    def rolling(self, text: str) -> float:
        """log P(text), in disjoint windows that fill the context; every token counts as prompt."""
        model = self.model
        ids, begin = model.tokens._alone(text), self._begin()
        total = 0.0
        for start in range(0, len(ids), self.longest - 1):
            window = ids[start : start + self.longest - 1]
            before = [ids[start - 1]] if start else begin
            row = torch.tensor([before + window], device=model.device)
            with model.steady():
                logits = model(input_ids=row, attention_mask=torch.ones_like(row), use_cache=False).logits[0]
            said = logits[len(before) - 1 : -1].float()
            total -= float(cross_entropy(said, row[0, len(before) :], reduction="sum"))
        return total

    def generate(self, context: str, until: Iterable[str], longest: int) -> str:
        """The greedy continuation of a context, of at most `longest` tokens, up to the first of the texts in `until`."""
        model = self.model
        ids = torch.tensor([self._context(context)[-(self.longest - longest) :]], device=model.device)
        with model.steady():
            out = model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=longest,
                pad_token_id=model.tokens.filler,
            )  # fmt: skip
        said = model.tokens.decode(out[0, ids.shape[1] :])
        for stop in until:
            said = said.partition(stop)[0] if stop else said
        return said

    def _scored(self, encoded: Sequence[Pair]) -> list[tuple[float, bool]]:
        model = self.model
        rows = model.tokens.rows_of_ids(encoded, model.device)
        with model.steady(), model.routing.prompt_is(rows.prompt):
            logits = model(input_ids=rows.ids, attention_mask=rows.attention, use_cache=False).logits[rows.wanted]
        log_p = target_log_probability(logits, rows.labels, rows.row_of_label).tolist()
        right = (logits.argmax(-1) == rows.labels).split([len(tail) for _, tail in encoded])
        return [(value, bool(one.all())) for value, one in zip(log_p, right, strict=True)]

    def _encoded(self, context: str, continuation: str) -> Pair:
        """Both together where the tokenizer keeps the context as prefix; blanks between belong to the continuation."""
        bare = context.rstrip()
        continuation = context[len(bare) :] + continuation
        head = self._context(bare)
        both = self.model.tokens.encode(bare + continuation)
        if both[: len(head)] == head:
            return head, both[len(head) :]
        return head, self.model.tokens._alone(continuation)

    def _fitted(self, pair: Pair) -> Pair:
        head, tail = pair
        tail = tail[-(self.longest - 1) :]
        return head[-max(1, self.longest - len(tail)) :], tail

    def _context(self, text: str) -> list[int]:
        """The ids of a context; never none, so that there is something to predict from."""
        return self.model.tokens.encode(text) or self._begin()

    def _begin(self) -> list[int]:
        """What stands before a text: the beginning, or else the end of a text, or else padding."""
        begin = self.model.tokens.tokenizer.bos_token_id
        return [int(begin)] if begin is not None else self.model.tokens.end or [self.model.tokens.filler]
