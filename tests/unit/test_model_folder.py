"""A model folder comes into its place whole, also where several jobs make it at once."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from altdiffusion.diffusion.folder import content_digest, publish, read_lineage


def test_of_several_that_publish_the_same_the_first_stays(tmp_path: Path) -> None:
    target, gate = tmp_path / "models/encoder", threading.Barrier(4)

    def write(folder: Path) -> None:
        (folder / "text_encoder").mkdir()
        (folder / "text_encoder/weights").write_bytes(b"w" * 1000)
        gate.wait()

    def one(_: int) -> int:
        publish(str(target), write, {"parents": []})
        return os.stat(target).st_ino

    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(one, range(4)))) == 1
    lineage = read_lineage(str(target))
    assert lineage is not None and lineage["content"] == content_digest(str(target))
    assert [path.name for path in target.parent.iterdir()] == ["encoder"]


def test_another_content_takes_the_place(tmp_path: Path) -> None:
    for text in ("first", "second", "second"):
        publish(str(tmp_path / "m"), lambda folder, text=text: (folder / "w").write_text(text), {"parents": []})
        assert (tmp_path / "m/w").read_text() == text
