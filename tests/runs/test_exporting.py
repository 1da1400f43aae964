"""Exported folders: transformers and PEFT load them and give the same answers.

B texts in a batch, K outputs of a head.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import ODD_TEXTS as TEXTS
from tiny import random_classifier
from torch import Tensor

from gpt2_from_scratch.classifier.classifier import Classifier
from gpt2_from_scratch.classifier.hugging_face import merges_of
from gpt2_from_scratch.classifier.settings import HeadConfig
from gpt2_from_scratch.errors import CheckpointError, ResourceError, UsageError
from gpt2_from_scratch.gpt2.config import LoRAConfig
from gpt2_from_scratch.gpt2.tokenizer import Tokenizer
from gpt2_from_scratch.runs.exporting import export
from gpt2_from_scratch.speed.batching import IGNORABLE, INVISIBLE
from gpt2_from_scratch.storage.paths import model_folder

transformers = pytest.importorskip("transformers")

LABELS = ("ham", "other", "spam")
LORA = LoRAConfig(rank=2, alpha=6.0)


def their_logits(
    folder: Path, texts: Sequence[str], batch_size: int = 4, side: str = "right"
) -> Tensor:
    """The logits of transformers' own classes (N, K).

    With padding on the left, GPT-2 needs the positions of the tokens, as for generation.
    """
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, padding_side=side)
    rows = []
    for first in range(0, len(texts), batch_size):
        batch = tokenizer(
            texts[first : first + batch_size], truncation=True, padding=True, return_tensors="pt"
        )
        positions = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
        with torch.no_grad():
            rows.append(model(**batch, position_ids=positions).logits)
    return torch.cat(rows)


def our_logits(classifier: Classifier, texts: Sequence[str]) -> Tensor:
    return classifier.logits(classifier.encode(texts)[0])


@pytest.mark.slow
def test_every_batch_and_padding(tiny_checkpoint: Path, tmp_path: Path) -> None:
    ours = random_classifier(tiny_checkpoint, HeadConfig(labels=LABELS))
    export(ours, tmp_path / "out")
    expected = our_logits(ours, TEXTS)
    for batch_size in (1, 4, 32):
        for side in ("left", "right"):
            found = their_logits(tmp_path / "out", TEXTS, batch_size, side)
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "head, options",
    [
        (HeadConfig(labels=LABELS, temperature=2.5), {}),
        (HeadConfig(labels=("no", "yes"), one_output=True, temperature=0.5), {}),
        (HeadConfig(labels=LABELS, hidden=(7,), dropout=0.1), {}),  # two linear layers
        (HeadConfig(labels=LABELS, layer=1), {}),
        (HeadConfig(labels=LABELS), {"max_tokens": 9}),
        (HeadConfig(labels=LABELS), {"lora": LORA}),
        (HeadConfig(labels=LABELS), {"lora": replace(LORA, head=True, matrices=("value",))}),
        (HeadConfig(task="multi-label", labels=("one",)), {}),
        (HeadConfig(task="multi-label", labels=LABELS), {}),
        (HeadConfig(task="regression", labels=("stars",), center=(3.0,), scale=(1.5,)), {}),
        (HeadConfig(task="regression", labels=("a", "b"), center=(-20.0, 0.0)), {}),
    ],
)
def test_the_pipeline_gives_our_answers(
    tiny_checkpoint: Path, tmp_path: Path, head: HeadConfig, options: dict[str, Any]
) -> None:
    ours = random_classifier(tiny_checkpoint, head, **options)
    export(ours, tmp_path / "out")
    classify = transformers.pipeline("text-classification", model=str(tmp_path / "out"))
    found = classify(TEXTS, truncation=True, top_k=None, batch_size=3)
    for theirs, prediction in zip(found, ours.predict(TEXTS), strict=True):
        answer = prediction.answer
        expected = answer.values if head.task == "regression" else answer.probabilities
        assert {one["label"]: one["score"] for one in theirs} == pytest.approx(expected, abs=1e-5)
        if head.task == "classification":
            assert theirs[0]["label"] == answer.label


def test_a_last_token_reading(tiny_checkpoint: Path, tmp_path: Path) -> None:
    ours = random_classifier(tiny_checkpoint, HeadConfig(labels=LABELS, pooling="last_token"))
    export(ours, tmp_path / "out")
    texts = [text for text in TEXTS if text]
    found = their_logits(tmp_path / "out", texts)
    torch.testing.assert_close(found, our_logits(ours, texts), atol=1e-5, rtol=0)


def test_token_classification(tiny_checkpoint: Path, tmp_path: Path) -> None:
    head = HeadConfig(task="token-classification", labels=("O", "B-x", "I-x"))
    ours = random_classifier(tiny_checkpoint, head)
    export(ours, tmp_path / "out")
    text = TEXTS[0]
    tag = transformers.pipeline("token-classification", model=str(tmp_path / "out"))
    found = {one["start"]: one for one in tag(text, ignore_labels=[])}
    for word in ours.predict([text])[0].answer.words:
        assert found[word.start]["entity"] == word.label
        assert found[word.start]["score"] == pytest.approx(word.probability, abs=1e-5)


def test_one_of_several_heads(tiny_checkpoint: Path, tmp_path: Path) -> None:
    heads = [HeadConfig("kind", labels=LABELS), HeadConfig("tone", labels=("bad", "good"))]
    ours = random_classifier(tiny_checkpoint, *heads)
    with pytest.raises(UsageError, match="kind, tone"):
        export(ours, tmp_path / "out")
    with pytest.raises(UsageError, match="'topic'"):
        export(ours, tmp_path / "out", head="topic")
    export(ours, tmp_path / "out", head="tone")
    classify = transformers.pipeline("text-classification", model=str(tmp_path / "out"))
    for found, prediction in zip(
        classify(TEXTS, truncation=True), ours.predict(TEXTS), strict=True
    ):
        answer = prediction.answers["tone"]
        assert found["label"] == answer.label
        assert found["score"] == pytest.approx(answer.probabilities[answer.label], abs=1e-5)


def test_merged_adapters_and_the_classifier_stay(tiny_checkpoint: Path, tmp_path: Path) -> None:
    ours = random_classifier(tiny_checkpoint, HeadConfig(labels=LABELS), lora=LORA)
    before = {name: value.clone() for name, value in ours.model.state_dict().items()}
    export(ours, tmp_path / "separate")
    after = ours.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    ours.merge()
    export(ours, tmp_path / "merged")
    separate, merged = (their_logits(tmp_path / name, TEXTS) for name in ("separate", "merged"))
    torch.testing.assert_close(separate, merged, atol=1e-5, rtol=0)
    with pytest.raises(UsageError, match="unmerged"):
        export(ours, tmp_path / "adapters", to="peft")


# --- what is refused ---


@pytest.mark.parametrize(
    "head, options, reason",
    [
        (HeadConfig(labels=LABELS, pooling="mean"), {}, "mean"),
        (HeadConfig(labels=LABELS, pooling="last_position"), {"pad_to": 32}, "last_position"),
        (HeadConfig(labels=LABELS, pooling="first_token"), {}, "first_token"),
        (HeadConfig(labels=LABELS, final_norm=False), {}, "raw state"),
        (HeadConfig(labels=LABELS, layer=0), {}, "embeddings"),
        (HeadConfig(labels=LABELS, hidden=(32,), activation="tanh"), {}, "Tanh"),
        (HeadConfig(labels=LABELS), {"causal_mask": False}, "causal mask"),
        (HeadConfig(task="span"), {}, "span"),
        (HeadConfig(task="language"), {}, "language"),
        (HeadConfig(labels=tuple(f"l{n}" for n in range(40))), {}, "no bias"),  # K > n_embd
        (HeadConfig(task="regression", labels=("year",), center=(1e6,)), {}, "far from 0"),
    ],
)
def test_what_transformers_cannot_express(
    tiny_checkpoint: Path, tmp_path: Path, head: HeadConfig, options: dict[str, Any], reason: str
) -> None:
    ours = random_classifier(tiny_checkpoint, head, **options)
    with pytest.raises(UsageError, match=reason):
        export(ours, tmp_path / "out")
    assert not [*tmp_path.iterdir()]


def test_a_bias_that_dependent_rows_cannot_have(tiny_checkpoint: Path, tmp_path: Path) -> None:
    ours = random_classifier(tiny_checkpoint, HeadConfig(labels=LABELS))
    with torch.no_grad():
        ours.model.head.weight[1] = ours.model.head.weight[0]
    with pytest.raises(UsageError, match="depend on each other"):
        export(ours, tmp_path / "out")
    with torch.no_grad():
        ours.model.head.bias[1] = ours.model.head.bias[0]
    export(ours, tmp_path / "out")


def test_a_changed_model(tiny_checkpoint: Path, tmp_path: Path) -> None:
    ours = random_classifier(tiny_checkpoint, HeadConfig(labels=LABELS))
    hook = ours.model.ln_f.register_forward_hook(lambda module, inputs, output: output * 2)
    with pytest.raises(UsageError, match="ln_f"):
        export(ours, tmp_path / "out")
    hook.remove()
    with torch.no_grad():
        ours.model.wte.weight[0, 0] = torch.nan
    with pytest.raises(CheckpointError, match="wte"):
        export(ours, tmp_path / "out")


# --- files ---


def test_files(tiny_checkpoint: Path, tmp_path: Path) -> None:
    ours = random_classifier(tiny_checkpoint, HeadConfig(labels=LABELS))
    run = tmp_path / "run"
    run.mkdir()
    (run / "model_card.md").write_text("---\ntags:\n- gpt2\n---\n\n# Mine\n")
    export(ours, tmp_path / "some" / "out", run=run)
    folder = tmp_path / "some" / "out"
    assert {path.name for path in folder.iterdir()} == {
        "README.md",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    config = json.loads((folder / "config.json").read_text())
    assert config["id2label"] == {"0": "ham", "1": "other", "2": "spam"}
    assert config["label2id"] == {"ham": 0, "other": 1, "spam": 2}
    readme = (folder / "README.md").read_text()
    head, card = readme.split("---\n")[1:3]
    assert {"library_name: transformers", "- gpt2"} <= {*head.splitlines()}
    assert "# Mine" in card and 'model="out"' in card
    assert [path.name for path in folder.parent.iterdir()] == ["out"]


def test_thresholds_are_in_the_readme(tiny_checkpoint: Path, tmp_path: Path) -> None:
    head = HeadConfig(task="multi-label", labels=LABELS, thresholds=(0.25, 0.5, 0.75))
    export(random_classifier(tiny_checkpoint, head), tmp_path / "out")
    readme = (tmp_path / "out" / "README.md").read_text()
    assert "ham 0.25, other 0.5, spam 0.75" in readme


def test_places_that_cannot_be_written(tiny_checkpoint: Path, tmp_path: Path) -> None:
    ours = random_classifier(tiny_checkpoint, HeadConfig(labels=LABELS))
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    for name in ("file", "folder", "link"):
        with pytest.raises(UsageError, match=name):
            export(ours, tmp_path / name)
    with pytest.raises(ResourceError, match="file"):
        export(ours, tmp_path / "file" / "out")
    with pytest.raises(UsageError, match="onnx2"):
        export(ours, tmp_path / "out", to="onnx2")
    assert {path.name for path in tmp_path.iterdir()} == {"file", "folder", "link"}
    assert (tmp_path / "file").read_text() == "mine"


def test_nothing_is_left_of_an_export_that_fails(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = random_classifier(tiny_checkpoint, HeadConfig(labels=LABELS))

    def full(*args: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("gpt2_from_scratch.runs.exporting.write_tensors", full)
    with pytest.raises(ResourceError, match="No space"):
        export(ours, tmp_path / "out")
    assert not [*tmp_path.iterdir()]


# --- the tokenizer ---


def test_merges_follow_from_the_vocabulary() -> None:
    tokenizer = Tokenizer("mini")
    lines = (model_folder("mini") / "vocab.bpe").read_text("utf-8").splitlines()[1:]
    assert len(merges_of(tokenizer)) == len(lines)
    characters = json.loads((model_folder("mini") / "encoder.json").read_text("utf-8"))
    names = {number: name for name, number in characters.items()}
    assert [f"{names[a]} {names[b]}" for a, b in merges_of(tokenizer)] == lines


@pytest.fixture(scope="module")
def both_tokenizers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Classifier, Any]:
    """The miniature's classifier and the tokenizer that transformers loads."""
    ours = Classifier.on_base("mini", ["ham", "spam"])
    folder = tmp_path_factory.mktemp("exported") / "out"
    export(ours, folder)
    return ours, transformers.AutoTokenizer.from_pretrained(folder)


NASTY = [
    *TEXTS,
    " ",
    "a\r\nb\rc\r",
    "\u2028x\u2029\x85",
    "hello <|endoftext|>\u00a0\u3164",
    "word " * 2000,  # cut
    "  " * 3000 + "x",
    "I'll we've DON'T 12 345 !!! ???",
    "\u212b \U000e0001tag\U000e0041 \u0378",
    "日本語 。कि\u094d 👍🏽\ufe0f",
    "".join(map(chr, range(0x250))),
]


@pytest.mark.parametrize("text", NASTY)
def test_tokens_are_ours(both_tokenizers: tuple[Classifier, Any], text: str) -> None:
    ours, theirs = both_tokenizers
    assert theirs(text, truncation=True)["input_ids"] == ours.encode([text])[0][0]


ENDINGS = st.sampled_from([chr(code) for code in sorted(IGNORABLE)] + list(" \t\r\n\x00\u200b\xad"))


@settings(max_examples=60, deadline=None)
@given(st.text(st.one_of(st.characters(exclude_categories=["Cs", "Cn"]), ENDINGS), max_size=30))
def test_tokens_are_ours_for_any_text(both_tokenizers: tuple[Classifier, Any], text: str) -> None:
    ours, theirs = both_tokenizers
    assert theirs(text, truncation=True)["input_ids"] == ours.encode([text])[0][0]


def test_every_character_that_tidying_removes(both_tokenizers: tuple[Classifier, Any]) -> None:
    from sys import maxunicode
    from unicodedata import category

    ours, theirs = both_tokenizers
    texts = [
        f"a{chr(code)}"
        for code in range(maxunicode + 1)
        if code in IGNORABLE or category(chr(code)) in INVISIBLE
    ]
    assert theirs(texts)["input_ids"] == ours.encode(["a"] * len(texts))[0]
    assert len(texts) > 200


# --- PEFT ---


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # PEFT asks for it
@pytest.mark.parametrize(
    "lora, layer", [(LORA, None), (replace(LORA, matrices=("query", "value", "mlp.c_fc")), 1)]
)
def test_peft_gives_our_answers(
    tiny_checkpoint: Path, tmp_path: Path, lora: LoRAConfig, layer: int | None
) -> None:
    peft = pytest.importorskip("peft")
    ours = random_classifier(tiny_checkpoint, HeadConfig(labels=LABELS, layer=layer), lora=lora)
    export(ours, tmp_path / "out", to="peft")
    plain = Classifier.on_base(tiny_checkpoint, LABELS)
    export(plain, tmp_path / "base")
    config = transformers.AutoConfig.from_pretrained(tmp_path / "out")
    kind = transformers.AutoModelForSequenceClassification
    base = kind.from_pretrained(tmp_path / "base", config=config)
    model = peft.PeftModel.from_pretrained(base, tmp_path / "out").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    batch = tokenizer(TEXTS, truncation=True, padding=True, return_tensors="pt")
    with torch.no_grad():
        found = model(**batch).logits
    torch.testing.assert_close(found, our_logits(ours, TEXTS), atol=1e-5, rtol=0)


def test_adapters_that_peft_cannot_have(tiny_checkpoint: Path, tmp_path: Path) -> None:
    for lora, reason in ((None, "no LoRA"), (replace(LORA, head=True), "head")):
        with pytest.raises(UsageError, match=reason):
            export(
                random_classifier(tiny_checkpoint, HeadConfig(labels=LABELS), lora=lora),
                tmp_path / "out",
                to="peft",
            )
    ours = random_classifier(tiny_checkpoint, HeadConfig(labels=LABELS), lora=LORA)
    with torch.no_grad():
        ours.model.wpe.weight[0, 0] += 1
    with pytest.raises(UsageError, match="wpe.weight"):
        export(ours, tmp_path / "out", to="peft")
