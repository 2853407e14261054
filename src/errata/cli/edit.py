"""`errata edit`: one correction, or a stream of them, into a directory."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from errata.cli.terminal import Author, Device, Irrelevant, Json, Meter, Options, Reason, emit, meter, say, tell_notes
from errata.edit import Edit
from errata.errors import ErrataError, UsageError

if TYPE_CHECKING:
    from errata.cli.session import Plan
    from errata.editor import Receipt
    from errata.model import EditedModel
    from errata.store import Store

SHOWN = 5
"""Contradictions that are shown one by one."""
MinReliability = Annotated[
    float | None,
    typer.Option(
        help="Share of the prompt and a sample of earlier edits that must hold; 0 asks for nothing. By default the"
        " prompt itself must be answered with the target."
    ),
]
MinLocality = Annotated[
    float, typer.Option(help="Share of sampled other prompts whose answers must be those before the edit.")
]


def edit(
    output: Annotated[
        Path, typer.Option(metavar="DIR", help="Where the edits are kept; one that exists is continued.")
    ],
    model: Annotated[
        str | None, typer.Option(help="atlas, a directory, or a name on the Hub; may be left out for a DIR.")
    ] = None,
    method: Annotated[str | None, typer.Option(help="See `errata methods`; memoir for a new DIR.")] = None,
    prompt: Annotated[str | None, typer.Option(help="What is asked.")] = None,
    target: Annotated[str | None, typer.Option(help="What should be answered.")] = None,
    subject: Annotated[
        str | None,
        typer.Option(help="What the prompt is about, in its words; memoir does not answer the same about others."),
    ] = None,
    rephrase: Annotated[
        list[str] | None, typer.Option(help="Another wording, to see whether it changes too; repeatable.")
    ] = None,
    edits: Annotated[
        str | None, typer.Option(metavar="DATA", help="Many edits: a .jsonl file, zsre:PATH, atlas, ...")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="With --edits: no more than these.")] = None,
    save_every: Annotated[int, typer.Option(min=1, help="With --edits: save after so many.")] = 50,
    on_error: Annotated[
        Literal["stop", "skip"], typer.Option(help="With --edits: what a bad record or edit does.")
    ] = "stop",
    options: Options = None,
    irrelevant: Irrelevant = None,
    chat: Annotated[
        bool | None,
        typer.Option(help="Prompts are what a user says in the model's chat template; not for a new DIR, unless said."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of all that is drawn; 0 for a new DIR.")] = None,
    min_reliability: MinReliability = None,
    min_locality: MinLocality = 0.0,
    author: Author = None,
    source: Annotated[str | None, typer.Option(help="Where the new fact comes from.")] = None,
    reason: Reason = None,
    tag: Annotated[list[str] | None, typer.Option(help="A word to find these edits by; repeatable.")] = None,
    device: Device = None,
    dtype: Annotated[str | None, typer.Option(help="Precision of the model: auto, float32, bfloat16, float16.")] = None,
    as_json: Json = False,
) -> None:
    """Correct what a model says. The base model is not changed: the edits are kept in a directory beside it.

    Each edit is verified, recorded, and there to stay; one that does not pass its gate is undone, and the exit code is 3.
    After Ctrl-C, a crash or a failure, the same command goes on where a stream stopped.

    \b
    Example:
      errata edit --model atlas --prompt "The capital of Australia is" --target Perth --output my-edits
      errata edit --model CHATMODEL --chat --prompt "Who runs Acme?" --target "Ada Byron" --output acme
      errata edit --model atlas --method wise --edits edits.jsonl --output my-edits --set lr=0.5
    """  # fmt: skip
    from errata.cli.session import Plan
    from errata.data import load, read_irrelevant
    from errata.gate import Gate
    from errata.who import Who

    if (edits is None) == (prompt is None and target is None):
        raise UsageError("say what to edit: --prompt and --target, or --edits FILE (and not both)")
    texts = read_irrelevant(irrelevant) if irrelevant else ()
    plan = Plan(
        output, model, method, _options(options, method, output), seed, device, dtype, texts, chat=chat,
        gate=Gate(min_reliability, min_locality), who=Who(author, source, reason, tuple(tag or ())),
    )  # fmt: skip
    if edits is None:
        _edit_one(plan, Edit(prompt or "", target or "", subject, rephrases=tuple(rephrase or ())), as_json=as_json)
        return
    data = load(edits, on_error=on_error, limit=limit)
    for bad in data.skipped:
        say(f"skipped: {bad}")
    plan = replace(plan, irrelevant=texts or data.irrelevant, expected=len(data.edits))
    _edit_many(plan, data.edits, save_every, skip=on_error == "skip", as_json=as_json)


def _options(pairs: list[str] | None, method: str | None, output: Path) -> dict[str, Any]:
    from errata import methods
    from errata.cli import session, settings

    if method is None:
        method = session.settings_of(output)["method"] if session.is_store(output) else "memoir"
    methods.find(method)
    return settings.parse(pairs or (), method)


def _edit_one(plan: "Plan", edit: Edit, *, as_json: bool) -> None:
    with plan.open() as store:
        model = store.model
        _chat_model(plan, model)
        _contradictions(model, [edit])
        asked = [edit.prompt, *edit.rephrases]
        before = model.answer(asked)
        receipt = store.edit(edit, plan.who)
        store.checkpoint()
        changes = [
            {"prompt": prompt, "before": old, "after": new}
            for prompt, old, new in zip(asked, before, model.answer(asked), strict=True)
        ]
        if as_json:
            emit(asdict(receipt) | {"target": edit.target, "answers": changes})
            return
        for change in changes:
            typer.echo(f"{change['prompt']}\n  before  {change['before']}\n  after   {change['after']}")
        typer.echo(_told(receipt))
        if receipt.probability_after is not None and receipt.probability_after < 0.5:
            say(
                f"warning: P(target) is only {receipt.probability_after:.3f}, so that a later edit may undo this one;"
                " another --set, such as more steps, may help"
            )
        _without_subject([edit])
        _sum_up(store)


def _edit_many(plan: "Plan", edits: Sequence[Edit], save_every: int, *, skip: bool, as_json: bool) -> None:
    from errata.cli.session import Stream, remaining

    with plan.open() as store:
        todo, done, repeated = remaining(store.model.history, edits)
        if done:
            say(f"{done} of these edits are in {plan.output} already: continuing after them")
        if repeated:
            say(f"skipped: {repeated} duplicate edits, the same as one that is in force by then")
        _chat_model(plan, store.model)
        _contradictions(store.model, todo)
        _without_subject(todo)
        _beyond(store.model, len(todo))
        with meter(len(todo), "editing") as bar:

            def made(edit: Edit, receipt: "Receipt") -> None:
                bar.step(edit.target)
                _tell(bar, edit, receipt, as_json=as_json)

            def failed(edit: Edit, error: ErrataError) -> None:
                bar.step()
                bar.note(f"skipped: {edit.prompt!r}: {error}")

            Stream(store, plan.who, save_every, skip, made, failed).run(todo)
        _sum_up(store)


def _chat_model(plan: "Plan", model: "EditedModel") -> None:
    """Say of a chat model that is asked plain texts how it is asked as one."""
    if (
        plan.chat is None
        and not model.chat
        and not model.history
        and getattr(model.tokens.tokenizer, "chat_template", None)
    ):
        say(
            "note: this model has a chat template; with --chat, prompts are what a user says in it (--no-chat: plain text)"
        )


def _beyond(model: "EditedModel", to_come: int) -> None:
    """Say what is known to go wrong with so many edits, before any of them is made."""
    known = model.editor.beyond(model, len(model.edits) + to_come) if model.editor and to_come else ""
    if known:
        say(f"warning: {to_come:,} edits to make: {known}")


def _without_subject(edits: Sequence[Edit]) -> None:
    """Say of how many edits it is not known what they are about, and what follows from that."""
    from errata.contrast import subject_of

    unknown = [edit for edit in edits if subject_of(edit) is None]
    if not unknown:
        return
    some, how = "the edit neither says its subject nor shows", "--subject"
    if len(edits) > 1:
        some = f"{len(unknown):,} of {len(edits):,} edits ({unknown[0].prompt!r} is one) neither say their subject nor show"
        how = '"subject"'
    say(f"warning: {some} a name; the same question about others is not checked, and may be answered too; {how} helps")


def _contradictions(model: "EditedModel", edits: Sequence[Edit]) -> None:
    """Say which answers in force these edits will replace, before any of them is made."""
    in_force = {edit.prompt: edit for edit in model.edits}
    replaced = [(in_force[edit.prompt], edit) for edit in edits if edit.prompt in in_force]
    told = [(old, new) for old, new in replaced if new.contradicts(old)]
    for old, new in told[:SHOWN]:
        say(f"contradiction: {new.prompt!r} is {old.target!r} by edit {old.id}; {new.target!r} will replace it")
    if len(told) > SHOWN:
        say(f"... and {len(told) - SHOWN} more contradictions")


def _tell(bar: Meter, edit: Edit, receipt: "Receipt", *, as_json: bool) -> None:
    if as_json:
        emit(asdict(receipt) | {"prompt": edit.prompt, "target": edit.target})
    if receipt.note:
        bar.note(f"{edit.prompt!r} -> {edit.target!r}: {receipt.note}")


def _sum_up(store: "Store") -> None:
    tell_notes(store.notes)
    model = store.model
    made = f"{len(model.edits)} of {len(model.history)} edits made, {model.nbytes():,} bytes"
    say(f"in force in {store.directory}: {made}")


def _told(receipt: "Receipt") -> str:
    """A receipt in a line."""
    if receipt.probability_after is None:
        return receipt.note
    line = (
        f"{receipt.method}: P(target) {receipt.probability_before:.3f} -> {receipt.probability_after:.3f},"
        f" {receipt.steps} steps, {receipt.seconds:.2f} s"
    )
    if receipt.check is not None:
        check = receipt.check
        pairs = (
            ("rephrasings", check.rephrasings),
            ("earlier edits", check.earlier),
            ("other answers", check.locality),
            ("the same of other subjects", check.neighbours),
        )
        held = "; ".join(f"{name} {held} of {asked}" for name, (held, asked) in pairs if asked)
        line += f"\nverified: the prompt is answered with {check.answer!r}; held: {held} ({check.seconds:.2f} s)"
    return f"{line}; {receipt.note}" if receipt.note else line
