"""A text continued by GPT-2's own head, and what the other heads say after each of its tokens.

One pass over the text so far serves all heads. Attention looks back only, so what a head says there
is what it would say if the text ended there. T tokens, K outputs of a head.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from gpt2_from_scratch.classifier.classifier import Classifier
from gpt2_from_scratch.classifier.settings import HeadConfig
from gpt2_from_scratch.classifier.tasks.predictions import answers
from gpt2_from_scratch.errors import UsageError
from gpt2_from_scratch.gpt2.generate import choose_tokens
from gpt2_from_scratch.speed.feature_cache import Embedded


@dataclass(frozen=True)
class Told:
    """A text, the prompt in front, and what heads say after each of its T tokens.

    `answers` are those of `predictions.py`: of a head with one answer a text, the answer if the
    text ended there; of one that tags words, a Choice for the token itself. Heads for spans and
    language have outputs only.
    """

    text: str
    tokens: list[str]  # T; half of a character is shown as U+FFFD
    n_prompt: int  # how many of them were given
    outputs: dict[str, Tensor]  # {head's name: (T, K)}, of all heads but the one that generates
    answers: dict[str, list[Any]]  # {head's name: T answers}


@torch.no_grad()
def generate_with_heads(
    classifier: Classifier,
    prompt: str,
    max_new_tokens: int,
    *,
    temperature: float = 0.0,
    top_k: int | None = None,
    seed: int = 123,
) -> Told:
    """Continue a text as `generate` does, up to <|endoftext|>, and let every head speak after each token.

    The first head for `language` generates. Raises UsageError where there is none, where the text
    could grow beyond what the classifier reads, and for the settings that `generate` refuses.
    """
    own = _language_head(classifier)
    ids = torch.tensor(classifier.tokenizer.encode(prompt), dtype=torch.int64)
    longest, n_prompt = classifier.description.max_tokens, len(ids)
    if n_prompt + max_new_tokens > longest:
        raise UsageError(
            f"{n_prompt} tokens and {max_new_tokens} new ones: this classifier reads {longest}"
        )
    classifier.model.eval()
    rows: list[dict[str, Tensor]] = []  # of each token

    def next_logits(ids: Tensor) -> Tensor:
        rows.append(_outputs_after(classifier, ids))
        return rows[-1].pop(own.name)  # (V,)

    for t in range(1, n_prompt):
        next_logits(ids[:t])
    ids = choose_tokens(
        next_logits,
        ids,
        max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        stop_id=classifier.tokenizer.end_of_text_id,
        seed=seed,
    )
    next_logits(ids)  # what the heads say of the last one
    return _told(classifier, own, ids.tolist(), n_prompt, rows)


def _language_head(classifier: Classifier) -> HeadConfig:
    for head in classifier.description.heads:
        if head.task == "language":
            return head
    raise UsageError(
        "no head of this classifier generates: give it GPT-2's own too, "
        "HeadConfig(name='next', task='language')"
    )


def _outputs_after(classifier: Classifier, ids: Tensor) -> dict[str, Tensor]:
    """What each head says behind the last token: ids (T,) -> {name: (K,)}, on the CPU."""
    pad_id, pad_to = classifier.tokenizer.end_of_text_id, classifier.description.pad_to
    text = Embedded(classifier.model, [ids.tolist()], pad_id, pad_to)
    outputs, _ = classifier.batch_outputs(text, [0])
    return {
        head.name: outputs[head.name][0 if head.reads_one_state else (0, len(ids) - 1)].cpu()
        for head in classifier.description.heads
    }


def _told(
    classifier: Classifier,
    own: HeadConfig,
    ids: list[int],
    n_prompt: int,
    rows: list[dict[str, Tensor]],
) -> Told:
    decode = classifier.tokenizer.decode
    others = [head for head in classifier.description.heads if head != own]
    outputs = {head.name: torch.stack([row[head.name] for row in rows]) for head in others}
    told = {h.name: _answers(classifier, h, outputs[h.name]) for h in others if _answers_a_token(h)}
    return Told(decode(ids), [decode([token]) for token in ids], n_prompt, outputs, told)


def _answers_a_token(head: HeadConfig) -> bool:
    return head.reads_one_state or head.task == "token-classification"


def _answers(classifier: Classifier, head: HeadConfig, outputs: Tensor) -> list[Any]:
    """Outputs (T, K) -> T answers."""
    if not head.reads_one_state:  # the tag of a token is a class
        head = replace(head, task="classification")
    T = len(outputs)  # these answers do not look at the text
    return [*answers(head, outputs, [""] * T, [[]] * T, classifier.tokenizer)]
