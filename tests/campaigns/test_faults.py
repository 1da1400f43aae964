"""The table of faults is complete and its tests exist; also tests that fit nowhere else."""

import ast
import re
import zipfile
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from gpt2_from_scratch.classifier.classifier import Classifier
from gpt2_from_scratch.cli.main import main
from gpt2_from_scratch.errors import CheckpointError
from gpt2_from_scratch.gpt2.weights import load_gpt2

HERE = Path(__file__).parent
ROWS = [
    re.split(r"(?<!\\)\|", line)[1:-1]
    for line in (HERE / "FAULTS.md").read_text("utf-8").splitlines()
    if re.match(r"\| \d", line)
]


@cache
def functions_of(module: str) -> set[str]:
    """The names of the functions in a test file, in any folder."""
    (path,) = HERE.parent.rglob(f"{module}.py")
    return {n.name for n in ast.parse(path.read_text("utf-8")).body if hasattr(n, "name")}


def test_faults_are_numbered_and_their_tests_exist():
    assert [int(number) for number, *_ in ROWS] == list(range(1, len(ROWS) + 1))
    for number, _, _, tests in ROWS:
        named = [name.strip() for name in tests.split(",")]
        assert named[0], f"fault {number} has no test"
        for name in named:
            module, function = name.split("::")
            assert function in functions_of(module), f"fault {number}: there is no {name}"


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def model_folder(tiny_checkpoint: Path, folder: Path) -> Path:
    folder.mkdir()
    for name in ("hparams.json", "vocab.bpe", "encoder.json"):
        (folder / name).write_bytes((tiny_checkpoint / name).read_bytes())
    return folder


@pytest.mark.parametrize("new_zipfile", [True, False])
def test_a_pickle_is_refused_unread(tiny_checkpoint, tmp_path, new_zipfile, capsys):
    """A real torch.save file that would run code, in every place where a model is expected."""
    exploded, bomb = tmp_path / "exploded", tmp_path / "bomb.pt"
    torch.save(Bomb(exploded), bomb, _use_new_zipfile_serialization=new_zipfile)
    torch.load(bomb, weights_only=False)
    assert exploded.exists(), "the bomb is none"
    exploded.unlink()
    assert zipfile.is_zipfile(bomb) == new_zipfile
    kind = "zip archive" if new_zipfile else "pickle"
    folder = model_folder(tiny_checkpoint, tmp_path / "model")
    (folder / "model.safetensors").write_bytes(bomb.read_bytes())
    table = tmp_path / "table.csv"
    table.write_bytes(bomb.read_bytes())
    for words, code in [
        (["train", "--model", folder, "--out", tmp_path / "run"], 4),
        (["generate", "--model", folder, "--prompt", "a"], 4),
        (["predict", bomb, "a"], 4),
        (["train", "--data", table, "--out", tmp_path / "run"], 3),
        (["check", table], 3),
    ]:
        assert main([str(word) for word in words]) == code
        out, err = capsys.readouterr()
        assert kind in out + err and "Traceback" not in err
    assert main(["verify", str(folder)]) == 4 and kind in capsys.readouterr().out
    assert not exploded.exists()


@pytest.mark.parametrize(
    ("raw", "kind"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n", "git-LFS pointer"),
        (b"<!DOCTYPE html>\n<html><body>404</body></html>", "web page"),
        (b"", "is empty"),
    ],
)
@pytest.mark.parametrize(
    "name", ["hparams.json", "vocab.bpe", "encoder.json", "model.ckpt.index", "model.safetensors"]
)
def test_a_file_of_another_kind_is_named_everywhere(tiny_checkpoint, tmp_path, name, raw, kind):
    folder = tmp_path / "model"
    folder.mkdir()
    for path in tiny_checkpoint.iterdir():
        if name != "model.safetensors" or path.suffix in (".json", ".bpe"):
            (folder / path.name).write_bytes(path.read_bytes())
    (folder / name).write_bytes(raw)
    with pytest.raises(CheckpointError) as error:
        Classifier.on_base(folder, ["ham", "spam"])
    assert kind in str(error.value) and str(folder / name) in str(error.value)


@pytest.mark.parametrize(
    ("name", "architecture"),
    [
        ("bert.encoder.layer.0.attention.self.query.weight", "BERT"),
        ("model.layers.0.mlp.up_proj.weight", "Llama"),
        ("gpt_neox.layers.0.mlp.dense_h_to_4h.weight", "GPT-NeoX"),
        ("blocks.1.ln_1.weight", "saved classifier"),
    ],
)
def test_another_architecture_is_named(tiny_checkpoint, tmp_path, name, architecture):
    folder = model_folder(tiny_checkpoint, tmp_path / "model")
    save_file({name: torch.zeros(3)}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"looks like .*{architecture}"):
        load_gpt2(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"n_vocab": 277, "n_vocab": 277}', "'n_vocab' appears twice"),
        ('{"n_ctx": NaN}', "NaN"),
        ('{"n_ctx": 1e999}', "not JSON.*64 bits"),
        ("[277]", "expected a JSON object"),
        ("{" * 100_000, "not JSON"),
        ('{"n_ctx": ' + "9" * 5000 + "}", "not JSON"),
        ("\ufeff{}", "not JSON"),
        ("{}" + " " * (1 << 25), "more than"),
    ],
)
def test_invalid_sizes(tiny_checkpoint, tmp_path, text, message):
    folder = model_folder(tiny_checkpoint, tmp_path / "model")
    (folder / "hparams.json").write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError, match=message):
        load_gpt2(folder)
