"""Stage `qlora` of `make gpu`: memory and seconds per step of LoRA and of QLoRA.

Random weights of the sizes of 124M and 1558M, with adapters of rank 8 in every block, and batches of
8 messages of the SMS collection. In bfloat16, products are computed under torch.autocast; weights and
adapters stay in float32, or the weights in NF4.
"""

import statistics
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from bench import PeakMemory, timed
from compare import autocast
from stage import LABELS, Stage, short

from gpt2_from_scratch import LoRAConfig, set_trainable
from gpt2_from_scratch.gpt2.config import GPT2Config

KINDS = {"LoRA": "none", "QLoRA": "nf4"}
BATCH = 8


def steps(stage: Stage, config: GPT2Config, quantize: str, dtype: torch.dtype) -> dict[str, Any]:
    """Take some steps: megabytes of the weights and at most, seconds per step, and the losses."""
    lora = LoRAConfig(rank=8, alpha=8, quantize=quantize)
    classifier = stage.random_classifier(config, lora=lora)
    set_trainable(classifier.model, n_last_blocks=0)
    trained = [p for p in classifier.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)
    messages = stage.split().train
    encoded, _ = classifier.encode([message.text for message in messages])
    texts, losses = classifier.texts(encoded), list[float]()
    labels = torch.tensor([LABELS.index(message.label) for message in messages])

    def step(first: int) -> None:
        numbers = [(first + k) % len(encoded) for k in range(BATCH)]
        with autocast(stage.device, dtype):
            logits = classifier.batch_logits(texts, numbers)
        loss = F.cross_entropy(logits.float(), labels[numbers].to(stage.device))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())

    seconds = []
    with PeakMemory(stage.device) as peak:
        for number in range(3 if stage.small else 30):
            seconds.append(timed(partial(step, BATCH * number), stage.device))
    tensors = [*classifier.model.parameters(), *classifier.model.buffers()]
    return {
        "weights, MB": sum(tensor.nbytes for tensor in tensors) / 1e6,
        "blocks, MB": sum(
            tensor.nbytes
            for part in classifier.model.blocks
            for tensor in (*part.parameters(), *part.buffers())
        )
        / 1e6,
        "peak MB": peak.bytes / 1e6,
        "seconds per step": statistics.median(seconds[1:]),
        "first loss": losses[0],
        "last loss": losses[-1],
    }


def main() -> None:
    """Measure both kinds in both precisions, the small model first."""
    stage = Stage.from_command_line(__doc__.splitlines()[0])
    for size in ("124M", "1558M"):
        for dtype in (torch.bfloat16, torch.float32):
            for kind, quantize in KINDS.items():
                run = partial(steps, stage, stage.sizes(size), quantize, dtype)
                stage.measure(f"{size}: {kind}, {short(dtype)}", run)


if __name__ == "__main__":
    main()
