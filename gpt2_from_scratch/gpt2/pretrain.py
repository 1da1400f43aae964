"""Pretraining a GPT-2 from nothing: draw rows of text, predict each next token, repeat.

B rows of T tokens. Resumable from its own checkpoint: the rows of a step are a function of the
seed and the step, so a run that was interrupted goes on as an unbroken one would have.
"""

import gzip
import json
import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from gpt2_from_scratch.errors import CheckpointError, DataError, GPT2Error, Interrupted, UsageError
from gpt2_from_scratch.gpt2.config import GPT2Config, PretrainConfig
from gpt2_from_scratch.gpt2.corpus import Source, bpe_sample, encode_corpus, n_bytes, train_bpe
from gpt2_from_scratch.gpt2.model import GPT2, init_weights
from gpt2_from_scratch.gpt2.tokenizer import END_OF_TEXT, Tokenizer, write_bpe
from gpt2_from_scratch.gpt2.weights import save_gpt2
from gpt2_from_scratch.progress import progress_bar
from gpt2_from_scratch.storage.files import locked, sweep, write_json, write_text
from gpt2_from_scratch.storage.interruption import stop_after_step
from gpt2_from_scratch.storage.states import (
    newest_state,
    optimizer_tensors,
    refuse_changes,
    restore_optimizers,
    save_state,
)

log = logging.getLogger(__name__)


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
) -> GPT2:
    """Pretrain on a folder of .txt files; leaves a model folder in `out` that `load_gpt2` reads.

    Beside the model it writes `pretraining.json` (settings), `pretraining.jsonl` (the learning
    curve) and its state (everything needed to go on).
    `dtype` is that of the weights on disk. With `resume`, a run goes on from its state; only
    `steps`, `decay` and `save_every` may differ. Raises UsageError when `out` holds a run and
    `resume` is not given, or when other settings changed.
    """
    if any(out.glob("state-*.safetensors")) and not resume:
        raise UsageError(f"{out} holds a run already; go on with --resume or choose another --out")
    if not (out / "vocab.bpe").exists():
        log.info(f"learning {config.n_vocab} tokens from {corpus}")
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
    log.info(
        f"{sum(len(source.tokens) for source in sources):,} tokens in {len(sources)} sources; "
        f"{held_out_bytes:,} bytes held out"
    )
    sizes = GPT2Config(config.n_vocab, config.n_ctx, config.n_embd, config.n_head, config.n_layer)
    model = GPT2(sizes)
    init_weights(model, torch.Generator().manual_seed(config.seed))
    model.to(device)
    optimizers = make_optimizers(model, config)
    at = _restore(out, model, optimizers, config) if resume else _Progress()
    text = "".join(tokenizer.decode(source.tokens.tolist()) for source in held_out)
    raw = text.replace(END_OF_TEXT, "\n").encode()
    gzip_bits = 8 * len(gzip.compress(raw, 9)) / len(raw)  # of the held-out text, a byte
    about = {"torch": torch.__version__, "gzip_bits_per_byte": gzip_bits}
    write_json(out / "pretraining.json", asdict(config) | about)

    def checkpoint(tokens_per_second: float) -> None:
        record = {
            "step": at.step,
            "tokens": at.step * config.tokens,
            "train_loss": round(float(np.mean(at.losses)), 4),
            "held_out_bits_per_byte": round(bits_per_byte(model, held_out, held_out_bytes), 4),
            "tokens_per_second": round(tokens_per_second),
        }
        at.records, at.losses = [*at.records, record], []
        _save(out, at, model, optimizers, config)
        save_gpt2(model, out, dtype)
        write_text(out / "pretraining.jsonl", "".join(json.dumps(r) + "\n" for r in at.records))
        log.info(json.dumps(record))

    with locked(out / ".lock", wait=False), stop_after_step() as stop:
        sweep(out)
        for _ in _steps(model, optimizers, sources, config, at, checkpoint):
            if stop:
                _save(out, at, model, optimizers, config)
                raise Interrupted(f"stopped after step {at.step} of {config.steps}", stop.signal)
    return model


@dataclass
class _Progress:
    """How far a run is."""

    step: int = 0  # steps done
    losses: list[float] = field(default_factory=list)  # of those since the last record
    records: list[dict[str, Any]] = field(default_factory=list)  # the learning curve


def _steps(
    model: GPT2,
    optimizers: list[torch.optim.Optimizer],
    sources: list[Source],
    config: PretrainConfig,
    at: _Progress,
    checkpoint: Callable[[float], None],
) -> Iterator[None]:
    """Yields after each step."""
    device = model.wte.weight.device
    compiled_loss = torch.compile(next_token_loss, dynamic=False)
    since, begun = time.perf_counter(), at.step
    bar = progress_bar(range(at.step, config.steps), initial=at.step, total=config.steps)
    for step in bar:
        rows = draw_rows(sources, config, step).to(device)
        with _quick_attention(rows):
            loss = compiled_loss(model, rows)
        if not math.isfinite(loss.item()):
            raise _diverged(f"the loss became {loss.item()} in step {step + 1}", config)
        loss.backward()
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = config.lr * learning_rate_factor(step, config)
            optimizer.step()
            optimizer.zero_grad()
        at.step = step + 1
        at.losses.append(loss.item())
        bar.set_postfix_str(f"loss {at.losses[-1]:.3f}", refresh=False)
        if at.step % config.save_every == 0 or at.step == config.steps:
            checkpoint((at.step - begun) * config.tokens / (time.perf_counter() - since))
            since, begun = time.perf_counter(), at.step
        yield


def _diverged(what: str, config: PretrainConfig) -> GPT2Error:
    return GPT2Error(
        f"{what}; the last good state is kept, --resume goes on from it; try a new run with a lower "
        f"--lr than {config.lr}"
    )


def _quick_attention(rows: Tensor) -> AbstractContextManager[Any]:
    """On a CPU plain compiled attention beats the fused kernel's backward pass for short rows."""
    if rows.device.type == "cpu" and rows.shape[1] <= 257:
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(
            True
        )  # named for CUDA, rules the CPU too
        return sdpa_kernel(SDPBackend.MATH)
    return nullcontext()


def _save(
    out: Path,
    at: _Progress,
    model: GPT2,
    optimizers: list[torch.optim.Optimizer],
    config: PretrainConfig,
) -> None:
    tensors = {f"model/{name}": p for name, p in model.named_parameters()}
    record = {"progress": asdict(at), "settings": asdict(config)}
    try:
        save_state(out, at.step, tensors | optimizer_tensors(optimizers), record)
    except CheckpointError as error:
        raise _diverged(f"after step {at.step}: {error}", config) from None


def _restore(
    out: Path, model: GPT2, optimizers: list[torch.optim.Optimizer], config: PretrainConfig
) -> _Progress:
    """Put back the newest state that is whole."""
    found = newest_state(out)
    if found is None:
        return _Progress()
    record, tensors = found
    free = dict.fromkeys(("steps", "decay", "save_every"))
    refuse_changes(record["settings"] | free, asdict(config) | free, out)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(tensors[f"model/{name}"])
    restore_optimizers(optimizers, tensors)
    return _Progress(**record["progress"])
