"""Testbed: a small model that knows real facts, trained here, and what any model knows of them.

The rows of ZsRE and CounterFact correct facts. To score such corrections, a model must know what is corrected: `train`
makes one from nothing, as large as a budget allows, and `evaluate` measures it, or any other model.
"""

from errata.testbed.corpus import Corpus, read
from errata.testbed.evaluate import evaluate
from errata.testbed.facts import Fact
from errata.testbed.recipe import Budget, Recipe
from errata.testbed.training import train

__all__ = ["Budget", "Corpus", "Fact", "Recipe", "evaluate", "read", "train"]
