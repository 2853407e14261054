"""Zero-shot relation extraction (ZsRE; Levy et al., 2017, arXiv 1706.04115) in the packaging of MEND and WISE.

`src` is the question, `alt` the new answer, `answers` the true ones, `pred` what an older model said. `loc` and
`loc_ans` are an unrelated question of Natural Questions. Each may be a text or a list of texts.
"""

from errata.data.record import Record
from errata.edit import Edit, Probe

USED = ("subject", "src", "alt", "answers", "rephrase", "loc", "loc_ans", "portability")


def parse(record: Record) -> Edit:
    """The edit of one row. Raises `BadRecord`."""
    return record.edit(
        prompt=record.first("src"),
        target=record.first("alt"),
        subject=record.first_or_none("subject"),
        target_old=record.first_or_none("answers"),
        rephrases=record.texts("rephrase"),
        locality=record.probes("loc", "loc_ans", kind="far"),
        portability=_portability(record),
        meta=record.rest(*USED),
    )


def _portability(record: Record) -> tuple[Probe, ...]:
    """The question that needs the edit and a second fact, which the data calls the recalled relation."""
    return tuple(
        Probe(item.first("New Question"), item.first_or_none("New Answer"), item.first_or_none("Recalled Relation"))
        for item in record.objects("portability")
    )
