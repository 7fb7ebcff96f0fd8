"""The DNS resolver that downloads would ask thousands of names a second."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from pathlib import Path

from altdiffusion.doctor.line import FAIL, OK, WARN, Line


def check_resolver(config: str = "/etc/resolv.conf") -> Iterator[Line]:
    """Check which name servers this machine asks.

    Args:
        config: path of the resolver's configuration.
    """
    try:
        words = [line.split() for line in Path(config).read_text(encoding="utf-8", errors="replace").splitlines()]
    except OSError as error:
        remedy = "write a line `nameserver ADDRESS` to it"
        yield Line(FAIL, "resolver", f"{config} cannot be read ({error.strerror})", remedy)
        return
    servers = [line[1] for line in words if len(line) > 1 and line[0] == "nameserver"]
    listed = ", ".join(servers)
    remedy = "for downloads at scale, name several resolvers: download.name_servers (docs/download.md)"
    if not servers:
        yield Line(FAIL, "resolver", f"{config} names none", f"write a line `nameserver ADDRESS` to {config}")
    elif any(_is_stub(server) for server in servers):
        yield Line(WARN, "resolver", f"{listed}: a stub of this machine, one process for all names", remedy)
    elif len(servers) == 1:
        yield Line(WARN, "resolver", f"{listed} alone", remedy)
    else:
        yield Line(OK, "resolver", listed)


def _is_stub(server: str) -> bool:
    try:
        return ipaddress.ip_address(server.partition("%")[0]).is_loopback
    except ValueError:
        return False
