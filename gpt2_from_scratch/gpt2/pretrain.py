"""Pretrain a GPT-2 from scratch: draw rows of text, predict each next token, repeat.

B rows of T tokens. A run resumes from its own saved state. The rows of a step depend only on the
seed and the step, so a run that was interrupted ends with the same bits as an unbroken one.
"""

import gzip
import json
import logging
import math
import time
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
from gpt2_from_scratch.storage.interruption import Stop, stop_after_step
from gpt2_from_scratch.storage.states import (
    newest_state,
    optimizer_tensors,
    refuse_changes,
    restore_optimizers,
    save_state,
)

log = logging.getLogger(__name__)


def learning_rate_factor(step: int, config: PretrainConfig) -> float:
    """Compute the factor of the learning rate in a step: it rises, stays at 1, and falls.

    The length of a run matters only for the fall, so a run can be made longer before it.
    """
    falling = max(1, round(config.decay * config.steps))
    rise = min(1.0, (step + 1) / max(1, config.warmup))
    return rise * min(1.0, (config.steps - step) / falling)


def draw_rows(sources: list[Source], config: PretrainConfig, step: int) -> Tensor:
    """Draw the rows of one step: (B, T + 1) int64.

    Each row starts at the start of a line, as messages do.
    """
    long = step % config.long_every == config.long_every - 1
    T = config.n_ctx if long else config.row
    draw = np.random.default_rng([config.seed, step])
    weights = np.array([source.weight for source in sources])
    rows = np.empty((config.tokens // T, T + 1), dtype=np.int64)
    for row in rows:
        source = sources[draw.choice(len(sources), p=weights / weights.sum())]
        start = source.line_starts[draw.integers(len(source.line_starts))]
        start = min(start, len(source.tokens) - len(row))  # the last row ends with its source
        row[:] = source.tokens[start : start + len(row)]
    return torch.from_numpy(rows)


def make_optimizers(model: GPT2, config: PretrainConfig) -> list[torch.optim.Optimizer]:
    """Make Muon for the matrices inside the blocks and AdamW for embeddings, norms and biases.

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
    """Compute the cross-entropy of each next token, in nats: (B, T + 1) -> scalar.

    Matrix products are in bfloat16.
    """
    with torch.autocast(rows.device.type, dtype=torch.bfloat16):
        logits = model(rows[:, :-1])  # (B, T, V)
        return F.cross_entropy(
            logits.flatten(0, 1).float(), rows[:, 1:].flatten(), reduction=reduction
        )


@torch.no_grad()
def bits_per_byte(model: GPT2, held_out: list[Source], n_bytes: int) -> float:
    """Compute the bits per byte of held-out text, read in windows of n_ctx tokens.

    Bits per byte can be compared between models with different vocabularies; nats per token cannot.
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
    """Pretrain a GPT-2 on a folder of .txt files and save it for `load_gpt2`.

    Args:
        corpus: the folder of .txt files (see `corpus.py`).
        out: receives the model, `pretraining.json` (settings), `pretraining.jsonl` (the learning
            curve), and the state from which the run can resume.
        config: the settings.
        device: where to train.
        dtype: of the weights on disk.
        resume: resume from the state in `out`; only `steps`, `decay` and `save_every` may differ.

    Raises:
        UsageError: `out` holds a run and `resume` is not given, or other settings have changed.
    """
    if any(out.glob("state-*.safetensors")) and not resume:
        raise UsageError(f"{out} holds a run already; use --resume or choose another --out")
    tokenizer = _tokenizer(corpus, out, config)
    weights = {"conversation": config.conversation}
    sources, held_out = encode_corpus(corpus, tokenizer, weights, config.phone, config.seed)
    sources = [source for source in sources if len(source.tokens) > config.n_ctx]
    if not sources or not any(len(source.tokens) > 1 for source in held_out):
        raise DataError(
            f"{corpus} is too small. It needs a file of more than n_ctx = {config.n_ctx} tokens, and "
            "several hundred documents separated by blank lines: one in 250 is held out"
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
    run = _Run(out, config, dtype, model, sources, held_out, held_out_bytes)
    if resume:
        run.restore()
    text = "".join(tokenizer.decode(source.tokens.tolist()) for source in held_out)
    raw = text.replace(END_OF_TEXT, "\n").encode()
    gzip_bits = 8 * len(gzip.compress(raw, 9)) / len(raw)  # per byte of the held-out text
    about = {"torch": torch.__version__, "gzip_bits_per_byte": gzip_bits}
    write_json(out / "pretraining.json", asdict(config) | about)
    with locked(out / ".lock", wait=False), stop_after_step() as stop:
        sweep(out)
        run.train(stop)
    return model


def _tokenizer(corpus: Path, out: Path, config: PretrainConfig) -> Tokenizer:
    """Learn a vocabulary from the corpus, unless `out` has one already."""
    if not (out / "vocab.bpe").exists():
        log.info(f"learning {config.n_vocab} tokens from {corpus}")
        write_bpe(out, train_bpe(bpe_sample(corpus, config.phone, config.seed), config.n_vocab))
    tokenizer = Tokenizer(out)
    if tokenizer.n_vocab != config.n_vocab:
        raise UsageError(
            f"{out} holds a vocabulary of {tokenizer.n_vocab} tokens, but n_vocab is "
            f"{config.n_vocab}; choose another --out"
        )
    return tokenizer


@dataclass
class _Progress:
    """The progress of a run."""

    step: int = 0  # completed steps
    losses: list[float] = field(default_factory=list)  # of the steps since the last record
    records: list[dict[str, Any]] = field(default_factory=list)  # the learning curve


@dataclass
class _Run:
    """A pretraining run: its model, its optimizers, its progress, and its folder."""

    out: Path
    config: PretrainConfig
    dtype: torch.dtype  # of the weights on disk
    model: GPT2
    sources: list[Source]
    held_out: list[Source]
    held_out_bytes: int
    progress: _Progress = field(default_factory=_Progress)

    def __post_init__(self) -> None:
        self.optimizers = make_optimizers(self.model, self.config)

    def train(self, stop: Stop) -> None:
        """Take all steps that are left; save the state and raise Interrupted after `stop`."""
        config, progress = self.config, self.progress
        device = self.model.wte.weight.device
        compiled_loss = torch.compile(next_token_loss, dynamic=False)
        since, first = time.perf_counter(), progress.step
        bar = progress_bar(range(first, config.steps), initial=first, total=config.steps)
        for step in bar:
            rows = draw_rows(self.sources, config, step).to(device)
            with _quick_attention(rows):
                loss = compiled_loss(self.model, rows)
            if not math.isfinite(loss.item()):
                raise self._diverged(f"the loss became {loss.item()} in step {step + 1}")
            loss.backward()
            for optimizer in self.optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = config.lr * learning_rate_factor(step, config)
                optimizer.step()
                optimizer.zero_grad()
            progress.step = step + 1
            progress.losses.append(loss.item())
            bar.set_postfix_str(f"loss {progress.losses[-1]:.3f}", refresh=False)
            if progress.step % config.save_every == 0 or progress.step == config.steps:
                tokens = (progress.step - first) * config.tokens
                self._checkpoint(tokens / (time.perf_counter() - since))
                since, first = time.perf_counter(), progress.step
            if stop:
                self._save_state()
                raise Interrupted(
                    f"stopped after step {progress.step} of {config.steps}", stop.signal
                )

    def _checkpoint(self, tokens_per_second: float) -> None:
        """Compute the held-out loss; write the learning curve, the state and the model."""
        progress = self.progress
        bits = bits_per_byte(self.model, self.held_out, self.held_out_bytes)
        record = {
            "step": progress.step,
            "tokens": progress.step * self.config.tokens,
            "train_loss": round(float(np.mean(progress.losses)), 4),
            "held_out_bits_per_byte": round(bits, 4),
            "tokens_per_second": round(tokens_per_second),
        }
        progress.records, progress.losses = [*progress.records, record], []
        self._save_state()
        save_gpt2(self.model, self.out, self.dtype)
        curve = "".join(json.dumps(each) + "\n" for each in progress.records)
        write_text(self.out / "pretraining.jsonl", curve)
        log.info(json.dumps(record))

    def _save_state(self) -> None:
        tensors = {f"model/{name}": p for name, p in self.model.named_parameters()}
        record = {"progress": asdict(self.progress), "settings": asdict(self.config)}
        try:
            save_state(
                self.out,
                self.progress.step,
                tensors | optimizer_tensors(self.optimizers),
                record,
            )
        except CheckpointError as error:
            raise self._diverged(f"after step {self.progress.step}: {error}") from None

    def restore(self) -> None:
        """Restore the newest complete state, if there is one."""
        found = newest_state(self.out)
        if found is None:
            return
        record, tensors = found
        free = dict.fromkeys(("steps", "decay", "save_every"))
        refuse_changes(record["settings"] | free, asdict(self.config) | free, self.out)
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(tensors[f"model/{name}"])
        restore_optimizers(self.optimizers, tensors)
        self.progress = _Progress(**record["progress"])

    def _diverged(self, what: str) -> GPT2Error:
        return GPT2Error(
            f"{what}; the last good state is kept for --resume. Start a new run with a lower --lr "
            f"than {self.config.lr}"
        )


def _quick_attention(rows: Tensor) -> AbstractContextManager[Any]:
    """Choose plain attention for short rows on a CPU, where its compiled backward pass is faster."""
    if rows.device.type == "cpu" and rows.shape[1] <= 257:
        # the name says CUDA, but it applies to the CPU too
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
        return sdpa_kernel(SDPBackend.MATH)
    return nullcontext()
