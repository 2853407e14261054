"""Readers that turn data files into `Edit`: `load("zsre:PATH")`. Nothing here downloads anything or imports torch.

One file per format: `zsre`, `counterfact`, `hallucination`, `temporal`, `easyedit`, `jsonl` (our own, with a published
JSON Schema).
"""

from errata.data.catalogue import load, read_irrelevant
from errata.data.dataset import Dataset

__all__ = ["Dataset", "load", "read_irrelevant"]
