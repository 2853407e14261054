"""Figures: findings as pictures, in the style of `errata.bench.plots`. Nothing is computed here.

They need matplotlib: `pip install 'errata[plots]'`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from errata.analysis.findings import Findings
from errata.bench.analyses import Analysis
from errata.bench.plots import COLOURS, FAINT, GHOST, INK, SOFT, STYLE, pyplot, save
from errata.bench.section import Figure

FAMILY = {"edits": COLOURS[0], "rephrasings": COLOURS[2], "calibration": COLOURS[6]}
PROBES = (COLOURS[1], COLOURS[4], COLOURS[3], COLOURS[7])
"""Of groups of irrelevant prompts."""
SCORES = {
    "wise": "activation of the side memory",
    "memoir": "overlap of masks, corrected for chance",
    "grace": "- distance",
}

SHOWS = {
    "superposition": "how far the keys of facts interfere, a line a layer; tails and angles, layer by layer; where edits"
    " were made, the drift that keys predict against the one measured",
    "tracing": "how much of an answer whose subject was hidden a restored state brings back, layer by layer; darker: more",
    "overlap": "entries that all masks share and features that two of them do: what was measured as dots, theory as lines",
    "routing": "what the memory decides by, for edits, rephrasings and irrelevant prompts; thresholds are dashed",
}


def pictures(analyses: Iterable[Analysis]) -> list[Figure]:
    """A figure for each of these that can be drawn: who is routed where, which layers matter, what interferes with what."""
    found = []
    for a in analyses:
        if a.name in FIGURES:
            of = f" of {a.method}" if a.method else ""
            drawn = partial(draw, Findings(a.name, a.settings, a.found))
            found.append(Figure(f"{a.name}{of}: {a.data} on {a.model}", drawn, SHOWS[a.name]))
    return found


def draw(findings: Findings, path: Path) -> None:
    """The picture of any findings: PNG, SVG or PDF by the suffix. Raises `MissingExtra` without matplotlib."""
    plt = pyplot()
    with plt.rc_context(STYLE):
        figure = FIGURES[findings.analysis](plt, findings)
        save(figure, path)
    plt.close(figure)


# -- superposition -----------------------------------------------------------------------------------------------------


def _superposition(plt: Any, findings: Findings) -> Any:
    layers = findings.found["layers"]
    streams = [layer["interference"] for layer in layers if "interference" in layer]
    figure, axes = plt.subplots(1, 4 if streams else 3, figsize=(17 if streams else 13, 3.9))
    shades = plt.get_cmap("viridis")([i / max(len(layers) - 1, 1) * 0.9 for i in range(len(layers))])
    for layer, shade in zip(layers, shades, strict=True):
        edges, counts = layer["histogram"]["edges"], layer["histogram"]["counts"]
        axes[0].stairs([c / sum(counts) for c in counts], edges, color=shade, lw=1.3, label=f"layer {layer['layer']}")
    _axes(axes[0], "interference of pairs of facts", "p(k_i, k_j)", "share of pairs")
    axes[0].set_yscale("log")
    axes[0].legend(frameon=False, fontsize=8)
    x = [layer["layer"] for layer in layers]
    for i, (name, label) in enumerate((("p", "p, whitened"), ("p_without_covariance", "p, with C = I"))):
        y = [layer[name]["pearson"] for layer in layers]
        spread = [
            [max(0.0, v - layer[name]["interval"][0]) for v, layer in zip(y, layers, strict=True)],
            [max(0.0, layer[name]["interval"][1] - v) for v, layer in zip(y, layers, strict=True)],
        ]
        axes[1].errorbar(x, y, yerr=spread, color=COLOURS[i], marker="o", ms=5, capsize=3, lw=1.8, label=label)
    axes[1].axhline(3, color=GHOST, lw=1, ls="--")
    axes[1].set_yscale("log")
    axes[1].yaxis.set_major_formatter("{x:g}")
    axes[1].yaxis.set_minor_formatter("{x:g}")
    _axes(axes[1], "tails of p (3: normal)", "layer", "kurtosis, 95 % over facts")
    for i, (name, label) in enumerate((("angle_whitened", "whitened"), ("angle_raw", "raw"))):
        y, sd = ([layer[name][of] for layer in layers] for of in ("mean", "sd"))
        axes[2].errorbar(x, y, yerr=sd, color=COLOURS[i], marker="o", ms=5, capsize=3, lw=1.8, label=label)
    axes[2].axhline(90, color=GHOST, lw=1, ls="--")
    _axes(axes[2], "angles between keys", "layer", "degrees, mean and sd")
    for axis in axes[1:3]:
        axis.set_xticks(x)
        axis.legend(frameon=False, fontsize=8)
    if streams:
        _drift(axes[3], layers, shades)
    return _finished(figure, findings, "knowledge in superposition")


def _drift(axis: Any, layers: Sequence[Mapping[str, Any]], shades: Sequence[Any]) -> None:
    """Predicted against measured drift; on the diagonal, the identities hold."""
    most = 0.0
    for layer, shade in zip(layers, shades, strict=True):
        if "interference" in layer:
            told = layer["interference"]
            axis.scatter(told["predicted"], told["measured"], s=14, color=shade, lw=0, alpha=0.8)
            most = max([most, *told["predicted"], *told["measured"]])
    axis.plot([0, most], [0, most], color=GHOST, lw=1, ls="--", zorder=0)
    _axes(axis, "drift along a stream of ROME edits", "predicted from keys, in |delta|", "measured")


# -- tracing -----------------------------------------------------------------------------------------------------------


def _tracing(plt: Any, findings: Findings) -> Any:
    kinds, roles = findings.found["kinds"], findings.found["roles"]
    rows = {kind: [role for role in roles if role in told] for kind, told in kinds.items()}
    most = max(max(told[role]["aie"]) for told in kinds.values() for role in told)
    figure, axes = plt.subplots(1, len(kinds), figsize=(4.4 * len(kinds), 3.4), sharey=True, squeeze=False)
    for axis, (kind, told) in zip(axes[0], kinds.items(), strict=True):
        values = [told[role]["aie"] for role in rows[kind]]
        axis.imshow(values, cmap="Purples", vmin=0, vmax=most or 1.0, aspect="auto")
        _cells(axis, values, most)
        axis.set_yticks(range(len(rows[kind])), rows[kind])
        axis.set_xticks(range(len(values[0])))
        _axes(axis, kind if kind == "states" else f"{kind}, window of {findings.found['window']}", "layer", "")
        axis.grid(visible=False)
    told = findings.found
    return _finished(
        figure, findings,
        f"causal tracing of {told['facts']} facts: average indirect effect (p = {told['clean']:.2f},"
        f" corrupted {told['corrupted']:.2f})",
    )  # fmt: skip


def _cells(axis: Any, values: Sequence[Sequence[float]], most: float) -> None:
    if len(values[0]) > 12:
        return
    for i, row in enumerate(values):
        for j, value in enumerate(row):
            colour = "white" if value > 0.6 * most else INK
            axis.text(j, i, f"{round(value, 2) + 0.0:.2f}", ha="center", va="center", fontsize=8, color=colour)


# -- overlap -----------------------------------------------------------------------------------------------------------


def _overlap(plt: Any, findings: Findings) -> Any:
    found = findings.found
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.9))
    rhos = list(dict.fromkeys(draw["rho"] for draw in found["subspaces"]))
    for i, rho in enumerate(rhos):
        draws = [one for one in found["subspaces"] if one["rho"] == rho]
        x = [one["k"] for one in draws]
        colour = COLOURS[i % len(COLOURS)]
        axes[0].plot(x, [one["all"]["expected"] / one["size"] for one in draws], color=colour, lw=1.2)
        axes[0].scatter(
            x, [one["all"]["measured"] / one["size"] for one in draws], s=30, color=colour, label=f"rho {rho}"
        )
    if all(one["all"]["measured"] for one in found["subspaces"]):
        axes[0].set_yscale("log")
    axes[0].set_xticks(sorted({one["k"] for one in found["subspaces"]}))
    axes[0].legend(frameon=False, fontsize=8)
    _axes(axes[0], "shared by all k masks: measured (dots), rho^k (lines)", "k", "share of the entries")
    masks = found["top_hash"]
    places = range(len(masks))
    for i, name in enumerate(("mean", "largest")):
        axes[1].scatter(places, [one["chance"][name] for one in masks], s=900, lw=1.2, color=COLOURS[i], marker="_")
        axes[1].scatter(places, [one["measured"][name] for one in masks], s=30, color=COLOURS[i], label=name)
    axes[1].set_xticks(places, [f"{one['active']} of\n{one['width']}" for one in masks])
    axes[1].legend(frameon=False, fontsize=8)
    _axes(axes[1], "unrelated TopHash masks: measured (dots), by chance (lines)", "features active", "overlap / N")
    return _finished(figure, findings, "what random subspaces share")


# -- routing -----------------------------------------------------------------------------------------------------------


def _routing(plt: Any, findings: Findings) -> Any:
    found = findings.found
    spread = found.get("columns")
    figure, axes = plt.subplots(1, 2 if spread else 1, figsize=(13 if spread else 8, 4.1), squeeze=False)
    probes = [group for group in found["groups"] if group not in FAMILY]
    colours = FAMILY | dict(zip(probes, (PROBES * len(probes))[: len(probes)], strict=True))
    values = [value for told in found["groups"].values() for value in told["scores"]]
    low, high = min(values), max(values)
    edges = [low + (high - low or 1.0) * i / 60 for i in range(61)]
    for group, told in found["groups"].items():
        weights = [1 / told["prompts"]] * told["prompts"]
        label = f"{group} ({told['prompts']}), {told['passed']:.1%} pass"
        style = {"histtype": "stepfilled", "alpha": 0.25} if group == "edits" else {"histtype": "step"}
        axes[0][0].hist(told["scores"], bins=edges, weights=weights, color=colours[group], label=label, lw=1.6, **style)
    for threshold in found["thresholds"]:
        axes[0][0].axvline(threshold, color=INK, lw=1, ls="--")
    axes[0][0].legend(fontsize=8, facecolor="white", edgecolor="none", framealpha=0.9)
    score = SCORES.get(found["memory"].partition(".")[0], "score")
    _axes(axes[0][0], "what the memory decides by (dashed: thresholds)", score, "share of the prompts")
    if spread:
        counts = spread["histogram"]
        axes[0][1].bar(range(len(counts)), counts, width=1.0, color=COLOURS[0], alpha=0.7)
        axes[0][1].axvline(spread["uses"]["mean"], color=INK, lw=1, ls="--")
        title = f"edits a column (sd {spread['uses']['sd']:.1f}; by chance {spread['uses']['sd_by_chance']:.1f})"
        _axes(axes[0][1], title, f"masks that hold it, of {spread['edits']}", "columns")
    return _finished(figure, findings, f"routing of {found['edits']} edits by {found['method']}")


# -- all ---------------------------------------------------------------------------------------------------------------


def _axes(axis: Any, title: str, x: str, y: str) -> None:
    axis.set_title(title, fontsize=10.5, loc="left", pad=8)
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    axis.grid(axis="y", color=FAINT, lw=0.7)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(length=0, colors=SOFT)


def _finished(figure: Any, findings: Findings, what: str) -> Any:
    of = [findings.settings[name] for name in ("facts", "data", "model") if findings.settings.get(name)]
    figure.suptitle(f"{what}: {' on '.join(of)}" if of else what, fontsize=11.5)
    figure.tight_layout()
    return figure


FIGURES: Mapping[str, Callable[[Any, Findings], Any]] = {
    "superposition": _superposition, "tracing": _tracing, "overlap": _overlap, "routing": _routing,
}  # fmt: skip
