"""`errata analyse`: what a model stores where, and what edits do to it, as numbers and a picture of them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from errata.cli import given
from errata.cli.lists import fraction, integers, shares
from errata.cli.terminal import Device, Dtype, Json, Options, emit, meter, say
from errata.errors import BadOption, UsageError

if TYPE_CHECKING:
    from errata.analysis.findings import Findings

Model = Annotated[str, typer.Argument(metavar="MODEL", help="atlas, a directory, or a name on the Hub.")]
Facts = Annotated[str, typer.Option(help="Facts with subjects: atlas, counterfact:PATH, a .jsonl file, ...")]
Output = Annotated[
    Path, typer.Option(metavar="DIR", help="Where the numbers (JSON) and the figure (SVG, PNG) are written.")
]
OnError = Annotated[Literal["stop", "skip"], typer.Option(help="What a bad record, or a fact without a subject, does.")]
WORKED = """
    \\b
    Example:
      errata analyse superposition atlas --facts atlas --output analysis --json
      errata analyse tracing atlas --facts atlas --output analysis
      errata analyse overlap --rho 0.2,0.5 --k 2,3 --output analysis
      errata analyse routing atlas wise --edits 100 --output analysis"""

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None,
    help="Analyse a model and its edits: superposition, causal tracing, overlaps, routing.\n" + WORKED,
)  # fmt: skip


@app.command()
def superposition(
    model: Model,
    output: Output,
    facts: Facts = "atlas",
    layers: Annotated[str | None, typer.Option(metavar="L,...", help="Layers, from 0; all by default.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Most facts, one a subject.")] = 128,
    stream: Annotated[int, typer.Option(min=0, help="ROME edits at each layer, to hold the theory to; 0: none.")] = 8,
    contexts: Annotated[int, typer.Option(min=0, help="Context prefixes over which a key is averaged.")] = 0,
    tokens: Annotated[float, typer.Option(min=0, help="Text for the covariance, in multiples of the features.")] = 8.0,
    texts: Annotated[Path | None, typer.Option(help="Texts for it, one a line, in place of the model's own.")] = None,
    statistics: Annotated[Path | None, typer.Option(metavar="DIR", help="Where covariances are kept.")] = None,
    resamples: Annotated[int, typer.Option(min=1, help="Of the bootstrap.")] = 1000,
    matrices: Annotated[bool, typer.Option("--matrices", help="Write all p too: superposition.safetensors.")] = False,
    on_error: OnError = "stop",
    seed: int = 0,
    device: Device = None,
    dtype: Dtype = "auto",
    as_json: Json = False,
) -> None:
    """Whether the keys of unrelated facts interfere, layer by layer, and whether a stream of edits loses just that.

    \b
    Example:
      errata analyse superposition atlas --facts atlas --layers 0,2,4 --output analysis
    """
    from errata.analysis import interference
    from errata.analysis.findings import Findings, made_on
    from errata.analysis.superposition import LEAST, Superposition
    from errata.data.record import read_text
    from errata.sites import find_sites, site_at

    chosen = given.subjects(facts, limit, LEAST, on_error)
    if stream > len(chosen.facts):
        raise BadOption(f"--stream {stream}: there are {len(chosen.facts)} facts")
    own = None if texts is None else read_text(texts).split("\n")
    edited = given.bare(model, seed, device, dtype)
    sites = find_sites(edited.base) if layers is None else [site_at(edited.base, n) for n in integers(layers, "layers")]
    found = Superposition(
        edited, chosen.facts, sites, contexts=contexts, tokens=tokens, texts=own, directory=statistics
    )
    told: list[dict[str, Any]] = []
    with meter(len(sites), "layers") as bar:
        for site in sites:
            of = found.layer(site, resamples, edited.sampling.generator("kurtosis", site.layer))
            if stream:
                made = interference.stream(edited, chosen.facts, site, found.S[site.path], stream, contexts)
                of["interference"] = interference.compared(made, found.p(site))
            told.append(of)
            bar.step(site.path)
    if matrices:
        found.write(output / "superposition.safetensors")
    settings = {
        "model": model, "facts": facts, "limit": limit, "stream": stream, "contexts": contexts, "tokens": tokens,
        "texts": texts and str(texts), "resamples": resamples, "seed": seed, "left_out": chosen.left_out,
    }  # fmt: skip
    made_of = made_on(edited.base, chosen.facts)
    _keep(Findings("superposition", settings, {"facts": len(chosen.facts), "layers": told}, made_of), output, as_json)


@app.command()
def tracing(
    model: Model,
    output: Output,
    facts: Facts = "atlas",
    limit: Annotated[int, typer.Option(min=1, help="Most facts, one a subject; unknown ones are left out.")] = 50,
    kinds: Annotated[str, typer.Option(metavar="KIND,...", help="states, mlp, attention.")] = "states,mlp,attention",
    noise: Annotated[float, typer.Option(min=0, help="In standard deviations of subject embeddings.")] = 3.0,
    samples: Annotated[int, typer.Option(min=1, help="Draws of the noise for each fact.")] = 10,
    window: Annotated[
        int | None, typer.Option(min=1, help="Blocks of a window for mlp and attention; 10 of 48 by default.")
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="Rows of a forward call.")] = 256,
    on_error: OnError = "stop",
    seed: int = 0,
    device: Device = None,
    dtype: Dtype = "auto",
    as_json: Json = False,
) -> None:
    """Which layers carry a fact from its subject to its answer: causal tracing.

    \b
    Example:
      errata analyse tracing atlas --facts atlas --limit 50 --output analysis
    """
    from errata.analysis.effects import effects
    from errata.analysis.findings import Findings, made_on
    from errata.analysis.tracing import Tracing

    chosen = given.subjects(facts, limit, 1, on_error)
    edited = given.bare(model, seed, device, dtype)
    names = tuple(name.strip() for name in kinds.split(",") if name.strip())
    traced = Tracing(edited, noise=noise, samples=samples, window=window, kinds=names, rows=rows)
    known = traced.known(chosen.facts)
    scale = traced.scale(known)
    found = []
    with meter(len(known), "facts") as bar:
        for i, prompt in enumerate(known):
            found.append(traced.trace(prompt, scale, i))
            bar.step()
    settings = {
        "model": model, "facts": facts, "limit": limit, "noise": noise, "samples": samples, "seed": seed,
        "left_out": chosen.left_out,
    }  # fmt: skip
    told = {"asked": len(chosen.facts), "window": traced.window, "embedding_sd": scale} | effects(found)
    _keep(Findings("tracing", settings, told, made_on(edited.base, chosen.facts)), output, as_json)


@app.command()
def overlap(
    output: Output,
    k: Annotated[str, typer.Option(metavar="K,...", help="Masks.")] = "2,3,4",
    rho: Annotated[str, typer.Option(metavar="R,...", help="Share of the entries in each.")] = "0.1,0.2,0.3,0.5",
    rows: Annotated[int, typer.Option(min=1, help="Rows of the matrix.")] = 1024,
    columns: Annotated[int, typer.Option(min=1, help="Its columns.")] = 2752,
    disjoint: Annotated[bool, typer.Option("--disjoint", help="Subspaces that share nothing.")] = False,
    repeat: Annotated[int, typer.Option(min=1, help="Draws of each.")] = 4,
    masks: Annotated[
        str, typer.Option(metavar="N/D,...", help="MEMOIR: features active, of so many.")
    ] = "4096/14336,3146/11008,658/2304",
    edits: Annotated[int, typer.Option(min=1, help="MEMOIR: masks stored.")] = 1000,
    queries: Annotated[int, typer.Option(min=1, help="MEMOIR: masks asked.")] = 50,
    seed: int = 0,
    as_json: Json = False,
) -> None:
    """What random subspaces share, against WISE's theorem 2.1, and MEMOIR's masks against chance. No model is needed.

    \b
    Example:
      errata analyse overlap --rows 4096 --columns 11008 --rho 0.2 --k 2 --output analysis
    """
    from errata.analysis import overlap as measured
    from errata.analysis.findings import Findings

    cases = [(share, count) for share in shares(rho, "rho") for count in integers(k, "k", least=1)]
    pairs = [fraction(pair, "masks") for pair in masks.split(",") if pair.strip()]
    drawn: list[dict[str, Any]] = []
    with meter(len(cases) * repeat, "draws") as bar:
        for share, count in cases:
            for _ in range(repeat):
                own = seed + 1000 * len(drawn)  # masks of one seed and rho are the same masks
                drawn.append(measured.subspaces(rows, columns, share, count, own, disjoint=disjoint))
                bar.step()
    hashed = [measured.top_hash_masks(width, active, edits, queries, seed) for active, width in pairs]
    settings = {
        "rows": rows, "columns": columns, "rho": rho, "k": k, "disjoint": disjoint, "repeat": repeat, "masks": masks,
        "edits": edits, "queries": queries, "seed": seed,
    }  # fmt: skip
    told = {"subspaces": drawn, "z": measured.scatter(drawn), "top_hash": hashed}
    _keep(Findings("overlap", settings, told), output, as_json)


@app.command()
def routing(
    what: Annotated[
        list[str], typer.Argument(metavar="DIR | MODEL METHOD", help="A directory with edits; or what to make them on.")
    ],
    output: Output,
    edits: Annotated[int, typer.Option(min=1, help="MODEL METHOD: how many to make.")] = 100,
    data: Annotated[str, typer.Option(help="MODEL METHOD: the edits to make.")] = "atlas",
    options: Options = None,
    on_error: OnError = "stop",
    seed: int = 0,
    device: Device = None,
    dtype: Dtype = "auto",
    as_json: Json = False,
) -> None:
    """How far edits, rephrasings and irrelevant prompts lie from the threshold by which a memory decides.

    \b
    Example:
      errata analyse routing acme --output analysis
      errata analyse routing atlas memoir --edits 100 --data atlas --output analysis
    """
    from errata.analysis.columns import columns
    from errata.analysis.findings import Findings, made_on
    from errata.analysis.separation import separation
    from errata.model import EditedModel
    from errata.residual_memory import ResidualMemory

    if len(what) == 1:
        edited, failed = EditedModel.from_pretrained(Path(what[0]), device=device), 0
    elif len(what) == 2:
        edited, failed = given.made(what[0], what[1], data, edits, options or [], seed, device, dtype, on_error)
    else:
        raise UsageError(f"analyse routing takes DIR, or MODEL METHOD; this is neither: {' '.join(what)}")
    editor = edited.editor
    assert editor is not None
    found: dict[str, Any] = {"method": editor.name, "failed": failed} | separation(edited)
    memory = edited.memories[found["memory"]]
    if isinstance(memory, ResidualMemory):
        found["columns"] = columns(memory)
    settings = {
        "model": edited.base_name if len(what) == 1 else what[0], "data": None if len(what) == 1 else data,
        "directory": what[0] if len(what) == 1 else None, "seed": edited.sampling.seed, "options": editor.options(),
    }  # fmt: skip
    with edited.lifted() as base:
        made_of = made_on(base, edited.edits)
    _keep(Findings("routing", settings, found, made_of), output, as_json)


def _keep(findings: "Findings", output: Path, as_json: bool) -> None:
    """Write the numbers, tell them, and draw them if that can be done here."""
    from errata.analysis import summary
    from errata.analysis.figures import draw
    from errata.errors import MissingExtra

    path = findings.write(output)
    if as_json:
        emit(findings.to_record())
    else:
        typer.echo(summary.told(findings))
    say(f"numbers: {path}")
    try:
        for kind in ("svg", "png"):
            draw(findings, path.with_suffix(f".{kind}"))
    except MissingExtra as error:
        say(f"no figure: {error}")
        return
    say(f"figure: {path.with_suffix('.svg')} and .png")
