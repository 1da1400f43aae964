"""Hugging Face's GPT-2 with the weights of ours, as a witness for what happens inside."""

import re
from typing import Any

import torch

from gpt2_from_scratch.gpt2.model import GPT2
from gpt2_from_scratch.gpt2.weights import names_on_disk


def their_gpt2(ours: GPT2) -> Any:
    """Their GPT2Model without dropout, which can return its states and attention weights."""
    import transformers

    config = transformers.GPT2Config(
        vocab_size=ours.config.n_vocab,
        n_positions=ours.config.n_ctx,
        n_embd=ours.config.n_embd,
        n_head=ours.config.n_head,
        n_layer=ours.config.n_layer,
        attn_implementation="eager",  # the only one that returns attention weights
        output_hidden_states=True,
        output_attentions=True,
    )
    theirs = transformers.GPT2Model(config).eval()
    parameters = dict(theirs.named_parameters())
    with torch.no_grad():
        for name, (_, their_name, *_) in names_on_disk(ours.config).items():
            value = ours.get_parameter(name)
            transposed = re.search(r"c_(attn|proj|fc)\.weight", name)
            parameters.pop(their_name).copy_(value.T if transposed else value)
    assert not parameters
    return theirs
