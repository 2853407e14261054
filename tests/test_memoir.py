"""MEMOIR: that an edit answers by part of what it reads."""

import pytest

from errata.errors import BadOption
from errata.methods import make
from errata.residual_memory import ResidualMemory
from test_method_checks import memory_of, with_options
from tiny import EDITS


def when_read_by(share: float, faint: float) -> float:
    """P(target) of an edit whose memory is read by a share of its features, evenly."""
    model = with_options("memoir", tries=1, faint=faint)
    model.edit(EDITS[0])
    memory = memory_of(model, ResidualMemory)
    memory.put({"weight": share * memory.weight})
    return model.target_probability(model.rows([(EDITS[0].prompt, EDITS[0].target)]))[0]


def test_an_edit_that_learnt_from_faint_readings_holds_where_less_is_read() -> None:
    assert when_read_by(0.3, faint=0.5) > 1.15 * when_read_by(0.3, faint=1.0)
    assert when_read_by(1.0, faint=0.5) > 0.9 * when_read_by(1.0, faint=1.0)


@pytest.mark.parametrize("faint", [0.0, 1.5])
def test_a_share_is_asked_for(faint: float) -> None:
    with pytest.raises(BadOption, match=r"memoir: faint=.* a share, in \(0, 1\]"):
        make("memoir", faint=faint)
