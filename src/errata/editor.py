"""Editor: the protocol that a paper implements, and the receipt of what it did."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, Self

from errata.edit import Edit
from errata.errors import BadOption, UnknownName
from errata.fitting import Trace

if TYPE_CHECKING:
    from errata.model import EditedModel


@dataclass
class Editor(ABC):
    """One method. A dataclass whose fields are its hyper-parameters; all that it learns lives in its memories."""

    name: ClassVar[str]
    """The name users type: that of the file."""
    depth: ClassVar[float]
    """Where the paper edits, as a fraction of the depth (0 the first block, 1 the last)."""
    published_layers: ClassVar[dict[tuple[str, int], int]] = {}
    """(model type, number of blocks) -> the layer that the paper or its code uses for that model."""
    search: ClassVar[dict[str, tuple[object, ...]]] = {}
    """Option -> the values that `errata tune` tries for it; the default is always tried."""
    unsaid: ClassVar[dict[str, object]] = {}
    """Option -> what a record made before there was such an option means, where that is not today's default."""
    waives: ClassVar[dict[str, str]] = {}
    """Promises of the conformance suite that the method cannot make, each with the reason."""

    layer: int | None = field(default=None, kw_only=True)
    """Block to edit, from 0. By default the published one, or the one at the same relative depth."""

    @abstractmethod
    def prepare(self, model: "EditedModel") -> None:
        """Install this method's memories. Called once, before the first edit or before a saved state is put back."""

    @abstractmethod
    def edit(self, model: "EditedModel", edits: Sequence[Edit]) -> Trace:
        """Make the edits take hold. The pretrained weights are unchanged on return.

        The edits are `model.history[-len(edits):]`. Raises `EditFailed` before any memory is changed when the loss is
        not finite.
        """

    def bytes_beside(self, features: int, weights: int, edits: int) -> int:
        """Bytes of matrices that are kept beside a site's own (model, ff) after so many edits: an estimate.

        `features` are ff, its input's, and `weights` those of its own matrix.
        """
        return 0

    def beyond(self, model: "EditedModel", edits: int) -> str:
        """What to know before so many edits are in force, in a line; empty where nothing is known to go wrong."""
        return ""

    def options(self) -> dict[str, Any]:
        """The hyper-parameters by name."""
        return asdict(self)

    @classmethod
    def with_options(cls, options: dict[str, Any]) -> Self:
        """An editor with these hyper-parameters. Raises `UnknownName` for one that does not exist."""
        known = {f.name for f in fields(cls)}
        for name in options:
            if name not in known:
                raise UnknownName(f"option of {cls.name}", name, known)
        try:
            return cls(**options)
        except (TypeError, ValueError) as error:
            raise BadOption(f"{cls.name}: {error}") from error

    def check(self, holds: bool, message: str) -> None:
        """Raise `BadOption` with the method's name unless `holds`."""
        if not holds:
            raise BadOption(f"{self.name}: {message}")

    def check_one_of(self, **choices: Collection[object]) -> None:
        """Raise `BadOption` where an option of such a name is none of its choices."""
        for name, values in choices.items():
            named = ", ".join(str(value) for value in values)
            self.check(getattr(self, name) in values, f"{name} {getattr(self, name)!r}: one of {named}")


@dataclass(frozen=True)
class Check:
    """What the model said when it was asked after an edit, by greedy decoding. Pairs are (how many held, of how many)."""

    answered: bool
    """Whether the prompt is answered with the target."""
    answer: str
    """The answer to the prompt, as long as the target."""
    rephrasings: tuple[int, int]
    """Rephrasings, given and automatic, that are answered with the target."""
    earlier: tuple[int, int]
    """Sampled earlier edits that held before this one and still do."""
    locality: tuple[int, int]
    """Prompts to be left alone whose answers are those before this edit."""
    seconds: float = 0.0
    """Time that asking took."""
    neighbours: tuple[int, int] = (0, 0)
    """Other subjects of which the same is asked, whose answers are those before this edit."""


@dataclass(frozen=True)
class Receipt:
    """What one edit did."""

    edit_id: str
    method: str
    seconds: float
    steps: int = 0
    loss_before: float | None = None
    loss_after: float | None = None
    probability_before: float | None = None
    """P(target | prompt) of the edited model before this edit, and after it."""
    probability_after: float | None = None
    supersedes: str | None = None
    """Id of the earlier edit of the same prompt that this one replaces."""
    note: str = ""
    """Anything a person should know."""
    check: Check | None = None
    """What was asked before the edit was acknowledged, where it is kept in a store ..."""
    revision: int | None = None
    """... and the revision of the store that it made."""
