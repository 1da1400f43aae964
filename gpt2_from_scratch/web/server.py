"""Run the page and the API on this computer."""

import ipaddress
import logging
import socket
from collections.abc import Mapping

import uvicorn

from gpt2_from_scratch.errors import UsageError
from gpt2_from_scratch.web.app import make_app
from gpt2_from_scratch.web.models import Model

log = logging.getLogger(__name__)

MOST_CONNECTIONS = 500
GRACE = 3  # seconds in which running requests may end after Ctrl-C


def serve(models: Mapping[str, Model], host: str = "127.0.0.1", port: int = 0) -> None:
    """Serve until Ctrl-C or SIGTERM; the address is logged.

    Args:
        models: The classifiers by name.
        host: The address to listen at. Anything but this computer's own (127.0.0.1, ::1, localhost)
            lets other computers use the server, and gives a warning.
        port: The port; 0 takes a free one.

    Raises:
        UsageError: The address does not exist here, or the port is taken.
    """
    listener = listen(host, port)
    shown = f"[{host}]" if ":" in host else host
    if not is_loopback(host):
        log.warning(
            f"{host} can be reached from other computers. Everyone who reaches it can use the "
            "classifier; there is no password."
        )
    log.info(f"serving at http://{shown}:{listener.getsockname()[1]}/  (Ctrl-C ends)")
    server = make_server(models, host)
    try:
        server.run(sockets=[listener])
    finally:
        listener.close()


def make_server(models: Mapping[str, Model], host: str = "127.0.0.1") -> uvicorn.Server:
    """Make the server; `run(sockets=[...])` runs it."""
    config = uvicorn.Config(
        make_app(models, host),
        http="h11",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=MOST_CONNECTIONS,
        timeout_graceful_shutdown=GRACE,
    )
    return uvicorn.Server(config)


def listen(host: str, port: int) -> socket.socket:
    """Open a socket that listens. Raises UsageError if that is not possible.

    Connections inherit its options. Without TCP_NODELAY, the second packet of an answer would wait
    about 40 ms until the browser has confirmed the first.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.create_server(address[:2], family=family)
    except (socket.gaierror, UnicodeError):
        raise UsageError(f"--host {host:.200} is not an address of this computer") from None
    except OSError as error:
        what = error.strerror or str(error)
        if error.errno is not None and "in use" in what.lower():
            raise UsageError(
                f"port {port} of {host} is in use by another program. Choose another one with --port."
            ) from None
        raise UsageError(f"cannot listen at {host}, port {port}: {what}") from None
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def is_loopback(host: str) -> bool:
    """Whether only this computer can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
