"""The distillation stage: its loss against the formulas by hand, its student against stock classes, its runs exact."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from safetensors.torch import save_file

from altdiffusion.config import from_dict
from altdiffusion.diffusion import models, noise
from altdiffusion.diffusion.convert import convert_text_encoder
from altdiffusion.diffusion.readout import ReadOut, readout_error
from altdiffusion.diffusion.student import load_student
from altdiffusion.diffusion.text_encoder import encode_text, load_text_encoder, tokenize
from altdiffusion.errors import AltDiffusionError
from altdiffusion.training.checkpoints import format as checkpoints
from altdiffusion.training.config import DistillationConfig, TrainConfig
from altdiffusion.training.data.loader import Loader, Samples
from altdiffusion.training.estimate.cost import shapes_of
from altdiffusion.training.estimate.student_cost import estimate_student
from altdiffusion.training.exports.export import export_checkpoint
from altdiffusion.training.launch_local import run_local
from altdiffusion.training.loop.loop import open_data, open_task
from altdiffusion.training.retrieval import retrieval
from altdiffusion.training.run.resolve import finished, resolve
from altdiffusion.training.seen import seen
from altdiffusion.training.tasks import DistillationTask
from tests import distillation_lake, training_lake
from tests.distillation_lake import config
from tests.flipped import flip
from tests.ranks import train_by_two
from tests.training_lake import Recorder, file_hashes

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> str:
    lake = distillation_lake.make_lake(tmp_path_factory.mktemp("distillation"))
    distillation_lake.save_tower(lake)
    distillation_lake.save_xlmr(lake)
    return lake


@pytest.fixture
def lake(made: str, tmp_path: Path) -> str:
    return str(shutil.copytree(made, tmp_path / "lake"))


def two_heads(lake: str, **changes: Any) -> Any:
    """Return a run with a teacher that has a projection, and a student that was XLM-R."""
    start = {"base": f"{lake}/models/base", "text_encoder": f"{lake}/models/xlmr"}
    return config(
        lake, **{"start": start, "distillation": {"teacher": f"{lake}/models/tower", "queries": 4}, **changes}
    )


def open_both(settings: Any, lake: str, step: int = 0) -> tuple[DistillationTask, Samples]:
    run = resolve(settings, lake)
    task = open_task(run, None, CPU)
    assert isinstance(task, DistillationTask)
    order, rows = open_data(run, task.layout)
    loader = Loader(order, rows, start=step, stop=step + 1)
    samples = next(iter(loader))
    loader.close()
    return task, samples


def by_hand(lake: str, task: DistillationTask, samples: Samples, term: str, weight: float) -> float:
    """Return the loss, sample by sample, layer by layer, head by head, in float64."""
    base = models.load_bundle(f"{lake}/models/base")
    reader, english, unet = task.student.reader().double(), base.text_encoder.double(), base.unet.double()
    blocks = [block for block in unet.modules() if hasattr(block, "attn2")]
    total = 0.0
    ids, teacher_ids = samples["token_ids"].long(), samples["teacher_ids"].long()
    empty = english(task.empty_ids)[0][0]
    for row in range(len(ids)):
        mask = (ids[row : row + 1] != 1).long()
        student = reader(ids[row : row + 1], attention_mask=mask)[0][0]
        teacher = english(teacher_ids[row : row + 1])[0][0]
        eos = teacher_ids[row].tolist().index(2)
        total += float(((student[0] - teacher[eos]) ** 2).mean())
        if term == "mean":
            total += weight * float(((student.mean(0) - teacher.mean(0)) ** 2).mean())
        if term == "positions":
            total += weight * float(((student - teacher) ** 2).mean())
        if term == "readout":
            width = sum(block.attn2.to_q.in_features for block in blocks)
            draw = noise.keyed_normal(task.seed, torch.tensor([samples.step]), noise.QUERY, (4, width))[0].double()
            errors, begin = [], 0
            for block in blocks:
                channels = block.attn2.to_q.in_features
                z = draw[:, begin : begin + channels]
                begin += channels
                answers = [answer_by_hand(block, z, context) for context in (student, teacher, empty)]
                errors.append(float(((answers[0] - answers[1]) ** 2).mean() / ((answers[2] ** 2).mean() + 1e-8)))
            total += weight * sum(errors) / len(errors)
    return total / len(ids)


def answer_by_hand(block: Any, z: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
    attention, norm = block.attn2, block.norm2
    centred = z - z.mean(1, keepdim=True)
    normed = centred / torch.sqrt((centred**2).mean(1, keepdim=True) + norm.eps) * norm.weight + norm.bias
    query, key, value = attention.to_q(normed), attention.to_k(context), attention.to_v(context)
    width = query.shape[1] // attention.heads
    heads = []
    for head in range(attention.heads):
        mine = slice(head * width, (head + 1) * width)
        scores = query[:, mine] @ key[:, mine].T / math.sqrt(width)
        weights = scores.exp() / scores.exp().sum(1, keepdim=True)
        heads.append(weights @ value[:, mine])
    return attention.to_out[0](torch.cat(heads, 1))


@pytest.mark.parametrize(("term", "weight"), [("readout", 1.0), ("readout", 0.3), ("mean", 2.0), ("positions", 0.5)])
@torch.no_grad()
def test_the_loss_is_what_its_formula_says(lake: str, term: str, weight: float) -> None:
    settings = config(lake, distillation={"token_term": term, "token_weight": weight, "queries": 4})
    task, samples = open_both(settings, lake, step=3)
    assert samples.step == 3
    assert float(task.loss(samples)) == pytest.approx(by_hand(lake, task, samples, term, weight), rel=1e-5)


@torch.no_grad()
def test_without_the_token_term_padding_is_not_computed_and_nothing_changes(lake: str) -> None:
    task, samples = open_both(config(lake, distillation={"token_weight": 0}), lake)
    seen: list[int] = []
    task.student.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[1]))
    assert float(task.loss(samples)) == pytest.approx(by_hand(lake, task, samples, "none", 0), rel=1e-5)
    assert seen == [5 + 1]  # <s> ▁ a b c </s> of 8 positions


@pytest.mark.parametrize("output", [None, "pooled", "projected"])
@torch.no_grad()
def test_the_feature_of_a_tower_is_its_eos_vector_pooled_or_projected(lake: str, output: str | None) -> None:
    """It is pooled, as released, unless the config states otherwise; each makes another run."""
    from transformers import CLIPTextModelWithProjection

    given = {} if output is None else {"teacher_output": output}
    settings = two_heads(lake, distillation={"teacher": f"{lake}/models/tower", "queries": 4, **given})
    task, samples = open_both(settings, lake)
    ids = samples["teacher_ids"].long()
    tower = CLIPTextModelWithProjection.from_pretrained(f"{lake}/models/tower").eval()
    hidden = tower.text_model(ids).last_hidden_state
    expected = torch.stack([hidden[i, row.index(2)] for i, row in enumerate(ids.tolist())])
    if output == "projected":
        expected = tower.text_projection(expected)
    assert (resolve(settings, lake).fingerprint == resolve(two_heads(lake), lake).fingerprint) == (
        output != "projected"
    )
    feature, context = task.teach(ids)
    torch.testing.assert_close(feature, expected, rtol=0, atol=1e-6)
    base = models.load_bundle(f"{lake}/models/base")
    torch.testing.assert_close(context, base.text_encoder(ids)[0], rtol=0, atol=0)
    mine, _ = task.student(samples["token_ids"].long())
    assert mine.shape == feature.shape == (8, 12 if output == "projected" else 16)


def test_a_student_goes_on_with_the_vector_that_it_learned(lake: str) -> None:
    """Other pairs, another run: the vectors are compared; runs of before the setting learned the projected one."""
    learned = {"teacher": f"{lake}/models/tower", "queries": 4, "teacher_output": "projected"}
    run_local(two_heads(lake, steps=1, checkpoint_every=1, distillation=learned), lake, reporter=Recorder())
    more = {"run": "more", "start": {"checkpoint": "distil"}}
    resolve(config(lake, **more, distillation={"queries": 4, "teacher_output": "projected"}), lake)
    record = Path(lake) / "checkpoints/distil/run.json"
    tree = json.loads(record.read_text())
    for known in (tree["config"]["distillation"], {}):
        tree["config"]["distillation"] = {name: value for name, value in known.items() if name != "teacher_output"}
        with pytest.raises(
            AltDiffusionError, match=r"teacher's vector: is projected in run distil.*but pooled in the conf"
        ):
            resolve(config(lake, **more, distillation={"queries": 4}), lake)
        record.write_text(json.dumps(tree))


@torch.no_grad()
def test_answers_do_not_depend_on_the_order_of_positions(lake: str) -> None:
    readout = ReadOut(models.load_bundle(f"{lake}/models/base").unet)
    draw, context = torch.randn(4, readout.numbers), torch.randn(3, 8, 16)
    one = readout.answers(draw, context)
    other = readout.answers(draw, context[:, torch.randperm(8)])
    empty = readout.answers(draw, torch.randn(1, 8, 16))
    assert float(readout_error(one, other, empty)) < 1e-10
    longer = torch.cat([context, context], 1)  # every position twice: the weights halve, the sum stays
    assert float(readout_error(one, readout.answers(draw, longer), empty)) < 1e-10
    assert float(readout_error(one, readout.answers(draw, context.flip(0)), empty)) > 0.01


def test_only_the_student_learns(lake: str) -> None:
    for settings in (config(lake), two_heads(lake)):
        task, samples = open_both(settings, lake)
        task.loss(samples).backward()
        assert all(parameter.grad is not None for _, parameter in task.trained)
        assert {name for name, _ in task.trained} == dict(task.student.named_parameters()).keys()
        frozen = [task.english, task.readout, *([task.tower] if task.tower is not None else [])]
        for network in frozen:
            for parameter in network.parameters():
                assert not parameter.requires_grad
                assert parameter.grad is None


def test_a_pair_learns_and_a_checkpoint_holds_the_student_alone(lake: str) -> None:
    recorder = Recorder()
    found = run_local(config(lake, steps=60, checkpoint_every=60, log_every=10), lake, reporter=recorder)
    assert recorder.reports[-1].loss < 0.5 * recorder.reports[0].loss
    names = {path.name for path in Path(found.folder).iterdir()}
    assert {"text_encoder.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json"} <= names
    assert "unet.safetensors" not in names
    assert set(found.tensors(checkpoints.TEXT_ENCODER)) == set(found.tensors(checkpoints.EMA))


@pytest.mark.parametrize("make", [config, two_heads])
def test_an_export_is_the_base_behind_the_student(lake: str, make: Any) -> None:
    from diffusers import DiffusionPipeline

    found = run_local(make(lake, steps=6), lake, reporter=Recorder())
    folder = export_checkpoint(lake, "distil", weights="raw")
    encoder, tokenizer = load_text_encoder(folder)
    ids = torch.tensor([[0, 4, 5, 6, 2, 1, 1, 1], [0, 4, 9, 2, 1, 1, 1, 1]])
    task = open_task(resolve(make(lake), lake), found, CPU)
    assert isinstance(task, DistillationTask)
    with torch.no_grad():
        assert torch.equal(encode_text(encoder, ids, 1), task.student(ids)[1])
    assert tokenizer.get_vocab() == training_lake.tokenizer().get_vocab()
    base = models.load_bundle(f"{lake}/models/base").unet.state_dict()
    exported = models.load_bundle(folder).unet.state_dict()
    assert all(torch.equal(exported[name], tensor) for name, tensor in base.items())
    pipeline = DiffusionPipeline.from_pretrained(folder, use_safetensors=True, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline("cat", height=16, width=16, num_inference_steps=1, output_type="np").images.shape == (1, 16, 16, 3)


@torch.no_grad()
def test_a_published_encoder_goes_on_learning_with_both_heads_or_one(lake: str, tmp_path: Path) -> None:
    """The published layout: older key names, two heads. What the UNet reads is what the converter makes of it."""
    student, tokenizer = load_student(f"{lake}/models/xlmr", context=16, feature=12, tokens=8, seed=1)
    published = tmp_path / "m18"
    state = {k.replace("encoder.layers.", "encoder.layer."): v.contiguous() for k, v in student.state_dict().items()}
    (published / "text_encoder").mkdir(parents=True)
    save_file(state, published / "text_encoder" / "model.safetensors")
    shape = distillation_lake.student_config(3) | {"project_dim": 16}
    (published / "text_encoder" / "config.json").write_text(json.dumps(shape))
    tokenizer.save_pretrained(published / "tokenizer")
    ids = torch.tensor([[0, 4, 5, 6, 2, 1, 1, 1]])
    both, _ = load_student(published, context=16, feature=12, tokens=8, seed=2)
    assert all(torch.equal(one, other) for one, other in zip(student(ids), both(ids), strict=True))
    one, _ = load_student(published, context=16, feature=None, tokens=8, seed=2)
    stock = convert_text_encoder(published / "text_encoder")
    assert torch.equal(one(ids)[1], encode_text(stock, ids, 1))
    assert torch.equal(one(ids)[1], student(ids)[1])
    assert torch.equal(both.reader()(ids, attention_mask=(ids != 1).long())[0], student(ids)[1])


@torch.no_grad()
def test_xlmr_keeps_its_weights_and_its_heads_are_keyed(lake: str) -> None:
    from transformers import XLMRobertaModel

    def load(seed: int) -> Any:
        return load_student(f"{lake}/models/xlmr", context=16, feature=None, tokens=8, seed=seed)[0]

    ids = torch.tensor([[0, 4, 5, 6, 2, 1, 1, 1]])
    stock = XLMRobertaModel.from_pretrained(f"{lake}/models/xlmr", add_pooling_layer=False).eval()
    mask = (ids != 1).long()
    student = load(1)
    hidden = student.roberta(ids, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(hidden, stock(ids, attention_mask=mask).last_hidden_state, rtol=0, atol=1e-6)
    assert torch.equal(student.transformation.weight, load(1).transformation.weight)
    assert not torch.equal(student.transformation.weight, load(2).transformation.weight)


def test_micro_batches_change_rounding_only(lake: str) -> None:
    for make in (config, two_heads):
        task, samples = open_both(make(lake), lake)
        whole = task.loss(samples)
        pieces = torch.stack([task.loss(piece) for piece in samples.micro(2)]).mean()
        torch.testing.assert_close(whole, pieces, rtol=1e-5, atol=0)


def test_two_workers_equal_one(lake: str, tmp_path: Path) -> None:
    settings = two_heads(lake, steps=6, micro_batch=2, optimizer={"lr": 1e-3, "warmup_steps": 2, "eps": 1e-3})
    one = run_local(settings, lake, reporter=Recorder())
    pair = replace(settings, run="two", workers=replace(settings.workers, count=2))
    train_by_two(lake, tmp_path / "store", pair)
    two = checkpoints.open_step(lake, "two", 6)
    for file in (checkpoints.TEXT_ENCODER, checkpoints.EMA):
        for name, tensor in one.tensors(file).items():
            torch.testing.assert_close(two.tensors(file)[name], tensor, rtol=0, atol=2e-6)


def test_killed_at_any_moment_and_resumed_equals_undisturbed(lake: str, tmp_path: Path) -> None:
    elsewhere = str(shutil.copytree(lake, tmp_path / "elsewhere"))
    torch.set_num_threads(1)
    whole = file_hashes(run_local(config(elsewhere), elsewhere, reporter=Recorder()).folder)
    seed = random.SystemRandom().randrange(10**6)
    chance = random.Random(seed)
    deaths = [
        "open:text_encoder.safetensors:1",
        f"backward::{chance.choice([1, 3, 5])}",
        "open:COMPLETE.json:1",
        f"after:{chance.uniform(0.1, 0.6):.3f}",
        "open:optimizer.safetensors:2",
    ]
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests/numerics/kills.py"), lake, *deaths],
        env={
            **os.environ,
            "PYTHONPATH": f"{ROOT / 'platform'}:{ROOT}",
            "OMP_NUM_THREADS": "1",
            "STAGE": "distillation",
        },
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, f"seed {seed}\n{done.stdout}\n{done.stderr}"
    assert done.stdout.count("killed") >= 4, f"seed {seed}\n{done.stdout}"
    assert file_hashes(checkpoints.open_step(lake, "distil", 12).folder) == whole, f"seed {seed}"


def test_a_run_goes_on_from_another_with_other_pairs(lake: str) -> None:
    first = run_local(two_heads(lake, steps=3), lake, reporter=Recorder())
    distillation_lake.write_parallel(lake, "more", distillation_lake.words(20, 100))
    settings = two_heads(
        lake,
        run="more",
        start={"checkpoint": "distil", "weights": "raw"},
        distillation={"queries": 4},
        datasets=[{"name": "more"}],
        steps=3,
    )
    run = resolve(settings, lake)
    assert run.teacher is not None and run.teacher.endswith("/models/tower")
    task = open_task(run, None, CPU)
    for name, tensor in first.tensors(checkpoints.TEXT_ENCODER).items():
        assert torch.equal(task.module.state_dict()[name], tensor)
    assert str(first.ref) in run_local(settings, lake, reporter=Recorder()).parents


def test_alignment_starts_from_a_run_of_distillation(lake: str) -> None:
    run_local(config(lake, steps=6), lake, reporter=Recorder())
    training_lake.write_latents(lake, "latents", 40)
    settings = training_lake.config(
        lake,
        run="align",
        trainable="kv",
        steps=3,
        start={"base": f"{lake}/models/base", "text_encoder": "distil"},
    )
    with pytest.raises(AltDiffusionError, match=r"run distil, named by start.text_encoder .* has no export"):
        resolve(settings, lake)
    folder = export_checkpoint(lake, "distil")
    run = resolve(settings, lake)
    assert run.text_encoder == folder
    run_local(settings, lake, reporter=Recorder())
    exported, _ = load_text_encoder(export_checkpoint(lake, "align"))
    student, _ = load_text_encoder(folder)
    assert all(torch.equal(exported.state_dict()[name], tensor) for name, tensor in student.state_dict().items())
    run_local(config(lake, steps=9), lake, reporter=Recorder())  # more steps there change nothing here
    export_checkpoint(lake, "distil")
    assert finished(settings, lake) is not None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"distillation": None},
            r"key distillation: .* write `distillation: {}`|key distillation: value None is missing",
        ),
        ({"distillation": {"token_weight": -1}}, r"distillation.token_weight: value -1.0 must be at least 0"),
        ({"distillation": {"queries": 0}}, r"distillation.queries: value 0 must be at least 1"),
        ({"distillation": {"teacher": "x", "token_weight": 0}}, r"leaves the second head untrained"),
        ({"trainable": "kv"}, r"key trainable: .* the student is trained whole"),
        ({"caption_drop": 0.1}, r"key caption_drop: .* is for the UNet's stages"),
        ({"objective": {"min_snr_gamma": 5}}, r"key objective: .* is for the UNet's stages"),
        ({"start": {"base": "x"}}, r"key start.text_encoder: .* give the folder of the student"),
        ({"stage": "alignment"}, r"key distillation: .* is for the stage of that name"),
    ],
)
def test_invalid_values_are_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(AltDiffusionError, match=message):
        config("/lake", **changes)


def test_networks_and_data_that_do_not_belong_together_are_refused(lake: str) -> None:
    with pytest.raises(AltDiffusionError, match=r"has one head, but a separate teacher needs a second"):
        open_both(config(lake, distillation={"teacher": f"{lake}/models/tower"}), lake)
    with pytest.raises(AltDiffusionError, match=r"teacher .*base.*: lacks the key text_projection.weight"):
        open_both(two_heads(lake, distillation={"teacher": f"{lake}/models/base"}), lake)
    training_lake.write_latents(lake, "latents", 40)
    with pytest.raises(AltDiffusionError, match=r"holds latents, not parallel.* name the dataset that jobs.parallel"):
        run_local(config(lake, run="other", datasets=[{"name": "latents"}]), lake, reporter=Recorder())
    run_local(config(lake, steps=3), lake, reporter=Recorder())
    with pytest.raises(
        AltDiffusionError, match=r"cannot continue with its weights.* give start.base and start.text_enc"
    ):
        resolve(training_lake.config(lake, start={"checkpoint": "distil"}), lake)
    training_lake.write_latents(lake, "latents", 40)
    align = training_lake.config(
        lake, steps=3, start={"base": f"{lake}/models/base", "text_encoder": f"{lake}/models/student"}
    )
    run_local(align, lake, reporter=Recorder())
    with pytest.raises(AltDiffusionError, match=r"is of stage alignment: stage distillation cannot"):
        resolve(config(lake, run="d2", start={"checkpoint": "align"}), lake)
    with pytest.raises(AltDiffusionError, match=r"is of stage alignment and trains no text encoder"):
        resolve(replace(align, run="a2", start=replace(align.start, text_encoder="align")), lake)


def test_another_teacher_is_another_run(lake: str) -> None:
    run_local(two_heads(lake, steps=3), lake, reporter=Recorder())
    changed = Path(lake) / "models" / "tower" / "model.safetensors"
    moved = Path(lake) / "models" / "moved"
    shutil.copytree(changed.parent, moved)
    same = two_heads(lake, distillation={"teacher": str(moved), "queries": 4})
    assert resolve(same, lake).fingerprint == resolve(two_heads(lake), lake).fingerprint
    flip(changed, -1)
    with pytest.raises(AltDiffusionError, match="another start model"):
        resolve(two_heads(lake), lake)


def test_retrieval_is_the_share_whose_own_text_is_nearest(lake: str) -> None:
    """Against a search by hand."""
    settings = config(lake, steps=30, checkpoint_every=15, optimizer={"lr": 3e-3, "warmup_steps": 4, "ema_decay": 0.9})
    last = run_local(settings, lake, reporter=Recorder())
    first = checkpoints.open_step(lake, "distil", 15)
    found = retrieval(resolve(settings, lake), [first, last], "pairs-held-out", device="cpu")
    assert [set(scores) for scores in found] == [{f"retrieval/{name}" for name in ("en", "de", "fr", "mean")}] * 2
    encoder, reader = load_text_encoder(export_checkpoint(lake, "distil"))
    base = models.load_bundle(f"{lake}/models/base")
    words = distillation_lake.words(10, 60)
    with torch.no_grad():
        ids = tokenize(base.tokenizer, words)
        teacher = [base.text_encoder(row[None])[0][0, row.tolist().index(2)] for row in ids]
        for language in distillation_lake.SHIFTS:
            hits = 0
            for word in words:
                mine = encode_text(encoder, tokenize(reader, [distillation_lake.cipher(word, language)]), 1)[0, 0]
                near = [float(torch.cosine_similarity(mine, other, dim=0)) for other in teacher]
                hits += words[near.index(max(near))] == word
            assert found[1][f"retrieval/{language}"] == pytest.approx(hits / 10)
    assert found[1]["retrieval/mean"] == pytest.approx((found[1]["retrieval/de"] + found[1]["retrieval/fr"]) / 2)
    assert any(score > 0 for scores in found for score in scores.values())


def test_the_estimate_counts_what_is_there() -> None:
    """XLM-R large is known to have 559,890,432 parameters with its pooler, which is as large as a head."""
    m18 = from_dict(
        TrainConfig,
        {
            "run": "m18", "stage": "distillation", "trainable": "all", "start": {"base": "b", "text_encoder": "x"},
            "distillation": {}, "datasets": [{"name": "p"}], "steps": 1, "global_batch": 2, "micro_batch": 2,
        },
    )  # fmt: skip
    shapes = shapes_of(m18, "/lake", False)
    one = estimate_student(m18, shapes)
    assert one.parameters == one.trained == 559_890_432 + 2 * 1024
    assert one.checkpoint == 16 * one.parameters
    both = estimate_student(replace(m18, distillation=DistillationConfig(teacher="t")), shapes)
    assert both.parameters == one.parameters + 1024 * 1024 + 1024
    assert both.weights > one.weights + 4 * 300_000_000
    more = estimate_student(replace(m18, micro_batch=4, global_batch=4), shapes)
    assert more.activations == pytest.approx(2 * one.activations, rel=0.02)


def test_what_a_student_has_seen_is_counted(lake: str) -> None:
    run_local(config(lake, steps=30, checkpoint_every=30), lake, reporter=Recorder())
    (part,) = seen(lake, "distil")
    assert (part.samples, part.distinct) == (240, 180)  # 60 words in three languages, and a third of an epoch more
    assert sum(part.by_language().values()) == 240
    rows = pa.concat_tables(part.tables())
    assert rows["image_sha256"].null_count == rows.num_rows == 180
    assert set(rows["times"].to_pylist()) == {1, 2}
