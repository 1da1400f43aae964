"""Pretrain a GPT-2 from scratch on random rows of text.

An interrupted run resumes from its saved state. The rows of a step depend only on the seed and the
step, so a resumed run ends with the same bits as an uninterrupted one.

Shapes: B rows of T tokens, V = n_vocab.
"""

import gzip
import json
import logging
import math
import time
import zlib
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from signal import SIGTERM
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from gpt2_from_scratch.errors import CheckpointError, DataError, GPT2Error, Interrupted, UsageError
from gpt2_from_scratch.gpt2.config import PretrainConfig
from gpt2_from_scratch.gpt2.corpus import Source, bpe_sample, encode_corpus, n_bytes, train_bpe
from gpt2_from_scratch.gpt2.model import GPT2, init_weights
from gpt2_from_scratch.gpt2.overlap import Overlap
from gpt2_from_scratch.gpt2.tokenizer import END_OF_TEXT, Tokenizer, write_bpe
from gpt2_from_scratch.gpt2.weights import copy_tokenizer, load_gpt2, save_gpt2
from gpt2_from_scratch.progress import progress_bar
from gpt2_from_scratch.storage.curves import TENSORBOARD, Curves, refuse_missing_tensorboard
from gpt2_from_scratch.storage.files import locked, sweep, write_json, write_text
from gpt2_from_scratch.storage.interruption import Stop, stop_after_step
from gpt2_from_scratch.storage.paths import model_folder
from gpt2_from_scratch.storage.processes import (
    count,
    first_before_others,
    in_any,
    is_first,
    rank,
    sum_gradients,
    summed,
    wait_for_all,
)
from gpt2_from_scratch.storage.settings import record_from_json
from gpt2_from_scratch.storage.states import (
    newest_state,
    optimizer_tensors,
    refuse_changes,
    restore_optimizers,
    restoring,
    save_state,
)
from gpt2_from_scratch.storage.tensors import tensors_sha256

log = logging.getLogger(__name__)


def learning_rate_factor(step: int, config: PretrainConfig) -> float:
    """Compute the factor of the learning rate in a step.

    It rises to 1, stays constant, and falls to 0. Only the last phase depends on the total number
    of steps, so a run can be extended before that phase begins.
    """
    falling = max(1, round(config.decay * config.steps))
    rise = min(1.0, (step + 1) / max(1, config.warmup))
    return rise * min(1.0, (config.steps - step) / falling)


def draw_rows(sources: list[Source], config: PretrainConfig, step: int) -> Tensor:
    """Draw the rows of one step: (B, T + 1) int64.

    Each row starts at the beginning of a line, as a message does.
    """
    long = step % config.long_every == config.long_every - 1
    T = config.n_ctx if long else config.row
    draw = np.random.default_rng([config.seed, step])
    weights = np.array([source.weight for source in sources])
    rows = np.empty((config.tokens // T, T + 1), dtype=np.int64)
    for row in rows:
        source = sources[draw.choice(len(sources), p=weights / weights.sum())]
        start = source.line_starts[draw.integers(len(source.line_starts))]
        start = min(start, len(source.tokens) - len(row))  # a row must not extend beyond its source
        row[:] = source.tokens[start : start + len(row)]
    return torch.from_numpy(rows)


def make_optimizers(model: GPT2, config: PretrainConfig) -> list[torch.optim.Optimizer]:
    """Create Muon for the blocks' matrices and AdamW for other parameters.

    Muon: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/. Its learning rate is scaled
    so that its updates are as large as AdamW's.
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


def multiplies_bfloat16(device: torch.device) -> bool:
    """Return whether a device multiplies bfloat16 faster than float32.

    A CPU needs special instructions for bfloat16. With them it is about twice as fast as with
    float32. Without them it takes 4.5 to 9 times as long.
    """
    # older versions of torch do not have this function
    has: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    return device.type != "cpu" or any(there for name, there in has.items() if "bf16" in name)


def next_token_loss(model: torch.nn.Module, rows: Tensor, reduction: str = "mean") -> Tensor:
    """Compute the cross-entropy of the next tokens, in nats: (B, T + 1) -> scalar.

    Matrices are multiplied in bfloat16 if that is faster on this device.
    """
    device = rows.device.type
    with torch.autocast(device, torch.bfloat16, enabled=multiplies_bfloat16(rows.device)):
        logits = model(rows[:, :-1])  # (B, T, V)
        return F.cross_entropy(
            logits.flatten(0, 1).float(), rows[:, 1:].flatten(), reduction=reduction
        )


@torch.no_grad()
def bits_per_byte(model: GPT2, held_out: list[Source], n_bytes: int) -> float:
    """Compute the bits per byte of held-out text.

    `n_bytes` is the length of that text. The text is read in windows of n_ctx tokens. Unlike nats
    per token, bits per byte can be compared between models with different vocabularies.
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
    start: str | Path | None = None,
    exclude: Sequence[str] = (),
    resume: bool = False,
    tensorboard: bool = False,
) -> GPT2:
    """Pretrain a GPT-2 on a folder of .txt files, and save it.

    `load_gpt2` can load the result. Several processes (see `storage.processes`) share the rows of each
    step; all end with the same weights, and the first writes the files.

    Args:
        corpus: the folder of .txt files (see `corpus.py`).
        out: output folder for the model, `pretraining.json` (the settings), `pretraining.jsonl` (the
            learning curve) and the state from which the run can be resumed.
        config: the settings.
        device: device to train on.
        dtype: type of the weights on disk.
        start: name or folder of a model whose weights and vocabulary the run starts with. If None,
            the weights are random, and the vocabulary is learned from the corpus. With a larger
            `n_layer` than the model's, new blocks are added (see `deepened`).
        exclude: texts that must not occur in the training text, such as those of test sets. Training
            lines that overlap with them are removed (see `overlap.py`).
        resume: whether to resume from the state in `out`. Only `steps`, `decay` and `save_every` may
            then differ from the earlier run.
        tensorboard: write the curves to the folder `tensorboard` in `out`.

    Returns:
        The pretrained model, on `device`.

    Raises:
        UsageError: `out` contains a run but `resume` is false, other settings or the training text
            have changed, `start` has other sizes than `config` or more blocks, or the package tensorboard is needed
            and missing.
        DataError: the corpus is too small, or one of its files is not UTF-8.
        GPT2Error: the loss became NaN or infinite.
        Interrupted: Ctrl-C or SIGTERM was received. The state is saved first.
    """
    if tensorboard:
        refuse_missing_tensorboard()
    if any(out.glob("state-*.safetensors")) and not resume:
        raise UsageError(f"{out} already contains a run; use --resume or choose another --out")
    others = {path.name for path in out.glob("[!.]*")} - {"vocab.bpe", "encoder.json"}
    if others and "pretraining.json" not in others:
        raise UsageError(f"{out} contains other files; choose another --out")
    model = _first_model(config, start)
    excluded = Overlap(exclude) if exclude else None
    wait_for_all()  # until no process checks any longer what the folder contains
    with first_before_others():
        tokenizer = _tokenizer(corpus, out, config, start, excluded)
    sources, held_out = encode_corpus(corpus, tokenizer, config, excluded)
    sources = [source for source in sources if len(source.tokens) > config.n_ctx]
    if not sources or not any(len(source.tokens) > 1 for source in held_out):
        raise DataError(
            f"{corpus} is too small. It needs a file of more than n_ctx = {config.n_ctx} tokens and "
            "several hundred documents separated by blank lines, because one in 250 is held out."
        )
    by_register = _held_out_by_register(held_out, tokenizer)
    log.info(
        f"{sum(len(source.tokens) for source in sources):,} tokens in {len(sources)} sources; "
        f"{sum(text.n_bytes for text in by_register.values()):,} bytes held out"
    )
    about: dict[str, Any] = {"torch": torch.__version__}
    if start is not None:
        about["started_from_sha256"] = tensors_sha256(dict(model.named_parameters()))
    run = _Run(out, config, dtype, model.to(device), sources, by_register)
    if resume:
        with first_before_others():
            run.restore()
    text = "".join(tokenizer.decode(source.tokens.tolist()) for source in held_out)
    raw = text.replace(END_OF_TEXT, "\n").encode()
    # for comparison: the bits per byte to which gzip compresses the held-out text
    about["gzip_bits_per_byte"] = 8 * len(gzip.compress(raw, 9)) / len(raw)
    curves = out / TENSORBOARD if tensorboard and is_first() else None
    with (
        locked(out / ".lock", wait=False) if is_first() else nullcontext(),
        stop_after_step() as stop,
        Curves(curves, run.progress.step + 1) as run.curves,
    ):
        if is_first():
            write_json(out / "pretraining.json", asdict(config) | about)
            sweep(out)
        run.train(stop)
    return model


def _first_model(config: PretrainConfig, start: str | Path | None) -> GPT2:
    """Load the model to start from, or draw random weights."""
    if start is None:
        model = GPT2(config.sizes())
        init_weights(model, torch.Generator().manual_seed(config.seed))
        return model
    model = load_gpt2(start)
    sizes = config.sizes()
    if sizes.n_layer > model.config.n_layer:
        model = deepened(model, sizes.n_layer)
    if model.config != sizes:
        raise UsageError(
            f"{start} has {model.config}, but the settings are {sizes}. Only n_layer may be larger."
        )
    return model


@torch.no_grad()
def deepened(model: GPT2, n_layer: int) -> GPT2:
    """Return a GPT-2 with more blocks that computes the same logits.

    The new blocks are spread over the depth. Each is a copy of the block before it, but its two output
    projections are zero, so it adds nothing until they are trained. Source: Wu et al. 2024, "LLaMA
    Pro: Progressive LLaMA with Block Expansion".
    """
    old = model.config.n_layer
    deeper = GPT2(replace(model.config, n_layer=n_layer))
    sources = [n * old // n_layer for n in range(n_layer)]
    for n, (block, source) in enumerate(zip(deeper.blocks, sources, strict=True)):
        block.load_state_dict(model.blocks[source].state_dict())
        if n and source == sources[n - 1]:
            for projection in (block.attn.c_proj, block.mlp.c_proj):  # type: ignore[union-attr]
                for parameter in projection.parameters():  # type: ignore[union-attr]
                    parameter.zero_()
    for name in ("wte", "wpe", "ln_f"):
        getattr(deeper, name).load_state_dict(getattr(model, name).state_dict())
    return deeper


def _tokenizer(
    corpus: Path,
    out: Path,
    config: PretrainConfig,
    start: str | Path | None,
    excluded: Overlap | None,
) -> Tokenizer:
    """Return the tokenizer with the vocabulary in `out`.

    If `out` has no vocabulary, the one of `start` is copied, or one is learned from the corpus.
    """
    if not (out / "vocab.bpe").exists():
        if start is not None:
            out.mkdir(parents=True, exist_ok=True)
            copy_tokenizer(model_folder(start), out)
        else:
            log.info(f"learning a vocabulary of {config.n_vocab:,} tokens from {corpus}")
            write_bpe(out, train_bpe(bpe_sample(corpus, config, excluded), config.n_vocab))
    tokenizer = Tokenizer(out)
    if tokenizer.n_vocab != config.n_vocab:
        raise UsageError(
            f"{out} contains a vocabulary of {tokenizer.n_vocab} tokens, but n_vocab is "
            f"{config.n_vocab}; choose another --out"
        )
    return tokenizer


@dataclass(frozen=True)
class _HeldOut:
    """The held-out text of one register."""

    sources: list[Source]
    n_bytes: int


def _held_out_by_register(held_out: list[Source], tokenizer: Tokenizer) -> dict[str, _HeldOut]:
    found: dict[str, list[Source]] = {}
    for source in held_out:
        found.setdefault(source.register, []).append(source)
    return {
        register: _HeldOut(sources, sum(n_bytes(source, tokenizer) for source in sources))
        for register, sources in sorted(found.items())
    }


@dataclass
class _Progress:
    """The progress of a run, which is saved with its state."""

    step: int = 0  # number of completed steps
    losses: list[float] = field(default_factory=list)  # of each step since the last record
    records: list[dict[str, Any]] = field(default_factory=list)  # the learning curve


@dataclass
class _Run:
    """A pretraining run: its model, its optimizers, its progress, and its folder."""

    out: Path
    config: PretrainConfig
    dtype: torch.dtype  # type of the weights on disk
    model: GPT2
    sources: list[Source]
    held_out: dict[str, _HeldOut]  # by register
    progress: _Progress = field(default_factory=_Progress)
    curves: Curves = field(default_factory=Curves)

    def __post_init__(self) -> None:
        self.optimizers = make_optimizers(self.model, self.config)

    def train(self, stop: Stop) -> None:
        """Do the remaining steps.

        If `stop` becomes true, this saves the state and raises Interrupted.
        """
        config, progress = self.config, self.progress
        device = self.model.wte.weight.device
        compiled_loss = torch.compile(next_token_loss, dynamic=False)
        since, first = time.perf_counter(), progress.step
        bar = progress_bar(range(first, config.steps), initial=first, total=config.steps)
        for step in bar:
            every = draw_rows(self.sources, config, step)
            rows = every[rank() :: count()].to(device)  # this process's part of them
            part = torch.zeros((), device=device)
            if len(rows):
                with _quick_attention(rows):
                    part = compiled_loss(self.model, rows) * (len(rows) / len(every))
                part.backward()
            loss = summed(part.detach()).item()
            if not math.isfinite(loss):
                raise self._diverged(f"the loss became {loss} in step {step + 1}")
            sum_gradients(self.model.parameters())
            lr = config.lr * learning_rate_factor(step, config)
            for optimizer in self.optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = lr
                optimizer.step()
                optimizer.zero_grad()
            progress.step = step + 1
            progress.losses.append(loss)
            points = {"loss/train": progress.losses[-1], "learning_rate": lr}
            self.curves.add(progress.step, points)
            bar.set_postfix_str(f"loss {progress.losses[-1]:.3f}", refresh=False)
            if progress.step % config.save_every == 0 or progress.step == config.steps:
                tokens = (progress.step - first) * config.tokens
                if is_first():  # the others wait at the next step
                    self._checkpoint(tokens / (time.perf_counter() - since))
                since, first = time.perf_counter(), progress.step
            if in_any(bool(stop)):
                if is_first():
                    self._save_state()
                raise Interrupted(
                    f"stopped after step {progress.step} of {config.steps}", stop.signal or SIGTERM
                )

    def _checkpoint(self, tokens_per_second: float) -> None:
        """Compute the held-out loss, and save the learning curve, the state and the model."""
        progress = self.progress
        bits = {
            register: bits_per_byte(self.model, text.sources, text.n_bytes)
            for register, text in self.held_out.items()
        }
        total = sum(text.n_bytes for text in self.held_out.values())
        mean = sum(bits[name] * text.n_bytes / total for name, text in self.held_out.items())
        record = {
            "step": progress.step,
            "tokens": progress.step * self.config.tokens,
            "train_loss": round(float(np.mean(progress.losses)), 4),
            "held_out_bits_per_byte": round(mean, 4),
            "by_register": {register: round(value, 4) for register, value in bits.items()},
            "tokens_per_second": round(tokens_per_second),
        }
        points = {f"bits_per_byte/{register}": value for register, value in bits.items()}
        self.curves.add(progress.step, points | {"bits_per_byte/held_out": mean})
        progress.records, progress.losses = [*progress.records, record], []
        self._save_state()
        save_gpt2(self.model, self.out, self.dtype)
        curve = "".join(json.dumps(each) + "\n" for each in progress.records)
        write_text(self.out / "pretraining.jsonl", curve)
        log.info(json.dumps(record))

    def _save_state(self) -> None:
        self.curves.flush()  # a run that is resumed from this state does not write them again
        tensors = {f"model/{name}": p for name, p in self.model.named_parameters()}
        record = {
            "progress": asdict(self.progress),
            "settings": asdict(self.config),
            "training_text": self._training_text(),
        }
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
        """Restore the newest intact state, if there is one."""
        found = newest_state(self.out)
        if found is None:
            return
        with restoring(self.out):
            self._restore(*found)

    def _restore(self, record: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        free = dict.fromkeys(("steps", "decay", "save_every"))
        saved = record["settings"]
        if "conversation" in saved:  # older states store the weight of this register by itself
            saved["register_weights"] = f"conversation={saved.pop('conversation'):g}"
        refuse_changes(saved | free, asdict(self.config) | free, self.out)
        if "training_text" in record:  # older states do not have it
            now = {"training_text": self._training_text()}
            refuse_changes({name: record[name] for name in now}, now, self.out)
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(tensors[f"model/{name}"])
        restore_optimizers(self.optimizers, tensors)
        self.progress = record_from_json(_Progress, record["progress"])

    def _training_text(self) -> str:
        """Return the training text's length and checksum, to notice changes."""
        crc = 0
        for source in self.sources:
            crc = zlib.crc32(source.tokens.tobytes(), crc)
        return f"{sum(len(source.tokens) for source in self.sources):,} tokens, CRC-32 {crc:08x}"

    def _diverged(self, what: str) -> GPT2Error:
        return GPT2Error(
            f"{what}; the last good state is kept for --resume. Start a new run with an --lr below "
            f"{self.config.lr}."
        )


def _quick_attention(rows: Tensor) -> AbstractContextManager[Any]:
    """Select the faster attention for these rows.

    For short rows on a CPU, the backward pass of unfused attention is faster.
    """
    if rows.device.type == "cpu" and rows.shape[1] <= 257:
        # despite its name, this setting applies to the CPU too
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
        return sdpa_kernel(SDPBackend.MATH)
    return nullcontext()
