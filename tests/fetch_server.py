"""A loopback server that sends, byte by byte, what a test specifies; TLS on request."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

Answer = Callable[[socket.socket], None]


@dataclass
class Site:
    """`answers` by path, or by host and path where a host has its own; what was asked is kept in `requests`."""

    port: int
    answers: dict[str, Answer | bytes] = field(default_factory=dict)
    requests: list[bytes] = field(default_factory=list)
    """Raw heads, in order of arrival."""
    connections: int = 0

    def asked(self, host: str = "") -> list[str]:
        """Return the paths that were asked for, of one host or of all."""
        return [_path(head) for head in self.requests if host in ("", _host(head))]


def _path(head: bytes) -> str:
    return head.split(b" ")[1].decode()


def _host(head: bytes) -> str:
    return head.partition(b"\r\nHost: ")[2].partition(b"\r\n")[0].decode()


def reply(body: bytes = b"", *, status: str = "200 OK", length: int | None = -1, **headers: str) -> bytes:
    """Return a whole HTTP answer. `length` -1 is the body's, None leaves the header out; `_` in names becomes `-`."""
    head = [f"HTTP/1.1 {status}"]
    if length is not None:
        head.append(f"Content-Length: {len(body) if length == -1 else length}")
    head += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return ("\r\n".join(head) + "\r\n\r\n").encode("latin-1") + body


@contextlib.contextmanager
def serving(
    context: ssl.SSLContext | None = None, address: str = "127.0.0.1", port: int = 0, *, keep: bool = False
) -> Iterator[Site]:
    """Serve on a port (0: a free one) of a loopback address for the block; each connection has a thread.

    `keep`: a connection takes one request after the other, instead of one only.
    """
    listener = socket.create_server((address, port))
    site = Site(port=listener.getsockname()[1])
    stopped = threading.Event()

    def serve(connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            if context is not None:
                connection = context.wrap_socket(connection, server_side=True)
            again = True
            while again:
                head = b""
                while b"\r\n\r\n" not in head:
                    piece = connection.recv(65536)
                    if not piece:
                        return
                    head += piece
                site.requests.append(head)
                path = _path(head)
                common = site.answers.get(path, reply(status="404 Not Found"))
                answer = site.answers.get(_host(head) + path, common)
                if callable(answer):
                    answer(connection)
                else:
                    connection.sendall(answer)
                again = keep
            if context is not None:
                connection.unwrap()

    def accept() -> None:
        while not stopped.is_set():
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            site.connections += 1
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield site
    finally:
        stopped.set()
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(5)


@contextlib.contextmanager
def canary() -> Iterator[tuple[int, list[tuple[str, int]]]]:
    """Listen on a port that nobody may connect to; yield the port and the list of peers that did."""
    listener = socket.create_server(("127.0.0.1", 0))
    seen: list[tuple[str, int]] = []

    def accept() -> None:
        while True:
            try:
                connection, peer = listener.accept()
            except OSError:
                return
            seen.append(peer)
            connection.close()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1], seen
    finally:
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(5)


def certificate(folder: Path, *names: str, days: int = 30) -> tuple[ssl.SSLContext, Path]:
    """Return a self-signed certificate for these host names: (context of the server, PEM file for the client to trust).

    `days`: from yesterday on; -1 has expired.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])])
    start = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1 if days > 0 else 30)
    alternatives: list[x509.GeneralName] = [x509.DNSName(item) for item in names]
    alternatives.append(x509.IPAddress(ipaddress.IPv4Address("203.0.113.7")))
    built = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(start)
        .not_valid_after(start + datetime.timedelta(days=days if days > 0 else 30 + days))
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem, secret = folder / "cert.pem", folder / "key.pem"
    pem.write_bytes(built.public_bytes(serialization.Encoding.PEM))
    secret.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem, secret)
    return context, pem
