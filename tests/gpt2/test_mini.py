"""The miniature is complete and small, and can learn the main task."""

import math
import random
import re
from pathlib import Path

import pytest
import torch

from gpt2_from_scratch.classifier.classifier import Classifier
from gpt2_from_scratch.classifier.settings import TrainConfig
from gpt2_from_scratch.data.messages import load_messages
from gpt2_from_scratch.gpt2.config import read_config
from gpt2_from_scratch.gpt2.generate import generate
from gpt2_from_scratch.gpt2.tokenizer import Tokenizer
from gpt2_from_scratch.gpt2.weights import base_sha256, load_gpt2
from gpt2_from_scratch.runs.recipes import train_classifier
from gpt2_from_scratch.storage.files import sha256_of
from gpt2_from_scratch.storage.paths import embedded

MINI = embedded("weights/mini")


@pytest.fixture(scope="module")
def mini():
    return load_gpt2("mini")


def test_its_files_have_the_listed_checksums() -> None:
    listed = dict(
        reversed(line.split("  ")) for line in (MINI / "SHA256SUMS").read_text().splitlines()
    )
    assert set(listed) >= {"hparams.json", "vocab.bpe", "encoder.json", "model.safetensors"}
    for name, digest in listed.items():
        assert sha256_of(MINI / name) == digest, name


def test_it_is_small() -> None:
    assert sum(path.stat().st_size for path in MINI.iterdir()) < 20e6


def test_every_message_fits_into_its_context(sms_file: Path) -> None:
    tokenizer = Tokenizer(MINI)
    longest = max(len(tokenizer.encode(message.text)) for message in load_messages(sms_file))
    assert longest <= read_config(MINI).n_ctx


def test_a_telephone_number_stays_a_sequence_of_digits() -> None:
    tokenizer = Tokenizer(MINI)
    pieces = [tokenizer.decode([token]) for token in tokenizer.encode("call 07700 900123")]
    assert "".join(pieces) == "call 07700 900123"
    assert all(sum(character.isdigit() for character in piece) <= 1 for piece in pieces)


def test_english_is_more_probable_than_the_same_words_shuffled(mini) -> None:
    text = "I will be home in about an hour, so please put the kettle on and wait for me."
    tokenizer, words = Tokenizer(MINI), text.split()
    random.Random(0).shuffle(words)

    def nats(sentence: str) -> float:
        ids = torch.tensor([tokenizer.encode(sentence)])
        with torch.no_grad():
            return torch.nn.functional.cross_entropy(
                mini(ids)[0, :-1], ids[0, 1:], reduction="sum"
            ).item()

    assert nats(text) < nats(" ".join(words)) - 10
    assert nats(text) / math.log(2) / len(text) < 2.2  # bits per byte; gzip needs about 3


def test_greedy_text_is_made_of_words(mini) -> None:
    tokenizer = Tokenizer(MINI)
    ids = generate(mini, torch.tensor(tokenizer.encode("I think that")), 20)
    text = tokenizer.decode(ids.tolist())
    assert text.startswith("I think that") and text.replace("\n", "").isprintable()
    known = {word for message in load_messages("hard") for word in words_of(message.text)}
    written = words_of(text)
    assert sum(word in known for word in written) > 0.8 * len(written) > 0


def words_of(text: str) -> list[str]:
    return re.findall(r"[a-z']+", text.lower())


@pytest.mark.slow
def test_the_main_job(tmp_path: Path) -> None:
    """A short training run is significantly better than chance, and its classifier can be loaded."""
    config = TrainConfig(epochs=3, seed=1)
    run = train_classifier("mini", "hard", config, run=tmp_path / "run", device="cpu")
    assert run.scores.interval[0] > 0.5  # the whole interval is above chance
    again = Classifier.load(run.folder)
    texts = ["Claim your prize now", "see you at six"]
    assert again.predict(texts) == run.classifier.predict(texts)
    assert again.description.base == "mini"
    assert again.description.base_sha256 == base_sha256(load_gpt2("mini"), Tokenizer(MINI))
    assert (run.folder / "best.safetensors").stat().st_size < 4e6
