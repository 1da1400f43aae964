"""Find the weights in a model's folder, and explain folders that cannot be read.

Nothing is ever unpickled. A folder that contains only pickled weights, or only an adapter, is refused
with the commands that convert it.
"""

import re
from pathlib import Path

from gpt2_from_scratch.errors import CheckpointError
from gpt2_from_scratch.storage.files import read_bounded, read_json

SAFETENSORS, SHARDS = "model.safetensors", "model.safetensors.index.json"
ADAPTER = "adapter_config.json"  # written by PEFT
SHARD = re.compile(r"[\w-][\w.-]*\.safetensors", re.ASCII)  # not a path, such as ../x.safetensors
PICKLED = (".bin", ".pt", ".pth", ".ckpt")
# pickled files that do not contain weights, written by transformers' Trainer
NOT_WEIGHTS = ("training_args.bin", "optimizer.pt", "optimizer.bin", "scheduler.pt", "scaler.pt")
NOT_READ = ("tf_model.h5", "flax_model.msgpack", "rust_model.ot", "*.gguf", "*.onnx")
CHECKPOINT = "checkpoint"  # TensorFlow's file with the name of the newest checkpoint
LARGEST_TEXT = 1 << 20  # bytes

CONVERT = """\
python - <<'END'
import json, torch
from safetensors.torch import save_file
tensors, folder = {{}}, {folder!r}
for name in {names!r}:
    saved = torch.load(f"{{folder}}/{{name}}", map_location="cpu", weights_only=True)
    tensors |= saved.get("model", saved)
save_file({{n: t.clone().contiguous() for n, t in tensors.items()}}, f"{{folder}}/model.safetensors")
if sizes := saved.get("model_args"):  # nanoGPT
    names = dict(n_vocab="vocab_size", n_ctx="block_size", n_embd="n_embd", n_head="n_head", n_layer="n_layer")
    json.dump({{n: sizes[s] for n, s in names.items()}}, open(f"{{folder}}/hparams.json", "w"))
END"""
MERGE = """\
python - <<'END'
from peft import AutoPeftModelForCausalLM
model = AutoPeftModelForCausalLM.from_pretrained({folder!r})
model.merge_and_unload().save_pretrained({merged!r})
END"""


def weight_files(folder: Path) -> list[Path]:
    """Return the files that describe weights, each a complete copy of the model's.

    They are TensorFlow's index (`model.ckpt.index`), `model.safetensors` and the index of sharded
    safetensors. Raises CheckpointError if there are none.
    """
    found = [folder / name for name in (SAFETENSORS, SHARDS) if (folder / name).exists()]
    if prefix := tensorflow_prefix(folder):
        found = [folder / f"{prefix}.index", *found]
    if not found:
        refuse_unreadable(folder)
        raise CheckpointError(
            f"{folder} has neither model.ckpt.index (OpenAI) nor {SAFETENSORS} (Hugging Face)"
        )
    return found


def tensorflow_prefix(folder: Path) -> str:
    """Return the common beginning of the names of a TensorFlow checkpoint's files.

    It is "model.ckpt" in OpenAI's folders; other programs write "model-1000", for example. If there
    are several checkpoints, TensorFlow's file `checkpoint` names the newest. Returns an empty string
    if there is no checkpoint. Raises CheckpointError if the choice is not clear.
    """
    prefixes = sorted(path.name.removesuffix(".index") for path in folder.glob("*.index"))
    if len(prefixes) < 2:
        return "".join(prefixes)
    newest = ""
    if (folder / CHECKPOINT).is_file():
        text = read_bounded(folder / CHECKPOINT, LARGEST_TEXT).decode("utf-8", "replace")
        if match := re.match(r'model_checkpoint_path: "(?:.*/)?([^/"]+)"', text):
            newest = match[1]
    if newest not in prefixes:
        raise CheckpointError(
            f"{folder} contains several checkpoints: {', '.join(prefixes[:5])}. "
            "Move all but one of them to another folder."
        )
    return newest


def tensor_files(source: Path) -> dict[str, Path]:
    """Return {tensor: file} of a safetensors file or of an index of shards.

    Raises CheckpointError if a shard is missing, if it contains other tensors than the index says,
    or if the index names a file outside its folder.
    """
    # imported here, because torch is slow
    from gpt2_from_scratch.storage.tensors import open_tensors

    if source.name != SHARDS:
        with open_tensors(source) as file:
            return dict.fromkeys(file.keys(), source)
    listed = read_json(source).get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise CheckpointError(f"{source}: weight_map must name the file of each tensor")
    shards: dict[str, set[str]] = {}
    for tensor, name in listed.items():
        if not isinstance(name, str) or not SHARD.fullmatch(name):
            raise CheckpointError(
                f"{source}: {name!r:.80} is not a safetensors file of this folder"
            )
        shards.setdefault(name, set()).add(tensor)
    for name, tensors in shards.items():
        with open_tensors(source.with_name(name)) as file:
            differing = tensors ^ set(file.keys())
        if differing:
            first = min(differing)
            where = source.name if first in tensors else name
            raise CheckpointError(
                f"{source.with_name(name)} does not contain the tensors that {source.name} lists for "
                f"it: {first} is only in {where}. Copy the index and its shards again."
            )
    return {tensor: source.with_name(name) for tensor, name in listed.items()}


def files_of_weights(folder: Path) -> list[Path]:
    """Return `weight_files` and the shards of an index, without the data of TensorFlow's index."""
    files: list[Path] = []
    for source in weight_files(folder):
        shards = {*tensor_files(source).values()} if source.name == SHARDS else {source}
        files += sorted({source} | shards)
    return files


def refuse_unreadable(folder: Path) -> None:
    """Raise CheckpointError if a folder contains only weights that this package does not read."""
    if (folder / ADAPTER).exists():
        base = read_json(folder / ADAPTER).get("base_model_name_or_path")
        command = MERGE.format(folder=str(folder), merged=f"{folder}-merged")
        raise CheckpointError(
            f"{folder} contains only an adapter ({ADAPTER}) for the model {base!r:.80}. "
            f"Merge it into its model where PEFT is installed, and use the new folder:\n{command}"
        )
    pickled = sorted(
        path.name
        for path in folder.iterdir()
        if path.suffix in PICKLED and path.name not in NOT_WEIGHTS and path.is_file()
    )
    if pickled:
        command = CONVERT.format(folder=str(folder), names=pickled)
        raise CheckpointError(
            f"{folder / pickled[0]} is a pickle, which can run any code when it is read, so this "
            "package never reads it. Convert it, if you trust its source, where torch and "
            f"safetensors are installed:\n{command}"
        )
    others = sorted(path.name for pattern in NOT_READ for path in folder.glob(pattern))
    if others:
        raise CheckpointError(
            f"{folder / others[0]} is in a format that this package does not read. Save the model as "
            f"{SAFETENSORS} with the program that wrote it."
        )


def refuse_without_sizes(folder: Path) -> None:
    """Raise CheckpointError if a folder has weights but no file with the sizes.

    The weights contain every size except n_head, which changes the outputs.
    """
    # imported here, because torch is slow
    from gpt2_from_scratch.storage.tensors import open_tensors

    source = next(
        (folder / name for name in (SAFETENSORS, SHARDS) if (folder / name).exists()), None
    )
    if source is None:
        if folder.is_dir() and not tensorflow_prefix(folder):
            refuse_unreadable(folder)
        return
    shapes = {}
    for name, file in tensor_files(source).items():
        for size in ("wte", "wpe"):
            if name.endswith(f"{size}.weight"):
                with open_tensors(file) as opened:
                    shapes[size] = opened.get_slice(name).get_shape()
    numbers = {int(n) for name in tensor_files(source) for n in re.findall(r"\bh\.(\d+)\.", name)}
    if len(shapes) == 2 and numbers:
        (n_vocab, n_embd), n_ctx = shapes["wte"], shapes["wpe"][0]
        raise CheckpointError(
            f"{folder / 'hparams.json'} is missing, and {source.name} does not contain n_head. Write "
            f'this file: {{"n_vocab": {n_vocab}, "n_ctx": {n_ctx}, "n_embd": {n_embd}, "n_head": '
            f'N_HEAD, "n_layer": {max(numbers) + 1}}} with the N_HEAD of the training (nanoGPT: '
            "model_args in ckpt.pt; GPT-2's own sizes have n_embd / 64)."
        )
