"""Images for benchmarks, and a loopback server in a process of its own that serves them over http or https."""

from __future__ import annotations

import argparse
import contextlib
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np


def photo(number: int, width: int, height: int, quality: int = 90) -> bytes:
    """Return a JPEG like a photograph: soft shapes, texture and sensor noise; 1024 x 768 takes 150 to 250 kB."""
    draw = np.random.default_rng(number)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    period, phase = draw.uniform(40, 160, 6), draw.uniform(0, 6, 6)
    waves = [
        127 + 70 * np.sin(x / period[c] + phase[c]) + 40 * np.cos(y / period[c + 3] + phase[c + 3]) for c in range(3)
    ]
    coarse = draw.normal(0, 35, (max(height // 16, 2), max(width // 16, 2), 3)).astype(np.float32)
    texture = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    noise = draw.normal(0, 1, (height, width, 1)) * draw.uniform(2.5, 5)
    image = np.clip(np.stack(waves, -1) * 0.6 + texture + noise + 40, 0, 255).astype(np.uint8)
    encoded: bytes = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()
    return encoded


def make(folder: Path, count: int, width: int, height: int) -> None:
    """Make `<n>.jpg` for n below `count`; existing files stay."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        path = folder / f"{number}.jpg"
        if not path.exists():
            path.write_bytes(photo(number, width, height))


@contextlib.contextmanager
def serving(folder: Path, *, tls: Path | None = None, close: bool = False) -> Iterator[int]:
    """Serve the images of a folder at `/<n>.jpg?<anything>`, in another process; yield the port.

    Args:
        tls: folder with cert.pem and key.pem.
        close: whether every connection is closed after its answer.
    """
    command = [sys.executable, "-m", "benchmarks.images", str(folder), "--tls", str(tls or "")]
    command += ["--close"] if close else []
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield int(process.stdout.readline())
    finally:
        process.kill()
        process.wait()


def _serve(folder: Path, context: ssl.SSLContext | None, close: bool) -> None:
    images = {f"/{path.name}".encode(): path.read_bytes() for path in folder.glob("*.jpg")}
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    print(listener.getsockname()[1], flush=True)

    def answer(connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            stream = context.wrap_socket(connection, server_side=True) if context else connection
            while True:
                head = b""
                while b"\r\n\r\n" not in head:
                    piece = stream.recv(65536)
                    if not piece:
                        return
                    head += piece
                body = images.get(head.split(b" ", 2)[1].partition(b"?")[0])
                status = b"404 Not Found" if body is None else b"200 OK"
                last = close or b"connection: close" in head.lower()
                extra = b"Connection: close\r\n" if last else b""
                lines = b"HTTP/1.1 %s\r\nContent-Type: image/jpeg\r\nServer: bench\r\nContent-Length: %d\r\n%s\r\n"
                stream.sendall(lines % (status, len(body or b""), extra) + (body or b""))
                if last:
                    if context:
                        stream.unwrap()  # type: ignore[attr-defined]
                    return

    while True:
        connection, _ = listener.accept()
        threading.Thread(target=answer, args=(connection,), daemon=True).start()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tls", default="")
    parser.add_argument("--close", action="store_true")
    arguments = parser.parse_args()
    context = None
    if arguments.tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(Path(arguments.tls) / "cert.pem", Path(arguments.tls) / "key.pem")
    _serve(arguments.folder, context, arguments.close)


if __name__ == "__main__":
    main()
