"""The same GPT-2 with weights as before pretraining: what is pretraining worth?"""

import shutil
from pathlib import Path

import torch

from gpt2_from_scratch.config import read_config
from gpt2_from_scratch.model import GPT2, init_weights
from gpt2_from_scratch.paths import model_folder
from gpt2_from_scratch.weights import save_gpt2

TOKENIZER_FILES = ("vocab.bpe", "encoder.json", "merges.txt", "vocab.json")


def random_twin(model: str | Path, folder: Path, seed: int) -> Path:
    """Write a model of the same sizes and tokenizer, its weights drawn with `seed`, to `folder`."""
    source = model_folder(model)
    twin = GPT2(read_config(source))
    init_weights(twin, torch.Generator().manual_seed(seed))
    save_gpt2(twin, folder)
    copy_tokenizer(source, folder)
    return folder


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Copy the files of a model's tokenizer, whichever of them it has."""
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
