"""How links are fetched, decoded and stored."""

from __future__ import annotations

import importlib.util
import ipaddress
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

from altdiffusion.config import operational
from altdiffusion.constraints import (
    SHA256,
    Checked,
    Invalid,
    at_least,
    between,
    each,
    matching,
    positive,
    together,
)
from altdiffusion.curation.config.store import StoreConfig

_NAME_SERVER = re.compile(r"(?:\[([^\]]*)\]|([^:\[\]]*|[^\[\]]*:[^\[\]]*:[^\[\]]*?))(?::([0-9]{1,5}))?")
_USER_AGENT = matching(r"[ -~]*[!-~][ -~]*", "is not printable ASCII", "name the operator and a contact")


@dataclass(frozen=True, kw_only=True, slots=True)
class DownloadConfig(StoreConfig):
    """How links are fetched and stored. Caps decide which rows stay, so they are part of the fingerprint."""

    deadline_s: Annotated[float, positive("give seconds")] = 30.0
    """Seconds for one link in all: names, every connection and redirect, and the whole body."""
    connect_timeout_s: Annotated[float, positive("give seconds")] = 10.0
    """Seconds for one connection attempt."""
    max_redirects: Annotated[int, at_least(0)] = 5
    """Redirects of one link that are followed, each checked like a link of its own."""
    retries: Annotated[int, at_least(0)] = 1
    """Further attempts after a time-out, a refused connection, 429 or 503."""
    retry_wait_s: Annotated[float, at_least(0)] = operational(1.0)
    """Seconds before the second attempt; doubled each time. A 429 or 503 pauses the whole host that long, or for
    its Retry-After."""
    host_wait_s: Annotated[float, at_least(0)] = 600.0
    """Seconds one unit waits, in all, while none but paced, paused or fully used hosts are left; or a host asks to
    stay away for longer: its rows are then rejected as `host_busy`, for a later pass."""
    ports: tuple[int, ...] = (80, 443, 8080)
    """Ports a URL may name."""
    honor_opt_out: bool = True
    """Whether X-Robots-Tag noai / noimageai, tdm-reservation and Content-Usage train-ai=n reject the row."""
    honor_noindex: bool = False
    """Whether X-Robots-Tag noindex, noimageindex and none, which speak of search engines, reject the row as well."""
    honor_robots: bool = True
    """Whether a site's robots.txt (RFC 9309) is asked first and obeyed, redirects' targets included."""
    robots_deadline_s: Annotated[float, positive("give seconds")] = 10.0
    """Seconds for one robots.txt in all; a site that takes longer is not fetched from."""
    max_crawl_delay_s: Annotated[float, at_least(0)] = operational(5.0)
    """Seconds of a robots.txt's Crawl-delay that are kept between two requests, at most; 0 ignores it."""
    image_blocklist: str | None = operational(None)
    """URI of a blocklist: images of its `sha256:` lines are dropped in memory and never written, rows of its `hash:`
    lines not fetched, links of its `url:` and `domain:` lines neither, not even where a redirect leads to them."""
    image_blocklist_sha256: Annotated[str | None, SHA256] = None
    """SHA-256 (hex) of that file: the list that was applied is part of the result."""
    on_mismatch: Literal["keep", "reject"] = "reject"
    """What happens to an image that is not the one whose hash the source states; its verdict is recorded."""
    phash_distance: Annotated[int, between(0, 64, "it counts differing bits of 64; give e.g. 10")] = 10
    """Bits of 64 in which an image's perceptual hash may differ from the source's and still be that image."""
    user_agent: Annotated[str, _USER_AGENT] = operational(
        "AltDiffusionPlatform/0.1 (dataset curation; honours robots.txt and X-Robots-Tag)"
    )
    """An honest one that names the operator; put a contact address into it before a real run."""
    per_host_per_s: Annotated[float | None, positive("give null for no limit")] = operational(None)
    """Requests per second to one host by one worker: from N workers together a host may see N times that."""
    per_host_connections: Annotated[int, at_least(1)] = operational(4)
    """Simultaneous downloads from one host by one worker, and never more than half of `threads`."""
    threads: Annotated[int, at_least(1)] = operational(16)
    """Simultaneous downloads in one worker; as many robots.txt files are asked for at the same time. One thread
    serves all of them."""
    lookahead_mib: Annotated[int, at_least(1)] = operational(64)
    """MiB of fetched bodies that may wait for a decoder; beyond that no new download starts."""
    rows_per_unit: Annotated[int, at_least(1)] = 10_000
    """Rows of one unit of work, which is repeated as a whole where a worker dies."""
    connect_to: dict[str, str] = operational(factory=dict)
    """`host:port` of a URL -> `host:port` to connect to instead, like curl's --connect-to; an empty part is any."""
    name_servers: tuple[str, ...] = operational(())
    """Addresses of name servers to ask in turns, as `10.0.0.53` or `10.0.0.53:5353`, by c-ares; none for the system's
    resolver."""
    believe_failures: bool = operational(False)
    """Whether a unit in which next to nothing came, for reasons that may be this machine's own, is recorded all the
    same: for links whose hosts are known to be gone for good."""
    allow_private: tuple[str, ...] = operational(())
    """Networks (CIDR) that links may lead to, by name or by address, although they are not public: for a mirror on a
    private network. A link or redirect of any site can then reach them too: name the mirror's addresses alone."""
    ca_file: str | None = operational(None)
    """PEM file of certificate authorities to trust instead of the system's."""

    def conflicts(self) -> Iterator[Invalid]:
        yield from self.store_conflicts()
        yield from together(self, "image_blocklist", "image_blocklist_sha256")
        for network in self.allow_private:
            try:
                ipaddress.ip_network(network)
            except ValueError:
                yield Invalid("allow_private", f"contains {network!r}, not a network", "write e.g. 127.0.0.0/8")
        yield from _name_server_conflicts(self.name_servers)
        for source, target in self.connect_to.items():
            if source.rpartition(":")[1] != ":" or not target.rpartition(":")[2].isdigit():
                yield Invalid(
                    "connect_to",
                    f"contains {source!r} -> {target!r}, not an address",
                    "write host:port: host:port",
                )


def _name_server_conflicts(servers: tuple[str, ...]) -> Iterator[Invalid]:
    for server in servers:
        match = _NAME_SERVER.fullmatch(server)
        host, port = (match[1] or match[2], match[3] or "53") if match else ("", "53")
        try:
            ipaddress.ip_address(host)
            valid = 0 < int(port) < 65536
        except ValueError:
            valid = False
        if not valid:
            yield Invalid("name_servers", f"contains {server!r}, not an address", "write e.g. 10.0.0.53 or [::1]:53")
    if servers and importlib.util.find_spec("pycares") is None:
        yield Invalid(
            "name_servers", "needs pycares, which is not installed", "pip install 'altdiffusion-platform[dns]'"
        )


_REASON = matching(
    r"[a-z_]+|http_[1-5](?:\d\d|xx)", "is not a reject reason", "write e.g. timeout, http_503 or http_5xx"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class RetryConfig(Checked):
    """Which rejected rows are fetched once more, in a later pass over what is otherwise finished."""

    passes: Annotated[int, at_least(0)] = 1
    """Further passes; 0 switches it off. A pass takes what the pass before it left."""
    reasons: Annotated[tuple[str, ...], each(_REASON)] = (
        *("timeout", "connect", "reset", "dns", "robots_unreachable", "host_busy"),
        *("http_408", "http_429", "http_5xx"),
    )
    """Reject reasons that time may fix; `http_5xx` covers all statuses from 500 to 599."""

    def covers(self, reason: str) -> bool:
        """Return whether a row rejected for this reason is fetched again."""
        return reason in self.reasons or (reason.startswith("http_") and f"{reason[:6]}xx" in self.reasons)
