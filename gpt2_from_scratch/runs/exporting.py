"""Write a classifier to a folder for other tools, with its model card as README.md."""

from pathlib import Path

from gpt2_from_scratch.classifier.classifier import Classifier
from gpt2_from_scratch.classifier.hugging_face import (
    KINDS,
    Converted,
    to_peft,
    to_transformers,
)
from gpt2_from_scratch.errors import UsageError
from gpt2_from_scratch.reports.render import render
from gpt2_from_scratch.runs.onnx_files import write_onnx
from gpt2_from_scratch.storage.files import atomic_folder, read_bounded, write_json, write_text
from gpt2_from_scratch.storage.paths import HUB, expanded
from gpt2_from_scratch.storage.tensors import write_tensors

CONVERSIONS = {"hugging-face": to_transformers, "peft": to_peft}
ONNX = "onnx"
LARGEST_CARD = 1 << 22  # bytes


def export(
    classifier: Classifier,
    folder: str | Path,
    *,
    to: str = "hugging-face",
    head: str = "",
    run: str | Path | None = None,
    int8: bool = False,
    data: str | Path = "",
    force: bool = False,
) -> None:
    """Write a classifier to a new folder that other tools can read. All files appear at once.

    Args:
        classifier: The classifier, which does not change.
        folder: A folder that does not exist yet.
        to: "hugging-face" for a complete model of transformers, "peft" for the LoRA adapters alone,
            or "onnx" for a graph that onnxruntime runs.
        head: The name of the head to export, if there are several. By default, "onnx" exports all.
        run: The folder of the classifier's run, whose model card becomes the README. A graph is
            compared with PyTorch on its test set.
        int8: For "onnx", also write a version with int8 weights, and measure it on `data`.
        data: Labelled texts in the format of training; by default the run's validation set.
        force: Write int8 weights even if they lose more than a point of the score.

    Raises:
        UsageError: The folder exists, the tool cannot give the same answers, or a package that
            the export needs is missing.
        CheckpointError: A weight is NaN or infinite, the graph's answers differ, or int8 weights
            lose more than a point of the score.
        ResourceError: There is no space or no permission.
    """
    folder, run = expanded(folder), expanded(run) if run else None
    if to not in (*CONVERSIONS, ONNX):
        raise UsageError(
            f"unknown format {to!r:.80}; choose from: {', '.join(CONVERSIONS)}, {ONNX}"
        )
    if int8 and to != ONNX:
        raise UsageError(f"int8 weights are for {ONNX}, not for {to}")
    if force and not int8:
        raise UsageError("force accepts what int8 weights lose; without int8, leave it out")
    if data and not int8:
        raise UsageError(f"int8 weights are measured on {data}; without int8, leave it out")
    with atomic_folder(folder) as temporary:  # first, because it refuses an existing folder
        if to == ONNX:
            how, agreement, quantized = write_onnx(
                temporary, classifier, head, run, int8=int8, data=str(data), force=force
            )
            usage = render(
                "onnx.md", how=how, agreement=agreement, quantized=quantized, name=folder.name
            )
            write_text(temporary / "README.md", f"{_card(run)}\n{usage}")
            return
        found = CONVERSIONS[to](classifier, head)
        write_json(temporary / "config.json", found.config)
        write_json(temporary / "tokenizer.json", found.tokenizer)
        write_json(temporary / "tokenizer_config.json", found.tokenizer_config)
        write_text(temporary / "README.md", _readme(classifier, head, found, folder.name, run))
        weights = "model.safetensors"
        if found.adapter_config:
            weights = "adapter_model.safetensors"
            write_json(temporary / "adapter_config.json", found.adapter_config)
        # without a checksum, because transformers accepts only {"format": "pt"} as metadata
        write_tensors(temporary / weights, found.tensors, {"format": "pt"}, checksum=False)


def _readme(
    classifier: Classifier, head_name: str, found: Converted, name: str, run: Path | None
) -> str:
    """The run's model card, if there is one, and how to use the exported folder `name`."""
    description = classifier.description
    head = next(head for head in description.heads if head.name == (head_name or head.name))
    kind = KINDS[head.task][0].removeprefix("GPT2For")
    base = HUB.get(description.base, Path(description.base).name) if found.adapter_config else ""
    tokens = head.task == "token-classification"
    pipeline = "token-classification" if tokens else "text-classification"
    card = _with_head(_card(run), "peft" if base else "transformers", pipeline)
    usage = render("export.md", description=description, head=head, name=name, kind=kind, base=base)
    return f"{card}\n{usage}"


def _card(run: Path | None) -> str:
    """The run's model card; empty if there is none."""
    path = run / "model_card.md" if run else None
    if path is None or not path.is_file():
        return ""
    return read_bounded(path, LARGEST_CARD).decode("utf-8", "replace")


def _with_head(card: str, library: str, pipeline: str) -> str:
    """The card with the lines in its YAML head by which the hub knows the library and the task."""
    lines = f"library_name: {library}\npipeline_tag: {pipeline}\n"
    if card.startswith("---\n"):
        return card.replace("---\n", f"---\n{lines}", 1)
    return f"---\n{lines}tags:\n- gpt2\n- gpt2-from-scratch\n---\n\n{card}"
