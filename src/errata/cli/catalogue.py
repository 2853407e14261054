"""`errata methods` and `errata sites`: what there is, and where a model may be edited."""

import ast
import inspect
import re
import sys
import textwrap
from dataclasses import MISSING, Field, asdict, fields
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any

import typer

from errata.cli.terminal import Json, emit

if TYPE_CHECKING:
    from errata.editor import Editor


def methods(
    name: Annotated[str | None, typer.Argument(help="A method, to list its options.")] = None, as_json: Json = False
) -> None:
    """List the editing methods, or the options of one.

    \b
    Example:
      errata methods
      errata methods memoir
    """
    from errata import methods as found

    chosen = [found.find(each) for each in ([name] if name else found.names())]
    for editor in chosen:
        told = about(editor) | ({"options": options(editor)} if name else {})
        if as_json:
            emit(told)
        else:
            typer.echo(_printed(told))


def sites(
    model: Annotated[str, typer.Argument(help="atlas, a directory, or a name on the Hub. Weights are not read.")],
    as_json: Json = False,
) -> None:
    """List the places where a model may be edited.

    \b
    Example:
      errata sites atlas
    """
    from errata import loading
    from errata.sites import find_sites

    for site in find_sites(loading.outline(model)):
        if as_json:
            emit(asdict(site))
        else:
            typer.echo(f"layer {site.layer:<3} {site.role:<9} {site}")


def about(editor: "type[Editor]") -> dict[str, Any]:
    """A method's name, title, papers and layers, from its class and the docstring of its file."""
    told = inspect.getdoc(sys.modules[editor.__module__]) or inspect.getdoc(editor) or ""
    return {
        "name": editor.name,
        "title": " ".join(told.partition("\n\n")[0].split()),
        "arxiv": re.findall(r"arXiv[ :]*(\d{4}\.\d{4,5})", told),
        "depth": editor.depth,
        "published_layers": {f"{kind}, {n} blocks": layer for (kind, n), layer in editor.published_layers.items()},
    }


def options(editor: "type[Editor]") -> list[dict[str, Any]]:
    """The options of a method: name, type, default, and the prose under the field in the source."""
    prose: dict[str, str] = {}
    for cls in reversed(editor.__mro__[:-1]):
        prose |= field_docs(cls)
    return [
        {"name": field.name, "type": _type(field), "default": _default(field), "help": prose.get(field.name, "")}
        for field in fields(editor)
    ]


def field_docs(cls: type) -> dict[str, str]:
    """The string under each annotated field of a class, read from its source."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    except (OSError, TypeError):
        return {}
    (body,) = [node.body for node in tree.body if isinstance(node, ast.ClassDef)]
    return {
        field.target.id: " ".join(str(text.value.value).split())
        for field, text in pairwise(body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
    }


def _type(field: "Field[Any]") -> str:
    return field.type.__name__ if isinstance(field.type, type) else str(field.type)


def _default(field: "Field[Any]") -> Any:
    if field.default is not MISSING:
        return field.default
    return None if field.default_factory is MISSING else field.default_factory()


def _printed(told: dict[str, Any]) -> str:
    lines = [f"{told['name']:<8} {told['title']}"]
    published = [f"{layer} of {model}" for model, layer in told["published_layers"].items()]
    rule = f"{told['depth']:.0%} of the depth" + (" of other models" if published else "")
    papers = ", ".join(f"arXiv {number}" for number in told["arxiv"])
    lines += [f"{'':8} {text}" for text in (papers, f"layer {'; '.join([*published, rule])}") if text]
    for option in told.get("options", []):
        lines += ["", f"  --set {option['name']}={option['default']}  ({option['type']})"]
        lines += textwrap.wrap(option["help"], 100, initial_indent="      ", subsequent_indent="      ")
    return "\n".join(lines)
