"""Where each head looks, and what each part of GPT-2 adds to a logit.

A block adds to the residual stream: each of its attention heads adds a vector, and so does its MLP.
The state that a linear head reads is therefore a sum with one term per part, and so is each logit.

Shapes: T tokens of a text, C = n_embd, H = n_head, D = C / H, L blocks before the point that is read,
K outputs of the head.

Source: Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits".
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gpt2_from_scratch.classifier.classifier import Classifier, in_mode
from gpt2_from_scratch.classifier.freezing import changed_part, refuse_other_forward
from gpt2_from_scratch.classifier.heads import layer_read, layers_by_name, pool
from gpt2_from_scratch.classifier.settings import HeadConfig
from gpt2_from_scratch.classifier.tasks.classification import logit_per_class
from gpt2_from_scratch.errors import UsageError
from gpt2_from_scratch.explain.tokens import Question
from gpt2_from_scratch.gpt2.lora import LoRALinear
from gpt2_from_scratch.gpt2.model import GPT2, LAYER_NORM_EPS, CausalSelfAttention
from gpt2_from_scratch.speed.batching import pad_batch
from gpt2_from_scratch.storage.mapped import hold

LOGIT_TASKS = ("classification", "multi-label", "regression")  # one linear output per label


@dataclass(frozen=True)
class Attention:
    """How much each token attends to itself and to each earlier token, in each head."""

    tokens: list[str]
    weights: np.ndarray  # (L, H, T, T): block, head, the token that looks, the token it looks at


@dataclass(frozen=True)
class Contributions:
    """What each part adds to a logit, or to the difference between two logits.

    All parts together add up to `logit`, except for rounding.
    """

    tokens: list[str]
    label: str
    other: str  # the label whose logit is subtracted; empty: none is subtracted
    logit: float  # what the head computes from the final state
    token: float  # the embeddings of the tokens at the positions that the head reads
    position: float  # the embeddings of these positions
    heads: np.ndarray  # (L, H)
    mlps: np.ndarray  # (L,), with their biases
    biases: float  # of c_proj in the attention layers, of the final norm and of the head

    def by_part(self) -> dict[str, float]:
        """Return each part's contribution by name: token, position, head 0.0, mlp 0, ..., biases."""
        found = {"token": self.token, "position": self.position}
        for n, heads in enumerate(self.heads):
            found |= {f"head {n}.{h}": float(value) for h, value in enumerate(heads)}
            found[f"mlp {n}"] = float(self.mlps[n])
        return found | {"biases": self.biases}


# --- attention ---


def attend_by_hand(attn: CausalSelfAttention, x: Tensor) -> tuple[Tensor, Tensor]:
    """Compute attention in plain steps, and return what `attend` keeps to itself.

    Args:
        attn: The attention layer of a block.
        x: The normalised states that it reads, (T, C).

    Returns:
        The attention weights (H, T, T), and each head's weighted sum of values (H, T, D).
    """
    T, H = len(x), attn.n_head
    qkv: tuple[Tensor, ...] = attn.c_attn(x).chunk(3, dim=1)  # 3 x (T, C)
    q, k, v = (part.view(T, H, -1).transpose(0, 1) for part in qkv)  # (H, T, D)
    scores = q @ k.transpose(1, 2) / q.shape[2] ** 0.5  # (H, T, T)
    is_later = torch.ones(T, T, dtype=torch.bool, device=x.device).triu(diagonal=1)
    weights = scores.masked_fill(is_later, -torch.inf).softmax(dim=2)
    return weights, weights @ v


@torch.no_grad()
def attention_weights(model: GPT2, ids: Sequence[int]) -> np.ndarray:
    """Compute the attention weights of all blocks and heads for one text: (L, H, T, T).

    Raises UsageError if a part of the model was replaced, and DataError for ids that it does not
    have. LoRA adapters count, merged or not.
    """
    refuse_changes(model, len(model.blocks))
    with in_mode(model, training=False):
        blocks: list[Any] = [*model.blocks]
        x, found = model.embed(torch.tensor([[*ids]], device=model.wte.weight.device)), []
        for block in blocks:
            found.append(attend_by_hand(block.attn, block.ln_1(x)[0])[0])
            x = block(x)
    return torch.stack(found).cpu().numpy()


def attention(classifier: Classifier, text: str) -> Attention:
    """Compute the attention weights of all blocks and heads for a text as the classifier reads it.

    A weight says how much of a token's value is passed on. It does not say what the value is, nor
    whether the answer depends on it: other weights can give the same answer (Jain and Wallace 2019,
    "Attention is not Explanation"). After the first block, a position also holds what it has read
    from other tokens.

    Raises UsageError if a part of the model was replaced, or if it has no causal mask.
    """
    ids, _ = read(classifier, text)
    weights = attention_weights(classifier.model, ids[0].tolist())
    return Attention(tokens_of(classifier, ids), weights)


# --- contributions to a logit ---


@torch.no_grad()
def contributions(
    classifier: Classifier, text: str, label: str = "", other: str = "", *, head: str = ""
) -> Contributions:
    """Compute what each part of GPT-2 adds to a label's logit: direct logit attribution.

    The head is linear, so it can be applied to each term of the residual stream separately. The final
    norm in between is linear too, if its divisor (the standard deviation of the state) is taken as
    given. So the contributions add up to the logit exactly, except for rounding.

    They are direct effects only. A part that prepares something for a later part gets no credit for
    it, and the later part gets all of it. And if a part were removed, the divisor and all later parts
    would change, so the logit would not fall by that part's contribution.

    A head that reads the mean of several positions gets the mean of their contributions. The logit is
    the one before the head's temperature, and the one of a regression head is its output before it is
    multiplied by the scale. Blocks are computed in float32, whatever `dtype` the classifier uses.

    Args:
        classifier: A classifier whose head is a single linear layer.
        text: The text.
        label: The label whose logit is explained; by default the most probable, or the first
            value.
        other: A label whose logit is subtracted. With a softmax, only differences between logits
            matter. By default nothing is subtracted.
        head: The name of the head; by default the first.

    Raises:
        UsageError: The head has hidden layers, answers for every token or has no labels; the label
            is unknown; a part of the model was replaced; the classifier has n-grams or no causal
            mask.
    """
    about = Question.of(classifier, text, label, head)
    model, config, (ids, lengths) = classifier.model, about.head, read(classifier, text)
    weight, bias = _linear_head(classifier, config)  # (K, C), (K,)
    L = layer_read(config, model)
    refuse_changes(model, L)
    blocks: list[Any] = [*model.blocks[:L]]
    x, added = model.embed(ids)[0], []  # (T, C)
    with in_mode(model, training=False):
        for block in blocks:
            mixed = attend_by_hand(block.attn, block.ln_1(x))[1]
            x = x + block.attn.c_proj(mixed.transpose(0, 1).flatten(1))  # the heads side by side
            mlp = block.mlp(block.ln_2(x))
            x = x + mlp
            added.append((mixed, mlp))  # (H, T, D), (T, C)
    states = model.ln_f(x) if config.final_norm else x
    logits = pool(states[None], lengths, config.pooling)[0] @ weight.T + bias  # (K,)
    wanted = torch.zeros_like(bias)
    wanted[about.number] += 1
    if other:
        wanted[Question.of(classifier, text, other, head).number] -= 1
    along = wanted @ weight  # (C,): the direction in which the state raises the logit
    constant = wanted @ bias
    # weight of each position in the pooled state: 1 at the position that is read, or 1/T at each
    one_hot = torch.eye(len(x), device=x.device, dtype=x.dtype)[None]  # (1, T, T)
    at = pool(one_hot, lengths, config.pooling)[0]  # (T,)
    if config.final_norm:
        constant = constant + model.ln_f.bias @ along
        along = model.ln_f.weight * along
        along = along - along.mean()  # the norm subtracts the mean of a state
        at = at / (x.var(dim=1, unbiased=False) + LAYER_NORM_EPS).sqrt()
    heads, mlps = [], []
    for block, (mixed, mlp) in zip(blocks, added, strict=True):
        of_head = (along @ _weight_of(block.attn.c_proj)).view(len(mixed), 1, -1)  # (H, 1, D)
        heads.append((mixed * of_head).sum(dim=2) @ at)  # (H,)
        mlps.append(mlp @ along @ at)
        constant = constant + (block.attn.c_proj.bias @ along) * at.sum()
    return Contributions(
        tokens=tokens_of(classifier, ids),
        label=config.labels[about.number],
        other=other,
        logit=float(wanted @ logits),
        token=float(model.wte(ids[0]) @ along @ at),
        position=float(model.wpe.weight[: len(x)] @ along @ at),
        heads=_stacked(heads, (0, model.config.n_head)),
        mlps=_stacked(mlps, (0,)),
        biases=float(constant),
    )


def read(classifier: Classifier, text: str) -> tuple[Tensor, Tensor]:
    """Return a text as a classifier reads it: ids (1, T) and lengths (1,), without padding.

    Raises UsageError for a classifier without the causal mask.
    """
    if not classifier.description.causal_mask:
        raise UsageError("the parts of a classifier without the causal mask cannot be explained")
    encoded, _ = classifier.encode([text])
    pad_id, pad_to = classifier.tokenizer.end_of_text_id, classifier.description.pad_to
    ids, lengths = pad_batch(encoded, pad_id, pad_to)
    return ids.to(classifier.device), lengths.to(classifier.device)


def tokens_of(classifier: Classifier, ids: Tensor) -> list[str]:
    """Return each of the tokens ids (1, T) as text."""
    return [classifier.tokenizer.decode([number]) for number in ids[0].tolist()]


def refuse_changes(model: GPT2, top: int) -> None:
    """Raise UsageError if the embeddings, the first `top` blocks or the final norm were replaced.

    Blocks that were streamed from their file are read into memory, because all are needed at once.
    """
    hold(model)
    refuse_other_forward(model)
    with in_mode(model, training=False):
        if changed := changed_part(model, 0, top):
            raise UsageError(f"{changed}, so its parts are not those of GPT-2")


def _linear_head(classifier: Classifier, head: HeadConfig) -> tuple[Tensor, Tensor]:
    """Return the weight (K, C) and the bias (K,) of a linear head, one row per label."""
    if head.task not in LOGIT_TASKS:
        raise UsageError(
            f"head {head.name!r} is for {head.task}; contributions are for {', '.join(LOGIT_TASKS)}"
        )
    layers = layers_by_name(classifier.model, classifier.description.heads)[head.name]
    parts = [*layers] if isinstance(layers, nn.Sequential) else [layers]
    linear = [part for part in parts if not isinstance(part, nn.Dropout)]
    if len(linear) != 1 or not isinstance(linear[0], nn.Linear | LoRALinear):
        raise UsageError(
            f"head {head.name!r} has hidden layers: they mix the parts of the state before the logits, "
            "so no part has a contribution of its own"
        )
    rows = logit_per_class(head, _weight_of(linear[0]).T).T  # one output: logits 0 and z
    return rows, logit_per_class(head, linear[0].bias)


def _weight_of(linear: nn.Module) -> Tensor:
    return linear.whole_weight() if isinstance(linear, LoRALinear) else linear.weight  # type: ignore[return-value]


def _stacked(rows: list[Tensor], empty: tuple[int, ...]) -> np.ndarray:
    return torch.stack(rows).cpu().numpy() if rows else np.zeros(empty)
