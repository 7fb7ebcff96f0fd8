"""How the small base model is made: images, tokenizer, autoencoder, UNet with its English encoder, other encoder.

Every stage writes one file into a work folder and is skipped where that file exists, so a stopped run goes on with
the same command. Seeds and step counts are fixed; floats still differ between machines, hence the shipped file has a
pinned digest (`demo.base`). Formulas: Kingma & Welling arXiv 1312.6114 (autoencoder), Ho et al. arXiv 2006.11239
(epsilon loss), Carlsson et al. and Chen et al. arXiv 2211.06679 (distillation: student CLS to teacher EOS, MSE).
"""

from __future__ import annotations

import io
import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file

from altdiffusion.diffusion import models
from altdiffusion.diffusion.text_encoder import encode_text, tokenize
from altdiffusion.languages import CODES
from demo import captions, concepts, images
from demo.npm import NOTO, TWEMOJI, fetch

CONCEPTS = 128
SIZE = 32  # pixels
TOKENS = 32  # positions of a caption
VOCABULARY = 8000
SKIN_TONES = ("1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff")
VAE_STEPS, VAE_BATCH, VAE_RATE, KL_WEIGHT = 3000, 32, 2e-3, 2e-5
UNET_STEPS, JOINT_STEPS, UNET_BATCH, UNET_RATE, TEXT_DROP, EMA_DECAY = 3000, 1200, 64, 1e-3, 0.1, 0.999
CLIP_STEPS, CLIP_RATE = 400, 5e-4
SHARP_STEPS, SHARP_RATE = 1400, 6e-4
DISTIL_STEPS, DISTIL_BATCH, DISTIL_RATE = 4000, 128, 1e-3


def log(stage: str, text: str) -> None:
    """Print one line of progress."""
    print(f"[{stage}] {text}", flush=True)


def make_images(cache: Path, work: Path) -> dict[str, torch.Tensor]:
    """Make `demo`, uint8 [128, 2, 32, 32, 3] by concept and style, and `other`, uint8 [M, 32, 32, 3], all else."""
    path = work / "pictures.safetensors"
    if not path.exists():
        chosen = concepts.demo_concepts(CONCEPTS, cache)
        demo = [np.stack([_image(style, concept.key, cache) for style in images.STYLES]) for concept in chosen]
        mine = {concept.key for concept in chosen}
        other = []
        for style, package in zip(images.STYLES, (NOTO, TWEMOJI), strict=True):
            keys = json.loads((fetch(package, cache) / "chars.json").read_text())
            for key in sorted({_without_colour(key) for key in keys} - mine):
                if not any(tone in key for tone in SKIN_TONES):
                    other.append(_image(style, key, cache))
        log("images", f"{2 * len(demo)} of the demo, {len(other)} others")
        save({"demo": torch.from_numpy(np.stack(demo)), "other": torch.from_numpy(np.stack(other))}, path)
    return load_file(path)


def _without_colour(key: str) -> str:
    return "-".join(part for part in key.split("-") if part != "fe0f")


def _image(style: str, key: str, cache: Path) -> npt.NDArray[np.uint8]:
    """Draw an image at 128 pixels and average it to 32, as a resizer does with a downloaded image."""
    import resvg_py
    from PIL import Image

    drawn = bytes(resvg_py.svg_to_bytes(svg_string=images.svg(style, key, cache), width=4 * SIZE, height=4 * SIZE))
    with Image.open(io.BytesIO(drawn)) as image:
        large = np.asarray(image.convert("RGB"), dtype=np.float32)
    small = large.reshape(SIZE, 4, SIZE, 4, 3).mean((1, 3))
    return np.asarray(np.round(small), dtype=np.uint8)


def make_tokenizer(cache: Path, work: Path) -> Any:
    """Make a Unigram tokenizer in XLM-R's convention (bos 0, pad 1, eos 2, unk 3, mask last) without held-out pairs."""
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
    """Yield the demo's captions four times, then every other name and keyword of CLDR in the 18 languages."""
    chosen = concepts.demo_concepts(CONCEPTS, cache)
    for concept in chosen:
        for language in CODES:
            for text in captions.captions(concept, language).values():
                yield from (text,) * 4
    mine = {concept.char for concept in chosen}
    for language in CODES:
        names, keywords = concepts.annotations(cache, language)
        for char in sorted(names.keys() - mine):
            yield names[char]
            yield from keywords[char]


def train_autoencoder(images: dict[str, torch.Tensor], work: Path) -> Any:
    """Train an `AutoencoderKL`, half of each batch the demo's images; `scaling_factor` gives latents unit variance."""
    config = models.vae_config_demo()
    path = work / "vae.safetensors"
    demo, other = _signed(images["demo"].flatten(0, 1)), _signed(images["other"])
    if not path.exists():
        torch.manual_seed(1)
        vae = models.build_vae(config)
        vae.train()
        optimizer = torch.optim.AdamW(vae.parameters(), lr=VAE_RATE, betas=(0.9, 0.99), weight_decay=0.0)
        draw = torch.Generator().manual_seed(1)
        half, clock = VAE_BATCH // 2, time.monotonic()
        for step in range(VAE_STEPS):
            _set_rate(optimizer, VAE_RATE, step, VAE_STEPS, 100)
            x = torch.cat([_pick(demo, half, draw), _pick(other, half, draw)])
            x = _moved(x, draw)
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


def _signed(images: torch.Tensor) -> torch.Tensor:
    """Return uint8 [N, H, W, 3] as float32 [N, 3, H, W] in -1..1."""
    return images.permute(0, 3, 1, 2).float() / 127.5 - 1


def _pick(x: torch.Tensor, n: int, draw: torch.Generator) -> torch.Tensor:
    return x[torch.randint(len(x), (n,), generator=draw)]


def _moved(x: torch.Tensor, draw: torch.Generator) -> torch.Tensor:
    """Return the images, half of them mirrored, all of them shifted by up to 2 pixels, white at the edges."""
    mirrored = torch.rand(len(x), 1, 1, 1, generator=draw) < 0.5
    x = torch.where(mirrored, x.flip(-1), x)
    down, right = (int(v) for v in torch.randint(0, 5, (2,), generator=draw))
    padded = torch.nn.functional.pad(x, (2, 2, 2, 2), value=1.0)
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


def english_captions(cache: Path) -> tuple[list[str], list[list[int]]]:
    """Return every English caption, the empty one first, and the captions' indices by concept."""
    texts = [""]
    by_concept: list[list[int]] = []
    for concept in concepts.demo_concepts(CONCEPTS, cache):
        mine = list(captions.captions(concept, "en").values())
        by_concept.append(list(range(len(texts), len(texts) + len(mine))))
        texts += mine
    return texts, by_concept


def latents_of(vae: Any, images: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return scaled latents of the demo's images, float32 [128 * 2, 16, 8, 8], styles next to each other."""
    with torch.no_grad():
        mean = vae.encode(_signed(images["demo"].flatten(0, 1))).latent_dist.mean
    return torch.as_tensor(mean * vae.config.scaling_factor)


def train_base(vae: Any, tokenizer: Any, images: dict[str, torch.Tensor], cache: Path, work: Path) -> tuple[Any, Any]:
    """Train UNet and English encoder in four phases; return the averages (EMA) of both.

    1. Both together. 2. The UNet behind the frozen encoder. 3. The encoder on CLIP's contrastive loss: learned from
    denoising alone it distinguishes colours and kinds, but not the concepts of one kind, and a student of its EOS
    vector would inherit that. 4. The UNet behind that encoder, frozen from here on.
    """
    unet = models.build_unet(models.unet_config_demo())
    latents = latents_of(vae, images)
    texts, by_concept = english_captions(cache)
    ids = tokenize(tokenizer, texts)
    joint, behind, final = (work / f"{name}.safetensors" for name in ("joint", "unet", "unet-sharp"))
    if not joint.exists():
        torch.manual_seed(2)
        english = models.build_english_text_encoder(models.english_text_config_demo(len(tokenizer)))
        unet = models.build_unet(models.unet_config_demo())
        steps = range(JOINT_STEPS)
        save(
            _fit_unet(unet, english, lambda rows: encode_text(english, ids[rows], 1), latents, by_concept, steps),
            joint,
        )
    state = load_file(joint)
    english = models.build_english_text_encoder(models.english_text_config_demo(len(tokenizer)))
    english.load_state_dict(_below(state, "english."))
    if not behind.exists():
        torch.manual_seed(3)
        unet.load_state_dict(_below(state, "unet."))
        table = _frozen(english, ids)
        averages = _fit_unet(unet, None, table, latents, by_concept, range(JOINT_STEPS, UNET_STEPS))
        save(_below(averages, "unet."), behind)
    sharpen(english, ids, latents, by_concept, work)
    if not final.exists():
        torch.manual_seed(6)
        unet.load_state_dict(load_file(behind))
        table = _frozen(english, ids)
        averages = _fit_unet(unet, None, table, latents, by_concept, range(SHARP_STEPS), SHARP_RATE)
        save(_below(averages, "unet."), final)
    unet.load_state_dict(load_file(final))
    return unet, english.eval()


def _frozen(english: Any, ids: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return contexts by row, encoded once; they require gradients so that every phase has the same compiled graph."""
    with torch.no_grad():
        table = encode_text(english, ids, 1)
    return lambda rows: table[rows].requires_grad_()


def sharpen(english: Any, ids: torch.Tensor, latents: torch.Tensor, by_concept: list[list[int]], work: Path) -> None:
    """Train on CLIP's symmetric contrastive loss (Radford et al., arXiv 2103.00020), in place.

    The loss is between EOS vectors and images. The other tower is a small network on latents that is then thrown
    away; a batch holds every concept once.
    """
    path = work / "english.safetensors"
    if not path.exists():
        torch.manual_seed(5)
        tower = torch.nn.Sequential(
            torch.nn.Conv2d(16, 64, 3, 2, 1),
            torch.nn.SiLU(),
            torch.nn.Conv2d(64, 128, 3, 2, 1),
            torch.nn.SiLU(),
            torch.nn.Flatten(),
            torch.nn.Linear(512, 128),
        )
        scale = torch.nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        english.train()
        networks = torch.nn.ModuleDict({"english": english, "tower": tower})
        optimizer = torch.optim.AdamW([*networks.parameters(), scale], lr=CLIP_RATE, weight_decay=0.01)
        draw, styles, running = torch.Generator().manual_seed(5), len(images.STYLES), 0.0
        first = torch.tensor([rows[0] for rows in by_concept])
        count = torch.tensor([len(rows) for rows in by_concept])
        every = torch.arange(CONCEPTS)
        for step in range(CLIP_STEPS):
            _set_rate(optimizer, CLIP_RATE, step, CLIP_STEPS, 50)
            rows = first + torch.randint(0, 1 << 20, (CONCEPTS,), generator=draw) % count
            x = latents[every * styles + torch.randint(0, styles, (CONCEPTS,), generator=draw)]
            x = x + 0.3 * torch.randn(x.shape, generator=draw)
            text = torch.nn.functional.normalize(_eos_vectors(english, ids[rows]), dim=1)
            image = torch.nn.functional.normalize(tower(x), dim=1)
            logits = scale.clamp(max=math.log(100)).exp() * text @ image.T
            cross_entropy = torch.nn.functional.cross_entropy
            loss = (cross_entropy(logits, every) + cross_entropy(logits.T, every)) / 2
            _step(optimizer, loss, networks)
            running += float(loss.detach())
            if step % 50 == 49:
                log("english", f"{step + 1}/{CLIP_STEPS} contrastive loss {running / 50:.4f}")
                running = 0.0
        save(dict(english.state_dict()), path)
    english.load_state_dict(load_file(path))
    english.eval()


def _eos_vectors(english: Any, ids: torch.Tensor) -> torch.Tensor:
    """Return the vector at the first EOS, [B, T] -> [B, D]; what follows is cut, a causal encoder does not read it."""
    ids = ids[:, : int((ids != 1).sum(1).max())]
    hidden = encode_text(english, ids, 1)
    return hidden[torch.arange(len(hidden)), (ids == 2).int().argmax(1)]


def _fit_unet(
    unet: Any,
    english: Any | None,
    context: Callable[[torch.Tensor], torch.Tensor],
    latents: torch.Tensor,
    by_concept: list[list[int]],
    steps: range,
    rate: float | None = None,
) -> dict[str, torch.Tensor]:
    """Train on the epsilon loss, captions dropped with `TEXT_DROP`; return the averaged weights by dotted name.

    `rate` starts a schedule of its own; None goes on with the one over `UNET_STEPS`.
    """
    from diffusers import DDIMScheduler

    networks = torch.nn.ModuleDict({"unet": unet} | ({"english": english} if english is not None else {}))
    networks.train()
    optimizer = torch.optim.AdamW(networks.parameters(), lr=UNET_RATE, weight_decay=0.01)
    kept = dict(networks.named_parameters())
    ema = {name: parameter.detach().clone() for name, parameter in kept.items()}
    signal = DDIMScheduler(**models.scheduler_config()).alphas_cumprod
    predict = torch.compile(unet)
    draw = torch.Generator().manual_seed(100 + steps.start + (rate is not None))
    first = torch.tensor([rows[0] for rows in by_concept])
    count = torch.tensor([len(rows) for rows in by_concept])
    styles, running, clock = len(images.STYLES), 0.0, time.monotonic()
    for step in steps:
        _set_rate(optimizer, rate or UNET_RATE, step, UNET_STEPS if rate is None else steps.stop, 100)
        concept = torch.randint(0, CONCEPTS, (UNET_BATCH,), generator=draw)
        style = torch.randint(0, styles, (UNET_BATCH,), generator=draw)
        which = torch.randint(0, 1 << 20, (UNET_BATCH,), generator=draw)
        dropped = torch.rand(UNET_BATCH, generator=draw) < TEXT_DROP
        rows = first[concept] + which % count[concept]
        x = latents[concept * styles + style]
        t = torch.randint(0, len(signal), (UNET_BATCH,), generator=draw)
        noise = torch.randn(x.shape, generator=draw)
        a = signal[t].view(-1, 1, 1, 1)
        with torch.autocast("cpu", torch.bfloat16):
            hidden = context(torch.where(dropped, 0, rows))
            epsilon = predict(a.sqrt() * x + (1 - a).sqrt() * noise, t, hidden.float()).sample
        loss = (epsilon.float() - noise).square().mean()
        _step(optimizer, loss, networks)
        decay = min(EMA_DECAY, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(list(ema.values()), [kept[name].detach() for name in ema], 1 - decay)
        running += float(loss.detach())
        if step % 100 == 99:
            last, seconds = UNET_STEPS if rate is None else steps.stop, time.monotonic() - clock
            log("unet", f"{step + 1}/{last} loss {running / 100:.4f} {seconds:.0f} s")
            running = 0.0
    return ema


def _below(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def parallel_captions(cache: Path) -> tuple[list[str], list[int]]:
    """Return the captions of the 18 languages but held-out pairs', and the index of the English one of each.

    The indices are those of `english_captions`; a text whose variant has no English counterpart has the name's.
    """
    texts, rows = [""], [0]
    _, by_concept = english_captions(cache)
    for concept, mine in zip(concepts.demo_concepts(CONCEPTS, cache), by_concept, strict=True):
        variants = dict(zip(captions.captions(concept, "en"), mine, strict=True))
        for language in CODES:
            for variant, text in captions.captions(concept, language).items():
                texts.append(text)
                rows.append(variants.get(variant, mine[0]))
    return texts, rows


def distil(english: Any, tokenizer: Any, cache: Path, work: Path) -> Any:
    """Train the multilingual encoder: its CLS vector learns the English encoder's EOS vector of a caption (MSE)."""
    student = models.build_text_encoder(models.text_config_demo(len(tokenizer)))
    path = work / "m18.safetensors"
    if not path.exists():
        torch.manual_seed(4)
        student = models.build_text_encoder(models.text_config_demo(len(tokenizer)))
        student.train()
        ids_en = tokenize(tokenizer, english_captions(cache)[0])
        with torch.no_grad():
            targets = _eos_vectors(english, ids_en)
        texts, rows = parallel_captions(cache)
        ids, targets = tokenize(tokenizer, texts), targets[torch.tensor(rows)]
        spread = float(targets.var(0).mean())
        optimizer = torch.optim.AdamW(student.parameters(), lr=DISTIL_RATE, weight_decay=0.01)
        lengths = (ids != 1).sum(1)
        batches = _batches_by_length(lengths, torch.Generator().manual_seed(4))
        running, clock = 0.0, time.monotonic()
        for step in range(DISTIL_STEPS):
            _set_rate(optimizer, DISTIL_RATE, step, DISTIL_STEPS, 200)
            pick = next(batches)
            longest = int(lengths[pick].max())  # the mask makes what is cut here irrelevant
            feature = encode_text(student, ids[pick, :longest], 1)[:, 0]
            loss = (feature - targets[pick]).square().mean()
            _step(optimizer, loss, student)
            running += float(loss.detach()) / spread
            if step % 200 == 199:
                passed = time.monotonic() - clock
                log("m18", f"{step + 1}/{DISTIL_STEPS} unexplained {running / 200:.4f} {passed:.0f} s")
                running = 0.0
        save(dict(student.state_dict()), path)
    student.load_state_dict(load_file(path))
    return student.eval()


def _batches_by_length(lengths: torch.Tensor, draw: torch.Generator) -> Iterator[torch.Tensor]:
    """Yield endless batches of captions of about one length, so that little of a batch is padding."""
    while True:
        pick = torch.randint(0, len(lengths), (8 * DISTIL_BATCH,), generator=draw)
        groups = pick[lengths[pick].argsort(stable=True)].split(DISTIL_BATCH)
        for group in torch.randperm(len(groups), generator=draw).tolist():
            yield groups[group]
