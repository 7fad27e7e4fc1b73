"""Where a server listens, and who can reach it: this machine alone, or others too."""

from __future__ import annotations

import socket
from ipaddress import ip_address

from utils.errors import UserError


def is_loopback(host: str) -> bool:
    """Whether an address, or the name localhost, is of this machine alone."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def require_free(host: str, port: int) -> None:
    """Says before anything is loaded that a server could not listen there.

    Raises:
        UserError: somebody else does already, or this is no address of this machine.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        socket.create_server(address[:2], family=family).close()
    except OSError as error:
        why = f"cannot listen at {host}, port {port} ({error.strerror})"
        raise UserError(f"{why}: choose another --host or --port") from None
