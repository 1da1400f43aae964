"""Pretraining a GPT-2 from nothing: draw rows of text, predict each next token, repeat.

B rows of T tokens. Resumable from its own checkpoint: the rows of a step are a function of the
seed and the step, so a run that was interrupted goes on as an unbroken one would have.
"""

import gzip
import json
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from gpt2_from_scratch.config import GPT2Config, PretrainConfig
from gpt2_from_scratch.corpus import Source, bpe_sample, encode_corpus, n_bytes, train_bpe
from gpt2_from_scratch.errors import DataError, UsageError
from gpt2_from_scratch.files import atomic_path, write_json
from gpt2_from_scratch.model import GPT2, init_weights
from gpt2_from_scratch.plots import plot_pretraining
from gpt2_from_scratch.tokenizer import END_OF_TEXT, Tokenizer, write_bpe
from gpt2_from_scratch.weights import save_gpt2


def learning_rate_factor(step: int, config: PretrainConfig) -> float:
    """Rise, stay, fall: a run's length matters only once it falls, so a run can be made longer."""
    falling = max(1, round(config.decay * config.steps))
    rise = min(1.0, (step + 1) / max(1, config.warmup))
    return rise * min(1.0, (config.steps - step) / falling)


def draw_rows(sources: list[Source], config: PretrainConfig, step: int) -> Tensor:
    """The rows of one step: (B, T + 1) int64. Each starts at the start of a line, as messages do."""
    long = step % config.long_every == config.long_every - 1
    T = config.n_ctx if long else config.row
    draw = np.random.default_rng([config.seed, step])
    weights = np.array([source.weight for source in sources])
    rows = np.empty((config.tokens // T, T + 1), dtype=np.int64)
    for row in rows:
        source = sources[draw.choice(len(sources), p=weights / weights.sum())]
        start = source.line_starts[draw.integers(len(source.line_starts))]
        start = min(start, len(source.tokens) - len(row))  # the last row of a source ends with it
        row[:] = source.tokens[start : start + len(row)]
    return torch.from_numpy(rows)


def make_optimizers(model: GPT2, config: PretrainConfig) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for embeddings, norms and biases.

    Muon: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/, at AdamW's scale.
    """
    matrices = [p for p in model.blocks.parameters() if p.ndim == 2]
    embeddings = [model.wte.weight, model.wpe.weight]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    muon = torch.optim.Muon(
        matrices, lr=config.lr, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw"
    )
    adamw = torch.optim.AdamW(
        [{"params": embeddings, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}],
        lr=config.lr,
        betas=(0.9, 0.95),
        fused=True,
    )
    return [muon, adamw]


def next_token_loss(model: torch.nn.Module, rows: Tensor, reduction: str = "mean") -> Tensor:
    """Cross-entropy of each next token, in nats: (B, T + 1) -> scalar. In bfloat16 where it may."""
    with torch.autocast(rows.device.type, dtype=torch.bfloat16):
        logits = model(rows[:, :-1])  # (B, T, V)
        return F.cross_entropy(
            logits.flatten(0, 1).float(), rows[:, 1:].flatten(), reduction=reduction
        )


@torch.no_grad()
def bits_per_byte(model: GPT2, held_out: list[Source], n_bytes: int) -> float:
    """How many bits the model needs for a byte of held-out text, read in windows of n_ctx tokens.

    Bits, not nats, and bytes, not tokens, so that models with other vocabularies compare.
    """
    device, T = model.wte.weight.device, model.config.n_ctx
    nats = 0.0
    for source in held_out:
        tokens = torch.from_numpy(source.tokens.astype(np.int64)).to(device)
        windows = list(tokens.split(T))
        targets = [*windows[1:], None]
        full = []
        for window, following in zip(windows, targets, strict=True):
            row = window if following is None else torch.cat([window, following[:1]])
            if len(row) == T + 1:
                full.append(row)
            elif len(row) > 1:
                nats += next_token_loss(model, row[None], reduction="sum").item()
        for batch in range(0, len(full), 32):
            rows = torch.stack(full[batch : batch + 32])
            nats += next_token_loss(model, rows, reduction="sum").item()
    return nats / math.log(2) / n_bytes


def pretrain(
    corpus: Path,
    out: Path,
    config: PretrainConfig,
    *,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    resume: bool = False,
    say: Callable[[str], None] = print,
) -> GPT2:
    """Pretrain on a folder of .txt files; leaves a model folder in `out` that `load_gpt2` reads.

    Beside the model it writes `pretraining.json` (settings), `pretraining.jsonl` and
    `pretraining.png` (the learning curve) and `state.safetensors` (everything needed to go on).
    `dtype` is that of the weights on disk. With `resume`, a run goes on from its state; only
    `steps`, `decay` and `save_every` may differ. Raises UsageError when `out` holds a run and
    `resume` is not given, or when other settings changed.
    """
    state_path = out / "state.safetensors"
    if state_path.exists() and not resume:
        raise UsageError(f"{out} holds a run already; go on with --resume or choose another --out")
    if not (out / "vocab.bpe").exists():
        say(f"learning {config.n_vocab} tokens from {corpus}")
        write_bpe(out, train_bpe(bpe_sample(corpus, config.phone, config.seed), config.n_vocab))
    tokenizer = Tokenizer(out)
    if tokenizer.n_vocab != config.n_vocab:
        raise UsageError(
            f"{out} holds a vocabulary of {tokenizer.n_vocab} tokens, n_vocab is {config.n_vocab}; "
            "choose another --out"
        )
    weights = {"conversation": config.conversation}
    sources, held_out = encode_corpus(corpus, tokenizer, weights, config.phone, config.seed)
    sources = [source for source in sources if len(source.tokens) > config.n_ctx]
    if not sources or not any(len(source.tokens) > 1 for source in held_out):
        raise DataError(
            f"{corpus} is too small: it takes a file of more than n_ctx = {config.n_ctx} tokens, and "
            "so many documents (blank lines end them) that one in 250 can be held out"
        )
    held_out_bytes = sum(n_bytes(source, tokenizer) for source in held_out)
    say(
        f"{sum(len(source.tokens) for source in sources):,} tokens in {len(sources)} sources; "
        f"{held_out_bytes:,} bytes held out"
    )
    sizes = GPT2Config(config.n_vocab, config.n_ctx, config.n_embd, config.n_head, config.n_layer)
    model = GPT2(sizes)
    init_weights(model, torch.Generator().manual_seed(config.seed))
    model.to(device)
    optimizers = make_optimizers(model, config)
    first = _load_state(state_path, model, optimizers, config) if resume else 0
    write_json(out / "pretraining.json", asdict(config) | {"torch": torch.__version__})

    def checkpoint(step: int, train_loss: float, tokens_per_second: float) -> None:
        held = bits_per_byte(model, held_out, held_out_bytes)
        record = {
            "step": step,
            "tokens": step * config.tokens,
            "train_loss": round(train_loss, 4),
            "held_out_bits_per_byte": round(held, 4),
            "tokens_per_second": round(tokens_per_second),
        }
        save_gpt2(model, out, dtype)
        _save_state(state_path, model, optimizers, step, config)
        with (out / "pretraining.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        say(json.dumps(record))

    _run_steps(model, optimizers, sources, config, first, checkpoint)
    text = "".join(tokenizer.decode(source.tokens.tolist()) for source in held_out)
    raw = text.replace(END_OF_TEXT, "\n").encode()
    _plot_curve(out, {"gzip -9": 8 * len(gzip.compress(raw, 9)) / len(raw)})
    return model


def _plot_curve(out: Path, references: dict[str, float]) -> None:
    records = [json.loads(line) for line in (out / "pretraining.jsonl").read_text().splitlines()]
    plot_pretraining(
        [record["tokens"] for record in records],
        [record["held_out_bits_per_byte"] for record in records],
        references,
        out / "pretraining.png",
    )


def _run_steps(
    model: GPT2,
    optimizers: list[torch.optim.Optimizer],
    sources: list[Source],
    config: PretrainConfig,
    first: int,
    checkpoint: Callable[[int, float, float], None],
) -> None:
    device = model.wte.weight.device
    compiled_loss = torch.compile(next_token_loss, dynamic=False)
    losses: list[float] = []
    since = time.perf_counter()
    bar = tqdm(range(first, config.steps), initial=first, total=config.steps, disable=None)
    for step in bar:
        rows = draw_rows(sources, config, step).to(device)
        with _quick_attention(rows):
            loss = compiled_loss(model, rows)
        loss.backward()
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = config.lr * learning_rate_factor(step, config)
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
        bar.set_postfix_str(f"loss {losses[-1]:.3f}", refresh=False)
        if (step + 1) % config.save_every == 0 or step + 1 == config.steps:
            seconds = time.perf_counter() - since
            checkpoint(step + 1, float(np.mean(losses)), len(losses) * config.tokens / seconds)
            losses, since = [], time.perf_counter()


def _quick_attention(rows: Tensor) -> AbstractContextManager[Any]:
    """On a CPU plain compiled attention beats the fused kernel's backward pass for short rows."""
    if rows.device.type == "cpu" and rows.shape[1] <= 257:
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(
            True
        )  # named for CUDA, rules the CPU too
        return sdpa_kernel(SDPBackend.MATH)
    return nullcontext()


def _save_state(
    path: Path,
    model: GPT2,
    optimizers: list[torch.optim.Optimizer],
    step: int,
    config: PretrainConfig,
) -> None:
    tensors = {f"model/{name}": p.detach() for name, p in model.named_parameters()}
    for n, optimizer in enumerate(optimizers):
        for index, values in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{n}/{index}/{name}": value for name, value in values.items()}
    metadata = {"step": str(step), "config": json.dumps(asdict(config))}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata=metadata)


def _load_state(
    path: Path, model: GPT2, optimizers: list[torch.optim.Optimizer], config: PretrainConfig
) -> int:
    """Put a saved state back and return the number of steps done."""
    if not path.exists():
        return 0
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        saved = json.loads(metadata["config"])
        free = ("steps", "decay", "save_every")
        changed = {
            name: f"{saved.get(name)} -> {value}"
            for name, value in asdict(config).items()
            if name not in free and saved.get(name) != value
        }
        if changed:
            raise UsageError(f"{path}: the run was started with other settings: {changed}")
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(file.get_tensor(f"model/{name}"))
        for n, optimizer in enumerate(optimizers):
            state: dict[int, dict[str, Tensor]] = {}
            for key in file.keys():
                kind, *rest = key.split("/")
                if kind == "optimizer" and rest[0] == str(n):
                    state.setdefault(int(rest[1]), {})[rest[2]] = file.get_tensor(key)
            optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
    return int(metadata["step"])
