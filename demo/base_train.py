"""How the small base model is made: images, tokenizer, autoencoder, English encoder, UNet, multilingual encoder.

Every stage writes one file into a work folder and is skipped where that file exists, so a stopped run continues with
the same command. Seeds and step counts are fixed; floats still differ between machines, hence the shipped file has a
pinned digest (`demo.base`). The order is that of the published models: a text encoder learns from images and English
texts (CLIP, Radford et al., arXiv 2103.00020), a UNet learns to draw behind it (Ho et al., arXiv 2006.11239), and a
multilingual student learns the text encoder's vectors from translations (Chen et al., arXiv 2211.06679). The
autoencoder is Kingma & Welling's (arXiv 1312.6114).
"""

from __future__ import annotations

import io
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional

from altdiffusion.diffusion import models
from altdiffusion.diffusion.readout import ReadOut, readout_error
from altdiffusion.diffusion.student import Student
from altdiffusion.diffusion.text_encoder import encode_text, tokenize
from altdiffusion.languages import CODES
from demo import images
from demo.captions import variants
from demo.concepts import annotations
from demo.lexicon import drawn, lexicon, pairs
from demo.npm import CLDR, fetch

CONCEPTS = 128
SIZE = 32  # pixels
TOKENS = 32  # positions of a caption
VOCABULARY = 12000
NAMES_AT_LEAST = 1500  # CLDR's languages with fewer names do not shape the tokenizer
VAE_STEPS, VAE_BATCH, VAE_RATE, KL_WEIGHT = 3000, 32, 2e-3, 2e-5
CLIP_STEPS, CLIP_BATCH, CLIP_RATE = 1600, 192, 1e-3
UNET_STEPS, UNET_BATCH, UNET_RATE, TEXT_DROP, EMA_DECAY = 5000, 64, 1e-3, 0.1, 0.999
DISTIL_STEPS, DISTIL_BATCH, DISTIL_RATE, QUERIES = 4500, 128, 1e-3, 16
VAE_SEED, ENGLISH_SEED, UNET_SEED, STUDENT_SEED, HEAD_SEED = 1, 2, 3, 4, 5


def log(stage: str, text: str) -> None:
    """Print one line of progress."""
    print(f"[{stage}] {text}", flush=True)


def make_images(cache: Path, work: Path) -> torch.Tensor:
    """Make the images of all drawn entries of the lexicon, uint8 [L, 2, 32, 32, 3] by entry and artist.

    The demo's concepts come first; the order is that of `lexicon.drawn`.
    """
    path = work / "pictures.safetensors"
    if not path.exists():
        entries = lexicon(cache, CONCEPTS)
        made = [
            np.stack([_image(style, entries[place].key, cache) for style in images.STYLES])
            for place in drawn(entries, cache)
        ]
        log("images", f"{len(made)} things by {len(images.STYLES)} artists")
        save({"pictures": torch.from_numpy(np.stack(made))}, path)
    return load_file(path)["pictures"]


def _image(style: str, key: str, cache: Path) -> npt.NDArray[np.uint8]:
    """Draw an image at 128 pixels and average it to 32, as a resizer does with a downloaded image."""
    import resvg_py
    from PIL import Image

    body = bytes(resvg_py.svg_to_bytes(svg_string=images.svg(style, key, cache), width=4 * SIZE, height=4 * SIZE))
    with Image.open(io.BytesIO(body)) as image:
        large = np.asarray(image.convert("RGB"), dtype=np.float32)
    small = large.reshape(SIZE, 4, SIZE, 4, 3).mean((1, 3))
    return np.asarray(np.round(small), dtype=np.uint8)


def make_tokenizer(cache: Path, work: Path) -> Any:
    """Make a Unigram tokenizer in XLM-R's convention (bos 0, pad 1, eos 2, unk 3, mask last).

    As XLM-R's, it knows more languages than the encoder will read. It never reads a name that must stay unseen.
    """
    from tokenizers import Tokenizer, pre_tokenizers, trainers
    from tokenizers.models import Unigram
    from transformers import XLMRobertaTokenizer

    folder = work / "tokenizer"
    if not folder.exists():
        special = ["<s>", "<pad>", "</s>", "<unk>"]
        tokenizer = Tokenizer(Unigram())
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
        )
        trainer = trainers.UnigramTrainer(
            vocab_size=VOCABULARY - 1, special_tokens=special, unk_token="<unk>", show_progress=False
        )
        tokenizer.train_from_iterator(_tokenizer_texts(cache), trainer)
        vocabulary = [(piece, score) for piece, score in json.loads(tokenizer.to_str())["model"]["vocab"]]
        made = XLMRobertaTokenizer(vocab=[*vocabulary, ("<mask>", 0.0)], model_max_length=TOKENS)
        scratch = work / "tokenizer.part"
        made.save_pretrained(scratch)
        scratch.rename(folder)
        log("tokenizer", f"{len(made)} pieces")
    return XLMRobertaTokenizer.from_pretrained(folder)


def _tokenizer_texts(cache: Path) -> Iterator[str]:
    """Yield the lexicon's texts, those of the demo's concepts four times, then the names in CLDR's other languages."""
    entries = lexicon(cache, CONCEPTS)
    for language in CODES:
        for pair in pairs(entries, CONCEPTS, language):
            yield from (pair.text,) * (4 if pair.place < CONCEPTS else 1)
    folders = sorted(path.name for path in (fetch(CLDR, cache) / "annotations").iterdir() if path.is_dir())
    for language in folders:
        if language.partition("-")[0] not in CODES:
            names, _ = annotations(cache, language)
            if len(names) >= NAMES_AT_LEAST:
                yield from (names[char] for char in sorted(names))


def train_autoencoder(pictures: torch.Tensor, work: Path) -> Any:
    """Train an `AutoencoderKL`, half of each batch the demo's images; `scaling_factor` gives latents unit variance."""
    config = models.vae_config_demo()
    path = work / "vae.safetensors"
    demo, other = _signed(pictures[:CONCEPTS].flatten(0, 1)), _signed(pictures[CONCEPTS:].flatten(0, 1))
    if not path.exists():
        torch.manual_seed(VAE_SEED)
        vae = models.build_vae(config)
        vae.train()
        optimizer = torch.optim.AdamW(vae.parameters(), lr=VAE_RATE, betas=(0.9, 0.99), weight_decay=0.0)
        draw = torch.Generator().manual_seed(VAE_SEED)
        half, clock = VAE_BATCH // 2, time.monotonic()
        for step in range(VAE_STEPS):
            _set_rate(optimizer, VAE_RATE, step, VAE_STEPS, 100)
            x = _moved(torch.cat([_pick(demo, half, draw), _pick(other, half, draw)]), draw)
            with torch.autocast("cpu", torch.bfloat16):
                posterior = vae.encode(x).latent_dist
                noise = torch.randn(posterior.mean.shape, generator=draw)
                y = vae.decode(posterior.mean + posterior.std * noise).sample
            mean, variance = posterior.mean.float(), posterior.var.float()
            divergence = 0.5 * (mean.square() + variance - 1 - posterior.logvar.float()).mean()
            loss = (y.float() - x).square().mean() + KL_WEIGHT * divergence
            _step(optimizer, loss, vae)
            if step % 250 == 249:
                log("vae", f"{step + 1}/{VAE_STEPS} {psnr(vae, demo):.2f} dB {time.monotonic() - clock:.0f} s")
                vae.train()
        save(dict(vae.state_dict()), path)
    vae = models.build_vae(config)
    vae.load_state_dict(load_file(path))
    with torch.no_grad():
        spread = float(vae.encode(demo).latent_dist.mean.std())
    vae.register_to_config(scaling_factor=round(1 / spread, 5))
    log("vae", f"{psnr(vae, demo):.2f} dB on the demo's images, scaling factor {vae.config.scaling_factor}")
    return vae


@torch.no_grad()
def psnr(vae: Any, x: torch.Tensor) -> float:
    """Return the mean over images of the peak signal-to-noise ratio of decode(encode(x)), dB; `x` in -1..1."""
    vae.eval()
    y = vae.decode(vae.encode(x).latent_dist.mean).sample.clamp(-1, 1)
    error = ((y - x) / 2).square().flatten(1).mean(1)
    return float((-10 * torch.log10(error)).mean())


def _signed(pictures: torch.Tensor) -> torch.Tensor:
    """Return uint8 [N, H, W, 3] as float32 [N, 3, H, W] in -1..1."""
    return pictures.permute(0, 3, 1, 2).float() / 127.5 - 1


def _pick(x: torch.Tensor, n: int, draw: torch.Generator) -> torch.Tensor:
    return x[torch.randint(len(x), (n,), generator=draw)]


def _moved(x: torch.Tensor, draw: torch.Generator) -> torch.Tensor:
    """Return the images, half of them mirrored, all of them shifted by up to 2 pixels, white at the edges."""
    mirrored = torch.rand(len(x), 1, 1, 1, generator=draw) < 0.5
    x = torch.where(mirrored, x.flip(-1), x)
    down, right = (int(v) for v in torch.randint(0, 5, (2,), generator=draw))
    padded = functional.pad(x, (2, 2, 2, 2), value=1.0)
    return padded[..., down : down + SIZE, right : right + SIZE]


def _set_rate(optimizer: torch.optim.Optimizer, peak: float, step: int, steps: int, warmup: int) -> None:
    """Set the rate: a linear warm-up, then a cosine down to 2 % of the peak."""
    cosine = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps))
    for group in optimizer.param_groups:
        group["lr"] = peak * min(1.0, (step + 1) / warmup) * cosine


def _step(optimizer: torch.optim.Optimizer, loss: torch.Tensor, *networks: Any) -> None:
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_([p for network in networks for p in network.parameters()], 1.0)
    optimizer.step()


def save(tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Write a safetensors file, whole or not at all."""
    scratch = path.with_suffix(".part")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, scratch)
    scratch.rename(path)


class EnglishTexts:
    """Every English text of the lexicon, the empty one first, as token ids, with the rows of each entry."""

    def __init__(self, tokenizer: Any, cache: Path) -> None:
        self.rows: dict[tuple[int, str], int] = {}
        """By the entry's place and the variant."""
        texts = [""]
        self.entries = lexicon(cache, CONCEPTS)
        first, count = [], []
        for place, entry in enumerate(self.entries):
            mine = variants(entry, "en")
            first.append(len(texts))
            count.append(len(mine))
            for variant, text in mine.items():
                self.rows[place, variant] = len(texts)
                texts.append(text)
        self.ids: torch.Tensor = tokenize(tokenizer, texts)  # int64 [N, TOKENS]
        self.first, self.count = torch.tensor(first), torch.tensor(count)

    def draw(self, places: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Return a random text's row for each entry, int64 as `places`."""
        chosen = torch.randint(0, 1 << 20, places.shape, generator=generator)
        rows: torch.Tensor = self.first[places] + chosen % self.count[places]
        return rows


def latents_of(vae: Any, pictures: torch.Tensor) -> torch.Tensor:
    """Return scaled latents of images, float32 [L, 2, 16, 8, 8] of uint8 [L, 2, 32, 32, 3]."""
    parts = []
    with torch.no_grad():
        for part in pictures.flatten(0, 1).split(256):
            parts.append(vae.encode(_signed(part)).latent_dist.mean * vae.config.scaling_factor)
    return torch.cat(parts).unflatten(0, pictures.shape[:2])


def train_english(texts: EnglishTexts, latents: torch.Tensor, cache: Path, work: Path, vocabulary: int) -> Any:
    """Train the English encoder on CLIP's symmetric contrastive loss between EOS vectors and images.

    A batch holds distinct things. The image's tower is a small network on latents that is then thrown away.
    """
    english = models.build_english_text_encoder(models.english_text_config_demo(vocabulary))
    path = work / "english.safetensors"
    if not path.exists():
        torch.manual_seed(ENGLISH_SEED)
        english = models.build_english_text_encoder(models.english_text_config_demo(vocabulary))
        tower = torch.nn.Sequential(
            *(torch.nn.Conv2d(16, 96, 3, 2, 1), torch.nn.SiLU(), torch.nn.Conv2d(96, 192, 3, 2, 1), torch.nn.SiLU()),
            *(torch.nn.Flatten(), torch.nn.Linear(768, 128)),
        )
        scale = torch.nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        english.train()
        networks = torch.nn.ModuleDict({"english": english, "tower": tower})
        optimizer = torch.optim.AdamW([*networks.parameters(), scale], lr=CLIP_RATE, weight_decay=0.01)
        draw, running, clock = torch.Generator().manual_seed(ENGLISH_SEED), 0.0, time.monotonic()
        places = torch.tensor(drawn(texts.entries, cache))
        own = CLIP_BATCH // 2  # half of a batch are the demo's concepts
        every = torch.arange(CLIP_BATCH)
        for step in range(CLIP_STEPS):
            _set_rate(optimizer, CLIP_RATE, step, CLIP_STEPS, 100)
            demo = torch.randperm(CONCEPTS, generator=draw)[:own]
            rest = CONCEPTS + torch.randperm(len(places) - CONCEPTS, generator=draw)[: CLIP_BATCH - own]
            chosen = torch.cat([demo, rest])
            x = latents[chosen, torch.randint(0, latents.shape[1], (CLIP_BATCH,), generator=draw)]
            x = x + 0.3 * torch.randn(x.shape, generator=draw)
            rows = texts.draw(places[chosen], draw)
            text = functional.normalize(eos_vectors(english, texts.ids[rows]), dim=1)
            logits = scale.clamp(max=math.log(100)).exp() * text @ functional.normalize(tower(x), dim=1).T
            loss = (functional.cross_entropy(logits, every) + functional.cross_entropy(logits.T, every)) / 2
            _step(optimizer, loss, networks)
            running += float(loss.detach())
            if step % 200 == 199:
                passed = time.monotonic() - clock
                log("english", f"{step + 1}/{CLIP_STEPS} contrastive loss {running / 200:.4f} {passed:.0f} s")
                running = 0.0
        save(dict(english.state_dict()), path)
    english.load_state_dict(load_file(path))
    return english.eval()


def eos_vectors(english: Any, ids: torch.Tensor) -> torch.Tensor:
    """Return the vector at the first EOS, [B, T] -> [B, D]; what follows is cut, a causal encoder does not read it."""
    ids = ids[:, : int((ids != 1).sum(1).max())]
    hidden = encode_text(english, ids, 1)
    return hidden[torch.arange(len(hidden)), (ids == 2).int().argmax(1)]


def contexts_of(english: Any, ids: torch.Tensor) -> torch.Tensor:
    """Return what the UNet reads, float32 [N, TOKENS, D], of token ids [N, TOKENS]."""
    with torch.no_grad():
        return torch.cat([encode_text(english, part, 1) for part in ids.split(256)])


def train_unet(texts: EnglishTexts, english: Any, latents: torch.Tensor, work: Path) -> Any:
    """Train the UNet behind the frozen encoder on the demo's concepts (epsilon loss); return the averages (EMA)."""
    unet = models.build_unet(models.unet_config_demo())
    path = work / "unet.safetensors"
    if not path.exists():
        torch.manual_seed(UNET_SEED)
        unet = models.build_unet(models.unet_config_demo())
        save(_fit_unet(unet, texts, contexts_of(english, texts.ids[: int(texts.first[CONCEPTS])]), latents), path)
    unet.load_state_dict(load_file(path))
    return unet.eval()


def _fit_unet(unet: Any, texts: EnglishTexts, contexts: torch.Tensor, latents: torch.Tensor) -> dict[str, torch.Tensor]:
    from diffusers import DDIMScheduler

    unet.train()
    optimizer = torch.optim.AdamW(unet.parameters(), lr=UNET_RATE, weight_decay=0.01)
    kept = dict(unet.named_parameters())
    ema = {name: parameter.detach().clone() for name, parameter in kept.items()}
    signal = DDIMScheduler(**models.scheduler_config()).alphas_cumprod
    predict = torch.compile(unet)
    draw = torch.Generator().manual_seed(UNET_SEED)
    running, clock = 0.0, time.monotonic()
    for step in range(UNET_STEPS):
        _set_rate(optimizer, UNET_RATE, step, UNET_STEPS, 100)
        concept = torch.randint(0, CONCEPTS, (UNET_BATCH,), generator=draw)
        style = torch.randint(0, latents.shape[1], (UNET_BATCH,), generator=draw)
        rows = texts.draw(concept, draw)
        rows = torch.where(torch.rand(UNET_BATCH, generator=draw) < TEXT_DROP, 0, rows)
        x = latents[concept, style]
        t = torch.randint(0, len(signal), (UNET_BATCH,), generator=draw)
        noise = torch.randn(x.shape, generator=draw)
        a = signal[t].view(-1, 1, 1, 1)
        with torch.autocast("cpu", torch.bfloat16):
            epsilon = predict(a.sqrt() * x + (1 - a).sqrt() * noise, t, contexts[rows]).sample
        loss = (epsilon.float() - noise).square().mean()
        _step(optimizer, loss, unet)
        decay = min(EMA_DECAY, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(list(ema.values()), [kept[name].detach() for name in ema], 1 - decay)
        running += float(loss.detach())
        if step % 100 == 99:
            log("unet", f"{step + 1}/{UNET_STEPS} loss {running / 100:.4f} {time.monotonic() - clock:.0f} s")
            running = 0.0
    return ema


def distil(texts: EnglishTexts, english: Any, unet: Any, tokenizer: Any, cache: Path, work: Path) -> Student:
    """Train the multilingual student on the lexicon's translations in 18 languages.

    The loss is that of the distillation stage (`training.tasks.distillation`): the student's CLS vector learns the
    English encoder's EOS vector, and what the UNet reads learns the English text's by attention-output matching. The
    head that the UNet reads is then drawn again, so that it starts apart from the distilled encoder, as in the
    published models: alignment has to learn to read it.
    """
    config = models.text_config_demo(len(tokenizer))
    config["num_hidden_layers"] += 1  # the UNet reads the last layer but one
    path = work / "student.safetensors"
    if not path.exists():
        torch.manual_seed(STUDENT_SEED)
        student = Student(config, context=config["project_dim"])
        _fit_student(student, texts, english, unet, tokenizer, cache)
        torch.manual_seed(HEAD_SEED)
        _draw_head(student, texts.ids[1 : int(texts.first[CONCEPTS])])
        save(dict(student.state_dict()), path)
    student = Student(config, context=config["project_dim"])
    student.load_state_dict(load_file(path))
    return student.eval()


def _fit_student(student: Student, texts: EnglishTexts, english: Any, unet: Any, tokenizer: Any, cache: Path) -> None:
    student.train()
    wanted, eos = contexts_of(english, texts.ids), _every_eos(english, texts.ids)
    ids, rows, of_demo = _parallel(texts, tokenizer, cache)
    readout = ReadOut(unet)
    optimizer = torch.optim.AdamW(student.parameters(), lr=DISTIL_RATE, weight_decay=0.01)
    lengths = (ids != 1).sum(1)
    draw = torch.Generator().manual_seed(STUDENT_SEED)
    batches = _batches_by_length(lengths, of_demo, draw)
    spread = float(eos[rows].var(0).mean())
    running, clock = np.zeros(2), time.monotonic()
    for step in range(DISTIL_STEPS):
        _set_rate(optimizer, DISTIL_RATE, step, DISTIL_STEPS, 200)
        pick = next(batches)
        feature, context = student(ids[pick, : min(int(lengths[pick].max()) + 1, TOKENS)])
        # All pads have one vector, because XLM-R gives them one position; so the rest of them need not be computed.
        context = torch.cat([context, context[:, -1:].expand(-1, TOKENS - context.shape[1], -1)], dim=1)
        queries = torch.randn(QUERIES, readout.numbers, generator=draw)
        with torch.no_grad():
            empty, target = readout.answers(queries, wanted[:1]), readout.answers(queries, wanted[rows[pick]])
        far = readout_error(readout.answers(queries, context), target, empty)
        vector = (feature - eos[rows[pick]]).square().mean()
        _step(optimizer, vector + far, student)
        running += (float(vector.detach()) / spread, float(far.detach()))
        if step % 200 == 199:
            unexplained, missed = running / 200
            passed = time.monotonic() - clock
            log(
                "student",
                f"{step + 1}/{DISTIL_STEPS} unexplained {unexplained:.4f} read-out {missed:.4f} {passed:.0f} s",
            )
            running[:] = 0


def _every_eos(english: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat([eos_vectors(english, part) for part in ids.split(256)])


def _parallel(texts: EnglishTexts, tokenizer: Any, cache: Path) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return token ids [M, TOKENS] of the texts in 18 languages, the English row of each, and which are the demo's."""
    ids, rows, of_demo = [texts.ids[:1]], [0], [True]
    for language in CODES:
        mine = list(pairs(texts.entries, CONCEPTS, language))
        ids.append(tokenize(tokenizer, [pair.text for pair in mine]))
        rows += [texts.rows.get((pair.place, pair.variant), texts.rows[pair.place, "name"]) for pair in mine]
        of_demo += [pair.place < CONCEPTS for pair in mine]
    return torch.cat(ids), torch.tensor(rows), torch.tensor(of_demo)


def _batches_by_length(lengths: torch.Tensor, of_demo: torch.Tensor, draw: torch.Generator) -> Iterator[torch.Tensor]:
    """Yield endless batches of texts of about one length, half of them the demo's, so that little of one is padding."""
    sides = [of_demo.nonzero()[:, 0], (~of_demo).nonzero()[:, 0]]
    while True:
        pick = torch.cat([side[torch.randint(0, len(side), (4 * DISTIL_BATCH,), generator=draw)] for side in sides])
        groups = pick[lengths[pick].argsort(stable=True)].split(DISTIL_BATCH)
        for group in torch.randperm(len(groups), generator=draw).tolist():
            yield groups[group]


@torch.no_grad()
def _draw_head(student: Student, ids: torch.Tensor) -> None:
    """Draw the head that the UNet reads again: a random rotation, scaled so that its vectors keep their size."""
    student.eval()
    before = student(ids)[1].square().mean().sqrt()
    torch.nn.init.orthogonal_(student.transformation_pre.weight)
    torch.nn.init.zeros_(student.transformation_pre.bias)
    student.transformation_pre.weight.mul_(before / student(ids)[1].square().mean().sqrt())
