"""Site: a place where a model may be edited, found by its role in the module tree of any causal LM.

The role is the *FFN output projection*: of each block, the last linear map outside attention that writes the residual
width. It is looked for in the structure, never in a table of model names. A block whose experts are fused into
three-dimensional parameters has no such map; its site is then the whole mixture-of-experts module (h -> output).
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from torch import nn
from transformers import PretrainedConfig

from errata.errors import BadOption, NoSite

ATTENTION = re.compile(r"attn|attention|mixer|ssm|mamba")
"""Path components that are not feed-forward."""


@dataclass(frozen=True)
class Site:
    """One editable place. Resolved once from the module tree; holds names and sizes, no modules."""

    path: str
    """Dotted path of the module from the root of the model."""
    layer: int
    """Index of the block, counted from 0."""
    in_features: int
    """Width of its input `a`: the number of features a key has."""
    out_features: int
    """Width of its output `y`: the residual width."""
    role: str = "ffn_out"

    @property
    def weights(self) -> int:
        """Entries of its matrix."""
        return self.in_features * self.out_features

    def __str__(self) -> str:
        return f"{self.path} ({self.in_features} -> {self.out_features})"


class Layout(NamedTuple):
    """Where a model has what: a walk through all its modules, and the same with memories beside them as without."""

    blocks: str
    """Path of the list of blocks."""
    sites: tuple[Site, ...]
    """The FFN output projection of every block, from the first to the last."""

    def at(self, layer: int) -> Site:
        """The site of one block. Raises `BadOption` when there is no such layer."""
        if not 0 <= layer < len(self.sites):
            raise BadOption(f"layer {layer} is out of range: the model has layers 0 to {len(self.sites) - 1}")
        return self.sites[layer]


def layout(model: nn.Module) -> Layout:
    """The layout of a model. Raises `NoSite` as `find_sites` does."""
    prefix, blocks = find_blocks(model)
    width = residual_width(model)
    return Layout(prefix, tuple(_site_in(block, f"{prefix}.{i}", i, width) for i, block in enumerate(blocks)))


def find_sites(model: nn.Module) -> list[Site]:
    """The FFN output projection of every block, from the first to the last.

    Reads names and sizes only, so it works on `meta`, offloaded and quantised models alike.
    Raises `NoSite`, listing what was seen, when the structure is not understood.
    """
    return list(layout(model).sites)


def site_at(model: nn.Module, layer: int) -> Site:
    """The site of one block. Raises `BadOption` when there is no such layer."""
    return layout(model).at(layer)


def find_mixers(model: nn.Module) -> list[Site]:
    """The attention output projection of every block: the last linear map inside attention to the residual width.

    Raises `NoSite` where a block has none.
    """
    prefix, blocks = find_blocks(model)
    width = residual_width(model)
    found = []
    for i, block in enumerate(blocks):
        maps = [(p, sizes) for p, sizes in _linears(block) if sizes[1] == width and ATTENTION.search(p)]
        if not maps:
            raise NoSite(f"no attention projection to the residual width {width} in {prefix}.{i}")
        inner, (in_features, out_features) = maps[-1]
        found.append(Site(f"{prefix}.{i}.{inner}", i, in_features, out_features, role="attention_out"))
    return found


def find_blocks(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The path and the list of the model's blocks: the largest list of like modules."""
    lists = [(p, m) for p, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) > 0]
    stacks = [(p, m) for p, m in lists if not re.search(r"\.\d+\.", f".{p}.")]
    if not stacks:
        raise NoSite(f"no list of blocks was found in {type(model).__name__}; top modules: {_children(model)}")
    return max(stacks, key=lambda pair: sum(1 for _ in pair[1].modules()))


def residual_width(model: nn.Module) -> int:
    """Width of the residual stream, from the configuration or else from the input embedding."""
    config = getattr(model, "config", None)
    if isinstance(config, PretrainedConfig):
        size = getattr(config.get_text_config(decoder=True), "hidden_size", None)
        if isinstance(size, int):
            return size
    embeddings = next((m for m in model.modules() if isinstance(m, nn.Embedding)), None)
    if embeddings is None:
        raise NoSite(f"the residual width of {type(model).__name__} is unknown: no hidden_size and no embedding")
    return embeddings.embedding_dim


def relative_layer(fraction: float, layers: int) -> int:
    """The layer at a fraction of the depth; 27/31 is layer 27 of LLaMA-2-7B, and layer 4 of a model of six."""
    return min(layers - 1, max(0, round(fraction * (layers - 1))))


def _site_in(block: nn.Module, path: str, layer: int, width: int) -> Site:
    experts = _expert_block(block)
    if experts is not None:
        return Site(f"{path}.{experts}", layer, width, width, role="moe_block")
    found = [(p, f) for p, f in _linears(block) if f[1] == width and not ATTENTION.search(p)]
    if not found:
        seen = ", ".join(f"{p} {f[0]}->{f[1]}" for p, f in _linears(block)) or _children(block)
        raise NoSite(f"no feed-forward projection to the residual width {width} in {path}; seen: {seen}")
    inner, (in_features, out_features) = found[-1]
    return Site(f"{path}.{inner}", layer, in_features, out_features)


def _expert_block(block: nn.Module) -> str | None:
    """Path of the mixture-of-experts module in a block, if there is one."""
    for path, module in block.named_modules():
        fused = any(p.dim() == 3 for p in module.parameters(recurse=False)) and not ATTENTION.search(path)
        listed = isinstance(module, nn.ModuleList) and path.endswith("experts")
        if (fused or listed) and "." in path:
            return path.rpartition(".")[0].removesuffix(".base")  # which is what a memory is beside
    return None


def _linears(block: nn.Module) -> Iterator[tuple[str, tuple[int, int]]]:
    """Every linear map of a block with its (in, out) sizes: nn.Linear and its quantised kin, and GPT-2's Conv1D.

    Of one that is wrapped, by a memory or an adapter, the wrapper.
    """
    outer = "."
    for path, module in block.named_modules():
        sizes = linear_sizes(module)
        if sizes is not None and not path.startswith(f"{outer}."):
            outer = path
            yield path, sizes


def linear_sizes(module: nn.Module) -> tuple[int, int] | None:
    """(in, out) of a linear map, read from its declared sizes and never from its weight; None for other modules."""
    for names in (("in_features", "out_features"), ("nx", "nf")):
        sizes = tuple(getattr(module, name, None) for name in names)
        if all(isinstance(size, int) for size in sizes):
            return sizes  # type: ignore[return-value]
    return None


def _children(module: nn.Module) -> str:
    return ", ".join(f"{name}: {type(child).__name__}" for name, child in module.named_children()) or "none"
