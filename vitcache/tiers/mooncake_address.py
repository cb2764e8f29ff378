"""Checks of the addresses and the devices of a Mooncake store."""

from __future__ import annotations

import re

from vitcache.arguments import shown

_HOST = r"[0-9A-Za-z._-]+|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*(?:%[0-9A-Za-z._-]+)?"  # a name, or an IPv6 address
_MASTER = r"(?:\[([0-9A-Fa-f:.]+(?:%[0-9A-Za-z._-]+)?)\]|([0-9A-Za-z._-]+)):([0-9]{1,5})"
_DEVICES = r"(?:[0-9A-Za-z._:-]+(?:,[0-9A-Za-z._:-]+)*)?"


def host_and_port(name: str, master: str) -> tuple[str, int]:
    """Return the two parts of an address such as ``"store:50051"`` or ``"[::1]:50051"``.

    Raises
    ------
    TypeError, ValueError
        If `master` is not a str, or not an address. Messages have the name `name`.
    """
    match = _match(name, master, _MASTER, "'host:port' with a port from 1 to 65535")
    if not 0 < int(match[3]) < 1 << 16:
        raise ValueError(f"{name} is {shown(master)}, its port must be from 1 to 65535")
    return match[1] or match[2], int(match[3])


def check_host(name: str, host: str) -> None:
    """Check the name or address of a machine. Raises as `host_and_port`."""
    _match(name, host, _HOST, "the name or the address of a machine")


def check_devices(name: str, devices: str) -> None:
    """Check names of RDMA devices. Raises as `host_and_port`."""
    _match(name, devices, _DEVICES, "names of devices that are divided by commas, or empty")


def _match(name: str, text: str, pattern: str, form: str) -> re.Match[str]:
    if not isinstance(text, str):
        raise TypeError(f"{name} must be a str, got {shown(text)} of type {type(text).__name__}")
    match = re.fullmatch(pattern, text)
    if match is None:
        raise ValueError(f"{name} is {shown(text)}, it must be {form}")
    return match
