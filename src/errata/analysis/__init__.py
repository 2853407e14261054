"""Analyses of a model and of its edits, each of them numbers first and a picture of these numbers second.

    superposition   do the keys of unrelated facts interfere?            Knowledge in Superposition, arXiv 2408.07413
    interference    ... and does a real stream of edits lose just that?
    tracing         which layers hold a fact                             causal tracing, ROME, arXiv 2202.05262
    overlap         what random subspaces share                          WISE, theorem 2.1, arXiv 2405.14768
    separation      which prompts a threshold lets through               WISE, figure 3; MEMOIR, arXiv 2506.07899
    columns         how edits spread over MEMOIR's residual memory

`findings` is what each of them is kept as, `figures` draws it. `errata analyse` is their command line.
"""
