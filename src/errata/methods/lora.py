"""LoRA: fine-tuning by low-rank shifts of many maps, through `peft`.

Hu, Shen, Wallis, Allen-Zhu, Li, Wang, Wang, Chen, "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022,
arXiv 2106.09685.

What a user would do without an editor: one adapter, trained further on each correction. `peft` chooses the maps (the
queries and values of attention, for most models), initialises and trains A and B. What they have learnt is kept in memories
of rank r beside those maps, so that it can be lifted, saved and measured like any other edit.
"""

import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from errata.edit import Edit
from errata.editor import Editor
from errata.errors import MissingExtra, NoSite
from errata.fitting import Stop, Trace, fit
from errata.memory import LowRank
from errata.objective import target_nll
from errata.sites import Site, linear_sizes

if TYPE_CHECKING:
    from errata.model import EditedModel

ADAPTER = "errata"


@dataclass
class Lora(Editor):
    """One low-rank adapter, trained further on each edit."""

    name: ClassVar[str] = "lora"
    depth: ClassVar[float] = 1.0
    search: ClassVar[dict[str, tuple[object, ...]]] = {"lr": (2e-4, 1e-3, 5e-3), "r": (4, 8, 32), "steps": (30, 70)}
    waives: ClassVar[dict[str, str]] = {
        "unrelated prompts": "the weights change for every prompt: there is no gate",
        "first edit held": "later edits overwrite the same adapter",
    }

    r: int = 8
    """Rank; 4 to 16 is usual."""
    alpha: int = 32
    """The adapter is scaled by alpha / r; 2 to 4 is usual."""
    steps: int = 70
    """Most Adam steps an edit."""
    lr: float = 1e-3
    """Learning rate [EasyEdit: 5e-3, with which a small model forgets everything within ten edits]. A is drawn in the unit
    of its input, so this holds for layers of any scale."""
    loss: float = 0.02
    """Stop when the loss is below this."""
    maps: str | None = None
    """Which maps are adapted, as `target_modules` of peft: `all-linear`, or names such as `q_proj,v_proj`. By default those
    that peft chooses for the model."""

    def __post_init__(self) -> None:
        self.check(self.r >= 1, f"r={self.r}: at least 1")
        self.check(self.steps >= 1, f"steps={self.steps}: at least 1")
        self.check(self.layer is None, "layer: the adapter is in all layers; `maps` says beside which maps")

    def prepare(self, model: "EditedModel") -> None:
        """The adapter as peft draws it: A random, B zero. Raises `MissingExtra` where peft is not installed."""
        with self._adapted(model) as layers:
            drawn = {
                path: (layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight) for path, layer in layers.items()
            }
        for path, (A, B) in drawn.items():
            memory = LowRank(_site(model.base, path), model.device)
            memory.put(self._kept(A, B))
            model.install(f"{self.name}:{path}", memory)

    def edit(self, model: "EditedModel", edits: Sequence[Edit]) -> Trace:
        """Train the adapter on these edits, from where the last ones left it."""
        rows = model.rows([(edit.prompt, edit.target) for edit in edits])
        memories = {memory.site.path: memory for name, memory in model.memories.items() if name.startswith(self.name)}
        with self._adapted(model) as layers:
            for path, layer in layers.items():
                layer.lora_A[ADAPTER].weight = nn.Parameter(memories[path].get_buffer("keys").clone())
                B = memories[path].get_buffer("values").T / (self.alpha / self.r)
                layer.lora_B[ADAPTER].weight = nn.Parameter(B.contiguous())
            pairs = {
                path: (layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight) for path, layer in layers.items()
            }

            wanted, labels, row = rows.wanted.nonzero(as_tuple=True), rows.labels, rows.row_of_label

            def loss() -> Tensor:
                logits = model.base(input_ids=rows.ids, attention_mask=rows.attention, use_cache=False).logits
                return target_nll(logits[wanted], labels, row)

            learnt = [weight for pair in pairs.values() for weight in pair]
            trace = fit(learnt, loss, steps=self.steps, lr=self.lr, optimizer="adam", stop=Stop(self.loss))
        for path, (A, B) in pairs.items():
            memories[path].put(self._kept(A, B))
        return trace

    def _kept(self, A: Tensor, B: Tensor) -> dict[str, Tensor]:
        """A (r, in) and B (out, r) as a memory has them, the scale in the values."""
        return {"keys": A.detach().float(), "values": (B.detach().float() * (self.alpha / self.r)).T.contiguous()}

    @contextmanager
    def _adapted(self, model: "EditedModel") -> Iterator[dict[str, Any]]:
        """Scope: the pretrained model with peft's adapter in it; path -> adapted map. On leaving, all is as before."""
        try:
            from peft import LoraConfig, get_peft_model
            from peft.tuners.lora import LoraLayer
            from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as CHOSEN
        except ImportError as error:
            raise MissingExtra("peft", "peft", "the method lora") from error
        kind = getattr(getattr(model.base, "config", None), "model_type", "")
        maps = CHOSEN.get(kind, "all-linear") if self.maps is None else self.maps
        if not isinstance(maps, str):
            maps = list(maps)
        elif maps != "all-linear":
            maps = maps.split(",")
        config = LoraConfig(r=self.r, lora_alpha=self.alpha, target_modules=maps, task_type="CAUSAL_LM")
        with model.lifted() as base:
            asked = {name: parameter.requires_grad for name, parameter in base.named_parameters()}
            with torch.random.fork_rng(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of peft, that it has understood what a Conv1D is
                torch.manual_seed(model.sampling.generator("lora").initial_seed())
                try:
                    adapted = get_peft_model(base, config, adapter_name=ADAPTER)
                except ValueError as error:
                    raise NoSite(f"peft finds nothing to adapt: {error}; name the maps with --set maps=...") from error
            try:
                yield {path: module for path, module in base.named_modules() if isinstance(module, LoraLayer)}
            finally:
                adapted.unload()
                for name in ("peft_config", "_hf_peft_config_loaded"):
                    base.__dict__.pop(name, None)
                for name, parameter in base.named_parameters():
                    parameter.requires_grad_(asked[name])


def _site(base: nn.Module, path: str) -> Site:
    """An adapted map as a site."""
    sizes = linear_sizes(base.get_submodule(path))
    block = re.search(r"\.(\d+)\.", path)
    if sizes is None:
        raise NoSite(f"{path} is adapted by peft, but is no linear map: name others with --set maps=...")
    return Site(path, int(block[1]) if block else 0, *sizes, role="adapted")
