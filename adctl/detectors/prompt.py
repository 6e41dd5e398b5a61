"""Prompt hybrid: learnable normal and abnormal prompts, read through the cross-attention of a frozen Stable Diffusion.

Prompts as in Zhou et al., "AnomalyCLIP", ICLR 2024. Maps from the cross-attention of a denoiser as in Tang et al.,
"What the DAAM: Interpreting Stable Diffusion Using Cross Attention", ACL 2023, here of a noisy image instead of a
generated one. Only the prompts are trained; the base model stays outside of the model file unless `embed_base` is set.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping  # noqa: TC003 - pydantic resolves it at run time
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from adctl.data import synthetic as defects
from adctl.detectors.base import Detector, DetectorConfig, Prediction, Search
from adctl.detectors.components import base_models, map_losses
from adctl.detectors.components.anomaly_maps import GaussianBlur, top_mean
from adctl.detectors.components.clip_models import CLIP_PARTS, ClipSimilarity
from adctl.detectors.components.feature_cache import FeatureCache
from adctl.detectors.components.image_noise import ImageNoise
from adctl.detectors.components.stable_diffusion import PARTS, PUBLISHED, StableDiffusion, read_shapes
from adctl.detectors.components.text_prompts import PromptLearner, nearest_words, tokens_of
from adctl.engine.phases import Batch, Explanation, LossTerms, Optimize, total
from adctl.errors import AdctlError, UsageError
from adctl.image_sizes import ImageSize

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adctl.detectors.components.base_models import BaseModel
    from adctl.engine.phases import Phase

DEFAULT_BASE = "sd-2-1-base"
_PRESETS: dict[str, dict[str, Any]] = {
    "full": {},
    "debug": {"n_ctx": 4, "depth": 3, "t_n_ctx": 2, "timesteps": (100,), "variants": 2},
}
_COLOURS = 3
_TINY = 1e-8
_SHAPES_ONLY = "shapes"
_OUTSIDE = ("base.", "similarity.")
"""Prefixes of the tensors of frozen models, which stay outside of the model file."""


class PromptConfig(DetectorConfig):
    """Settings of the prompt hybrid; explicit values have precedence over `preset`."""

    search_ranges: ClassVar[Mapping[str, Search]] = {
        "temperature": Search(0.03, 1, log=True),
        "blur": Search(0, 2),
        "score_share": Search(0.001, 0.1, log=True),
    }

    image_size: ImageSize = Field(512, description=DetectorConfig.model_fields["image_size"].description)
    preset: Literal["full", "debug"] = Field("full", description="Published sizes, or small ones to try a command")
    base: str = Field(DEFAULT_BASE, description="Name of the base model; --weights FOLDER takes one from a folder")
    base_digest: str | None = Field(None, description="Digest of the base model; training sets it")
    embed_base: bool = Field(False, description="Store the base model in the model file: gigabytes")
    shapes: dict[str, Any] | None = Field(None, description="Settings of an embedded base's networks; set by training")
    tokens: tuple[tuple[int, ...], ...] | None = Field(
        None, description="Token numbers of both prompts' words, and of start and end; training sets them"
    )
    normal: str = Field("object", description="Words of the normal prompt, after the learnable ones")
    abnormal: str = Field("damaged object", description="Words of the abnormal prompt, after the learnable ones")
    n_ctx: int = Field(12, ge=0, le=64, description="Learnable tokens in front of the words; 0 leaves the words alone")
    depth: int = Field(9, ge=1, le=32, description="Layers of the text encoder with learnable tokens, with the first")
    t_n_ctx: int = Field(4, ge=0, le=64, description="Learnable tokens in each deeper layer; at most n_ctx")
    shared_context: bool = Field(False, description="Use the same learnable tokens in both prompts")
    timesteps: tuple[int, ...] = Field(
        (50, 200), min_length=1, description="Timesteps of the noise, 0 to 999; their maps are averaged"
    )
    resolutions: tuple[int, ...] | None = Field(
        None, description="Sides of the attention maps used; the latents' side, its half and its quarter if left out"
    )
    temperature: float = Field(0.1, gt=0, description="Divisor of the log attention; small values give sharp maps")
    blur: float = Field(1.0, ge=0, description="Gaussian smoothing of the map, sigma in cells")
    score_share: float = Field(0.01, gt=0, le=1, description="Fraction of the highest cells whose mean is the score")
    clip_similarity: str | None = Field(
        None, description="Name or folder of a CLIP whose image-text similarity is half of the score; none if left out"
    )
    clip_digest: str | None = Field(None, description="Digest of this CLIP; training sets it")
    learn_from: Literal["auto", "auxiliary", "synthetic", "both"] = Field(
        "auto", description="What prompts learn from: labelled defects of --auxiliary, painted defects, or both"
    )
    painted: tuple[str, ...] = Field(("cutpaste", "perlin"), description="Kinds of painted defects")
    variants: int = Field(4, ge=1, le=64, description="Painted copies of each image, whose latents are kept")
    loss: str = Field(
        "focal=1,dice=1,bce=1,sharpness=0.5,coverage=0.3,consistency=0.2", description="Losses with their weights"
    )
    seed: int = Field(0, ge=0, description="Seed of the painted defects")

    @model_validator(mode="before")
    @classmethod
    def _filled_from_preset(cls, values: dict[str, Any]) -> dict[str, Any]:
        return {**_PRESETS.get(values.get("preset", "full"), {}), **values}

    @field_validator("timesteps")
    @classmethod
    def _possible_timesteps(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not all(0 <= step < 1000 for step in value):  # noqa: PLR2004 - steps of Stable Diffusion
            raise ValueError("must be from 0 to 999")
        return value

    @field_validator("painted")
    @classmethod
    def _known_kinds(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return defects.check_kinds(value)

    @field_validator("loss")
    @classmethod
    def _known_losses(cls, value: str) -> str:
        try:
            map_losses.parse_weights(value)
        except UsageError as error:
            raise ValueError(error.message) from error
        return value

    @field_validator("normal", "abnormal")
    @classmethod
    def _some_words(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("must have words, such as object")
        return value

    @field_validator("channels")
    @classmethod
    def _colours(cls, value: int) -> int:
        if value not in (1, _COLOURS):
            raise ValueError("must be 1 or 3: the base model takes colour images")
        return value

    @model_validator(mode="after")
    def _deep_tokens_fit(self) -> Self:
        if self.n_ctx and self.depth > 1 and self.t_n_ctx > self.n_ctx:
            raise ValueError(f"t_n_ctx must be at most n_ctx, {self.n_ctx}")
        if self.embed_base and self.clip_similarity is not None:
            raise ValueError("embed_base cannot be combined with clip_similarity, whose CLIP stays outside")
        return self


class PromptDetector(Detector):
    """Attention of each place to an abnormal prompt against a normal one.

    An image is encoded, noised and given to the denoiser once for each timestep, with both prompts as one text. The
    attention of each place to the tokens of either prompt, averaged over heads, layers and timesteps, gives the map.

    Attributes:
        base: The frozen base model.
        prompts: The trained prompts.
        similarity: Similarity of whole images to the prompts in a frozen CLIP, or None.
    """

    Config = PromptConfig
    needs_validation = True
    scores_untrained = True
    takes_base: ClassVar[bool] = True
    takes_labels: ClassVar[bool] = True
    config: PromptConfig

    timesteps: Tensor

    def __init__(self, config: PromptConfig) -> None:
        super().__init__(config)
        base_models.quiet()
        config = _with_tokens(config)
        assert config.tokens is not None
        folder, shapes = _base_of(config)
        self.base = StableDiffusion(shapes, folder)
        self._require_size(config.sides[0])
        from diffusers.models.attention import BasicTransformerBlock
        from diffusers.models.resnet import ResnetBlock2D

        from adctl.detectors.components.attention_maps import use_collectors

        self.recomputed = (BasicTransformerBlock, ResnetBlock2D)  # type: ignore[misc]  # diffusers is imported late
        use_collectors(self.base.unet)
        *words, ends = config.tokens
        self.prompts = PromptLearner(
            words, (ends[0], ends[1]), self.base.width, context=config.n_ctx,
            depth=min(config.depth, len(self.base.text.encoder.layers)), deep=config.t_n_ctx,
            shared=config.shared_context,
        )  # fmt: skip
        self.side = config.sides[0] // self.base.factor
        self.noise = ImageNoise(
            (config.channels, *config.sides), (len(config.timesteps), self.base.channels, self.side, self.side)
        )
        self.register_buffer("timesteps", torch.tensor(config.timesteps), persistent=False)
        self.blur = GaussianBlur(config.blur)
        self.similarity: ClipSimilarity | None = None
        if config.clip_similarity is not None:
            clip = base_models.find_base(config.clip_similarity, config.clip_digest, CLIP_PARTS)
            self.similarity = ClipSimilarity(clip.folder, self.base.text)
        self.weights = map_losses.parse_weights(config.loss)
        self._text: tuple[Tensor, Tensor] | None = None
        self._clip_text: Tensor | None = None
        if not config.embed_base:
            self.register_state_dict_post_hook(_without_base)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_post_hook(_accept_missing_base)  # type: ignore[no-untyped-call]

    @classmethod
    def completed(
        cls, config: DetectorConfig, *, weights: str | None, epochs: int | None, labelled: bool
    ) -> DetectorConfig:
        """Return the settings with the base model, its tokens and the source of the defects."""
        assert isinstance(config, PromptConfig)
        changes: dict[str, Any] = {}
        if config.learn_from == "auto":
            changes["learn_from"] = "auxiliary" if labelled else "synthetic"
        elif (config.learn_from != "synthetic") != labelled:
            raise UsageError(
                f"learn_from={config.learn_from} {'needs' if not labelled else 'does not use'} labelled images.",
                "Give them with --auxiliary DATA." if not labelled else "Leave it out, or use learn_from=both.",
            )
        if epochs == 0 and "n_ctx" not in config.model_fields_set:
            changes["n_ctx"] = 0  # the user's words alone, without untrained tokens
        changes |= _clip_of(config)
        base = base_models.base_of_training(config.base, config.base_digest, PARTS, weights)
        if base.digest is None:
            return _changed(config, changes | {"base": base.name})  # building the detector says how to get it
        return _with_tokens(_changed(config, changes | {"base": base.name, "base_digest": base.digest}), base)

    @classmethod
    def training_defaults(cls, config: DetectorConfig) -> dict[str, Any]:
        """Return 15 epochs and a learning rate of 1e-3 (AnomalyCLIP), or few and fast ones to try a command."""
        assert isinstance(config, PromptConfig)
        epochs, rate = (15, 1e-3) if config.preset == "full" else (2, 1e-2)
        return {"epochs": epochs, "min_steps": 0, "learning_rate": rate, "batch_size": 4}

    @classmethod
    def learns_good(cls, config: DetectorConfig) -> bool:
        """Return whether good images of the category are learned from: not where other categories show the defects."""
        assert isinstance(config, PromptConfig)
        return config.learn_from != "auxiliary"

    def phases(self) -> Sequence[Phase]:
        """Return the one phase, the training of the prompts; empty without learnable tokens."""
        trained = [one for one in self.prompts.parameters() if one.numel()]
        if not trained:
            return ()
        cache = FeatureCache()
        return (Optimize(lambda batch: self.loss(batch, cache), trained, "prompts", preview=self.explain),)

    def forward(self, images: Tensor) -> Prediction:
        """Score images [B,C,H,W]; the maps have the cells of the latents."""
        latents = self._encode(images)
        masses = self._masses(latents, self.noise(images)).mean(0)
        maps = self.blur(self._similarity(masses)[:, 1])
        scores = top_mean(maps, self.config.score_share)
        if self.similarity is not None:
            scores = 0.5 * (scores + self.similarity(images, self.clip_text()))
        return Prediction(scores, maps)

    def loss(self, batch: Batch, cache: FeatureCache) -> LossTerms:
        """Return the weighted loss terms of a batch, on its own masks or with painted defects."""
        with torch.no_grad():
            latents, masks = self._examples(batch, cache)
            if self.training:
                noise = torch.randn(len(latents), 1, *latents.shape[1:]).to(latents.device)
                chosen = torch.randint(len(self.config.timesteps), (len(latents), 1))
                timesteps = self.timesteps.cpu()[chosen]
            else:
                noise, timesteps = self.noise(batch.images), None
            masks = _to_cells(masks, self.side)
        layers = self._masses(latents, noise, timesteps)
        return self._terms(layers, masks)

    def _terms(self, layers: Tensor, masks: Tensor) -> LossTerms:
        """Return the weighted losses of the layers' attention [K,B,2,h,w] and masks [B,h,w]."""
        masses = layers.mean(0)
        maps = self._similarity(masses)
        scores = top_mean(maps[:, 1], self.config.score_share)
        values = {
            "focal": lambda: map_losses.focal(maps, masks),
            "dice": lambda: map_losses.dice(maps, masks),
            "bce": lambda: map_losses.image_bce(scores, masks.amax((1, 2))),
            "sharpness": lambda: map_losses.sharpness(maps),
            "coverage": lambda: map_losses.coverage(masses, masks),
            "consistency": lambda: map_losses.consistency(_share(layers), masses),
        }
        return {name: weight * values[name]() for name, weight in self.weights.items()}

    @classmethod
    def by_shapes(cls, config: PromptConfig) -> PromptConfig:
        """Return settings with which a detector is built from the shapes of its base, without the weights.

        Raises:
            UsageError: The base is not on this machine, and its shapes are not known.
        """
        try:
            base = base_models.find_base(config.base, config.base_digest, PARTS)
        except UsageError:
            if config.base not in PUBLISHED:
                raise
            base = base_models.BaseModel(f"{base_models.RANDOM}-{PUBLISHED[config.base]}", None, None)
        words = (tuple(range(1, 1 + len(text.split()))) for text in (config.normal, config.abnormal))
        tokens = config.tokens or (*words, (0, 1))
        outside = dict.fromkeys(("base_digest", "clip_similarity"))
        known = {"base": _SHAPES_ONLY, "embed_base": False, "shapes": read_shapes(base), "tokens": tokens}
        return _changed(config, known | outside)

    def encode_trial(self, count: int) -> Tensor:
        """Return the latents of empty images, to measure what encoding costs."""
        with torch.no_grad():
            return self._encode(torch.zeros(count, self.config.channels, *self.config.sides))

    def trial_loss(self, count: int) -> Tensor:
        """Return the loss of a step on empty latents, to measure what a step on kept ones costs."""
        latents = torch.zeros(count, self.base.channels, self.side, self.side)
        timesteps = torch.zeros(count, 1, dtype=torch.int64)
        layers = self._masses(latents, latents.unsqueeze(1), timesteps)
        return total(self._terms(layers, torch.zeros(count, self.side, self.side)))

    def attention(self, images: Tensor) -> Tensor:
        """Return the mean attention of each cell to the normal and the abnormal prompt, [B,2,h,w]."""
        return self._masses(self._encode(images), self.noise(images)).mean(0)

    def explain(self, images: Tensor) -> Explanation:
        """Return the attention to both prompts as pictures, its statistics, and the words nearest to learnt tokens.

        Each picture [B,1,H,W] is scaled to the largest attention in it.
        """
        masses = self.attention(images).float()
        peaks = masses.amax((2, 3), keepdim=True)
        large = torch.nn.functional.interpolate(masses / (peaks + _TINY), size=images.shape[-2:], mode="nearest")
        shares = masses / (masses.sum(1, keepdim=True) + _TINY)
        values = {
            "mean abnormal share": shares[:, 1].mean((1, 2)),
            "highest abnormal share": shares[:, 1].amax((1, 2)),
            "overlap of prompts": (masses / (peaks + _TINY)).amin(1).mean((1, 2)),
        }
        pictures = {"attention to the normal prompt": large[:, :1], "attention to the abnormal prompt": large[:, 1:]}
        return Explanation(pictures, values, self.nearest_words())

    def nearest_words(self) -> tuple[tuple[str, str], ...]:
        """Return each token in front of the words with the three words whose vectors are most similar to it.

        It is empty if the tokenizer is not on this machine, as with an embedded base.
        """
        try:
            base = base_models.find_base(self.config.base, self.config.base_digest, PARTS)
        except AdctlError:
            return ()
        table, tokenizer = self.base.text.embeddings.token_embedding.weight, _tokenizer(base)
        names = ("both",) if self.config.shared_context else ("normal", "abnormal")
        return tuple(
            (f"{name} {number}", ", ".join(f"{word} ({cosine:.2f})" for word, cosine in words))
            for name, tokens in zip(names, self.prompts.context.detach(), strict=True)
            for number, words in enumerate(nearest_words(tokens, table, tokenizer), 1)
        )

    def text(self) -> tuple[Tensor, Tensor]:
        """Return both prompts as the denoiser reads them, [1,L,D], and the prompt of each token, [L,2].

        Without gradients they are computed once, until the prompts or the device change.
        """
        if torch.is_grad_enabled():
            return self.prompts.joined(self.prompts.encode(self.base.text))
        if self._text is None:
            with torch.inference_mode(mode=False), torch.no_grad():
                self._text = self.prompts.joined(self.prompts.encode(self.base.text))
        return self._text

    def clip_text(self) -> Tensor:
        """Return the unit vectors [2,D] of both prompts in the CLIP, computed once until the prompts change."""
        assert self.similarity is not None
        if self._clip_text is None:
            with torch.inference_mode(mode=False), torch.no_grad():
                self._clip_text = self.similarity.text(self.prompts)
        return self._clip_text

    def check_exportable(self) -> None:
        """Compute the prompts, which an export stores as text embeddings."""
        with torch.no_grad():
            self.text()
            if self.similarity is not None:
                self.clip_text()

    def _forget(self) -> None:
        """Forget the prompts computed before, because they may have changed."""
        self._text = self._clip_text = None

    def train(self, mode: bool = True) -> Self:
        """Set the mode; the prompts may have changed since the last computation."""
        self._forget()
        return super().train(mode)

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        self._forget()
        applied: Self = super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return applied

    def _require_size(self, side: int) -> None:
        step = self.base.step
        if side % step:
            below = max(1, side // step) * step
            raise UsageError(
                f"The base model takes images whose side is a multiple of {step} pixels, not {side}.",
                f"Give one, such as --image-size {below}.",
            )

    def _encode(self, images: Tensor) -> Tensor:
        """Return the latents, in float32: they are kept, and the encoder overflows in float16."""
        with torch.autocast(images.device.type, enabled=False):
            return self.base.encode(images)

    def _masses(self, latents: Tensor, noise: Tensor, timesteps: Tensor | None = None) -> Tensor:
        """Return the attention to both prompts in each layer, [K,B,2,h,w], mean over heads and timesteps.

        Args:
            latents: Latents [B,4,h,w].
            noise: Noise [B,T,4,h,w].
            timesteps: Timesteps [B,T]; None takes those of the settings.
        """
        from adctl.detectors.components.attention_maps import AttentionMaps

        count = noise.shape[1]
        if timesteps is None:
            timesteps = self.timesteps.expand(latents.shape[0], -1)
        steps = timesteps.to(latents.device).flatten()
        many = latents.unsqueeze(1).expand(-1, count, -1, -1, -1).flatten(0, 1)
        noisy = self.base.add_noise(many, noise.flatten(0, 1), steps)
        tokens, owner = self.text()
        maps = AttentionMaps(owner, self._sides())
        self.base.unet(
            noisy, steps, tokens.expand(noisy.shape[0], -1, -1), cross_attention_kwargs={"maps": maps},
            return_dict=False,
        )  # fmt: skip
        if not maps.layers:
            raise UsageError(
                f"No attention layer of the base has a resolution of {sorted(maps.sides)}.", "Choose other resolutions."
            )
        masses: Tensor = maps.enlarged(self.side).unflatten(1, (-1, count))
        return masses.mean(2)

    def _sides(self) -> frozenset[int]:
        sides = self.config.resolutions or (self.side, self.side // 2, self.side // 4)
        return frozenset(sides)

    def _similarity(self, masses: Tensor) -> Tensor:
        """Return similarity maps [B,2,h,w]: the softmax of the log attention over both prompts."""
        shares: Tensor = ((masses.float() + _TINY).log() / self.config.temperature).softmax(1)
        return shares

    def _examples(self, batch: Batch, cache: FeatureCache) -> tuple[Tensor, Tensor]:
        """Return latents [B,4,h,w] and masks [B,H,W] of bool; good images are painted where the settings want it."""
        count, paints = len(batch.images), self.config.learn_from in {"synthetic", "both", "auto"}
        masks = batch.defects
        if masks is None:
            masks = torch.zeros(count, *batch.images.shape[2:], dtype=torch.bool, device=batch.images.device)
        if batch.keys is None:  # images that do not return: nothing to keep
            images = batch.images
            if paints and batch.defects is None:
                images, masks = defects.paint(images, self.config.painted)
            return self._encode(images), masks
        good = ~masks.flatten(1).any(1).cpu()
        copies = self._copies(batch.keys) * (good if paints else torch.zeros_like(good))
        painted = [
            self._painted(image, mask, key, int(copy))
            for image, mask, key, copy in zip(batch.images, masks, batch.keys, copies, strict=True)
        ]
        images = torch.stack([image for image, _ in painted])
        keys = [f"{key} {int(copy)}" for key, copy in zip(batch.keys, copies, strict=True)]
        # One image at a time: results of convolutions depend on the batch, which is another one after a resume.
        latents = cache(keys, lambda rows: torch.cat([self._encode(images[row : row + 1]) for row in rows]))
        return latents.to(images.device), torch.stack([mask for _, mask in painted])

    def _copies(self, keys: Sequence[str]) -> Tensor:
        """Return which painted copy of each image to use, 0 for none: random in training, alternating otherwise."""
        if not self.training:
            return torch.tensor([place % (self.config.variants + 1) for place in map(_number, keys)])
        drawn = torch.randint(1, self.config.variants + 1, (len(keys),))
        return drawn * (torch.rand(len(keys)) < 0.5)  # noqa: PLR2004 - half of the images

    def _painted(self, image: Tensor, mask: Tensor, key: str, copy: int) -> tuple[Tensor, Tensor]:
        """Return an image [C,H,W] with the painted defect of a copy, the same one each time, and its mask [H,W]."""
        if copy == 0:
            return image, mask
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_seed(self.config.seed, key, copy))
            painted, drawn = defects.paint(image.unsqueeze(0), self.config.painted, 1.0)
        return painted[0], drawn[0]


def _seed(*parts: object) -> int:
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:7], "big")


def _number(key: str) -> int:
    return int(key.rpartition(" ")[2])


def _to_cells(masks: Tensor, side: int) -> Tensor:
    """Return masks [B,h,w] of float32: cells with a defective pixel, so that no small defect is lost."""
    cells: Tensor = torch.nn.functional.adaptive_max_pool2d(masks.float().unsqueeze(1), side)
    squeezed: Tensor = cells.squeeze(1)
    return squeezed


def _share(masses: Tensor) -> Tensor:
    """Return the share of each prompt in the attention to both, in dimension 2."""
    shares: Tensor = masses.float() / (masses.float().sum(2, keepdim=True) + _TINY)
    return shares


def _changed(config: PromptConfig, changes: dict[str, Any]) -> PromptConfig:
    return type(config)(**{**config.model_dump(exclude_unset=True), **changes})


def _with_tokens(config: PromptConfig, base: BaseModel | None = None) -> PromptConfig:
    """Return the settings with the token numbers of the words, and with the shapes of an embedded base."""
    if config.tokens is not None and base is None:
        return config
    if base is None:
        base = base_models.find_base(config.base, config.base_digest, PARTS)
    tokenizer = _tokenizer(base)
    words = [tokens_of(text, tokenizer, config.n_ctx) for text in (config.normal, config.abnormal)]
    tokens = (*map(tuple, words), (int(tokenizer.bos_token_id), int(tokenizer.eos_token_id)))
    shapes = json.loads(json.dumps(read_shapes(base))) if config.embed_base else None
    return _changed(config, {"tokens": tokens, "shapes": shapes})


def _tokenizer(base: BaseModel) -> Any:
    return base_models.byte_tokenizer() if base.folder is None else base_models.load_tokenizer(base.folder)


def _base_of(config: PromptConfig) -> tuple[Path | None, dict[str, Any]]:
    """Return the folder of the base, None for random or embedded weights, and the shapes of its networks.

    Raises:
        UsageError: The base is not on this machine; the message says how to get it.
        ModelFileError: It is another base than that of the training.
    """
    try:
        base = base_models.find_base(config.base, config.base_digest, PARTS)
    except AdctlError:
        if config.shapes is None:
            raise
        return None, config.shapes
    return base.folder, read_shapes(base)


def _clip_of(config: PromptConfig) -> dict[str, Any]:
    """Return name and digest of the CLIP of a training, and note its folder."""
    if config.clip_similarity is None:
        return {}
    name = config.clip_similarity
    folder = Path(name) if Path(name).is_dir() else None
    clip = base_models.find_base(name, config.clip_digest, CLIP_PARTS, folder)
    base_models.remember_folder(clip)
    return {"clip_similarity": clip.name, "clip_digest": clip.digest}


def _without_base(module: Any, state: dict[str, Any], prefix: str, _metadata: Any) -> None:
    """Leave the base model out of a state; `module` is part of the signature of such hooks."""
    del module
    for name in [name for name in state if name.removeprefix(prefix).startswith(_OUTSIDE)]:
        del state[name]


def _accept_missing_base(module: PromptDetector, keys: Any) -> None:
    """Accept a state without the base model, and forget the prompts computed before."""
    module._forget()  # noqa: SLF001 - a hook of the class itself
    if not module.config.embed_base:
        keys.missing_keys[:] = [name for name in keys.missing_keys if not name.startswith(_OUTSIDE)]
