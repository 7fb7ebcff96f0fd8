"""Lists of rows to take down: what they may hold, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from altdiffusion.cli import main
from altdiffusion.curation.links.takedown import read_list, read_urls
from altdiffusion.errors import AltDiffusionError
from altdiffusion.storage import files
from tests.takedown_rows import Corpus, corpus, run, write_list

__all__ = ["corpus"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "lists nothing"),
        ("\ufeff# only\n", "lists nothing"),
        ("url:x\nsha256:12\n", "line 1: is 'url:x'.*line 2"),
        ("http://x\n", "line 1"),
    ],
)
def test_empty_or_invalid_lists_are_refused(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "list.txt"
    path.write_text(text)
    with pytest.raises(AltDiffusionError, match=problem):
        read_list(str(path))
    with pytest.raises(AltDiffusionError, match="is not there"):
        read_urls(str(tmp_path / "none.txt"))


def test_a_list_of_links_is_checked_line_by_line(tmp_path: Path) -> None:
    path = tmp_path / "urls.txt"
    path.write_bytes("\ufeffhttp://a.example/x\u00a0\r\n\r\n# why\r\nnot a link\r\n".encode("utf-16"))
    with pytest.raises(AltDiffusionError, match=r"urls\.txt, line 4: is 'not a link'.*write one link per line"):
        read_urls(str(path))
    path.write_bytes(path.read_bytes()[: -len("not a link\r\n") * 2])
    assert read_urls(str(path)).lines == ("url:http://a.example/x",)


def test_blocklist_lines_are_written_whole(corpus: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [f"hash:{number}" for number in range(40)]
    listed = write_list(tmp_path / "list.txt", lines)
    out = tmp_path / "block.txt"
    printed = run(
        *(capsys, "dataset", "remove", "images", "--hashes", listed, "--lake", corpus.lake.uri),
        *("--blocklist-out", str(out)),
    )
    assert "and 20 more" in printed and files.sha256_hex(out.read_bytes()) in printed
    assert sorted(out.read_text().splitlines()) == sorted(lines)
    assert "holds none of these rows" in printed


@pytest.mark.parametrize("option", ["--urls", "--hashes"])
@pytest.mark.parametrize("entry", ["http://a.example/1.jpg", "https://a.example/1.jpg", "url:http://a.example/1"])
def test_an_entry_in_place_of_a_file_is_explained(
    corpus: Corpus, option: str, entry: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["lineage", "impact", option, entry, "--lake", corpus.lake.uri]) == 2
    error = capsys.readouterr().err
    assert (
        f"list {entry}: is an entry itself" in error and f"echo 'url:{entry.removeprefix('url:')}' > list.txt" in error
    )


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_marks_line_ends_blank_lines_and_comments_do_not_matter(tmp_path: Path, mark: str, end: str) -> None:
    path = tmp_path / "list.txt"
    lines = [
        f"{mark}hash:5",
        "",
        "# why",
        "  url:http://a.example/x \t",
        "   ",
        "sha256:" + "A" * 64,
        "domain:B.example",
    ]
    path.write_bytes(end.join(lines).encode())
    wanted = read_list(str(path))
    assert wanted.lines == ("hash:5", "url:http://a.example/x", "sha256:" + "A" * 64, "domain:B.example")
    assert wanted.sample_ids.to_pylist() == [5] and wanted.images.to_pylist() == ["a" * 64]
    path.write_bytes(end.join([f"{mark}http://a.example/x", "", "# why", "http://b.example/"]).encode())
    assert read_urls(str(path)).lines == ("url:http://a.example/x", "url:http://b.example/")
