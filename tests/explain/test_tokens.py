"""Words and tokens: how they are divided, and how much they matter if they are left out."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, logit, softmax
from scipy.stats import spearmanr
from tiny import random_classifier, write_checkpoint

from gpt2_from_scratch.classifier.classifier import Classifier
from gpt2_from_scratch.classifier.settings import POOLINGS, HeadConfig
from gpt2_from_scratch.classifier.tasks import TASKS
from gpt2_from_scratch.errors import UsageError
from gpt2_from_scratch.explain.gradients import gradient_times_input, integrated_gradients
from gpt2_from_scratch.explain.tokens import Explanation, leave_one_out, parts_of
from gpt2_from_scratch.gpt2.config import LoRAConfig
from gpt2_from_scratch.gpt2.tokenizer import Tokenizer
from gpt2_from_scratch.speed.batching import end_tokens

TEXT = "you and the cat, don't win 🎉 in the house!"
METHODS = (leave_one_out, gradient_times_input, integrated_gradients)
CLASSES = HeadConfig(labels=("ham", "other", "spam"))


@pytest.fixture(scope="module")
def classifier(tiny_checkpoint: Path) -> Classifier:
    """A classifier of three classes that reads an end token."""
    return random_classifier(tiny_checkpoint, CLASSES)


@pytest.fixture(scope="module")
def tokenizer(tiny_checkpoint: Path) -> Tokenizer:
    return Tokenizer(tiny_checkpoint)


# --- words ---


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("the cat", ["the", " cat"]),
        ("don't win, win!", ["don't", " win", ",", " win", "!"]),
        ("1,000.50 and www.x.com", ["1,000.50", " and", " www.x.com"]),
        ("  the \n\n cat", ["  the", " \n\n cat"]),
        ("the cat \n ", ["the", " cat \n "]),
        (" \n", [" \n"]),
        ("你好 カナ", ["你", "好", " カナ"]),
        ("in🎉👩‍👩‍👧 the", ["in", "🎉", "👩‍👩‍👧", " the"]),
        ("cafe\u0301 is", ["cafe\u0301", " is"]),
        ("", []),
    ],
)
def test_words_end_at_word_boundaries(text: str, words: list[str], tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode(text)
    ranges = parts_of(tokens, tokenizer, "word")
    assert [tokenizer.decode(tokens[start:end]) for start, end in ranges] == words


def test_a_token_of_two_words_is_not_divided() -> None:
    tokenizer = Tokenizer("mini")
    tokens = tokenizer.encode('he said "yes..."!!')
    words = [tokenizer.decode(tokens[a:b]) for a, b in parts_of(tokens, tokenizer, "word")]
    assert "".join(words) == 'he said "yes..."!!'
    assert len(words) <= len(tokens)
    assert words[:2] == ["he", " said"]


def test_parts_know_their_place(classifier: Classifier) -> None:
    found = leave_one_out(classifier, TEXT, unit="token")
    assert found.text == TEXT
    assert [part.tokens for part in found.parts] == [(n, n + 1) for n in range(len(found.parts))]
    party = [part for part in found.parts if "\ufffd" in part.text]
    assert len(party) == 4  # the tiny vocabulary has one token per byte of the emoji
    assert {TEXT[slice(*part.characters)] for part in party} == {"🎉"}
    for part in found.parts:
        if part not in party:
            assert TEXT[slice(*part.characters)] == part.text
    words = leave_one_out(classifier, TEXT).parts
    assert [TEXT[slice(*part.characters)] for part in words] == [part.text for part in words]
    assert [part.text for part in words][-5:] == [" 🎉", " in", " the", " house", "!"]


def test_a_long_text_is_explained_as_it_was_cut(classifier: Classifier) -> None:
    found = leave_one_out(classifier, "you and the 🎉 " * 20)
    assert found.truncated
    assert found.parts[-1].tokens[1] == 31  # and an end token
    assert found.parts[-1].characters[1] == len(found.text)


# --- leave-one-out ---


def alone(classifier: Classifier, tokens: list[int]) -> np.ndarray:
    """The logits of one text, computed by itself."""
    end = end_tokens(classifier.tokenizer) if classifier.description.reads_end_token else []
    ids = [*tokens, *end] or [classifier.tokenizer.end_of_text_id]
    return classifier.logits([ids])[0].double().numpy()


@pytest.mark.parametrize("unit", ["word", "token"])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_values_equal_those_of_separate_answers(
    tiny_checkpoint: Path, pooling: str, unit: str
) -> None:
    lora = LoRAConfig(rank=2, alpha=4, n_last_blocks=1)
    head = replace(CLASSES, pooling=pooling, temperature=1.5)
    classifier = random_classifier(tiny_checkpoint, head, lora=lora)
    found = leave_one_out(classifier, TEXT, "other", unit=unit)
    tokens = classifier.tokenizer.encode(TEXT)
    p = softmax(alone(classifier, tokens) / 1.5)[1]
    assert found.probability == pytest.approx(p, abs=1e-5)
    assert found.evidence == pytest.approx(logit(p), abs=1e-4)
    for part in found.parts:
        start, end = part.tokens
        other = softmax(alone(classifier, tokens[:start] + tokens[end:]) / 1.5)[1]
        assert part.value == pytest.approx(logit(p) - logit(other), abs=1e-4)
        assert part.probability == pytest.approx(p - other, abs=1e-5)
    nothing = softmax(alone(classifier, []) / 1.5)[1]
    assert found.total == pytest.approx(logit(p) - logit(nothing), abs=1e-4)
    total = sum(part.value for part in found.parts)
    assert found.error == pytest.approx(total - found.total)


def test_values_equal_those_of_shortened_texts_with_the_same_tokens(
    classifier: Classifier,
) -> None:
    whole, short = "you and the cat", "you the cat"
    before, after = (classifier.predict([text])[0] for text in (whole, short))
    assert before and after
    part = leave_one_out(classifier, whole, "spam").parts[1]
    assert part.text == " and"
    change = before.probabilities["spam"] - after.probabilities["spam"]
    assert part.probability == pytest.approx(change, abs=1e-6)


def test_log_odds_do_not_saturate(classifier: Classifier) -> None:
    head = classifier.description.head
    logits = torch.tensor([[900.0, 0.0, 10.0]], dtype=torch.float64)
    evidence = TASKS["classification"].evidence(head, logits, 0)
    assert evidence.item() == pytest.approx(890.0 - np.log1p(np.exp(-10.0)))
    assert log_softmax(logits.numpy()[0])[0] == 0.0  # what a probability would say


# --- every task and method ---


@pytest.mark.parametrize("explain", METHODS)
def test_only_the_token_that_is_read_matters(tiny_checkpoint: Path, explain: Callable) -> None:
    """A head on the first token cannot see the others, because attention looks back."""
    classifier = random_classifier(tiny_checkpoint, replace(CLASSES, pooling="first_token"))
    first, *others = explain(classifier, "the cat is in the house", unit="token").parts
    assert abs(first.value) > 0.01
    assert [part.value for part in others] == pytest.approx([0] * len(others), abs=1e-5)


@pytest.fixture(scope="module")
def detector(tiny_checkpoint: Path) -> Classifier:
    """A hand-made classifier that counts one token, " the": the log odds are 10 g count / T.

    The first block attends equally to all T tokens, and copies dimension 5 of their normalised
    embeddings, where only " the" has a value (g), to dimension 6, which the head reads.
    """
    head = HeadConfig(labels=("ham", "spam"), one_output=True, final_norm=False)
    classifier = random_classifier(tiny_checkpoint, head)
    model, the = classifier.model, classifier.tokenizer.encode(" the")
    wte, attn, C = model.wte.weight, model.blocks[0].attn, model.config.n_embd
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith(("blocks", "wpe", "head")):
                parameter.fill_("ln_" in name and name.endswith("weight"))
        wte[:, 7:] -= (wte.sum(dim=1) / (C - 7))[:, None]  # every embedding has the mean 0
        wte[:, 7] += wte[:, 5] + wte[:, 6]
        wte[:, 5:7] = 0
        wte[the, 5], wte[the, 7] = 3.0, wte[the, 7] - 3.0
        attn.c_attn.weight[2 * C + 6, 5] = attn.c_proj.weight[6, 6] = 1.0
        model.head.weight[0, 6] = 10.0
    return classifier


@pytest.mark.parametrize("place", range(5))
def test_a_planted_token_decides(detector: Classifier, place: int) -> None:
    words = ["you", " and", " is", " at", " in"]
    words[place] = " the"
    text = "".join(words)
    (the,) = detector.tokenizer.encode(" the")
    embedding = detector.model.wte.weight[the]
    T = len(detector.encode([text])[0][0])
    found = {explain: explain(detector, text, "spam", unit="token") for explain in METHODS}
    evidence = 10 * 3 / embedding.std(correction=0).item() / T
    assert found[leave_one_out].evidence == pytest.approx(evidence, rel=1e-4)
    assert found[leave_one_out].total == pytest.approx(evidence, rel=1e-4)
    for part in found[leave_one_out].parts:
        # without another token, the planted one is a larger part of the mean
        expected = evidence if part.text == " the" else evidence - evidence * T / (T - 1)
        assert part.value == pytest.approx(expected, abs=1e-4)
    for baseline in ("zero", "end_of_text"):
        divided = integrated_gradients(detector, text, "spam", unit="token", baseline=baseline)
        for part in divided.parts:
            expected = evidence if part.text == " the" else 0.0
            assert part.value == pytest.approx(expected, abs=0.01 * evidence)
    # a norm makes the network flat along each embedding: the gradient cannot see what decides
    local = found[gradient_times_input]
    assert [part.value for part in local.parts] == pytest.approx([0.0] * len(local.parts), abs=1e-3)
    assert local.error == pytest.approx(-evidence, rel=1e-3)


@pytest.mark.parametrize("explain", METHODS)
def test_the_most_probable_label_is_explained(classifier: Classifier, explain: Callable) -> None:
    (prediction,) = classifier.predict([TEXT])
    assert prediction
    found = explain(classifier, TEXT)
    assert found.label == prediction.label
    assert found.probability == pytest.approx(prediction.probabilities[prediction.label], abs=1e-5)


@pytest.mark.parametrize("explain", METHODS)
def test_two_classes_have_opposite_explanations(tiny_checkpoint: Path, explain: Callable) -> None:
    head = HeadConfig(labels=("ham", "spam"), one_output=True)
    classifier = random_classifier(tiny_checkpoint, head)
    ham, spam = (explain(classifier, TEXT, label) for label in head.labels)
    assert ham.evidence == pytest.approx(-spam.evidence)
    assert spam.evidence == pytest.approx(classifier.logits(classifier.encode([TEXT])[0]).item())
    for one, other in zip(ham.parts, spam.parts, strict=True):
        assert one.value == pytest.approx(-other.value, abs=1e-5)


@pytest.mark.parametrize("explain", METHODS)
def test_values_and_several_labels(tiny_checkpoint: Path, explain: Callable) -> None:
    stars = HeadConfig(
        "stars", task="regression", labels=("low", "high"), center=(3.0, -10), scale=(2.0, 0.5)
    )
    topics = HeadConfig("topics", task="multi-label", labels=("x", "y"), gradient=False)
    classifier = random_classifier(tiny_checkpoint, stars, topics)
    (prediction,) = classifier.predict([TEXT])
    assert prediction
    found = explain(classifier, TEXT)
    assert (found.head, found.label, found.probability) == ("stars", "low", None)
    assert found.evidence == pytest.approx(prediction.answers["stars"].values["low"], abs=1e-4)
    assert {part.probability for part in found.parts} == {None}
    found = explain(classifier, TEXT, "y", head="topics")
    assert found.probability == pytest.approx(
        prediction.answers["topics"].probabilities["y"], abs=1e-5
    )
    assert any(abs(part.value) > 0.01 for part in found.parts)


@pytest.mark.parametrize("explain", METHODS)
@pytest.mark.parametrize("pooling", ["end_token", "last_token"])
def test_an_empty_text(tiny_checkpoint: Path, pooling: str, explain: Callable) -> None:
    """It has no tokens, or it is read as <|endoftext|>, which is then what it is compared with."""
    classifier = random_classifier(tiny_checkpoint, replace(CLASSES, pooling=pooling))
    found = explain(classifier, "")
    assert [part.text for part in found.parts] == ["<|endoftext|>"] * (pooling == "last_token")
    if explain is not gradient_times_input:
        assert [part.value for part in found.parts] == pytest.approx([0.0] * len(found.parts))
        assert found.total == 0


@pytest.mark.parametrize("explain", METHODS)
def test_what_cannot_be_explained(tiny_checkpoint: Path, explain: Callable) -> None:
    classifier = random_classifier(tiny_checkpoint, CLASSES)
    with pytest.raises(UsageError, match="'junk'.*ham"):
        explain(classifier, TEXT, "junk")
    with pytest.raises(UsageError, match="'x'.*label"):
        explain(classifier, TEXT, head="x")
    with pytest.raises(UsageError, match="'letter'.*word, token"):
        explain(classifier, TEXT, unit="letter")
    classifier.ngrams = object()  # type: ignore[assignment]
    with pytest.raises(UsageError, match="with_ngrams.*explanations"):
        explain(classifier, TEXT)
    for task, labels in (
        ("token-classification", ("O", "B")),
        ("span", ()),
        ("language", ()),
        ("features", ()),
    ):
        other = random_classifier(tiny_checkpoint, HeadConfig(task=task, labels=labels))
        with pytest.raises(UsageError, match=r"'label'|features"):
            explain(other, TEXT)


# --- sanity checks: Adebayo et al. 2018 ---


def by_length(classifier: Classifier, text: str) -> Explanation:
    """An "explanation" that never looks at the model."""
    found = leave_one_out(classifier, text)
    parts = [replace(part, value=float(len(part.text))) for part in found.parts]
    return replace(found, parts=tuple(parts))


def agreement(explain: Callable, one: Classifier, other: Classifier) -> float:
    """The mean rank correlation of two classifiers' explanations of the same label."""
    texts = [
        "you win the cat and the house on the hill at ten",
        "where is the mat, the hat and the other one?",
        "call now! winner and loser are in the same house",
    ]
    pairs = [(explain(one, text), explain(other, text)) for text in texts]
    return float(
        np.mean(
            [spearmanr(*([p.value for p in e.parts] for e in pair)).statistic for pair in pairs]
        )
    )


@pytest.fixture(scope="module")
def randomised(tmp_path_factory: pytest.TempPathFactory) -> list[Classifier]:
    """Three classifiers with other random weights in all parts that training changes."""
    base = write_checkpoint(tmp_path_factory.mktemp("base"), seed=124)
    found = []
    for seed in range(3):
        classifier = random_classifier(base, CLASSES)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in classifier.model.named_parameters():
                if name.startswith(("blocks.1.", "ln_f.", "head.")):
                    gain = 1.0 if ".ln_" in name or name.startswith("ln_f") else 0.0
                    is_gain = gain if name.endswith("weight") else 0.0
                    parameter.normal_(is_gain, 0.2, generator=generator)
        found.append(classifier)
    return found


@pytest.mark.parametrize("explain", METHODS)
def test_explanations_depend_on_what_was_trained(
    classifier: Classifier, randomised: list[Classifier], explain: Callable
) -> None:
    def spam(which: Classifier, text: str) -> Explanation:
        return explain(which, text, "spam")

    assert np.mean([abs(agreement(spam, classifier, other)) for other in randomised]) < 0.5
    assert agreement(spam, classifier, classifier) == pytest.approx(1)


def test_the_check_finds_an_explanation_that_ignores_the_model(
    classifier: Classifier, randomised: list[Classifier]
) -> None:
    agreements = [agreement(by_length, classifier, other) for other in randomised]
    assert agreements == pytest.approx([1, 1, 1])
