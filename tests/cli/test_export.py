"""The command `export`: what it writes, and its errors."""

import json
from pathlib import Path

import pytest
from command import call

from gpt2_from_scratch.classifier.classifier import Classifier
from gpt2_from_scratch.classifier.settings import HeadConfig
from gpt2_from_scratch.gpt2.config import LoRAConfig


def test_a_run_is_exported(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run = tmp_path / "run"
    Classifier.on_base(tiny_checkpoint, ["ham", "spam"], lora=LoRAConfig(rank=2)).save(
        run / "best.safetensors"
    )
    (run / "model_card.md").write_text("---\ntags:\n---\n# Mine\n")
    for source, to, weights in (
        (run, "hugging-face", "model.safetensors"),
        (run / "best.safetensors", "peft", "adapter_model.safetensors"),
    ):
        folder = tmp_path / to
        words = ("export", source, "--to", to, folder, "--model", tiny_checkpoint)
        code, out, err = call(capsys, *words)
        assert (code, out.strip()) == (0, str(folder)), err
        assert (folder / weights).is_file()
        assert "# Mine" in (folder / "README.md").read_text()
        assert json.loads((folder / "config.json").read_text())["label2id"] == {"ham": 0, "spam": 1}
        with pytest.raises(SystemExit) as stopped:  # the folder exists now
            call(capsys, *words)
        assert stopped.value.code == 2


def test_what_cannot_be_exported(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    head = HeadConfig(labels=("ham", "spam"), pooling="mean")
    Classifier.on_base(tiny_checkpoint, heads=[head]).save(tmp_path / "one.safetensors")
    out = tmp_path / "out"
    code, _, err = call(
        capsys, "export", tmp_path / "one.safetensors", out, "--model", tiny_checkpoint
    )
    assert code == 2 and "mean" in err
    code, _, err = call(capsys, "export", tmp_path / "nothing", out)
    assert code == 4 and "nothing" in err
    assert not out.exists()


@pytest.mark.slow
def test_a_run_is_exported_to_onnx(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    pytest.importorskip("onnxruntime")
    Classifier.on_base(tiny_checkpoint, ["ham", "spam"]).save(tmp_path / "run" / "best.safetensors")
    words = ("export", tmp_path / "run", "--to", "onnx", tmp_path / "out")
    code, out, err = call(capsys, *words, "--model", tiny_checkpoint, "--int8")
    assert (code, out.strip()) == (0, str(tmp_path / "out")), err
    assert "against PyTorch" in err and "not measured" in err
    assert (tmp_path / "out" / "model_int8.onnx").is_file()
    code, _, err = call(
        capsys, "export", tmp_path / "run", tmp_path / "o", "--model", tiny_checkpoint, "--int8"
    )
    assert code == 2 and "int8" in err
