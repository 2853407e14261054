"""Ability: what a model can do besides what was edited, measured by lm-eval on the model in memory, offline.

lm-eval (the extra `eval`) runs tasks that lie in local files; none is downloaded. Two are made from the atlas.
"""

from errata.ability.harness import evaluate
from errata.ability.scorer import Scorer
from errata.ability.tasks import write_tasks

__all__ = ["Scorer", "evaluate", "write_tasks"]
