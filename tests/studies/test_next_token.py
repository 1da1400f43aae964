"""Next-token probes, compared with plain loops over one text at a time."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gpt2_from_scratch.classifier import heads
from gpt2_from_scratch.classifier.classifier import Classifier
from gpt2_from_scratch.classifier.settings import LANGUAGE_FORMS, HeadConfig
from gpt2_from_scratch.classifier.train import (
    epoch_order,
    loss_and_scores,
    rate_factor,
    to_labelled,
)
from gpt2_from_scratch.data.messages import Message
from gpt2_from_scratch.data.split import Split
from gpt2_from_scratch.errors import DataError, UsageError
from gpt2_from_scratch.gpt2.model import GPT2
from gpt2_from_scratch.gpt2.tokenizer import Tokenizer
from gpt2_from_scratch.gpt2.weights import load_gpt2
from gpt2_from_scratch.studies import next_token
from gpt2_from_scratch.studies.next_token import (
    NextTokenProbe,
    format_next_tokens,
    plot_next_tokens,
    probe_next_tokens,
)

THINGS = ["house", "river", "tree", "street", "garden", "window", "letter", "road", "t", ""]
TEXTS = [f"{word} the {thing} and you" for thing in THINGS for word in ("win", "see", "hear")]


def split_of(texts: list[str]) -> Split:
    messages = [Message(text, "x") for text in texts]
    return Split(messages[:19], messages[19:24], [*messages[24:], Message("t", "x")])


@pytest.fixture
def model(tiny_checkpoint: Path) -> GPT2:
    return load_gpt2(tiny_checkpoint)


@pytest.fixture
def tokenizer(tiny_checkpoint: Path) -> Tokenizer:
    return Tokenizer(tiny_checkpoint)


def plain_probe(
    model: GPT2, tokenizer: Tokenizer, split: Split, layer: int, form: str, lr: float, epochs: int
) -> tuple[list[float], list[float]]:
    """Train one head by a plain loop; return its validation and test nats after each epoch."""
    C, V = model.config.n_embd, model.config.n_vocab
    change, full = nn.Linear(C, C), nn.Linear(C, V)
    with torch.no_grad():
        for parameter in (*change.parameters(), full.bias):
            parameter.zero_()
        full.weight.copy_(model.wte.weight if layer else torch.zeros(V, C))

    def logits(text: str) -> tuple[torch.Tensor, torch.Tensor]:
        ids = torch.tensor([tokenizer.encode(text)])
        with torch.no_grad():
            x = model.embed(ids)
            for block in model.blocks[:layer]:
                x = block(x)
        x = x[0, :-1]
        if form == "full":
            return full(model.ln_f(x).detach()), ids[0, 1:]
        return F.linear(model.ln_f(x + change(x)), model.wte.weight.detach()), ids[0, 1:]

    def nats(messages: list[Message]) -> float:
        with torch.no_grad():
            pairs = [logits(m.text) for m in messages]
        return sum(F.cross_entropy(*pair, reduction="sum").item() for pair in pairs if len(pair[1]))

    optimizer = torch.optim.AdamW([*change.parameters(), *full.parameters()], weight_decay=0.0)
    val, test, step = [nats(split.val)], [nats(split.test)], 0
    steps = epochs * -(-len(split.train) // next_token.BATCH)
    for epoch in range(1, epochs + 1):
        order = epoch_order(len(split.train), 123, epoch)
        for first in range(0, len(order), next_token.BATCH):
            pairs = [logits(split.train[n].text) for n in order[first : first + next_token.BATCH]]
            loss = F.cross_entropy(
                torch.cat([some for some, _ in pairs]), torch.cat([ids for _, ids in pairs])
            )
            optimizer.param_groups[0]["lr"] = lr * rate_factor(step, steps, 0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
        val.append(nats(split.val))
        test.append(nats(split.test))
    return val, test


@pytest.mark.slow
@pytest.mark.parametrize("logits", [7 * 277, heads.LOGITS])
def test_probes_are_those_of_a_plain_loop(
    model: GPT2, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, logits: int
) -> None:
    """The loop trains each head alone; the rate and the epoch are selected on validation."""
    monkeypatch.setattr(heads, "LOGITS", logits)
    split, rates = split_of(TEXTS), (0.5, 0.05)
    probes = probe_next_tokens(model, tokenizer, split, learning_rates=rates, epochs=2)
    assert [(p.form, p.layer) for p in probes] == [
        (form, layer) for form in LANGUAGE_FORMS for layer in range(3)
    ]
    n_bytes = {
        part: sum(
            len(m.text.encode()) - len(tokenizer.token_bytes(tokenizer.encode(m.text)[0]))
            for m in getattr(split, part)
        )
        for part in ("val", "test")
    }
    chosen = set()
    for probe in probes:
        runs = {
            lr: plain_probe(model, tokenizer, split, probe.layer, probe.form, lr, 2)
            for lr in (rates if probe.form != "tied" else rates[:1])
        }
        epochs = (0,) if probe.form == "tied" else (0, 1, 2)
        val, lr, epoch = min((runs[lr][0][e], lr, e) for lr in runs for e in epochs)
        chosen.add((lr, epoch))
        assert (probe.lr, probe.epochs) == (lr if probe.form != "tied" else 0.0, epoch)
        bits = val / n_bytes["val"] / torch.tensor(2.0).log().item()
        assert probe.val_bits_per_byte == pytest.approx(bits, rel=1e-4)
        bits = runs[lr][1][epoch] / n_bytes["test"] / torch.tensor(2.0).log().item()
        assert probe.bits_per_byte == pytest.approx(bits, rel=1e-4)
    assert len(chosen) > 2, f"the selection differs between heads: {chosen}"


def test_the_logit_lens_at_the_last_layer_is_gpt2(model: GPT2, tiny_checkpoint: Path) -> None:
    split = split_of(TEXTS)
    classifier = Classifier.on_base(tiny_checkpoint, heads=[HeadConfig(task="language")])
    scores = loss_and_scores(classifier, to_labelled(classifier, split.test))[1]["label"]
    *_, last = probe_next_tokens(model, classifier.tokenizer, split, forms=("tied",))
    assert last.bits_per_byte == pytest.approx(scores.bits_per_byte, rel=1e-6)
    assert (last.correct, last.tokens) == (scores.correct, scores.tokens)
    assert (last.lr, last.epochs) == (0.0, 0)


def test_the_model_stays_as_it_was(model: GPT2, tokenizer: Tokenizer) -> None:
    before = {name: p.clone() for name, p in model.named_parameters()}
    model.wpe.requires_grad_(False)
    probe_next_tokens(model, tokenizer, split_of(TEXTS), learning_rates=(0.01,), epochs=1)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) and parameter.grad is None
        assert parameter.requires_grad is (name != "wpe.weight")


def test_the_test_set_is_scored_once(
    model: GPT2, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    split, plain, scored = split_of(TEXTS), next_token._sums, []
    monkeypatch.setattr(
        next_token,
        "_sums",
        lambda trunk, found, texts: scored.append(len(texts)) or plain(trunk, found, texts),
    )
    probe_next_tokens(model, tokenizer, split, learning_rates=(0.01, 0.1), epochs=1)
    n_val, n_test = 5, 6  # one of seven test texts has a single token
    assert scored.count(n_test) == 1 and scored[-1] == n_test
    assert scored.count(n_val) == len(scored) - 1 == 5


@pytest.mark.parametrize(
    ("settings", "fact"),
    [
        ({"forms": ()}, "forms"),
        ({"forms": "full"}, "full"),
        ({"forms": ["full", "lens"]}, "lens"),
        ({"epochs": 0}, "epochs"),
        ({"learning_rates": ()}, "learning_rates"),
        ({"learning_rates": (0.1, 0.0)}, "0.0"),
    ],
)
def test_settings_without_meaning(model, tokenizer, settings, fact) -> None:
    with pytest.raises(UsageError, match=fact):
        probe_next_tokens(model, tokenizer, split_of(TEXTS), **settings)


def test_a_set_without_next_tokens(model: GPT2, tokenizer: Tokenizer) -> None:
    split = Split(split_of(TEXTS).train, [Message("t", "x")], split_of(TEXTS).test)
    with pytest.raises(DataError, match="val"):
        probe_next_tokens(model, tokenizer, split)


PROBES = [
    NextTokenProbe(layer, form, 0.0, 0, 3.0, 3.25 - layer, 1.0, 5, 1234)
    for form in ("tied", "full")
    for layer in range(3)
]


def test_table() -> None:
    lines = format_next_tokens(PROBES).splitlines()
    assert "1,234" in lines[0]
    assert lines[2].split() == ["layer", "logit", "lens", "full", "head"]
    assert [line.split() for line in lines[3:6]] == [
        ["0", "3.250", "3.250"],
        ["1", "2.250", "2.250"],
        ["2", "1.250", "1.250"],
    ]


def test_picture() -> None:
    (axes,) = plot_next_tokens(PROBES).axes
    assert [line.get_label() for line in axes.get_lines()] == ["logit lens", "full head"]
    for line in axes.get_lines():
        assert line.get_xdata().tolist() == [0, 1, 2]
        assert line.get_ydata().tolist() == [3.25, 2.25, 1.25]
    assert axes.get_ylim() == (0, 1.25 * 2.25)
    assert ["3.2" in text.get_text() for text in axes.texts] == [True, True], "outside the picture"
    with pytest.raises(DataError):
        plot_next_tokens([])
