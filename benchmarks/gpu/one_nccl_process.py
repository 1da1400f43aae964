"""Stage `torchrun` of `make gpu`: one process that is connected as torchrun connects several.

On a GPU it is connected with NCCL, on a CPU with gloo. The last block of a classifier of 124M's sizes
is finetuned with and without the connection; the weights must be equal. Also measured: the seconds in
which the gradients of the last block are exchanged.
"""

from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.distributed as dist
from bench import timed
from stage import Stage

from gpt2_from_scratch import Split, TrainConfig, finetune
from gpt2_from_scratch.storage.processes import gathered, joined, sum_gradients

STEPS = 30


def finetuned(stage: Stage, split: Split) -> tuple[float, dict[str, torch.Tensor]]:
    """The seconds of a training, and the trained weights."""
    classifier = stage.random_classifier(stage.sizes("124M"))
    with TemporaryDirectory(dir=stage.work) as folder:
        run = partial(finetune, classifier, split, TrainConfig(epochs=1), folder)
        seconds = timed(run, stage.device)
    named = classifier.model.named_parameters()
    return seconds, {name: p.detach() for name, p in named if p.requires_grad}


def compared(stage: Stage) -> dict[str, Any]:
    """Train alone and connected: seconds, the backend, and whether the weights are equal."""
    split = stage.split()
    n = 16 if stage.small else 8 * STEPS
    split = Split(split.train[:n], split.val[:16], [])
    alone_seconds, alone = finetuned(stage, split)
    with TemporaryDirectory(dir=stage.work) as folder, joined(0, 1, f"file://{folder}/meeting"):
        seconds, connected = finetuned(stage, split)
        for parameter in connected.values():
            parameter.requires_grad_().grad = torch.ones_like(parameter)
        exchange = timed(partial(sum_gradients, connected.values()), stage.device)
        backend = dist.get_backend_config()
        counts = gathered(dist.get_world_size())
    equal = all(torch.equal(connected[name], value) for name, value in alone.items())
    return {
        "backend": str(backend),
        "processes": counts[0],
        "ok": equal,
        "seconds alone": alone_seconds,
        "seconds connected": seconds,
        "exchange of gradients, ms": 1000 * exchange,
        "gradients, MB": sum(value.nbytes for value in alone.values()) / 1e6,
    }


def main() -> None:
    """Measure the only comparison."""
    stage = Stage.from_command_line(__doc__.splitlines()[0])
    Path(stage.work).mkdir(exist_ok=True)
    stage.measure("finetune, 124M", partial(compared, stage))


if __name__ == "__main__":
    main()
