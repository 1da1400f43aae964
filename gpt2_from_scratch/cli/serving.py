"""The command `serve`: a local page on which you watch a classifier decide, and a JSON API."""

import argparse
from importlib.util import find_spec
from typing import Any

from gpt2_from_scratch.cli.classifying import refuse_missing
from gpt2_from_scratch.cli.options import (
    add_base,
    add_computing,
    computing_on,
    existing_or_new_path,
    non_empty,
)
from gpt2_from_scratch.errors import UsageError

PORT = 8124


def add_serve(commands: Any) -> None:
    """Add `serve`."""
    parser = commands.add(
        "serve",
        run_serve,
        "open a local page on which you watch a classifier decide; also a JSON API",
        "gpt2-classifier serve runs/demo",
        "gpt2-classifier serve runs/demo runs/lora --port 8200",
        "curl -s localhost:8124/api/predict -H 'Content-Type: application/json' "
        """-d '{"texts": ["See you at six"]}'""",
    )
    parser.add_argument(
        "runs",
        nargs="+",
        type=existing_or_new_path,
        metavar="RUN",
        help="runs' folders, or files like best.safetensors; several can be compared",
    )
    add_base(parser)
    parser.add_argument(
        "--port", type=int, default=PORT, help=f"port; 0: a free one (default: {PORT})"
    )
    parser.add_argument(
        "--host",
        type=non_empty,
        default="127.0.0.1",
        help="address to listen at; others than the default let other computers in "
        "(default: 127.0.0.1)",
    )
    add_computing(parser)


def run_serve(args: argparse.Namespace) -> None:
    """Serve the page and the API until Ctrl-C."""
    if not (find_spec("starlette") and find_spec("uvicorn")):
        raise UsageError(
            "serve needs the packages starlette and uvicorn: pip install 'gpt2-from-scratch[serve]'"
        )
    if not 0 <= args.port < 65536:
        raise UsageError(f"--port {args.port} must be from 0 to 65535")
    from gpt2_from_scratch.speed.devices import DTYPES
    from gpt2_from_scratch.web.models import load_models
    from gpt2_from_scratch.web.server import serve

    for run in args.runs:
        refuse_missing(run)
    device, dtype = computing_on(args)
    models = load_models(args.runs, args.model, device=device, dtype=DTYPES[dtype])
    serve(models, args.host, args.port)
