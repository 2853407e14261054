"""The methods, one file each, found by file name; others come from the entry-point group `errata.methods`."""

from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any

from errata.errors import ErrataError, UnknownName

if TYPE_CHECKING:
    from errata.editor import Editor


@cache
def names() -> tuple[str, ...]:
    """Names of all methods: the files of this package, and the installed plug-ins."""
    own = {module.name for module in iter_modules(__path__)}
    return tuple(sorted(own | set(_plugins())))


def find(name: str) -> "type[Editor]":
    """The editor class of a method. Raises `UnknownName`, with the names there are."""
    if name not in names():
        raise UnknownName("method", name, names())
    if name in _plugins():
        module: Any = _plugins()[name].load()
    else:
        module = import_module(f"errata.methods.{name}")
    return _editor_in(module, name)


def make(name: str, **options: Any) -> "Editor":
    """An editor by name, with these hyper-parameters."""
    return find(name).with_options(options)


def recorded(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """All options of a method as a record of them was meant, which may be older than some of them.

    As they are where there is no such method: the unedited model, or a plug-in that is gone.
    """
    if name not in names():
        return dict(options)
    editor = find(name)
    return {f.name: f.default for f in fields(editor)} | editor.unsaid | dict(options)


@cache
def _plugins() -> dict[str, Any]:
    return {point.name: point for point in entry_points(group="errata.methods")}


def _editor_in(module: Any, name: str) -> "type[Editor]":
    from errata.editor import Editor

    for thing in (module, *vars(module).values()) if not isinstance(module, type) else (module,):
        if isinstance(thing, type) and issubclass(thing, Editor) and getattr(thing, "name", None) == name:
            return thing
    raise ErrataError(f"the method file {name!r} defines no Editor whose name is {name!r}")
