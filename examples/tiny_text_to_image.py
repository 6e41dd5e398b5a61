"""Train a small text-conditioned latent diffusion model, and a small CLIP, from nothing.

    python examples/tiny_text_to_image.py FOLDER [--minutes 40] [--seed 0] [--parts vae denoiser clip]

The images are the generated categories of `generated_textures.py` with captions such as "a good zipper" and "a wood
with a stain". FOLDER gets the model in diffusers' layout (tokenizer, text_encoder, vae, unet, scheduler), and
FOLDER/clip the CLIP in the layout of transformers; both serve `adctl train --weights`. They stand for models that
cannot be downloaded everywhere; nothing is learned about photographs. The autoencoder takes 35 % of the time, the
denoiser 50 % and the CLIP 15 %.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from generated_textures import CATEGORIES, defects_of, render
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name everybody uses
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SIZE, IMAGES, BATCH = 64, 4000, 16
WIDTH, TOKENS = 128, 16
_KEPT_EVERY = 60
"""Seconds between two states of a training on disk."""

GOOD = ("a good {}", "a flawless {}", "a photo of a {}", "a photo of a {} without defect", "{}")
BAD = ("a {} with a {}", "a damaged {} with a {}", "a photo of a {} with a {}", "a damaged {}", "a defective {}")
"""Captions of good and of defective images."""

_WORDS = "broken split squeezed torn dirty perfect intact clean object texture image of the normal abnormal surface"


def caption(category: str, defect: str | None, random: np.random.Generator) -> str:
    """Return a caption, drawn from the templates."""
    if defect is None:
        return str(random.choice(GOOD)).format(category)
    return str(random.choice(BAD)).format(category, defect.replace("_", " "))


def draw(count: int, seed: int) -> tuple[Tensor, list[str]]:
    """Return images [N,3,64,64] of uint8, half of them defective, and their captions."""
    random = np.random.default_rng(seed)
    images, captions = [], []
    for number in range(count):
        category = CATEGORIES[number % len(CATEGORIES)]
        defect = str(random.choice(defects_of(category))) if random.random() < 0.5 else None  # noqa: PLR2004 - half
        images.append(render(category, (7, seed, number), defect, SIZE)[0])
        captions.append(caption(category, defect, random))
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous(), captions


def new_tokenizer(folder: Path) -> CLIPTokenizer:
    """Learn byte pairs of the captions' words, and save them as a tokenizer of CLIP, unless there is one."""
    if (folder / "tokenizer_config.json").is_file():
        return CLIPTokenizer.from_pretrained(folder)
    random = np.random.default_rng(0)
    corpus = [_WORDS] * 50
    for category in CATEGORIES:
        corpus += [caption(category, defect, random) for defect in (None, *defects_of(category)) for _ in range(60)]
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token="<|endoftext|>"))  # noqa: S106 - no password
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    learner.train_from_iterator(
        corpus,
        trainers.BpeTrainer(
            vocab_size=1000, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False,
            special_tokens=["<|startoftext|>", "<|endoftext|>"],
        ),
    )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary, merges = (Path(path) for path in learner.model.save(str(folder)))
    pairs = [tuple(line.split()) for line in merges.read_text().splitlines() if not line.startswith("#")]
    known = json.loads(vocabulary.read_text())
    for letter in alphabet:  # letters at the end of a word, which no caption has
        known.setdefault(f"{letter}</w>", len(known))
    tokenizer = CLIPTokenizer(vocab=known, merges=pairs, model_max_length=77)
    tokenizer.save_pretrained(folder)
    return tokenizer


def text_config(tokenizer: CLIPTokenizer) -> CLIPTextConfig:
    """Return the settings of the text encoders."""
    return CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=WIDTH, intermediate_size=2 * WIDTH, num_hidden_layers=4,
        num_attention_heads=4, max_position_embeddings=77, projection_dim=WIDTH, hidden_act="quick_gelu",
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip


def tokens_of(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    """Return token numbers [N,16], padded with the end of the text."""
    found = tokenizer(captions, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt")
    return torch.as_tensor(found.input_ids)


def train_for(
    minutes: float, parameters: list[Tensor], loss: Callable[[Tensor], Tensor], rate: float, kept: Path, seed: int
) -> None:
    """Take AdamW steps on random batches until the time is over, with a cosine schedule over it.

    Each minute the state is written to `kept`, from where an interrupted training goes on.
    """
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=1e-4)
    step, before = _resume(kept, parameters, optimizer)
    torch.manual_seed(seed + step)
    start, shown, written = time.monotonic() - before, 0.0, before
    while (done := (spent := time.monotonic() - start) / (60 * minutes)) < 1:
        if spent > written + _KEPT_EVERY:
            _keep(kept, parameters, optimizer, step, spent)
            written = spent
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1, (step + 1) / 50) * max(0.02, 0.5 * (1 + np.cos(np.pi * done)))
        value = loss(torch.randint(IMAGES, (BATCH,)))
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        step, shown = step + 1, 0.98 * shown + 0.02 * value.item() if shown else value.item()
        if step % 100 == 0:
            print(f"{kept.stem}: step {step}, {100 * done:.0f} % of the time, loss {shown:.4f}", flush=True)
    print(f"{kept.stem}: {step} steps, loss {shown:.4f}", flush=True)
    kept.unlink(missing_ok=True)


def _keep(path: Path, parameters: list[Tensor], optimizer: torch.optim.Optimizer, step: int, spent: float) -> None:
    """Write parameters, moments of the optimizer, number of steps and seconds."""
    tensors = {f"parameter.{number}": one.detach().contiguous() for number, one in enumerate(parameters)}
    for number, state in optimizer.state_dict()["state"].items():
        tensors |= {f"{name}.{number}": value.contiguous() for name, value in state.items()}
    new = path.with_suffix(".new")
    save_file(tensors, new, {"step": str(step), "seconds": str(spent)})
    new.replace(path)


def _resume(path: Path, parameters: list[Tensor], optimizer: torch.optim.Optimizer) -> tuple[int, float]:
    """Read what `_keep` wrote, if anything, and return the number of steps and the seconds."""
    if not path.is_file():
        return 0, 0.0
    with safe_open(path, "pt") as stored:
        facts = stored.metadata()
        with torch.no_grad():
            for number, one in enumerate(parameters):
                one.copy_(stored.get_tensor(f"parameter.{number}"))
        names = ("step", "exp_avg", "exp_avg_sq")
        state = {
            number: {name: stored.get_tensor(f"{name}.{number}") for name in names} for number in range(len(parameters))
        }
    optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
    return int(facts["step"]), float(facts["seconds"])


def train_vae(folder: Path, images: Tensor, minutes: float, seed: int) -> AutoencoderKL:
    """Train the autoencoder: four channels at a quarter of the resolution."""
    torch.manual_seed(seed)
    vae = AutoencoderKL(
        block_out_channels=(16, 32, 64), down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3, latent_channels=4, norm_num_groups=8, sample_size=SIZE,
    ).to(memory_format=torch.channels_last)  # fmt: skip

    def loss(rows: Tensor) -> Tensor:
        target = images[rows[: BATCH // 4]].float() / 127.5 - 1
        found = vae.encode(target.contiguous(memory_format=torch.channels_last)).latent_dist
        rebuilt = vae.decode(found.sample()).sample
        return F.l1_loss(rebuilt, target) + F.mse_loss(rebuilt, target) + 1e-5 * found.kl().mean() / SIZE

    train_for(minutes, [*vae.parameters()], loss, 1e-3, folder / "vae.safetensors", seed)
    vae.eval()
    latents = encode(vae, images[:512])
    vae.register_to_config(scaling_factor=float(1 / latents.std()))
    return vae


@torch.inference_mode()
def encode(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """Return the unscaled latents [N,4,16,16] of images [N,3,64,64] of uint8."""
    return torch.cat([vae.encode(part.float() / 127.5 - 1).latent_dist.mode() for part in images.split(64)])


def train_denoiser(
    folder: Path, latents: Tensor, tokens: Tensor, tokenizer: CLIPTokenizer, minutes: float, seed: int
) -> tuple[CLIPTextModel, UNet2DConditionModel, DDPMScheduler]:
    """Train the denoiser together with its text encoder."""
    torch.manual_seed(seed)
    text = CLIPTextModel(text_config(tokenizer))
    unet = UNet2DConditionModel(
        sample_size=SIZE // 4, in_channels=4, out_channels=4, block_out_channels=(32, 64), layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=WIDTH, attention_head_dim=2, norm_num_groups=8,  # diffusers reads it as two heads
    )  # fmt: skip
    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    empty = tokens_of(tokenizer, [""])

    def loss(rows: Tensor) -> Tensor:
        words = torch.where(torch.rand(BATCH, 1) < 0.1, empty, tokens[rows])  # noqa: PLR2004 - free of guidance
        noise = torch.randn_like(latents[rows])
        steps = torch.randint(1000, (BATCH,))
        noisy = scheduler.add_noise(latents[rows], noise, steps)
        return F.mse_loss(unet(noisy, steps, text(words).last_hidden_state).sample, noise)

    kept = folder / "denoiser.safetensors"
    train_for(minutes, [*text.parameters(), *unet.parameters()], loss, 1e-3, kept, seed)
    return text.eval(), unet.eval(), scheduler


def train_clip(
    folder: Path, images: Tensor, tokens: Tensor, tokenizer: CLIPTokenizer, minutes: float, seed: int
) -> CLIPModel:
    """Train a contrastive model of images and captions."""
    torch.manual_seed(seed)
    vision = CLIPVisionConfig(
        hidden_size=WIDTH, intermediate_size=2 * WIDTH, num_hidden_layers=4, num_attention_heads=4, image_size=SIZE,
        patch_size=8, projection_dim=WIDTH, hidden_act="quick_gelu",
    )  # fmt: skip
    clip = CLIPModel(
        CLIPConfig(text_config=text_config(tokenizer).to_dict(), vision_config=vision.to_dict(), projection_dim=WIDTH)
    )
    mean, std = (torch.tensor(value).view(1, 3, 1, 1) for value in (_mean(), _std()))

    def loss(rows: Tensor) -> Tensor:
        pixels = (images[rows].float() / 255 - mean) / std
        found = clip(input_ids=tokens[rows], pixel_values=pixels)
        same = (tokens[rows][:, None] == tokens[rows][None]).all(2).float()
        wanted = same / same.sum(1, keepdim=True)
        logits = found.logits_per_image
        return 0.5 * (F.cross_entropy(logits, wanted) + F.cross_entropy(logits.T, wanted))

    train_for(minutes, [*clip.parameters()], loss, 5e-4, folder / "clip.safetensors", seed)
    return clip.eval()


def _mean() -> list[float]:
    return list(CLIPImageProcessor().image_mean)


def _std() -> list[float]:
    return list(CLIPImageProcessor().image_std)


def main(arguments: argparse.Namespace) -> None:
    """Train and save the parts."""
    folder, minutes, seed = arguments.folder, arguments.minutes, arguments.seed
    images, captions = draw(IMAGES, seed)
    print(f"{IMAGES} images drawn", flush=True)
    tokenizer = new_tokenizer(folder / "tokenizer")
    tokens = tokens_of(tokenizer, captions)
    vae = None
    if "vae" in arguments.parts:
        vae = train_vae(folder, images, 0.35 * minutes, seed)
        vae.save_pretrained(folder / "vae")
    if "denoiser" in arguments.parts:
        vae = vae or AutoencoderKL.from_pretrained(folder / "vae").eval()
        make_denoiser(folder, vae, images, tokens, tokenizer, 0.5 * minutes, seed)
    if "clip" in arguments.parts:
        clip = train_clip(folder, images, tokens, tokenizer, 0.15 * minutes, seed)
        clip.save_pretrained(folder / "clip")
        tokenizer.save_pretrained(folder / "clip")


def make_denoiser(
    folder: Path,
    vae: AutoencoderKL,
    images: Tensor,
    tokens: Tensor,
    tokenizer: CLIPTokenizer,
    minutes: float,
    seed: int,
) -> None:
    """Train the denoiser on the latents of an autoencoder, and save it with its text encoder and schedule."""
    latents = encode(vae, images) * vae.config.scaling_factor
    text, unet, scheduler = train_denoiser(folder, latents, tokens, tokenizer, minutes, seed)
    for name, part in (("text_encoder", text), ("unet", unet), ("scheduler", scheduler)):
        part.save_pretrained(folder / name)
    for name, part in (("text encoder", text), ("unet", unet)):
        print(f"{name}: {sum(one.numel() for one in part.parameters()) / 1e6:.2f} M parameters")


def _arguments(words: Iterator[str] | list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder for the models")
    parser.add_argument("--minutes", type=float, default=40, help="minutes of training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--parts", nargs="+", default=["vae", "denoiser", "clip"], help="parts to train; others stay")
    return parser.parse_args(list(words))


if __name__ == "__main__":
    main(_arguments(sys.argv[1:]))
