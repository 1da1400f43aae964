"""Which numbers these are: hashes of weights, so that nothing is used with what it was not made for."""

import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

from torch import Tensor

from gpt2_from_scratch.model import GPT2
from gpt2_from_scratch.tokenizer import Tokenizer


def base_sha256(model: GPT2, tokenizer: Tokenizer) -> str:
    """Identity of a base model: its weights and what its token ids mean."""
    return hashlib.sha256(f"{weights_sha256(model)} {tokenizer.sha256}".encode()).hexdigest()


def weights_sha256(model: GPT2) -> str:
    """Identity of a language model's weights: the same from OpenAI's files and from Hugging Face's.

    The head is left out.
    """
    return tensors_sha256({n: p for n, p in model.named_parameters() if not n.startswith("head.")})


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over each tensor's name, shape and SHA-256 of its float32 numbers, in order of names."""
    names = sorted(tensors)
    with ThreadPoolExecutor(4) as threads:  # hashing lets other threads run
        hashes = threads.map(_sha256, (tensors[name] for name in names))
        lines = [
            f"{name} {tuple(tensors[name].shape)} {digest}\n"
            for name, digest in zip(names, hashes, strict=True)
        ]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _sha256(tensor: Tensor) -> str:
    numbers = tensor.detach().float().cpu().contiguous().numpy()
    return hashlib.sha256(numbers.data).hexdigest()
