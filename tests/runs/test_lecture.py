"""The lecture's protocol, compared with an independent plain loop on small random weights."""

import csv
from pathlib import Path

import pandas as pd
import pytest
import torch
from said import listen, stop_listening
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from tiny import write_checkpoint
from torch import nn
from torch.utils.data import DataLoader, Dataset

from gpt2_from_scratch.cli.main import main
from gpt2_from_scratch.data.messages import Message, load_messages, write_messages
from gpt2_from_scratch.errors import DataError
from gpt2_from_scratch.gpt2.tokenizer import Tokenizer
from gpt2_from_scratch.gpt2.weights import load_gpt2
from gpt2_from_scratch.runs.lecture import Trace, lecture, lecture_split, make_loaders
from gpt2_from_scratch.runs.recipes import train_as_the_lecture

WORDS = ["see", "the", "you", "and", "win", "cash", "at", "ten", "house", "now", "call", "in"]


@pytest.fixture
def messages() -> list[Message]:
    """200 messages, 80 of them spam: 14 batches per epoch, so the loss is computed at step 50."""
    draw = torch.Generator().manual_seed(8)

    def text(n: int) -> str:
        picks = torch.randint(len(WORDS), (3 + n % 5,), generator=draw)
        return " ".join(WORDS[i] for i in picks)

    return [Message(text(n), "spam" if n % 5 < 2 else "ham") for n in range(200)]


class PaddedDataset(Dataset):
    """A data set as a learner would write it: every text is cut and padded to `max_length`."""

    def __init__(self, rows: pd.DataFrame, tokenizer: Tokenizer, max_length: int | None) -> None:
        encoded = [tokenizer.encode(text) for text in rows["text"]]
        self.max_length = max_length or max(len(ids) for ids in encoded)
        pad = tokenizer.end_of_text_id
        self.encoded = [
            ids[: self.max_length] + [pad] * (self.max_length - len(ids)) for ids in encoded
        ]
        self.labels = [int(label == "spam") for label in rows["label"]]

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.tensor(self.encoded[index]), torch.tensor(self.labels[index])

    def __len__(self) -> int:
        return len(self.labels)


def plain_lecture(folder: Path, messages: list[Message]) -> Trace:
    """The protocol without shortcuts: a full forward pass in every step, and a plain DataLoader."""
    trace = Trace()
    table = pd.DataFrame([{"label": m.label, "text": m.text} for m in messages])
    spam = table[table["label"] == "spam"]
    ham = table[table["label"] == "ham"].sample(spam.shape[0], random_state=123)
    table = pd.concat([ham, spam]).sample(frac=1, random_state=123).reset_index(drop=True)
    train_end = int(len(table) * 0.7)
    val_end = train_end + int(len(table) * 0.1)
    tokenizer = Tokenizer(folder)
    train_set = PaddedDataset(table[:train_end], tokenizer, None)
    val_set = PaddedDataset(table[train_end:val_end], tokenizer, train_set.max_length)
    test_set = PaddedDataset(table[val_end:], tokenizer, train_set.max_length)
    torch.manual_seed(123)
    train = DataLoader(train_set, batch_size=8, shuffle=True, num_workers=0, drop_last=True)
    val = DataLoader(val_set, batch_size=8, num_workers=0, drop_last=False)
    test = DataLoader(test_set, batch_size=8, num_workers=0, drop_last=False)

    model = load_gpt2(folder)
    for parameter in model.parameters():
        parameter.requires_grad = False
    torch.manual_seed(123)
    model.head = nn.Linear(model.config.n_embd, 2)
    for parameter in [*model.blocks[-1].parameters(), *model.ln_f.parameters()]:
        parameter.requires_grad = True
    trace.check_logits = model(torch.tensor([tokenizer.encode("Do you have time")]))[0].tolist()

    def batch_loss(ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(model(ids)[:, -1, :], labels)

    def loader_loss(loader: DataLoader, batches: int) -> float:
        total, batches = 0.0, min(batches, len(loader))
        with torch.no_grad():
            for n, (ids, labels) in enumerate(loader):
                if n >= batches:
                    break
                total += batch_loss(ids, labels).item()
        return total / batches

    def loader_accuracy(loader: DataLoader, batches: int | None = None) -> float:
        right = seen = 0
        batches = len(loader) if batches is None else min(batches, len(loader))
        with torch.no_grad():
            for n, (ids, labels) in enumerate(loader):
                if n >= batches:
                    break
                right += (model(ids)[:, -1, :].argmax(dim=-1) == labels).sum().item()
                seen += len(labels)
        return right / seen

    torch.manual_seed(123)
    trace.initial_accuracy = [loader_accuracy(loader, 10) for loader in (train, val, test)]
    trace.initial_loss = [loader_loss(loader, 5) for loader in (train, val, test)]
    torch.manual_seed(123)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5, weight_decay=0.1)
    global_step = -1
    for _ in range(5):
        for ids, labels in train:
            optimizer.zero_grad()
            batch_loss(ids, labels).backward()
            optimizer.step()
            global_step += 1
            if global_step % 50 == 0:
                trace.losses.append((global_step, loader_loss(train, 5), loader_loss(val, 5)))
        trace.accuracies.append((loader_accuracy(train, 5), loader_accuracy(val, 5)))
    trace.final_accuracy = [loader_accuracy(loader) for loader in (train, val, test)]
    return trace


@pytest.fixture(scope="module")
def larger_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("lecture"), seed=5, n_ctx=64)


@pytest.mark.slow
def test_the_trace_equals_that_of_a_plain_loop(
    larger_checkpoint: Path, messages: list[Message]
) -> None:
    lines = listen()
    _, ours = lecture(
        load_gpt2(larger_checkpoint),
        Tokenizer(larger_checkpoint),
        lecture_split(messages),
        base="random",
    )
    plain = plain_lecture(larger_checkpoint, messages)
    torch.testing.assert_close(
        torch.tensor(ours.check_logits), torch.tensor(plain.check_logits), atol=1e-5, rtol=0
    )
    assert [step for step, *_ in plain.losses] == [step for step, *_ in ours.losses] == [0, 50]
    for name in ("initial_loss", "losses"):
        torch.testing.assert_close(
            torch.tensor(getattr(ours, name)), torch.tensor(getattr(plain, name)), atol=1e-4, rtol=0
        )
    assert ours.initial_accuracy == plain.initial_accuracy
    assert ours.accuracies == plain.accuracies
    assert ours.final_accuracy == plain.final_accuracy
    assert len({loss for _, loss, _ in ours.losses}) > 1  # the loss changed, so the order matters
    step, train_loss, val_loss = plain.losses[1]
    assert any(
        line.endswith(f"(Step {step:06d}): Train loss {train_loss:.3f}, Val loss {val_loss:.3f}")
        for line in lines
    )


@pytest.mark.slow
def test_the_order_of_passes_matters(larger_checkpoint: Path, messages: list[Message]) -> None:
    """If the trace did not depend on random draws, the test above would prove little."""
    split = lecture_split(messages)
    traces = [
        lecture(
            load_gpt2(larger_checkpoint),
            Tokenizer(larger_checkpoint),
            split,
            base="random",
            seed=seed,
        )[1]
        for seed in (123, 124)
    ]
    assert traces[0].losses != traces[1].losses


def test_the_classifier_reads_the_last_position(
    larger_checkpoint: Path, messages: list[Message]
) -> None:
    classifier, trace = lecture(
        load_gpt2(larger_checkpoint),
        Tokenizer(larger_checkpoint),
        lecture_split(messages),
        base="random",
    )
    description = classifier.description
    assert description.pooling == "last_position" and description.pad_to == description.max_tokens
    split = lecture_split(messages)
    predictions = classifier.predict([message.text for message in split.test])
    right = [p.label == m.label for p, m in zip(predictions, split.test, strict=True)]
    assert sum(right) / len(right) == trace.final_accuracy[2]


def test_the_genuine_split(sms_file: Path, tmp_path: Path) -> None:
    """The split has 1045 / 149 / 300 messages, as with pandas.

    Writing and reading it, as the book does, changes nothing.
    """
    path = sms_file
    split = lecture_split(path)
    assert (len(split.train), len(split.val), len(split.test)) == (1045, 149, 300)
    table = pd.read_csv(path, sep="\t", header=None, names=["Label", "Text"])
    assert len(table) == 5572
    ham = table[table["Label"] == "ham"].sample(747, random_state=123)
    both = pd.concat([ham, table[table["Label"] == "spam"]])
    both = both.sample(frac=1, random_state=123).reset_index(drop=True)
    assert [m.text for m in (*split.train, *split.val, *split.test)] == both["Text"].tolist()
    both[:1045].to_csv(tmp_path / "train.csv", index=None)
    again = pd.read_csv(tmp_path / "train.csv")
    assert again["Text"].tolist() == [m.text for m in split.train]
    with (tmp_path / "train.csv").open(encoding="utf-8", newline="") as file:
        assert len(list(csv.reader(file))) == 1046
    seen = {message.text for message in split.train}
    # these occur verbatim in training
    assert sum(message.text in seen for message in split.test) == 37
    sound = {message.text for message in load_messages(path)}
    # texts altered by stray quotes
    assert len({message.text for message in split.train} - sound) > 0


def test_a_bag_of_words_reaches_the_published_accuracy(sms_file: Path) -> None:
    """Word counts and logistic regression on the lecture's split: 287 of 300, as with GPT-2."""
    split = lecture_split(sms_file)
    words = make_pipeline(CountVectorizer(), LogisticRegression(max_iter=1000))
    words.fit([m.text for m in split.train], [m.label for m in split.train])
    predicted = words.predict([m.text for m in split.test])
    assert sum(predicted == [m.label for m in split.test]) == 287  # 95.67%


def test_nearly_every_last_position_is_padding(sms_file: Path, openai_124M: Path) -> None:
    """The lecture's "last token" is padding for 1,044 of its 1,045 training messages."""
    tokenizer = Tokenizer(openai_124M)
    split = lecture_split(sms_file)
    loaders, encoded, longest = make_loaders(split, tokenizer)
    assert longest == 120 and [len(loader) for loader in loaders] == [130, 19, 38]
    assert sum(len(ids) < longest for ids in encoded[: len(split.train)]) == 1044


def test_before_training_only_the_head_is_random(
    larger_checkpoint: Path, messages: list[Message], monkeypatch
) -> None:
    """The lecture calls the last block and the final norm "still random"; they are GPT-2's."""
    seen = {}

    def stop(classifier, *_) -> None:
        state = classifier.model.state_dict()
        seen.update({name: value.clone() for name, value in state.items()})
        raise KeyboardInterrupt

    monkeypatch.setattr("gpt2_from_scratch.runs.lecture._train", stop)
    with pytest.raises(KeyboardInterrupt):
        lecture(
            load_gpt2(larger_checkpoint),
            Tokenizer(larger_checkpoint),
            lecture_split(messages),
            base="random",
        )
    pretrained = load_gpt2(larger_checkpoint).state_dict()
    assert seen.keys() - pretrained.keys() == {"head.bias"}
    for name, value in pretrained.items():
        assert name == "head.weight" or torch.equal(seen[name], value), name


def test_other_labels_are_sent_to_the_default_recipe() -> None:
    with pytest.raises(DataError, match="default recipe"):
        lecture_split([Message("a", "good"), Message("b", "bad")])


@pytest.mark.slow
def test_the_lecture_prints_its_scores_alone(
    larger_checkpoint: Path,
    messages: list[Message],
    tmp_path: Path,
    capfd: pytest.CaptureFixture,
) -> None:
    """The command writes its steps to standard error; a call in Python prints nothing."""
    table = tmp_path / "mail.csv"
    write_messages(table, messages)
    words = ["train", "--recipe", "lecture", "--model", str(larger_checkpoint)]
    assert main([*words, "--data", str(table), "--out", str(tmp_path / "a")]) == 0
    out, err = capfd.readouterr()
    assert out.startswith("Test set: accuracy ") and "Ep 1 (Step" not in out
    assert "Ep 1 (Step 000000): Train loss" in err
    stop_listening()  # as in a program that has not configured logging
    run = train_as_the_lecture(larger_checkpoint, table, run=tmp_path / "b")
    run.write_report()
    assert capfd.readouterr() == ("", "")
    assert run.scores.as_table().splitlines()[0] in out
