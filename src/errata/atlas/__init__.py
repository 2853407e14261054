"""Atlas: a generated world of facts and a small model that knows it, shipped with errata, so everything runs offline.

>>> from errata import atlas
>>> len(atlas.edits("validation"))
500
"""

from pathlib import Path

from errata.atlas.edits import edits, irrelevant
from errata.atlas.world import Fact, world

__all__ = ["Fact", "edits", "facts", "irrelevant", "model_path"]


def model_path() -> Path:
    """The directory of the embedded model; `AutoModelForCausalLM` and `AutoTokenizer` load it."""
    return Path(__file__).with_name("model")


def facts(seed: int = 0) -> tuple[Fact, ...]:
    """Everything that is true in the world of this seed, each fact with its trained and its held-out wordings."""
    return world(seed).facts
