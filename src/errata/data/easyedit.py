"""The field names of EasyEdit and KnowEdit (Zhang et al., 2024, arXiv 2401.01286), as users have them in files.

    {"prompt", "target_new", "subject"?, "ground_truth"?, "rephrase_prompt"?, "locality_prompt"?,
     "locality_ground_truth"?, "locality"?: {NAME: {"prompt", "ground_truth"}}, "portability"?: the same}

Each value may be a text or a list of texts; the plural names of EasyEdit's Python call are understood as well, and so
is a whole file of such lists, one per field.
"""

from errata.data.record import Record
from errata.edit import Edit, Probe

PROMPT = ("prompt", "prompts")
REPHRASE = ("rephrase_prompt", "rephrase_prompts", "rephrase")
LOCALITY = ("locality", "locality_inputs")
PORTABILITY = ("portability", "portability_inputs")
FLAT = ("subject", "target_new", "ground_truth", "locality_prompt", "locality_ground_truth")
USED = (*PROMPT, *REPHRASE, *LOCALITY, *PORTABILITY, *FLAT)
LOCALITY_KINDS = {"Relation_Specificity": "same_subject", "Forgetfulness": "same_relation"}
"""KnowEdit's names, in our words: other relations of the subject; other answers of the same relation."""


def parse(record: Record, locality_kind: str | None = None) -> Edit:
    """The edit of one row; `locality_kind` is what its `locality_prompt` shares with it. Raises `BadRecord`."""
    flat = record.probes("locality_prompt", "locality_ground_truth", locality_kind)
    return record.edit(
        prompt=record.first(record.pick(*PROMPT)),
        target=record.first("target_new"),
        subject=record.first_or_none("subject"),
        target_old=record.first_or_none("ground_truth"),
        rephrases=record.texts(record.pick(*REPHRASE)),
        locality=flat + _named(record, record.pick(*LOCALITY), locality=True),
        portability=_named(record, record.pick(*PORTABILITY), locality=False),
        meta=record.rest(*USED),
    )


def _named(record: Record, name: str, *, locality: bool) -> tuple[Probe, ...]:
    """The probes of `{NAME: {"prompt", "ground_truth"} or a list of such objects}`, in the file's order."""
    return tuple(
        probe
        for group in record.objects(name)
        for kind in group.fields
        for item in group.objects(kind)
        for probe in item.probes("prompt", "ground_truth", LOCALITY_KINDS.get(kind) if locality else kind)
    )
