"""Settings: `--set NAME=VALUE` as the options of a method, with the types that its dataclass declares."""

import json
import math
import types
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Union, get_args, get_origin, get_type_hints

from errata.errors import BadOption, UnknownName

if TYPE_CHECKING:
    from errata.editor import Editor

WORDS = {"none": None, "null": None, "true": True, "false": False}


def parse(pairs: Iterable[str], method: str) -> dict[str, Any]:
    """The options of one method from texts NAME=VALUE. Raises `UnknownName` or `BadOption`."""
    from dataclasses import fields

    from errata import methods

    editor = methods.find(method)
    known = [field.name for field in fields(editor)]
    options = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        name = name.strip()
        if not equals:
            raise BadOption(f"--set {pair}: write NAME=VALUE")
        if name not in known:
            raise UnknownName(f"option of {method}", name, known)
        options[name] = _typed(editor, name, text.strip())
    methods.make(method, **options)
    return options


def for_each(pairs: Iterable[str], chosen: list[str]) -> dict[str, dict[str, Any]]:
    """Options by method, from texts METHOD.NAME=VALUE, or NAME=VALUE for all of the methods."""
    told: dict[str, list[str]] = {method: [] for method in chosen}
    for pair in pairs:
        method, dot, rest = pair.partition("=")[0].partition(".")
        if not dot:
            for each in told.values():
                each.append(pair)
        elif method in told:
            told[method].append(rest + pair[len(method) + 1 + len(rest) :])
        else:
            raise UnknownName("method of this run", method, chosen)
    return {method: parse(each, method) for method, each in told.items()}


def _typed(editor: "type[Editor]", name: str, text: str) -> Any:
    allowed = accepted(get_type_hints(editor)[name])
    value = WORDS[text.lower()] if text.lower() in WORDS else _number(text)
    if isinstance(value, int) and not isinstance(value, bool) and int not in allowed and float in allowed:
        return float(value)
    if type(value) in allowed:
        return value
    if str in allowed:
        return text
    names = " or ".join("none" if kind is types.NoneType else kind.__name__ for kind in allowed)
    raise BadOption(f"{editor.name}: {name}={text!r} must be {names}")


def accepted(hint: Any) -> tuple[type, ...]:
    """The types that an annotation allows."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _number(text: str) -> Any:
    """What JSON reads, a text in quotes among it, or a number as people write it (`.5`); else the text itself."""
    for read in (json.loads, float):
        with suppress(ValueError):
            value = read(text)
            if not isinstance(value, float) or math.isfinite(value):
                return value
    return text
