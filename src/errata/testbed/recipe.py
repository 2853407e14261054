"""Recipe: everything that decides the weights of a testbed, and how it follows from a budget."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from errata.errors import BadOption
from errata.pretraining.llama import Shape, falling

HEAD = 32
"""Width of a head of attention."""
FEWEST_STEPS = 10
PARAMETERS_A_FACT = 1200
"""Parameters that a fact needs: facts-8m holds 6,556 facts in 7.8 M."""
READINGS = 32
"""How often a training should show each of its facts."""

FACT_TOKENS = 1280
"""Of facts in a step, padding included."""
FACTS_TO_TEXT = 5
"""Tokens of facts for each of natural text."""

PRECISIONS = ("float32", "bfloat16")
"""Those that the products of a training can be computed in."""


@dataclass(frozen=True)
class Budget:
    """What is asked for. Of `minutes` and `steps`, one is given."""

    parameters: int = 8_000_000
    minutes: float | None = None
    steps: int | None = None
    facts: int | None = None
    """As many facts as these; as many as the others have room for, where none is given."""
    seed: int = 0
    threads: int = 2
    precision: str | None = None
    """Of the products, one of `PRECISIONS`; the quickest of the device, where none is given."""
    tokens: int | None = None
    """Of facts, that a step reads; `FACT_TOKENS` where none is given."""

    def __post_init__(self) -> None:
        if (self.minutes is None) == (self.steps is None):
            raise BadOption("give a budget: --minutes M or --steps N, one of them")
        if self.steps is not None and self.steps < FEWEST_STEPS:
            raise BadOption(f"--steps {self.steps} is too small a budget: at least {FEWEST_STEPS}")
        if self.minutes is not None and self.minutes <= 0:
            raise BadOption(f"--minutes {self.minutes:g} is too small a budget: more than 0")
        for name in ("facts", "threads", "tokens"):
            if (given := getattr(self, name)) is not None and given < 1:
                raise BadOption(f"--{name} {given}: at least 1")
        if self.precision not in {None, *PRECISIONS}:
            raise BadOption(f"--precision {self.precision}: {' or '.join(PRECISIONS)}")
        shape_of(self.parameters)


@dataclass(frozen=True)
class Recipe:
    """What decides the weights, apart from the data and the arithmetic of the machine."""

    shape: Shape
    steps: int
    facts: int
    seed: int = 0
    threads: int = 2
    """Each computes the gradient of its share of the facts of a step."""
    precision: str = "float32"
    """Of the products; weights, gradients and what the optimizers remember are float32."""
    unseen: float = 0.2
    """The share of facts of which one wording is never shown."""
    fact_tokens: int = FACT_TOKENS
    """Tokens of facts in a step, padding included ..."""
    text_tokens: int = FACT_TOKENS // FACTS_TO_TEXT
    """... and of natural text, in windows of `window`."""
    window: int = 128
    few: float = 0.1
    """The share of steps that show a tenth of the facts only: a model finds out how to look a fact up soonest where there
    are few (Zucchet et al., 2025, arXiv 2503.21676)."""
    warmup: int = 100
    learning_rate: float = 3e-3
    """The highest, of Muon on the matrices of the blocks."""
    embedding_rate: float = 2e-3
    """The highest, of AdamW on embeddings and norms."""
    weight_decay: float = 0.01

    def rates(self) -> list[float]:
        """What the highest learning rates are multiplied by, step after step."""
        return falling(self.steps, 1.0, 0.0, self.warmup)

    def record(self) -> dict[str, object]:
        """The recipe for JSON."""
        return asdict(self)

    @classmethod
    def read(cls, record: dict[str, object]) -> "Recipe":
        """The recipe that `record` gave."""
        fields = dict(record)
        return cls(**fields | {"shape": Shape(**fields.pop("shape"))})  # type: ignore[arg-type]


def shape_of(parameters: int) -> Shape:
    """The largest model of at most so many parameters, give or take a twentieth. Raises `BadOption` where none is.

    Eight million are six layers of width 256 with a vocabulary of 6,000, as in facts-8m.
    """
    shapes = [_shape(width) for width in range(HEAD, 4096, HEAD)]
    fitting = [shape for shape in shapes if shape.parameters <= 1.05 * parameters]
    if not fitting:
        raise BadOption(f"--parameters {parameters} is too small: the smallest testbed has {shapes[0].parameters}")
    return fitting[-1]


def _shape(width: int) -> Shape:
    vocabulary = min(32_000, max(1000, round(width * 24, -3)))
    return Shape(vocabulary, width, max(2, round(width / 43)), width // HEAD, 4 * width)


def facts_that_fit(recipe: Recipe, lengths: Sequence[int]) -> int:
    """How many facts a model of this size can learn in this many steps; `lengths` are those of some, in tokens."""
    read = recipe.steps * recipe.fact_tokens * len(lengths) // (sum(lengths) * READINGS)
    return max(1, min(recipe.shape.parameters // PARAMETERS_A_FACT, read))


def number(text: str) -> int:
    """Parameters from a text such as 8M, 500K or 8000000. Raises `BadOption`."""
    digits, factor = text.strip(), 1
    if digits[-1:].upper() in {"K", "M", "B"}:
        factor = {"K": 10**3, "M": 10**6, "B": 10**9}[digits[-1].upper()]
        digits = digits[:-1]
    try:
        found = float(digits) * factor
    except ValueError:
        found = 0.0
    if not 0 < found < 1e12:
        raise BadOption(f"--parameters {text!r}: a number such as 8M or 500K")
    return int(found)
