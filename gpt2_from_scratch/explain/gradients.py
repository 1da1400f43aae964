"""Which words or tokens of a text matter, by the derivatives of the answer.

Both methods explain the evidence for a label (see `tokens`), log odds or a value, and not the
probability p. The derivative of p with respect to its log odds is p (1 - p). If the classifier is
certain, this is almost 0, so that nothing would seem to matter: the probability saturates.

The inputs are the embeddings of the text's tokens, rows of wte. The embeddings of positions, of an
end token and of padding stay as they are. Everything is computed in float32.

B points in a batch, T tokens with an end token and padding, n tokens of the text, C = n_embd.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from gpt2_from_scratch.classifier.classifier import Classifier, in_mode, refuse_infinite
from gpt2_from_scratch.classifier.freezing import refuse_other_forward
from gpt2_from_scratch.classifier.heads import outputs_from
from gpt2_from_scratch.errors import UsageError
from gpt2_from_scratch.explain.tokens import Explanation, Question, Unit, end_of, parts_of
from gpt2_from_scratch.speed.feature_cache import Embedded
from gpt2_from_scratch.storage.mapped import hold

Baseline = Literal["end_of_text", "zero"]
BASELINES = {
    "end_of_text": "every token replaced by <|endoftext|>",
    "zero": "every token's embedding replaced by zeros",
}
TOLERANCE = 0.01  # of the total (or of 1, if the total is smaller); a larger error needs more steps
FEWEST_STEPS, MOST_STEPS = 16, 1024
POSITIONS = 2048  # most B × T of a batch; about 1 GB with the 124M model


def integrated_gradients(
    classifier: Classifier,
    text: str,
    label: str = "",
    *,
    unit: Unit = "word",
    baseline: Baseline = "end_of_text",
    steps: int | None = None,
    head: str = "",
) -> Explanation:
    """Divide the difference in evidence between a text and a baseline among its tokens.

    The embeddings move along a straight line from the baseline to the text. The value of a token is
    the integral of its gradient along this line, multiplied by its way. The values add up to `total`
    (completeness), except for the error of the numerical integration, which `Explanation.error`
    reports. The integral is computed by Gauss-Legendre quadrature. The value of a word is the sum
    over its tokens.

    Limits: The values depend on the baseline, and no baseline means "nothing". Embeddings between
    two tokens belong to no token, and the model was never trained on them. Completeness says that
    the values add up, not that a text without a word would lose the word's value.

    Source: Sundararajan, Taly and Yan 2017, "Axiomatic Attribution for Deep Networks",
    https://arxiv.org/abs/1703.01365.

    Args:
        classifier: The classifier.
        text: The text.
        label: The label to explain; by default the most probable label, or the first value.
        unit: Whether values are given for words or tokens (see `tokens.parts_of`).
        baseline: "end_of_text" replaces every token by <|endoftext|>, whose embedding GPT-2 knows
            as the place where no text is; "zero" replaces every embedding by zeros.
        steps: The number of points on the line. By default it is doubled, from 16 to at most 1024,
            until the error is at most 1% of the total (or 0.01).
        head: The name of the head; by default the first head.

    Raises:
        UsageError: As `tokens.leave_one_out`; and an unknown baseline, fewer than 1 step, or a
            classifier without the causal mask.
    """
    if baseline not in BASELINES:
        raise UsageError(f"unknown baseline {baseline!r:.80}; choose from: {', '.join(BASELINES)}")
    if steps is not None and steps < 1:
        raise UsageError(f"steps = {steps} must be at least 1")
    about = Question.of(classifier, text, label, head)
    line = _Line.to(about, baseline)
    start, end = line.evidence([0.0, 1.0]).tolist()
    total, n_steps = end - start, steps or FEWEST_STEPS
    values = line.integral(n_steps)
    limit = TOLERANCE * max(1.0, abs(total))
    while not steps and n_steps < MOST_STEPS and abs(values.sum() - total) > limit:
        n_steps *= 2
        values = line.integral(n_steps)
    return _explanation(
        about,
        "integrated-gradients",
        end,
        values,
        unit,
        baseline=BASELINES[baseline],
        total=total,
        steps=n_steps,
    )


def gradient_times_input(
    classifier: Classifier, text: str, label: str = "", *, unit: Unit = "word", head: str = ""
) -> Explanation:
    """Multiply each token's embedding by the gradient of the evidence with respect to it.

    This is what the token would add if the evidence were a linear function of the embeddings. The
    values then added up to `total`, the difference from a text whose embeddings are zero.
    The value of a word is the sum over its tokens.

    Limits: The network is not linear. A gradient describes very small changes of an embedding, but
    a token is present or absent. `Explanation.error` is usually large: the values show an order at
    best. The gradient is 0 where the network is flat, even if the token was decisive to get there.

    Source: Shrikumar et al. 2016, "Not Just a Black Box", https://arxiv.org/abs/1605.01713;
    Simonyan, Vedaldi and Zisserman 2013, https://arxiv.org/abs/1312.6034, for gradients alone.

    The arguments and errors are those of `integrated_gradients`.
    """
    about = Question.of(classifier, text, label, head)
    line = _Line.to(about, "zero")
    start, end = line.evidence([0.0, 1.0]).tolist()
    return _explanation(
        about,
        "gradient-x-input",
        end,
        line.values_at([1.0])[0],
        unit,
        baseline=BASELINES["zero"],
        total=end - start,
        steps=1,
    )


def _explanation(
    about: Question, method: str, evidence: float, values: np.ndarray, unit: Unit, **more: Any
) -> Explanation:
    """Make an explanation from the values of the n tokens."""
    ranges = parts_of(about.tokens, about.classifier.tokenizer, unit)
    sums = [float(values[start:end].sum()) for start, end in ranges]
    return about.explanation(method, evidence, ranges, sums, [None] * len(sums), **more)


@dataclass(frozen=True)
class _Line:
    """The straight line from a baseline, at 0, to the embeddings of a text, at 1."""

    about: Question
    x: Tensor  # (1, T, C), the states before the first block at 1
    lengths: Tensor  # (1,)
    way: Tensor  # (n, C), from the baseline to each token's embedding

    @classmethod
    @torch.no_grad()
    def to(cls, about: Question, baseline: Baseline) -> "_Line":
        """Embed a text and its baseline."""
        classifier = about.classifier
        model, tokenizer = classifier.model, classifier.tokenizer
        hold(model)  # streamed blocks: all are needed at once
        refuse_other_forward(model)
        if not classifier.description.causal_mask:
            raise UsageError(
                "gradients are computed with the causal mask, which this classifier does not use; "
                "use leave_one_out"
            )
        ids = [*about.tokens, *end_of(classifier)]
        embedded = Embedded(model, [ids], tokenizer.end_of_text_id, classifier.description.pad_to)
        x, lengths = embedded.batch([0])
        rows = model.wte(torch.tensor(about.tokens, dtype=torch.int64, device=x.device))
        if baseline == "end_of_text":
            rows = rows - model.wte.weight[tokenizer.end_of_text_id]
        return cls(about, x, lengths, rows)

    def evidence(self, at: Sequence[float]) -> Tensor:
        """The evidence for the label at B places on the line: (B,) float64."""
        with torch.no_grad():
            return self._evidence(self._points(at))

    def values_at(self, at: Sequence[float]) -> np.ndarray:
        """The gradient of each token, multiplied by its way, at B places: (B, n) float64."""
        size, found = max(1, POSITIONS // self.x.shape[1]), []
        for first in range(0, len(at), size):
            with torch.enable_grad():
                x = self._points(at[first : first + size]).requires_grad_()
                (gradients,) = torch.autograd.grad(self._evidence(x).sum(), x)
            products = gradients[:, : len(self.way)].double() * self.way.double()
            found.append(products.sum(dim=2).cpu().numpy())
        return np.concatenate(found)

    def integral(self, steps: int) -> np.ndarray:
        """The integral of `values_at` along the line, from its values at `steps` places: (n,)."""
        nodes, weights = np.polynomial.legendre.leggauss(steps)  # from -1 to 1
        return (weights / 2) @ self.values_at(((nodes + 1) / 2).tolist())

    def _points(self, at: Sequence[float]) -> Tensor:
        """The states before the first block at B places on the line: (B, T, C)."""
        x = self.x.repeat(len(at), 1, 1)
        x[:, : len(self.way)] += (x.new_tensor(at)[:, None, None] - 1) * self.way
        return x

    def _evidence(self, x: Tensor) -> Tensor:
        """The evidence for the label: x (B, T, C) -> (B,) float64."""
        about, lengths = self.about, self.lengths.repeat(len(x))
        # a head that sends no gradient to the model in training does so here
        heads = [replace(each, gradient=True) for each in about.classifier.description.heads]
        with in_mode(about.classifier.model, training=False):
            outputs = outputs_from(about.classifier.model, heads, 0, x, lengths)[about.head.name]
        refuse_infinite(about.head, outputs, lengths)
        return about.evidence(outputs.double())
