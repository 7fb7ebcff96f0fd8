"""The graph from manifests: what a reference means, and what is above and below it."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path

import pytest

from altdiffusion.cli import main
from altdiffusion.errors import AltDiffusionError
from altdiffusion.html.page import BIDI
from altdiffusion.lineage import graph as graphs
from altdiffusion.lineage import image_search, lineage_page, tree
from altdiffusion.refs import Ref
from altdiffusion.storage import files
from altdiffusion.storage.dataset import Lake
from tests.flipped import flip
from tests.lineage_lake import BASE, DRAWN, SOURCE, SOURCE_IMAGE, WORDS, SmallLake, publish


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> SmallLake:
    return SmallLake(tmp_path_factory.mktemp("lake"))


@pytest.fixture(scope="module")
def graph(small: SmallLake) -> graphs.Graph:
    return graphs.scan(small.uri)


def refs(part: graphs.Slice) -> set[str]:
    return set(part.nodes)


def test_up_from_a_checkpoint_is_exactly_what_went_into_it(small: SmallLake, graph: graphs.Graph) -> None:
    wanted = [small.quality, small.alignment, small.latents.ref, small.images.ref, small.links.ref, SOURCE, BASE]
    assert refs(graph.up(str(small.quality))) == {str(ref) for ref in wanted}


def test_down_from_a_dataset_is_exactly_what_was_made_of_it(small: SmallLake, graph: graphs.Graph) -> None:
    below = refs(graph.down(str(small.links.ref)))
    export = next(ref for ref in graph.nodes if ref.startswith("export:"))
    wanted = [small.links.ref, small.images.ref, small.latents.ref, small.alignment, small.quality_50, small.quality]
    assert below == {*(str(ref) for ref in wanted), export, str(small.generations.ref)}
    assert str(small.prompts.ref) not in below


def test_up_and_down_are_each_others_inverse(graph: graphs.Graph) -> None:
    for one in graph.nodes:
        for other in refs(graph.up(one)):
            assert one in refs(graph.down(other))


def test_ancestors_without_a_scan_are_the_same(small: SmallLake, graph: graphs.Graph) -> None:
    walked = graphs.ancestors(small.uri, [small.quality])
    scanned = graph.up(str(small.quality)).nodes
    assert walked.nodes == dict(scanned)


def test_a_reader_reads_a_node_once_and_looks_for_a_missing_one_again(
    small: SmallLake, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    read = graphs.read_node

    def counted(lake: str, ref: Ref | str) -> graphs.Node:
        asked.append(str(ref))
        return read(lake, ref)

    monkeypatch.setattr(graphs, "read_node", counted)
    reader = graphs.NodeReader(small.uri)
    above = reader.ancestors([small.quality])
    assert sorted(asked) == sorted(above.nodes)
    gone = f"dataset:links@{'0' * 64}"
    assert reader.ancestors([small.quality, small.alignment]).nodes == above.nodes
    assert reader.node(gone).missing and reader.node(gone).missing
    assert asked[len(above.nodes) :] == [gone, gone]


def test_the_same_lake_in_memory_gives_the_same_graph(graph: graphs.Graph) -> None:
    other = graphs.scan(SmallLake("memory://lineage-lake").uri)
    assert sorted(other.nodes) == sorted(graph.nodes)
    assert {ref: node.parents for ref, node in other.nodes.items()} == {r: n.parents for r, n in graph.nodes.items()}


def test_every_way_to_name_a_thing(small: SmallLake, graph: graphs.Graph) -> None:
    ref = small.latents.ref
    for text in (
        str(ref),
        ref.short,
        f"latents@{ref.digest[:8]}",
        "latents",
        "dataset:latents",
        ref.digest,
        ref.digest[:9],
    ):
        assert [node.ref for node in graph.find(text)] == [str(ref)], text
    for text in ("quality", "checkpoint:quality", "quality/step-00000100", small.quality.digest[:8]):
        assert [node.ref for node in graph.find(text)] == [str(small.quality)], text
    assert graph.find("export:quality/step-00000100")[0].kind == "export"
    assert graph.find("source:crawl")[0].ref == str(SOURCE)
    assert graph.find("latents@00000000") == []


def test_a_bare_name_means_the_head(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    first = publish(lake, "links", "links", [{"language": "en", "sample_id": 1}], [SOURCE])
    second = publish(lake, "links", "links", [{"language": "en", "sample_id": 2}], [SOURCE])
    graph = graphs.scan(lake.uri)
    assert [node.digest for node in graph.find("links")] == [second.ref.digest]
    files.remove_tree(files.join(lake.uri, "datasets", "links", "head.json"))
    with pytest.raises(AltDiffusionError, match="ambiguous") as caught:
        image_search.lineage(graphs.scan(lake.uri), "links", "up")
    assert first.ref.digest in str(caught.value) and second.ref.digest in str(caught.value)


@pytest.mark.parametrize("text", ["latent", "qualty", "dataset:latnets@00000000", "latents@ffffffff"])
def test_an_unknown_reference_names_the_nearest(graph: graphs.Graph, text: str) -> None:
    with pytest.raises(AltDiffusionError) as caught:
        image_search.lineage(graph, text, "up")
    assert repr(text) in str(caught.value)
    assert ("quality" if text == "qualty" else "latents") in caught.value.remedy


def test_a_generated_image_leads_to_prompt_seed_checkpoint_and_source_row(
    small: SmallLake, graph: graphs.Graph, tmp_path: Path
) -> None:
    image = DRAWN["de"]
    file = tmp_path / "apple.png"
    file.write_bytes(image)
    digest = files.sha256_hex(image)
    parts = [image_search.lineage(graph, text, "up") for text in (digest[:8], f"image:{digest}", str(file))]
    assert {tree.render(part) for part in parts} == {tree.render(parts[0])}
    nodes = parts[0].nodes
    assert parts[0].root == f"image:{digest}"
    prompt = next(node for node in nodes.values() if node.kind == "prompt")
    assert (prompt.name, prompt.facts["prompt"], prompt.facts["seed"]) == ("apple-de", WORDS["de"], 7)
    assert prompt.parents == (str(small.prompts.ref),)
    row = next(node for node in nodes.values() if node.kind == "row")  # seen in training with exactly this caption
    assert (row.facts["sample_id"], row.facts["url"]) == (101, "http://pictures.example/de.png")
    assert {str(small.quality), str(small.links.ref), str(SOURCE)} <= set(nodes)
    assert image_search.lineage(graph, digest, "down").steps[f"image:{digest}"] == (str(small.generations.ref),)


def test_a_collected_image_leads_to_its_rows(small: SmallLake, graph: graphs.Graph) -> None:
    digest = files.sha256_hex(SOURCE_IMAGE)
    above = image_search.lineage(graph, digest[:12], "up").nodes
    assert sorted(node.facts["sample_id"] for node in above.values() if node.kind == "row") == [100, 101, 102]
    assert str(SOURCE) in above and str(small.quality) not in above
    assert str(small.quality) in image_search.lineage(graph, digest, "down").nodes


def test_an_image_that_no_row_holds_is_an_error(graph: graphs.Graph, tmp_path: Path) -> None:
    stranger = tmp_path / "stranger.png"
    stranger.write_bytes(b"never seen")
    for text in (str(stranger), "0123456789abcdef"):
        with pytest.raises(AltDiffusionError, match="no row holds such an image"):
            image_search.lineage(graph, text, "up")


def test_what_the_lake_does_not_hold_is_marked(tmp_path: Path) -> None:
    small = SmallLake(tmp_path)
    files.remove_tree(files.join(small.uri, "checkpoints", "alignment"))
    graph = graphs.scan(small.uri)
    assert graph.nodes[str(small.alignment)].missing
    assert "NOT IN THIS LAKE" in tree.render(graph.up(str(small.quality)))


def test_an_export_that_is_used_as_a_model_keeps_its_past(tmp_path: Path) -> None:
    small = SmallLake(tmp_path)
    export = next(node for node in graphs.scan(small.uri).nodes.values() if node.kind == "export")
    used = Ref("model", "step-00000100", export.digest)
    latents = publish(small.lake, "latents", "latents", [{"language": "en", "sample_id": 9}], [small.links.ref, used])
    above = refs(graphs.scan(small.uri).up(str(latents.ref)))
    assert {str(used), export.ref, str(small.quality), str(small.alignment)} <= above


def test_a_damaged_manifest_is_named_and_left_out(tmp_path: Path) -> None:
    small = SmallLake(tmp_path)
    manifest = Path(small.links.uri) / "manifest.json"
    manifest.write_bytes(manifest.read_bytes().replace(b'"rows":3', b'"rows":4'))
    graph = graphs.scan(small.uri)
    assert [str(manifest) in str(error) for error in graph.damaged] == [True]
    assert graph.nodes[str(small.links.ref)].missing and not graph.nodes[str(small.images.ref)].missing


def test_the_tree_is_exact_and_draws_shared_branches_once(small: SmallLake, graph: graphs.Graph) -> None:
    def at(ref: object) -> str:
        return f"@{str(ref).rpartition('@')[2][:12]}"

    latents = f"dataset latents {at(small.latents.ref)}  (latents, 3 rows, 3 languages)"
    text = tree.render(graph.up(str(small.quality)))
    size = graph.nodes[str(small.quality)].facts["bytes"], graph.nodes[str(small.alignment)].facts["bytes"]
    assert text.splitlines() == [
        f"checkpoint quality/step-00000100 {at(small.quality)}  (quality, step 100, {size[0]} bytes)",
        f"├─ checkpoint alignment/step-00000100 {at(small.alignment)}  (alignment, step 100, {size[1]} bytes)",
        f"│  ├─ model base {at(BASE)}",
        f"│  └─ {latents}",
        f"│     ├─ dataset images {at(small.images.ref)}  (images, 3 rows, 3 languages)",
        f"│     │  └─ dataset links {at(small.links.ref)}  (links, 3 rows, 3 languages, 2 rejected)",
        f"│     │     └─ source crawl {at(SOURCE)}",
        f"│     └─ model base {at(BASE)}",
        f"└─ {latents}  ↑ see above",
    ]


def test_the_page_is_self_contained_and_holds_every_node(small: SmallLake, graph: graphs.Graph) -> None:
    text = lineage_page.render(graph, str(small.quality))
    assert text == lineage_page.render(graphs.scan(small.uri), str(small.quality))
    assert "http://" not in text and "https://" not in text and not re.search(r"url\((?!#tip)|@import|src=", text)
    assert "Content-Security-Policy\" content=\"default-src 'none'; " in text
    drawn = {**graph.up(str(small.quality)).nodes, **graph.down(str(small.quality)).nodes}
    assert text.count('<rect class="box') == text.count("<tr class=") == len(drawn)
    for node in drawn.values():
        assert node.ref in text
    name = '<script>alert(1)</script>" onload="x\u202egnp.exe' + "word " * 2000
    hostile = graphs.Node(ref=f"dataset:{name}", kind="source", name=name, digest="")
    text = lineage_page.render(graphs.Graph("x", [hostile], {}), hostile.ref)
    assert text.count("<script") == 1 and 'onload="' not in text and not set(text) & BIDI
    assert "word " * 100 not in text


def test_boxes_of_a_column_never_overlap() -> None:
    layers = [[f"source:n{i}x{j}@{i}{j}aaaaaaaa" for j in range(1 + (i * 5) % 7)] for i in range(6)]
    nodes = [
        graphs.Node(
            ref=ref,
            kind="source",
            name=ref,
            digest="",
            parents=tuple(p for k, p in enumerate(before) if (k + j) % 2 == 0),
        )
        for before, layer in zip([[], *layers], layers, strict=False)
        for j, ref in enumerate(layer)
    ]
    root = graphs.Node(ref="root", kind="model", name="root", digest="", parents=tuple(r for x in layers for r in x))
    named = {node.ref: node for node in [*nodes, root]}
    layout = lineage_page._layout(named, lineage_page._columns(named, "root"))
    assert sum(len(items) for items in layout.columns) > len(named)  # there are lanes
    for items in layout.columns:
        ordered = sorted(items, key=lambda item: layout.centre[item])
        for one, other in pairwise(ordered):
            need = (lineage_page._height(one, named) + lineage_page._height(other, named)) / 2 + lineage_page.ROW_GAP
            assert layout.centre[other] - layout.centre[one] >= need - 1e-6


def test_lineage_command(
    small: SmallLake, graph: graphs.Graph, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["lineage", "up", "quality", "--lake", small.uri]) == 0
    assert capsys.readouterr().out == tree.render(graph.up(str(small.quality)))
    assert main(["lineage", "down", "links", "--lake", small.uri, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert {node["ref"] for node in document["nodes"]} == refs(graph.down(str(small.links.ref)))
    assert {"from": str(small.links.ref), "to": str(small.images.ref)} in document["edges"]
    out = tmp_path / "lineage.html"
    digest = files.sha256_hex(DRAWN["ja"])
    assert main(["lineage", "page", digest, "--lake", small.uri, "--out", str(out)]) == 0
    assert WORDS["ja"] in out.read_text()
    assert main(["lineage", "page", "--lake", small.uri, "--out", str(out)]) == 0
    text = out.read_text()
    assert all(ref in text for ref in graph.up(str(small.generations.ref)).nodes) and "Not drawn: 1 more." in text
    assert str(small.quality_50) not in text  # an older checkpoint
    capsys.readouterr()
    assert main(["lineage", "up", "latent", "--lake", small.uri]) == 2
    assert "Remedy: nearest names" in capsys.readouterr().err
    assert main(["lineage", "up", "checkpoint:zzzz", "--lake", small.uri]) == 2
    assert "nearest names: checkpoint:" in capsys.readouterr().err, "names of the kind that was asked for"
    assert main(["lineage", "up", "latents", "--lake", str(tmp_path / "nowhere")]) == 2
    assert "does not exist" in capsys.readouterr().err


def test_dataset_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = SmallLake(tmp_path)
    assert main(["dataset", "list", "--lake", small.uri]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert len(listed) == 5 and all(line.endswith("head") for line in listed)
    assert main(["dataset", "show", "links", "--lake", small.uri]) == 0
    shown = capsys.readouterr().out
    assert str(small.links.ref) in shown and str(SOURCE) in shown and "too_small 2" in shown
    assert main(["dataset", "verify", f"links@{small.links.ref.digest[:8]}", "--lake", small.uri]) == 0
    assert "2 files, 3 rows" in capsys.readouterr().out
    shard = Path(small.links.shard_uri(0))
    flip(shard)
    assert main(["dataset", "verify", "links", "--lake", small.uri]) == 1
    assert shard.name in capsys.readouterr().err
    assert main(["dataset", "verify", "link", "--lake", small.uri]) == 2


def test_the_bare_command_lists_its_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([])
    listed = "{dataset,lineage,evaluation,seen,export,convert,gc,generate"
    assert listed in capsys.readouterr().err
