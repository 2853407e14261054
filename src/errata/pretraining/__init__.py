"""Pretraining: how a small Llama-architecture model is made from nothing. The atlas and the testbeds are made by it.

`tokenizer` learns a vocabulary, `llama` builds the model, `batches` pads texts, `muon` and `fitting` are the optimizers
and their steps, `recall` measures how many facts it says.
"""
