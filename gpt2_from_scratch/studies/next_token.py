"""Next-token probes: how well the next token can be predicted from the states at each layer.

Three heads read every layer (see `settings.LanguageForm`). The logit lens is GPT-2's own final norm
and head, and is not trained. The tuned lens trains an affine map in front of them. The full head is
a linear layer of its own. The model itself is not trained.

One pass over the texts serves all heads: when the states of a layer have been computed, the heads at
this layer take their step, and the states are no longer needed. So the logits of only one head are
in memory, and of these at most `heads.LOGITS` at once.

Sources: nostalgebraist 2020, "Interpreting GPT: the logit lens"; Belrose et al. 2023, "Eliciting
Latent Predictions from Transformers with the Tuned Lens" (arXiv 2303.08112).

U tokens to predict in a batch, C = n_embd, V = n_vocab.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor, nn
from torch.optim import AdamW

from gpt2_from_scratch.classifier import heads
from gpt2_from_scratch.classifier.freezing import plain_depth
from gpt2_from_scratch.classifier.heads import head_layers
from gpt2_from_scratch.classifier.settings import LANGUAGE_FORMS, HeadConfig, LanguageForm
from gpt2_from_scratch.classifier.tasks.language import TunedLens, language_scores
from gpt2_from_scratch.classifier.train import epoch_order, rate_factor
from gpt2_from_scratch.data.messages import Message
from gpt2_from_scratch.data.split import Split
from gpt2_from_scratch.errors import DataError, UsageError
from gpt2_from_scratch.evaluation.metrics import text_table
from gpt2_from_scratch.gpt2.model import GPT2
from gpt2_from_scratch.gpt2.tokenizer import Tokenizer
from gpt2_from_scratch.progress import progress_bar
from gpt2_from_scratch.reports.plots import BLUE, DARK, VERMILION
from gpt2_from_scratch.speed.batching import encode_texts
from gpt2_from_scratch.speed.devices import arithmetic
from gpt2_from_scratch.speed.frozen_trunk import Packed, Trunk
from gpt2_from_scratch.speed.partial_blocks import real_positions

log = logging.getLogger(__name__)

NAMES = {"tied": "logit lens", "tuned lens": "tuned lens", "full": "full head"}
LEARNING_RATES = (3e-3, 1e-2)
EPOCHS, BATCH, WARMUP = 2, 16, 0.1  # BATCH: texts per step


@dataclass(frozen=True)
class NextTokenProbe:
    """One head at one layer, and its scores."""

    layer: int  # number of blocks before the states it reads; 0: after the embeddings
    form: LanguageForm
    lr: float  # peak learning rate, selected on the validation set; 0 if nothing is trained
    epochs: int  # epochs after which it was best on the validation set
    val_bits_per_byte: float
    bits_per_byte: float  # on the test set
    nats_per_token: float
    correct: int  # tokens of the test set that were the most probable
    tokens: int


@dataclass
class _Head:
    """A head of one layer, with its best weights so far and their scores on the validation set."""

    layer: int
    form: LanguageForm
    lr: float  # 0: it is not trained
    norm: nn.Module  # what comes before its layers
    layers: nn.Module
    nats: float = float("inf")  # the loss, summed over all tokens
    epochs: int = 0
    best: dict[str, Tensor] = field(default_factory=dict)

    def pieces(self, x: Tensor, targets: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (logits (u, V), targets (u,)) of a few tokens at a time: x (U, C), targets (U,)."""
        size = max(1, heads.LOGITS // self.n_vocab)
        for some, wanted in zip(x.split(size), targets.split(size), strict=True):
            yield self.layers(self.norm(some)), wanted

    @property
    def n_vocab(self) -> int:
        """The number of logits per token."""
        last = self.layers.own if isinstance(self.layers, TunedLens) else self.layers
        assert isinstance(last, nn.Linear)
        return last.out_features

    @property
    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters that are trained, by name."""
        return {n: p for n, p in self.layers.named_parameters() if p.requires_grad}

    def keep_if_best(self, nats: float, epochs: int) -> None:
        """Copy the weights if this is the lowest loss so far."""
        if nats < self.nats:
            self.best = {name: p.detach().clone() for name, p in self.trained.items()}
            self.nats, self.epochs = nats, epochs


def probe_next_tokens(
    model: GPT2,
    tokenizer: Tokenizer,
    split: Split,
    *,
    forms: Sequence[LanguageForm] = LANGUAGE_FORMS,
    learning_rates: Sequence[float] = LEARNING_RATES,
    epochs: int = EPOCHS,
    seed: int = 123,
    dtype: torch.dtype = torch.float32,
) -> list[NextTokenProbe]:
    """Train and score a head for the next token at every layer, in each form.

    Args:
        model: GPT-2 with its own blocks; its weights do not change.
        tokenizer: The model's tokenizer.
        split: Texts, whose labels are not used. Heads are trained on the training set, with AdamW and
            half a cosine. The learning rate and the number of epochs of each head are selected by its
            loss on the validation set. The test set is scored once.
        forms: The forms of the heads.
        learning_rates: The peak learning rates to select from.
        epochs: The number of epochs.
        seed: Random seed of the order of the texts. Nothing else is random.
        dtype: Precision of the blocks.

    Returns:
        One probe per form and layer. All heads of a learning rate are trained together, and need 20
        bytes of memory per trained parameter: for 124M's sizes 0.2 GB for the tuned lenses of all
        layers, and 10 GB for the full heads.

    Raises:
        UsageError: A form is unknown, a number is not above 0, or the model has parts that are not
            GPT-2's.
        DataError: A set has no token to predict.
    """
    if isinstance(forms, str) or not forms or {*forms} - {*LANGUAGE_FORMS}:
        raise UsageError(f"forms = {forms!r} must be one or more of {', '.join(LANGUAGE_FORMS)}")
    if epochs < 1 or not learning_rates or min(learning_rates) <= 0:
        raise UsageError(f"{epochs = } and {learning_rates = } must be above 0")
    depth, reason = plain_depth(model)
    if depth < len(model.blocks):
        raise UsageError(f"probes need GPT-2's own blocks: {reason}")
    train, val, test = (
        _encoded(messages, name, tokenizer, model.config.n_ctx)
        for name, messages in vars(split).items()
    )
    trunk = Trunk(model, depth, arithmetic(dtype, model.wte.weight.device))
    selected: dict[tuple[LanguageForm, int], _Head] = {}
    with _frozen(model):
        for lr in (0.0, *learning_rates):
            found = _new_heads(model, [form for form in forms if (form == "tied") is (lr == 0)], lr)
            _train(trunk, found, train, val, epochs if lr else 0, seed)
            for head in found:
                best = selected.setdefault((head.form, head.layer), head)
                if head.nats < best.nats:
                    selected[head.form, head.layer] = head
        tested = [selected[form, layer] for form in forms for layer in range(depth + 1)]
        for head in tested:
            head.layers.load_state_dict(head.best, strict=False)
        scores = _sums(trunk, tested, test)
    (val_tokens, val_bytes), (tokens, n_bytes) = (_sizes(texts, tokenizer) for texts in (val, test))
    probes = []
    for head, (nats, correct) in zip(tested, scores, strict=True):
        before = language_scores(head.nats, 0, val_tokens, val_bytes)
        after = language_scores(nats, correct, tokens, n_bytes)
        probes.append(
            NextTokenProbe(
                head.layer,
                head.form,
                head.lr,
                head.epochs,
                before.bits_per_byte or 0.0,
                after.bits_per_byte or 0.0,
                after.nats_per_token,
                correct,
                tokens,
            )
        )
    return probes


def _encoded(
    messages: Sequence[Message], name: str, tokenizer: Tokenizer, n_ctx: int
) -> list[list[int]]:
    """The ids of the texts that have a token to predict, cut to n_ctx."""
    encoded, cut = encode_texts([message.text for message in messages], tokenizer, n_ctx)
    if any(cut):
        log.warning(f"{sum(cut)} of {len(cut)} texts are longer than {n_ctx} tokens and were cut")
    found = [ids for ids in encoded if len(ids) > 1]
    if not found:
        raise DataError(f"the {name} set has no text of two tokens or more, so nothing to predict")
    return found


def _sizes(encoded: Sequence[Sequence[int]], tokenizer: Tokenizer) -> tuple[int, int]:
    """The number of tokens to predict, and their length in bytes."""
    tokens = [token for ids in encoded for token in ids[1:]]
    return len(tokens), sum(len(tokenizer.token_bytes(token)) for token in tokens)


@contextmanager
def _frozen(model: GPT2) -> Iterator[None]:
    """Freeze a model, so that no gradient is computed for the parts that lenses share with it."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)


def _new_heads(model: GPT2, forms: Sequence[LanguageForm], lr: float) -> list[_Head]:
    """Make a head in each form at each layer."""
    found = []
    for layer in range(len(model.blocks) + 1):
        for form in forms:
            layers = head_layers(HeadConfig("next", "language", layer=layer, form=form), model)
            norm = nn.Identity() if form == "tuned lens" else model.ln_f
            found.append(_Head(layer, form, lr, norm, layers))
    return found


def _train(
    trunk: Trunk,
    found: Sequence[_Head],
    train: Sequence[Sequence[int]],
    val: Sequence[Sequence[int]],
    epochs: int,
    seed: int,
) -> None:
    """Train all heads together, each with its own loss, and keep the best weights of each.

    With 0 epochs they are only scored on the validation set.
    """
    optimizers = [AdamW(h.trained.values(), weight_decay=0.0, fused=True) for h in found if epochs]
    steps, step = epochs * -(-len(train) // BATCH), 0
    with progress_bar(total=steps, desc="next-token probes", unit="batch", hidden=not steps) as bar:
        for epoch in range(epochs + 1):
            order = epoch_order(len(train), seed, epoch) if epoch else ()
            for first in range(0, len(order), BATCH):
                packed = trunk.pack([train[n] for n in order[first : first + BATCH]])
                factor = rate_factor(step, steps, WARMUP)
                for layer, x, targets in _states_and_targets(trunk, packed):
                    for head, optimizer in zip(found, optimizers, strict=True):
                        if head.layer == layer:
                            optimizer.param_groups[0]["lr"] = head.lr * factor
                            _step(head, optimizer, x, targets)
                step += 1
                bar.update()
            for head, (nats, _) in zip(found, _sums(trunk, found, val), strict=True):
                head.keep_if_best(nats, epoch)


def _step(head: _Head, optimizer: AdamW, x: Tensor, targets: Tensor) -> None:
    """Take one step with the mean loss of a batch: x (U, C), targets (U,)."""
    for logits, wanted in head.pieces(x, targets):
        (F.cross_entropy(logits, wanted, reduction="sum") / len(targets)).backward()
    optimizer.step()
    optimizer.zero_grad()


@torch.no_grad()
def _sums(
    trunk: Trunk, found: Sequence[_Head], texts: Sequence[Sequence[int]]
) -> list[tuple[float, int]]:
    """Sum over all tokens of some texts, for each head: (cross-entropy in nats, correct tokens)."""
    nats, correct = [0.0] * len(found), [0] * len(found)
    for numbers in trunk.batches(texts):
        packed = trunk.pack([texts[n] for n in numbers])
        for layer, x, targets in _states_and_targets(trunk, packed):
            for n, head in enumerate(found):
                if head.layer != layer:
                    continue
                for logits, wanted in head.pieces(x, targets):
                    nats[n] += float(F.cross_entropy(logits, wanted, reduction="sum"))
                    correct[n] += int((logits.argmax(dim=1) == wanted).sum())
    return [*zip(nats, correct, strict=True)]


def _states_and_targets(trunk: Trunk, packed: Packed) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield each layer's states of the tokens that have a next one: (layer, x (U, C), next (U,))."""
    rows, following = [], []
    for r in packed.rectangles:
        before_last = real_positions(r.lengths - 1, r.rows.shape[1])
        rows.append(r.rows[before_last])
        following.append(packed.ids[r.rows.roll(-1, dims=1)[before_last]])
    at, targets = torch.cat(rows), torch.cat(following)
    for layer, x in enumerate(trunk.layers(packed)):
        yield layer, x[at], targets


# --- table and picture ---


def format_next_tokens(probes: Sequence[NextTokenProbe]) -> str:
    """Format the bits per byte on the test set: one row per layer, one column per form."""
    forms = list(dict.fromkeys(probe.form for probe in probes))
    found = {(probe.layer, probe.form): f"{probe.bits_per_byte:.3f}" for probe in probes}
    layers = sorted({probe.layer for probe in probes})
    rows = [[layer, *(found[layer, form] for form in forms)] for layer in layers]
    return "\n".join(
        [
            "bits per byte of the next token, predicted from each layer "
            f"({probes[0].tokens:,} test tokens; lower is better)",
            "",
            *text_table(["layer", *(NAMES[form] for form in forms)], rows, left=0),
            "",
            f"layer 0: the embeddings. The logit lens at layer {layers[-1]} is GPT-2 itself",
        ]
    )


def plot_next_tokens(probes: Sequence[NextTokenProbe]) -> Figure:
    """Draw the bits per byte on the test set at each layer, one curve per form.

    Raises DataError if there are no probes.
    """
    if not probes:
        raise DataError("there are no probes to draw")
    figure = Figure(figsize=(7.5, 4), layout="constrained")
    axes = figure.subplots()
    # the embeddings alone predict so badly that the other layers would look equal
    top = 1.25 * max(probe.bits_per_byte for probe in probes if probe.layer)
    styles = {"tied": (DARK, "o"), "tuned lens": (BLUE, "s"), "full": (VERMILION, "^")}
    for n, (form, (colour, mark)) in enumerate(styles.items()):
        curve = [probe for probe in probes if probe.form == form]
        if not curve:
            continue
        layers, bits = [p.layer for p in curve], [p.bits_per_byte for p in curve]
        axes.plot(layers, bits, color=colour, marker=mark, markersize=4, label=NAMES[form])
        if bits[0] > top:
            outside = f"layer 0: {bits[0]:.1f}"
            axes.text(0, top * (0.96 - 0.06 * n), outside, color=colour, va="center", fontsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylim(0, top)
    axes.set_xlabel("layer (0: after the embeddings)")
    axes.set_ylabel("bits per byte")
    axes.set_title(f"Predicting the next token from each layer: {probes[0].tokens:,} test tokens")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure
