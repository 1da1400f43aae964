"""Text generation with GPT-2's own head, and the other heads' answers after each token.

One pass over the text so far serves all heads. Attention only looks back, so a head's answer after
a token is its answer for the text that ends there. T tokens, K outputs of a head.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gpt2_from_scratch.classifier.classifier import Classifier, in_mode, refuse_infinite
from gpt2_from_scratch.classifier.tasks import TASKS
from gpt2_from_scratch.errors import UsageError
from gpt2_from_scratch.gpt2.generate import choose_tokens
from gpt2_from_scratch.speed.feature_cache import Embedded
from gpt2_from_scratch.storage.mapped import hold


@dataclass(frozen=True)
class GeneratedText:
    """A text with its prompt, and the heads' outputs and answers after each of its T tokens.

    A head with one answer per text answers for the text so far. A head that tags words gives a
    Choice for the token. Heads for spans and language have outputs but no answers.
    """

    text: str
    tokens: list[str]  # T; an incomplete character is shown as U+FFFD
    n_prompt: int  # the number of tokens in the prompt
    outputs: dict[str, Tensor]  # {head's name: (T, K)}, for all heads except the one that generates
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
) -> GeneratedText:
    """Continue a text, and return all heads' answers after each token.

    The text is continued as in `generate`, until <|endoftext|> or for `max_new_tokens` tokens.

    Args:
        classifier: A classifier with a head for `language`; the first one generates.
        prompt: The text to continue.
        max_new_tokens: The largest number of tokens to add.
        temperature: 0 takes the most probable token; higher values draw more varied ones.
        top_k: Draw only from the k most probable tokens.
        seed: Random seed of the draws.

    Raises:
        UsageError: No head generates, the classifier has n-grams, the text could become longer than
            the classifier can read, or `generate` refuses a setting.
        CheckpointError: Outputs are not finite.
    """
    heads, tokenizer = classifier.description.heads, classifier.tokenizer
    own = next((head for head in heads if TASKS[head.task].predicts_tokens), None)
    if own is None:
        raise UsageError(
            "this classifier has no head that generates; add HeadConfig(name='next', "
            "task='language'), GPT-2's own"
        )
    classifier.refuse_ngrams("answers after each token")
    hold(classifier.model)  # streamed blocks: all are needed for each token
    ids = torch.tensor(tokenizer.encode(prompt), dtype=torch.int64)
    longest, n_prompt = classifier.description.max_tokens, len(ids)
    if n_prompt + max_new_tokens > longest:
        raise UsageError(
            f"{n_prompt} prompt tokens and {max_new_tokens} new ones exceed the limit of {longest}"
        )
    rows: list[dict[str, Tensor]] = []  # one per token

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
        stop_id=tokenizer.end_of_text_id,
        seed=seed,
    )
    next_logits(ids)  # for the other heads' outputs after the last token
    others = [head for head in heads if head != own]
    outputs = {head.name: torch.stack([row[head.name] for row in rows]) for head in others}
    answers = {
        head.name: TASKS[head.task].answers_by_token(head, outputs[head.name], tokenizer)
        for head in others
    }
    return GeneratedText(
        tokenizer.decode(ids.tolist()),
        [tokenizer.decode([token]) for token in ids.tolist()],
        n_prompt,
        outputs,
        {name: list(found) for name, found in answers.items() if found is not None},
    )


def _outputs_after(classifier: Classifier, ids: Tensor) -> dict[str, Tensor]:
    """Each head's outputs after the last token: ids (T,) -> {name: (K,)}, on the CPU."""
    pad_id, pad_to = classifier.tokenizer.end_of_text_id, classifier.description.pad_to
    text = Embedded(classifier.model, [ids.tolist()], pad_id, pad_to)
    with in_mode(classifier.model, training=False):
        outputs, lengths = classifier.batch_outputs(text, [0])
    for head in classifier.description.heads:
        refuse_infinite(head, outputs[head.name], lengths)
    return {
        head.name: outputs[head.name][0 if head.reads_one_state else (0, len(ids) - 1)].cpu()
        for head in classifier.description.heads
    }
