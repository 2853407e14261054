"""Presets: the released configurations of WISE, by base model (EasyEdit, hparams/WISE)."""

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from errata.model import EditedModel


class Published(NamedTuple):
    """What the released code sets for one model."""

    layer: int
    lr: float = 1.0
    steps: int = 70
    alpha: float = 5.0
    beta: float = 20.0
    gamma: float = 10.0
    act_ratio: float = 0.88


WISE = {
    ("llama", 32, 11008): Published(27),
    ("mistral", 32, 14336): Published(27),
    ("gptj", 28, 16384): Published(21, alpha=15, beta=40, gamma=20),
    ("llama", 32, 14336): Published(29, lr=0.9, steps=30, alpha=2, act_ratio=0.5),
    ("gpt2", 48, 6400): Published(8, steps=40, act_ratio=0.8),
}
"""(model type, blocks, FFN width): LLaMA-2-7B, Mistral-7B, GPT-J-6B, LLaMA-3-8B, GPT2-XL."""
WISE_RELEASED: dict[str, Any] = {
    "rho": 0.2, "density": 0.53, "contexts": 11, "spills": "rows",
    "optimizer": "sgd", "joint": False, "replay": 0, "negatives": 1, "contrast": 0, "margins": "absolute",
    "end": False, "distance": "released", "over": "mean", "weight_decay": 1e-5,
}  # fmt: skip
"""What the released code does on every model."""


def wise(model: "EditedModel", layer: int) -> dict[str, Any]:
    """Options of WISE as released for a model; for one that was not published, those of LLaMA-2-7B at this layer."""
    kind = getattr(getattr(model.base, "config", None), "model_type", "")
    sites = model.sites
    return WISE_RELEASED | WISE.get((kind, len(sites), sites[0].in_features), Published(layer))._asdict()
