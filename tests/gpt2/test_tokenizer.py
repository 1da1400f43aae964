"""The BPE is compared with tiktoken's loader and OpenAI's pattern."""

import json
import random
import socket
from pathlib import Path

import pytest
import regex
import tiktoken
from tiktoken.load import data_gym_to_mergeable_bpe_ranks
from tiny import TINY_MERGES

from gpt2_from_scratch.errors import CheckpointError, DataError
from gpt2_from_scratch.gpt2.tokenizer import Tokenizer, bytes_to_characters, write_bpe
from gpt2_from_scratch.storage.paths import model_folder

# as published by OpenAI in gpt-2/src/encoder.py, 2019
PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
HASHES = {  # from tiktoken_ext/openai_public.py
    "vocab_bpe_hash": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    "encoder_json_hash": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
}
MILLION = 1_000_000


@pytest.fixture(scope="module")
def openai_tokenizer(openai_124M) -> Tokenizer:
    return Tokenizer(openai_124M)


@pytest.fixture(scope="module")
def witness(openai_124M, tmp_path_factory) -> tiktoken.Encoding:
    """An encoding from tiktoken's own loader.

    The loader reads the two files and checks their SHA-256.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        files = str(openai_124M / "vocab.bpe"), str(openai_124M / "encoder.json")
        ranks = data_gym_to_mergeable_bpe_ranks(*files, **HASHES)
    return tiktoken.Encoding(
        "witness", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={"<|endoftext|>": 50256}
    )


@pytest.fixture
def tiny(tiny_checkpoint: Path) -> Tokenizer:
    return Tokenizer(tiny_checkpoint)


# --- OpenAI's vocabulary ---


def test_known_ids(openai_tokenizer):
    assert openai_tokenizer.encode("Do you have time") == [5211, 345, 423, 640]
    assert openai_tokenizer.encode("<|endoftext|>") == [27, 91, 437, 1659, 5239, 91, 29]
    assert openai_tokenizer.encode("") == []
    assert openai_tokenizer.decode([]) == ""
    assert openai_tokenizer.decode([5211, 345, 423, 640]) == "Do you have time"
    assert openai_tokenizer.decode([50256]) == "<|endoftext|>"
    assert (openai_tokenizer.n_vocab, openai_tokenizer.end_of_text_id) == (50257, 50256)


TEXTS = [
    "You are a winner! You have been specially selected to receive £1000 cash or a $2000 award.",
    "I've, you're, he'll, she'd, it's, I'm, don't; I'VE YOU'RE HE'LL 's 't're",
    "  leading, trailing  ",
    " ",
    "  ",
    "\n",
    " \n \n",
    "a\r\nb\tc\x0b\x0cd",
    "a   b    c\n\n\nd \n e",
    "x = {'a': [1, 2.5e-10]}\n    return x[0]  # 1,234,567",
    "3.14159 2019-02-14 ½ ² ٣ Ⅷ 10km",
    "Grüße, čaj, naïve café, İstanbul, ﬁ, ẞ",
    "e\u0301 vs \u00e9",
    "日本語のテキスト、한국어 텍스트，中文",
    "مرحبا بالعالم שלום עולם",
    "नमस्ते दुनिया ไทย",
    "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 🇩🇪",
    "a\u200bb\u00adc\ufeffd\u2028e\u3000f\xa0g\x85h",
    "\x00\x01\x1c\x1d\x1e\x1f\x7f",
    "<|endoftext|> <|endoftext|><|fim_prefix|>",
    "\U0010ffff\ue000\ufffd",
]


@pytest.mark.slow
@pytest.mark.parametrize("text", TEXTS)
def test_texts(openai_tokenizer, witness, text):
    ids = openai_tokenizer.encode(text)
    assert ids == witness.encode_ordinary(text)
    assert openai_tokenizer.decode(ids) == text


def random_text(rng: random.Random) -> str:
    """Mix scripts, control characters, spaces and repeated characters.

    The pieces have up to 8 characters.
    """
    ranges = [
        (0, 0x80),
        (0x80, 0x250),
        (0x370, 0x530),
        (0x600, 0x700),
        (0x900, 0xA00),
        (0x2000, 0x2070),
        (0x3000, 0x3100),
        (0x4E00, 0x4F00),
        (0xAC00, 0xAD00),
        (0x1F300, 0x1F700),
        (0xE000, 0x110000),
    ]
    pieces = []
    for _ in range(rng.randrange(40)):
        kind, length = rng.randrange(5), rng.randrange(1, 9)
        start, stop = rng.choice(ranges)
        if kind == 0:
            pieces.append("".join(rng.choices(" \n\t\r\xa0\u3000\x1c", k=length)))
        elif kind == 1:
            pieces.append(rng.choice([" ", "\n", "a", "7", "'", "é", chr(start)]) * length)
        elif kind == 2:
            pieces.append(rng.choice(["'s", "'LL", " the", "ing", "n't", "<|endoftext|>"]))
        else:
            pieces += (chr(rng.randrange(start, stop)) for _ in range(length))
    return "".join(pieces)


@pytest.mark.slow
def test_random_unicode(openai_tokenizer, witness):
    rng = random.Random(2019)
    for _ in range(1_500):
        text = random_text(rng)
        ids = openai_tokenizer.encode(text)
        assert ids == witness.encode_ordinary(text), repr(text)
        assert openai_tokenizer.decode(ids) == text


def test_every_character_of_the_basic_plane(openai_tokenizer, witness):
    text = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x10000)]))
    assert openai_tokenizer.encode(text) == witness.encode_ordinary(text)
    spaced = "".join(f"a {character}  {character}" for character in text[:0x3100])
    assert openai_tokenizer.encode(spaced) == witness.encode_ordinary(spaced)


def test_every_token_is_the_one_of_encoder_json(openai_tokenizer, openai_124M):
    ids = json.loads((openai_124M / "encoder.json").read_text(encoding="utf-8"))
    assert ids.pop("<|endoftext|>") == openai_tokenizer.end_of_text_id == len(ids) == 50256
    characters = bytes_to_characters()
    assert len(set(characters.values())) == len(characters) == 256
    for token, n in ids.items():
        assert "".join(characters[b] for b in openai_tokenizer.token_bytes(n)) == token


# --- long texts ---

LONG = {
    "spaces": " " * MILLION,
    "spaces, x": " " * (MILLION - 1) + "x",
    "newlines": "\n" * MILLION,
    "newline runs, x": ("\n" * 4_999 + "x") * 200,
    "one newline run, x": "\n" * (MILLION - 1) + "x",
    "wide spaces, x": "\u3000" * (MILLION - 1) + "x",
    "mixed white space, x": " \n\t\xa0" * 250_000 + "x",
    "space runs just below the cut": (" " * 999 + "x") * 1_000,
    "one letter": "a" * MILLION,
    "one foreign letter": "ж" * MILLION,
    "emoji": "😀" * MILLION,
    "ZWJ": "\u200d" * MILLION,
    "families": "👩\u200d👧" * (MILLION // 3),
    "digits": "7" * MILLION,
    "punctuation": "!" * MILLION,
    "apostrophes": "'" * MILLION,
    "words": "the cat sat " * (MILLION // 12),
    "control": "\x00" * MILLION,
    "mixed": "".join(random.Random(7).choices(" \n\tabc'7é日😀!", k=MILLION)),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", LONG)
def test_a_million_characters(openai_tokenizer, kind):
    """Without our split, tiktoken aborts on some of these texts."""
    assert openai_tokenizer.decode(openai_tokenizer.encode(LONG[kind])) == LONG[kind]


@pytest.mark.slow
def test_a_million_surrogates(openai_tokenizer):
    """Unpaired surrogates become U+FFFD. A pair becomes its character."""
    lone = openai_tokenizer.encode("\ud83d" * MILLION)
    pairs = openai_tokenizer.encode("\ud83d\ude00" * (MILLION // 2))
    assert openai_tokenizer.decode(lone) == "\ufffd" * MILLION
    assert openai_tokenizer.decode(pairs) == "😀" * (MILLION // 2)
    assert openai_tokenizer.encode("a\udc00b") == openai_tokenizer.encode("a\ufffdb")


@pytest.mark.slow
@pytest.mark.parametrize("length", [1, 999, 1_000, 1_001, 1_002, 1_500, 200_000])
@pytest.mark.parametrize("space", [" ", "\n", "\u3000", " \n", "\x1c", "\x85\u2003 "])
def test_cutting_long_runs_changes_no_token(openai_tokenizer, witness, space, length):
    """Texts of 100,000 characters are split. These are short enough to compare with tiktoken."""
    run = (space * length)[:length]
    filler = "word " * 20_000
    for end in ("x", "'s", "😀", "\x1c", "\ud800")[: 2 if length > 10_000 else 5]:
        text = f"{filler}a{run}{end}{run}"
        found = openai_tokenizer.encode(text)
        assert found == witness.encode_ordinary(text), end


def test_long_runs_are_split_into_the_words_of_the_pattern(openai_tokenizer, witness):
    """Words split by the package `regex` and encoded one by one give the same tokens."""
    rng = random.Random(3)
    pieces = []
    while sum(map(len, pieces)) < 150_000:
        run = rng.choice(" \n\t\u3000") * rng.choice([1, 2, 998, 999, 1_000, 1_001, 1_002, 2_500])
        pieces += [run, rng.choice(["x", "'s", "42", "日本", "!?", " y", "\x1f", "z\n"])]
    text = "".join(pieces)
    words = regex.findall(PATTERN, text)
    assert "".join(words) == text
    expected = [token for word in words for token in witness.encode_ordinary(word)]
    assert openai_tokenizer.encode(text) == expected


# --- no network, no cache ---


def test_no_network_and_no_cache(tmp_path, tiny_checkpoint, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    tokenizer = Tokenizer(tiny_checkpoint)
    assert tokenizer.decode(tokenizer.encode("the end")) == "the end"
    assert not list(tmp_path.iterdir())


def test_a_changed_file_is_read_anew(tmp_path):
    """tiktoken's own loader would return the old contents."""
    write_bpe(tmp_path, [("t", "h"), ("th", "e")])
    assert len(Tokenizer(tmp_path).encode("the")) == 1
    write_bpe(tmp_path, [("h", "e")])
    assert len(Tokenizer(tmp_path).encode("the")) == 2


# --- small vocabularies ---


def test_tiny_vocabulary(tiny):
    """The n-th merge has the id 256 + n. The ids of single bytes begin with 0 for `!`."""
    merge = {"".join(pair): 256 + n for n, pair in enumerate(TINY_MERGES)}
    assert (tiny.n_vocab, tiny.end_of_text_id) == (277, 276)
    assert tiny.encode("!") == [0]
    assert tiny.encode(" the") == [merge["Ġthe"]]
    assert tiny.encode("the") == [ord("t") - 33, merge["he"]]
    assert tiny.encode("you and") == [merge["you"], merge["Ġand"]]
    # a single byte of a longer character is not valid UTF-8
    assert tiny.decode(list(range(257))).count("\ufffd") > 0
    assert tiny.encode("<|endoftext|>") != [276] and 276 not in tiny.encode("<|endoftext|>")
    for text in TEXTS:
        assert tiny.decode(tiny.encode(text)) == text


def test_write_and_read(tmp_path):
    write_bpe(tmp_path, TINY_MERGES)
    tokenizer = Tokenizer(tmp_path)
    ids = {0: b"!", 220: b" ", 261: b" the", 275: b"you", 276: b"<|endoftext|>"}
    assert {n: tokenizer.token_bytes(n) for n in ids} == ids
    for unknown in (277, -1, 2**64):
        with pytest.raises(DataError, match="0 to 276"):
            tokenizer.token_bytes(unknown)
    write_bpe(tmp_path, [])
    assert Tokenizer(tmp_path).n_vocab == 257


def test_hugging_faces_names(tmp_path, tiny):
    write_bpe(tmp_path, TINY_MERGES)
    (tmp_path / "vocab.bpe").rename(tmp_path / "merges.txt")
    (tmp_path / "encoder.json").rename(tmp_path / "vocab.json")
    assert Tokenizer(tmp_path).encode("you and the rest") == tiny.encode("you and the rest")


@pytest.mark.slow
def test_write_bpe_produces_openais_bytes(tmp_path, openai_124M):
    """From OpenAI's merges our writer produces the same vocab.bpe and the same ids."""
    lines = (openai_124M / "vocab.bpe").read_text(encoding="utf-8").split("\n")[1:-1]
    write_bpe(tmp_path, [tuple(line.split(" ")) for line in lines])
    assert (tmp_path / "vocab.bpe").read_bytes() == (openai_124M / "vocab.bpe").read_bytes()
    ids = [json.loads((f / "encoder.json").read_bytes()) for f in (tmp_path, openai_124M)]
    assert ids[0] == ids[1]


# --- damage ---


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_bpe(tmp_path, TINY_MERGES)
    return tmp_path


def outcome(folder: Path, name: str) -> str:
    with pytest.raises(CheckpointError) as error:
        Tokenizer(folder)
    assert str(folder / name) in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", ["vocab.bpe", "encoder.json"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    outcome(folder, name)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("\ny ou\n", "\ny ou", "cut off"),
        ("\ny ou\n", "\ny o", "cut off"),
        ("#version: 0.2\n", "", "#version"),
        ("h e\n", "h e x\n", "line 3: expected two tokens to merge, found 'h e x'"),
        ("h e\n", "he\n", "line 3"),
        ("h e\n", " he\n", "line 3"),
        ("h e\n", "h e\r\n", "first difference"),
        ("h e\n", "\n", "line 3"),
    ],
)
def test_a_damaged_vocab_bpe(folder, old, new, message):
    text = (folder / "vocab.bpe").read_text(encoding="utf-8")
    assert text.count(old) == 1
    (folder / "vocab.bpe").write_text(text.replace(old, new), encoding="utf-8", newline="")
    name = "encoder.json" if message == "first difference" else "vocab.bpe"
    assert message in outcome(folder, name)


def test_every_truncation_raises(folder):
    for name in ("vocab.bpe", "encoder.json"):
        raw = (folder / name).read_bytes()
        for length in {*range(0, len(raw), 41), len(raw) - 1}:
            (folder / name).write_bytes(raw[:length])
            with pytest.raises(CheckpointError):
                Tokenizer(folder)
        (folder / name).write_bytes(raw)
    Tokenizer(folder)


@pytest.mark.parametrize("name", ["vocab.bpe", "encoder.json"])
def test_files_that_are_not_utf_8(folder, name):
    raw = (folder / name).read_bytes()
    (folder / name).write_bytes(raw[:20] + b"\xff" + raw[20:])
    assert "utf-8" in outcome(folder, name).lower()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "JSON"),
        ("[]", "object"),
        ('{"!": 0, "!": 0}', "'!'"),
        ("{}", "'!' has id None instead of 0"),
    ],
)
def test_a_damaged_encoder_json(folder, text, message):
    (folder / "encoder.json").write_text(text)
    assert message in outcome(folder, "encoder.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"Ġt": 257, "he": 256}, "'Ġt' has id 257 instead of 256"),
        ({"you": 276, "<|endoftext|>": 275}, "'you' has id 276 instead of 275"),
        ({"extra": 277}, "'extra' has id 277 instead of None"),
        ({"he": None}, "'he' has id None instead of 257"),
        ({"he": "257"}, "'he' has id '257' instead of 257"),
    ],
)
def test_files_of_two_models(folder, change, message):
    ids = json.loads((folder / "encoder.json").read_text())
    (folder / "encoder.json").write_text(json.dumps(ids | change))
    found = outcome(folder, "encoder.json")
    assert message in found and "belong to the same model" in found


def test_a_merge_listed_twice(tmp_path):
    again = [("h", "e"), ("h", "e")]
    another_way = [("b", "c"), ("a", "bc"), ("ab", "c")]
    end_of_text = [("<|endoftext", "|>")]
    for merges in (again, another_way, end_of_text):
        write_bpe(tmp_path, merges)
        assert "a merge is listed twice" in outcome(tmp_path, "encoder.json")


def test_a_character_that_represents_no_byte(tmp_path):
    write_bpe(tmp_path, [("日", "本")])
    assert "'日'" in outcome(tmp_path, "vocab.bpe")


@pytest.mark.parametrize("value", [None, b"bytes", float("nan"), ["list"]])
def test_only_strings_are_encoded(tiny, value):
    with pytest.raises(DataError, match=f"string, not {type(value).__name__}"):
        tiny.encode(value)


@pytest.mark.parametrize("token", [277, 50256, -1, 2**32, 2**70])
def test_only_known_ids_are_decoded(tiny, token):
    with pytest.raises(DataError, match="0 to 276"):
        tiny.decode([0, token])


def test_a_tokenizer_is_found_by_its_models_name(tmp_path, monkeypatch):
    monkeypatch.setenv("GPT2_FROM_SCRATCH_HOME", str(tmp_path))
    assert Tokenizer("mini").sha256 == Tokenizer(model_folder("mini")).sha256
    for name in ("124M", "gpt2"):
        with pytest.raises(CheckpointError, match="download 124M"):
            Tokenizer(name)
    with pytest.raises(CheckpointError, match="small"):
        Tokenizer("small")


# --- tokenizer.json ---


@pytest.fixture(scope="module")
def saved_by_transformers(tmp_path_factory) -> Path:
    """A folder that transformers 5 wrote: it contains tokenizer.json only."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("transformers")
    write_bpe(folder / "openai", TINY_MERGES)
    ids = json.loads((folder / "openai" / "encoder.json").read_text("utf-8"))
    theirs = transformers.GPT2TokenizerFast(vocab=ids, merges=TINY_MERGES)
    theirs.save_pretrained(folder / "saved")
    assert not (folder / "saved" / "merges.txt").exists()
    return folder / "saved"


def test_tokenizer_json_gives_the_tokens_of_tokenizers(saved_by_transformers, tiny):
    tokenizers = pytest.importorskip("tokenizers")
    theirs = tokenizers.Tokenizer.from_file(str(saved_by_transformers / "tokenizer.json"))
    ours = Tokenizer(saved_by_transformers)
    assert (ours.n_vocab, ours.sha256, ours.n_added) == (tiny.n_vocab, tiny.sha256, 0)
    rng = random.Random(5)
    for text in [*TEXTS, *(random_text(rng) for _ in range(500))]:
        text = text.replace("<|endoftext|>", "")  # a special token for them, ordinary text for us
        assert ours.encode(text) == theirs.encode(text).ids == tiny.encode(text), repr(text)


def change_json(folder: Path, source: Path, change) -> None:
    contents = json.loads((source / "tokenizer.json").read_text("utf-8"))
    change(contents)
    (folder / "tokenizer.json").write_text(json.dumps(contents), encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda j: j["model"].update(type="WordPiece"), "model.type is 'WordPiece'"),
        (lambda j: j["model"].update(dropout=0.1), "model.dropout"),
        (lambda j: j["model"].update(ignore_merges=True), "model.ignore_merges"),
        (lambda j: j.update(normalizer={"type": "NFC"}), "normalizer"),
        (lambda j: j.update(pre_tokenizer={"type": "Whitespace"}), "pre_tokenizer.type"),
        (lambda j: j["pre_tokenizer"].update(add_prefix_space=True), "add_prefix_space is True"),
        (lambda j: j["pre_tokenizer"].update(use_regex=False), "use_regex is False"),
        (lambda j: j["model"]["merges"].pop(), "first difference"),
        (lambda j: j["model"]["merges"].reverse(), "first difference"),
        (lambda j: j["model"]["vocab"].update(he=260), "first difference"),
        (lambda j: j["model"].update(merges=[["a"]]), "two tokens"),
        (lambda j: j.update(model=None), "not a valid tokenizer"),
        (
            lambda j: j["added_tokens"].append({"id": 277, "content": "<x>", "special": False}),
            "'<x>' is found in texts",
        ),
        (
            lambda j: j["added_tokens"].append({"id": 290, "content": "<x>", "special": True}),
            "290",
        ),
        (
            lambda j: j["post_processor"].update(
                single=[{"Sequence": {"id": "A"}}, {"SpecialToken": {"id": "<|endoftext|>"}}]
            ),
            "adds tokens",
        ),
    ],
)
def test_another_tokenizer_is_refused(tmp_path, saved_by_transformers, change, message):
    change_json(tmp_path, saved_by_transformers, change)
    assert message in outcome(tmp_path, "tokenizer.json")


def test_an_older_tokenizer_json(tmp_path, saved_by_transformers, tiny):
    """Before 2024, merges were strings, and the model had no type."""

    def as_before(contents):
        del contents["model"]["type"], contents["model"]["ignore_merges"]
        contents["model"]["merges"] = [" ".join(pair) for pair in contents["model"]["merges"]]
        contents["post_processor"] = {"type": "ByteLevel"}

    change_json(tmp_path, saved_by_transformers, as_before)
    assert Tokenizer(tmp_path).encode("you and the rest") == tiny.encode("you and the rest")


def test_an_added_padding_token_is_counted(tmp_path, saved_by_transformers):
    added = {"id": 277, "content": "[PAD]", "special": True}
    change_json(tmp_path, saved_by_transformers, lambda j: j["added_tokens"].append(added))
    tokenizer = Tokenizer(tmp_path)
    assert (tokenizer.n_vocab, tokenizer.n_added, tokenizer.end_of_text_id) == (277, 1, 276)
    assert tokenizer.fits(278) and not tokenizer.fits(277) and not tokenizer.fits(279)


def test_a_padded_vocabulary_fits(tiny):
    fitting = [n for n in range(500) if tiny.fits(n)]
    assert fitting == [277, 320, 384]


def test_two_vocabularies_in_one_folder(folder, saved_by_transformers, tiny):
    change_json(folder, saved_by_transformers, lambda j: None)
    assert Tokenizer(folder).sha256 == tiny.sha256
    write_bpe(folder, [*TINY_MERGES[:-1], ("a", "w")])
    message = outcome(folder, "vocab.bpe")
    assert "'aw'" in message and "'you'" in message and "tokenizer.json" in message
