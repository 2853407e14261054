"""Statistics: the uncentred second moment K0 = E[k k^T] of what FFN output projections read.

ROME, MEMIT and AlphaEdit (arXiv 2202.05262, 2210.07229, 2410.02355) need to know which inputs k a map is used to, so that
an edit leaves them alone. The moments of all the sites that are asked for are streamed in one pass of the unedited model
over texts: by default the irrelevant prompts with their answers, and text that the model itself writes, since no corpus
may be downloaded; any other texts can be given.

They are computed once for one base model and kept as long as it is (a cache: without it the same bits are found again),
and with `directory` in files that name the base and the texts they belong to.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from errata.errors import BadOption, BaseMismatch, DamagedFile
from errata.fingerprint import fingerprint
from errata.parallel import main_device, whole_input
from errata.sites import Site, find_sites
from errata.tokens import Tokens

if TYPE_CHECKING:
    from errata.model import EditedModel

WINDOW = 1024
"""Most tokens of a text that are read at once; longer texts are cut into windows."""
BATCH = 4096
"""Tokens of a forward call, padding included."""
WRITERS, WRITTEN = 64, 64
"""Most texts that the model writes at once, and the most new tokens of each."""
ROUNDS = 10_000
"""Most times that it is asked to write: a model that stops at once would never reach the number of tokens."""


class Moment(NamedTuple):
    """The second moment of what one site reads."""

    matrix: Tensor
    """K0 = E[k k^T], (ff, ff) float64."""
    tokens: int
    """How many inputs k it is the mean of."""
    energy: float
    """Mean |k|^2, the first token of each text left out: in many models that one is a giant and would set every scale."""

    def check(self, site: str) -> None:
        """Raise `BadOption` where there are too few tokens for K0 to have an inverse."""
        width = len(self.matrix)
        if self.tokens < width:
            raise BadOption(
                f"the statistics of {site} come from {self.tokens} tokens, too few to invert the covariance of {width}"
                " features; give more texts, or set tokens to at least 1 (times the number of features)"
            )


class Statistics:
    """The moments of one base model over one collection of texts, and what is derived from them."""

    def __init__(self, base: str, texts: str) -> None:
        self.base = base
        """Fingerprint of the unedited model."""
        self.texts = texts
        """Hash of the texts, or of how they are written."""
        self.moments: dict[str, Moment] = {}
        """By the path of the site."""
        self._derived: dict[tuple[str | float, ...], Tensor] = {}

    def derived(self, key: tuple[str | float, ...], make: Callable[[], Tensor]) -> Tensor:
        """A matrix that costs ff^3 to make, such as the inverse of a moment: made once for each key."""
        if key not in self._derived:
            self._derived[key] = make()
        return self._derived[key]


_KNOWN: WeakKeyDictionary[nn.Module, dict[tuple[str, str], Statistics]] = WeakKeyDictionary()
"""A cache, for as long as a base model lives. Losing it costs time and changes nothing."""


def statistics(
    model: "EditedModel", sites: Sequence[Site], *, texts: Iterable[str] | None = None, tokens: float = 8.0,
    directory: str | Path | None = None,
) -> Statistics:  # fmt: skip
    """The statistics of a model's unedited base, with the moments of at least these sites.

    `tokens`, in multiples of the widest site's features, is how much text there is when the model writes it. Raises
    `BaseMismatch` or `DamagedFile` for files in `directory` that cannot be used.
    """
    given = None if texts is None else list(texts)
    own = [f"{probe.prompt} {probe.answer or ''}".strip() for probe in model.sampling.irrelevant]
    with model.lifted() as base, model.steady():
        wanted = round(tokens * max(site.in_features for site in find_sites(base)))
        recipe = given if given is not None else ["written by the model", model.sampling.seed, wanted, *own]
        key = fingerprint(base), hashlib.sha256(json.dumps(recipe).encode()).hexdigest()
        found = _KNOWN.setdefault(base, {}).setdefault(key, Statistics(*key))
        for site in sites if directory is not None else ():
            path = _file(directory or "", found, site)
            if site.path not in found.moments and path.exists():
                found.moments[site.path] = read(path, found.base, model.device)
        missing = [site for site in sites if site.path not in found.moments]
        if missing:
            source = given if given is not None else [*own, *written(model, base, wanted)]
            found.moments |= moments(base, model.tokens, missing, source)
            for site in missing if directory is not None else ():
                _write(_file(directory or "", found, site), found, site)
    return found


# -- the pass over the texts -------------------------------------------------------------------------------------------


@torch.no_grad()
def moments(base: nn.Module, tokens: Tokens, sites: Sequence[Site], texts: Iterable[str]) -> dict[str, Moment]:
    """The moments of these sites, by path, from one pass of an unedited model over texts.

    Holds one (ff, ff) float64 matrix a site and one batch of inputs. Raises `BadOption` where the texts hold no token.
    """
    device = main_device(base)
    sums = {s.path: torch.zeros(s.in_features, s.in_features, dtype=torch.float64, device=device) for s in sites}
    energy = dict.fromkeys(sums, 0.0)
    read = later = 0
    for windows in _batches(_windows(base, tokens, texts)):
        rows = tokens.rows_of_ids([(window, []) for window in windows], device)
        real = rows.prompt
        after = real[:, 1:]
        read, later = read + int(real.sum()), later + int(after.sum())
        for path, k in inputs(base, sites, rows.ids, rows.attention):
            known = k[real].float()
            sums[path] += (known.mT @ known).double()  # a batch in float32, the sum over batches in float64
            energy[path] += float(k[:, 1:][after].double().square().sum())
    if read == 0:
        raise BadOption("the statistics need texts, and these hold no token")
    return {path: Moment(total / read, read, energy[path] / max(later, 1)) for path, total in sums.items()}


def _windows(base: nn.Module, tokens: Tokens, texts: Iterable[str]) -> Iterator[list[int]]:
    """The token ids of the texts, in pieces that fit the model."""
    size = min(WINDOW, getattr(getattr(base, "config", None), "max_position_embeddings", None) or WINDOW)
    for text in texts:
        ids = tokens.encode(text) if text else []
        yield from (ids[i : i + size] for i in range(0, len(ids), size))


def _batches(windows: Iterable[list[int]]) -> Iterator[list[list[int]]]:
    """Windows in order, as many at once as `BATCH` tokens with padding allow."""
    held: list[list[int]] = []
    for window in windows:
        if held and (len(held) + 1) * max(len(window), *map(len, held)) > BATCH:
            yield held
            held = []
        held.append(window)
    if held:
        yield held


class _AllSeen(Exception):
    """Ends a forward once every site has been reached."""


def inputs(base: nn.Module, sites: Sequence[Site], ids: Tensor, attention: Tensor) -> list[tuple[str, Tensor]]:
    """What each site reads in one forward call, which ends at the last of them: path, (batch, seq, ff)."""
    seen: list[tuple[str, Tensor]] = []

    def keep(path: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            seen.append((path, whole_input(args[0], module).reshape(*ids.shape, -1)))
            if len(seen) == len(sites):
                raise _AllSeen

        return hook

    with ExitStack() as stack:
        for site in sites:
            stack.callback(base.get_submodule(site.path).register_forward_pre_hook(keep(site.path)).remove)
        with suppress(_AllSeen):
            base(input_ids=ids, attention_mask=attention, use_cache=False)
    return seen


# -- texts that the model writes ---------------------------------------------------------------------------------------


@torch.no_grad()
def written(model: "EditedModel", base: nn.Module, count: int) -> list[str]:
    """Texts of at least `count` tokens in all, sampled from the unedited model at temperature 1, always the same."""
    from transformers import LogitsProcessorList

    tokenizer = model.tokens.tokenizer
    first = next((i for i in (tokenizer.bos_token_id, tokenizer.eos_token_id) if i is not None), model.tokens.filler)
    writers = min(WRITERS, max(1, count // WRITTEN))
    ids = torch.full((writers, 1), int(first), device=model.device)
    texts: list[str] = []
    found = 0
    for turn in range(ROUNDS):
        if found >= count:
            break
        noise = _Gumbel(model.sampling.generator("statistics", turn))
        said: Tensor = base.generate(  # type: ignore[operator]
            ids, attention_mask=torch.ones_like(ids), do_sample=False, num_beams=1,
            max_new_tokens=model.tokens.room(1, WRITTEN), pad_token_id=model.tokens.filler,
            logits_processor=LogitsProcessorList([noise]),
        )  # fmt: skip
        new = [text for row in said if (text := model.tokens.decode(row[1:]).strip())]
        found += sum(len(model.tokens.encode(text)) for text in new)
        texts += new
    return texts


class _Gumbel:
    """Adds Gumbel noise to the logits, so that the greedy choice is a sample from the model."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        """(batch, vocabulary) logits, with noise."""
        uniform = torch.rand(scores.shape, generator=self.generator, dtype=torch.float64)
        noise = -torch.log(-torch.log(uniform.clamp(min=1e-300)))
        return scores + noise.to(scores)


# -- files -------------------------------------------------------------------------------------------------------------


def _file(directory: str | Path, found: Statistics, site: Site) -> Path:
    return Path(directory) / f"moment-{found.base[:12]}-{found.texts[:12]}-{site.path}.safetensors"


def _write(path: Path, found: Statistics, site: Site) -> None:
    """Write one moment. The file is complete or absent, whatever happens."""
    import safetensors.torch

    from errata.disk import write

    moment = found.moments[site.path]
    told = {
        "base": found.base, "texts": found.texts, "site": site.path, "tokens": str(moment.tokens),
        "energy": repr(moment.energy),
    }  # fmt: skip
    content = safetensors.torch.save({"moment": moment.matrix.cpu().contiguous()}, told)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    write(temporary, content)
    temporary.replace(path)


def read(path: Path, base: str, device: torch.device | str = "cpu") -> Moment:
    """A moment that was written to a file, of the base model with this fingerprint.

    Raises `BaseMismatch` where it belongs to another model, `DamagedFile` where it cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt", device=str(device)) as file:
            told = file.metadata() or {}
            matrix = file.get_tensor("moment")
            moment = Moment(matrix, int(told["tokens"]), float(told["energy"]))
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise DamagedFile(f"the statistics {path} are damaged ({error}); delete the file, it is made anew") from error
    if told.get("base") != base:
        raise BaseMismatch(
            f"the statistics {path} are those of another model; delete the file or name another directory"
        )
    return moment
