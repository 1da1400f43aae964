"""Which numbers these are: hashes of weights, so that nothing is used with what it was not made for."""

import hashlib

from gpt2_from_scratch.model import GPT2
from gpt2_from_scratch.tensor_file import tensors_sha256
from gpt2_from_scratch.tokenizer import Tokenizer


def base_sha256(model: GPT2, tokenizer: Tokenizer) -> str:
    """Identity of a base model: its weights and what its token ids mean."""
    return hashlib.sha256(f"{weights_sha256(model)} {tokenizer.sha256}".encode()).hexdigest()


def weights_sha256(model: GPT2) -> str:
    """Identity of a language model's weights: the same from OpenAI's files and from Hugging Face's.

    The head is left out.
    """
    return tensors_sha256({n: p for n, p in model.named_parameters() if not n.startswith("head.")})
