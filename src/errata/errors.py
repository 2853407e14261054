"""Every error that errata raises on purpose, drawn as a tree.

    ErrataError                 exit code 1: something failed at run time
    ├── UsageError              exit code 2: the request cannot be met as written
    │   ├── UnknownName         no such method, model, data set, ...; says what there is
    │   ├── BadOption           an option that does not exist, or is out of range
    │   ├── BadEdit             an edit that cannot be applied: empty, subject missing, no target tokens
    │   │   └── TooLong         ... or a prompt: more tokens than the model has positions for
    │   ├── BadRecord           a line of a data file that is no edit: file, line, field
    │   ├── NoSite              the model has no place where this could be installed
    │   └── MissingExtra        an optional dependency is not installed
    ├── EditFailed              the edit was tried, did not work, and was rolled back
    ├── OutOfMemory             the machine or the GPU does not hold it; says what would fit
    ├── RoutingError            a forward call whose prompt tokens cannot be known
    ├── StoreError              a saved model that cannot be used
    │   ├── BaseMismatch        ... because it was made on another base model
    │   ├── DamagedFile         ... because a file is truncated or altered
    │   ├── NewerFormat         ... because a newer errata wrote it
    │   ├── StoreBusy           ... because another process is writing to it
    │   └── BrokenChain         exit code 4: ... because its ledger was altered
    ├── GateNotMet              exit code 3: a quality gate was not met
    └── Interrupted             exit code 130: stopped by the user; what was done is kept

The message of each is one line for a person: what was found, where, and what to do.
"""

import difflib
from collections.abc import Iterable


class ErrataError(Exception):
    """Base of all errors that errata raises on purpose."""

    exit_code = 1


class UsageError(ErrataError):
    """The request cannot be met as written; nothing was changed."""

    exit_code = 2


class UnknownName(UsageError):
    """A name that names nothing. The message suggests the nearest names that exist."""

    def __init__(self, kind: str, name: str, known: Iterable[str], hint: str = "") -> None:
        known = sorted(known)
        near = difflib.get_close_matches(name, known, n=1)
        guess = f" Did you mean {near[0]!r}?" if near else ""
        there = f" There is: {', '.join(known)}." if known else ""
        super().__init__(f"no {kind} is called {name!r}.{guess}{there}{' ' + hint if hint else ''}")


class BadOption(UsageError):
    """An option that does not exist, contradicts another, or is out of range."""


class BadEdit(UsageError):
    """An edit that cannot be applied to this model."""


class TooLong(BadEdit):
    """A text of more tokens than the model has positions for."""


class BadRecord(UsageError):
    """A record of a data file that is no edit. Carries the place: file, line (or item), field."""

    def __init__(self, path: object, line: int, field: str | None, problem: str) -> None:
        self.path, self.line, self.field = str(path), line, field
        where = f"{path}:{line}" + (f", field {field!r}" if field else "")
        super().__init__(f"{where}: {problem}")


class NoSite(UsageError):
    """The model has no site that fits; the message lists what was seen."""


class MissingExtra(UsageError):
    """An optional dependency is not installed."""

    def __init__(self, package: str, extra: str, what: str) -> None:
        super().__init__(f"{what} needs {package!r}, which is not installed: pip install 'errata[{extra}]'")


class EditFailed(ErrataError):
    """The edit was tried and did not work; the model is as it was before it."""


class OutOfMemory(ErrataError):
    """Memory ran out; nothing was changed. The message says what takes less."""


class RoutingError(ErrataError):
    """A forward call whose prompt tokens cannot be known, so that no decision could be right."""


class StoreError(ErrataError):
    """A saved edited model that cannot be used."""


class BaseMismatch(StoreError):
    """The edits were made on another base model than the one at hand."""


class DamagedFile(StoreError):
    """A file is truncated, altered or unreadable."""


class NewerFormat(StoreError):
    """The directory was written by a newer errata."""


class StoreBusy(StoreError):
    """Another process is writing to the same directory."""


class BrokenChain(StoreError):
    """An event of a ledger was altered, removed or put in. Carries the place: the first event that does not fit."""

    exit_code = 4

    def __init__(self, path: object, event: int, problem: str) -> None:
        self.path, self.event = str(path), event
        super().__init__(f"the chain of {path} is broken at event {event}: {problem}")


class GateNotMet(ErrataError):
    """A quality gate (minimal reliability, locality, ...) was not met."""

    exit_code = 3


class Interrupted(ErrataError):
    """Stopped by the user; everything done so far is kept and the same command resumes."""

    exit_code = 130
