"""CounterFact (Meng et al., 2022, "Locating and Editing Factual Associations in GPT", arXiv 2202.05262).

Both forms in use: ROME's own, with `requested_rewrite`, and the flat one with EasyEdit's field names. The neighbours
of a fact have its relation and its true answer, with another subject.
"""

from errata.data import easyedit
from errata.data.record import Record
from errata.edit import Edit, Probe

USED = ("requested_rewrite", "paraphrase_prompts", "neighborhood_prompts")


def parse(record: Record) -> Edit:
    """The edit of one row, in either form. Raises `BadRecord`."""
    if "requested_rewrite" in record.fields:
        return _rome(record)
    return easyedit.parse(record, locality_kind="same_relation")


def _rome(record: Record) -> Edit:
    rewrites = record.objects("requested_rewrite")
    if len(rewrites) != 1:
        raise record.bad("requested_rewrite", f"holds {len(rewrites)} rewrites where one is expected")
    rewrite = rewrites[0]
    subject = rewrite.first("subject")
    true = _answer(rewrite, "target_true")
    return record.edit(
        prompt=rewrite.first("prompt").replace("{}", subject),
        target=_answer(rewrite, "target_new"),
        subject=subject,
        target_old=true,
        rephrases=record.texts("paraphrase_prompts"),
        locality=tuple(Probe(prompt, true, "same_relation") for prompt in record.texts("neighborhood_prompts")),
        meta={**record.rest(*USED), **rewrite.rest("prompt", "subject", "target_new", "target_true")},
    )


def _answer(rewrite: Record, name: str) -> str:
    """The text of `{"str": "English", "id": "Q1860"}`."""
    answers = rewrite.objects(name)
    if not answers:
        raise rewrite.bad(name, "is missing")
    return answers[0].first("str")
