"""What others published about OpenAI's 124M weights, to hold a loaded model against.

T tokens, K = num_classes. Source: S. Raschka, Build a Large Language Model (From Scratch), Manning
2024, chapter 6 (logits of a new head) and chapter 5 (a greedy continuation).
"""

import torch
from torch import Tensor

from gpt2_from_scratch.generation import generate
from gpt2_from_scratch.heads import replace_head
from gpt2_from_scratch.model import GPT2
from gpt2_from_scratch.tokenizer import Tokenizer

IDS = (5211, 345, 423, 640)  # "Do you have time"
SEED = 123  # set just before the new head is drawn
LOGITS = ((-1.5854, 0.9904), (-3.7235, 7.4548), (-2.2661, 6.6049), (-3.5983, 3.9902))
TOLERANCE = 5e-4
PROMPT = "Every effort moves you"
CONTINUATION = " forward.\n\nThe first step is to understand the importance of your work"


def logits_difference(model: GPT2) -> float:
    """How far the 124M model with a new head of two classes is from the book's logits, at most."""
    found = logits_of_new_head(model, torch.tensor(IDS), 2, SEED)
    return (found - torch.tensor(LOGITS)).abs().max().item()


def logits_of_new_head(model: GPT2, ids: Tensor, num_classes: int, seed: int) -> Tensor:
    """(T,) -> (T, num_classes), through a head drawn after `seed`; the model keeps its own head."""
    old = model.head
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        try:
            replace_head(model, num_classes)
            return model(ids[None])[0]
        finally:
            model.head = old


def greedy_continuation(model: GPT2, tokenizer: Tokenizer, prompt: str, tokens: int) -> str:
    """What follows `prompt` when the likeliest token is taken each time."""
    ids = torch.tensor(tokenizer.encode(prompt))
    return tokenizer.decode(generate(model, ids, tokens)[len(ids) :].tolist())
