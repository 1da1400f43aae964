"""What each layer would answer if the network ended there.

A block adds to the residual stream, so the state after any block can be given to the final norm and
the head, which were trained for the state after the last one. Layer 0 is the embeddings, and layer n
the stream after n blocks.

Shapes: T tokens of a text, C = n_embd, L blocks, V = n_vocab, K labels.

Source: nostalgebraist 2020, "interpreting GPT: the logit lens".
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2_from_scratch.classifier.classifier import Classifier, in_mode
from gpt2_from_scratch.classifier.heads import layer_read, layers_by_name, outputs_from
from gpt2_from_scratch.classifier.tasks import TASKS
from gpt2_from_scratch.classifier.tasks.task import Batch
from gpt2_from_scratch.errors import UsageError
from gpt2_from_scratch.explain.attribution import read, refuse_changes, tokens_of
from gpt2_from_scratch.explain.tokens import Question
from gpt2_from_scratch.gpt2.model import GPT2
from gpt2_from_scratch.gpt2.tokenizer import Tokenizer

LENS_TASKS = ("classification", "multi-label")  # tasks with a probability per label


@dataclass(frozen=True)
class AnswerByLayer:
    """The probabilities of a classifier's labels if its head read an earlier layer."""

    tokens: list[str]
    labels: tuple[str, ...]
    probabilities: np.ndarray  # (L + 1, K), where the head reads; the last row is the answer
    by_token: np.ndarray  # (L + 1, T, K), read at each token


@dataclass(frozen=True)
class NextTokens:
    """The most probable next tokens after each token of a text, read at each layer."""

    tokens: list[str]
    ids: np.ndarray  # (L + 1, T, k), the most probable first
    probabilities: np.ndarray  # (L + 1, T, k)
    predicted: np.ndarray  # (L + 1, T, k), the tokens as text


@torch.no_grad()
def answer_by_layer(classifier: Classifier, text: str, *, head: str = "") -> AnswerByLayer:
    """Answer a text with the state after each block: the classifier's own logit lens.

    The trained head and the final norm are given each layer's states instead of those of the layer
    that they were trained on. A layer with another answer may still contain all the information, in
    another form: a probe trained at that layer can find it (`probe_layers`). So this shows when the
    answer appears in the form that the head reads, not when the network knows it.

    In `by_token` the head reads every token, although it was trained at the positions of its pooling
    only. Blocks are computed in float32, whatever `dtype` the classifier uses.

    Args:
        classifier: A classifier with a head for classification or multi-label classification.
        text: The text.
        head: The name of the head; by default the first.

    Raises:
        UsageError: The head has no probabilities per label; a part of the model was replaced; the
            classifier has n-grams or no causal mask.
    """
    config = Question.of(classifier, text, head=head).head
    model, (ids, lengths) = classifier.model, read(classifier, text)
    if config.task not in LENS_TASKS:
        raise UsageError(
            f"head {config.name!r} is for {config.task}; answers by layer are for "
            f"{' and '.join(LENS_TASKS)}"
        )
    alone = torch.ones_like(ids[0])  # each token as a text of its own, of one position

    def probabilities(n: int, x: Tensor, lengths: Tensor) -> list[list[float]]:
        """Read states x (B, T, C) at layer n: (B, K)."""
        heads = [replace(h, layer=n) for h in classifier.description.heads]
        outputs = outputs_from(model, heads, n, x, lengths)[config.name]
        batch = Batch([text] * len(x), [ids[0].tolist()] * len(x), classifier.tokenizer)
        answers: Sequence[Any] = TASKS[config.task].answers(config, outputs, batch)
        return [[*answer.probabilities.values()] for answer in answers]

    read_there, at_each = [], []
    for n, x in enumerate(_layers(model, ids, layer_read(config, model))):
        with in_mode(model, training=False):
            read_there.append(probabilities(n, x, lengths)[0])
            at_each.append(probabilities(n, x[0][:, None], alone))
    return AnswerByLayer(
        tokens_of(classifier, ids), config.labels, np.array(read_there), np.array(at_each)
    )


@torch.no_grad()
def next_tokens(
    model: GPT2,
    tokenizer: Tokenizer,
    text: str,
    *,
    top: int = 5,
    lenses: Mapping[int, nn.Module] | None = None,
) -> NextTokens:
    """Predict the next token after each token of a text, from each layer: GPT-2's logit lens.

    GPT-2's own head shares its weight with `wte`, so it is still there after a classifier's head has
    replaced it: `next_tokens(classifier.model, classifier.tokenizer, text)` shows what finetuning has
    done to it. The final norm is the model's own, which finetuning usually trains as well.

    Early layers do not use the same coordinates as the last one, so the lens can show nonsense there
    although the state predicts the next token well. A tuned lens, which learns a map for each layer,
    is less biased (Belrose et al. 2023, "Eliciting Latent Predictions from Transformers with the
    Tuned Lens").

    Args:
        model: A GPT-2 with any head.
        tokenizer: Its tokenizer.
        text: The text, of 1 to n_ctx tokens.
        top: The number of tokens k that are returned.
        lenses: {layer: a module that computes logits (T, V) from the residual stream (T, C)}, for
            example `tuned_lenses`. The other layers have the logit lens.

    Raises:
        UsageError: `top` is not from 1 to n_vocab, a layer does not exist, or a part of the model
            was replaced.
        DataError: The text has no tokens, or more than n_ctx.
    """
    if not 1 <= top <= model.config.n_vocab:
        raise UsageError(f"top = {top} must be from 1 to n_vocab = {model.config.n_vocab}")
    lenses = lenses or {}
    if others := sorted(lenses.keys() - {*range(len(model.blocks) + 1)}):
        raise UsageError(f"there is a lens for layer {others[0]} of 0 to {len(model.blocks)}")
    encoded = tokenizer.encode(text)
    ids = torch.tensor([encoded], dtype=torch.int64, device=model.wte.weight.device)
    found: list[Tensor] = []
    best: list[Tensor] = []
    for n, x in enumerate(_layers(model, ids, len(model.blocks))):
        if n in lenses:
            with in_mode(lenses[n], training=False):
                logits = lenses[n](x[0])  # (T, V)
        else:
            logits = F.linear(model.ln_f(x[0]), model.wte.weight)
        values, numbers = logits.softmax(dim=1).topk(top, dim=1)
        found.append(values)
        best.append(numbers)
    numbers_found = torch.stack(best).cpu().numpy()
    names = {n: tokenizer.decode([n]) for n in set(numbers_found.flatten().tolist())}
    return NextTokens(
        [tokenizer.decode([n]) for n in encoded],
        numbers_found,
        torch.stack(found).cpu().numpy(),
        np.vectorize(names.__getitem__, otypes=[object])(numbers_found),
    )


def tuned_lenses(classifier: Classifier) -> dict[int, nn.Module]:
    """Return the tuned lenses among a classifier's heads, by the layer that each reads."""
    heads = classifier.description.heads
    layers = layers_by_name(classifier.model, heads)
    return {
        layer_read(head, classifier.model): layers[head.name]
        for head in heads
        if head.form == "tuned lens"
    }


def _layers(model: GPT2, ids: Tensor, top: int) -> list[Tensor]:
    """Return the residual stream after 0 to `top` blocks: ids (1, T) -> (1, T, C) each."""
    refuse_changes(model, top)
    blocks: list[Any] = [*model.blocks[:top]]
    layers = [model.embed(ids)]
    with in_mode(model, training=False):
        for block in blocks:
            layers.append(block(layers[-1]))
    return layers
