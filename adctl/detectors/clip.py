"""Zero-shot detection by words: similarities of image windows to normal and abnormal texts in CLIP; few-shot memory.

Jeong et al., "WinCLIP: Zero-/Few-Shot Anomaly Classification and Segmentation", CVPR 2023: ensembles of states and
templates, windows, harmonic means, and a memory of good patches. CLIP: Radford et al., ICML 2021, from transformers.
"""

from __future__ import annotations

from collections.abc import Mapping  # noqa: TC003 - pydantic resolves it at run time
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name everybody uses

from adctl.detectors.base import Detector, DetectorConfig, Prediction, Search
from adctl.detectors.components import base_models
from adctl.detectors.components.anomaly_maps import GaussianBlur, top_mean
from adctl.detectors.components.clip_models import CLIP_PARTS, MEAN, STD, load_clip
from adctl.detectors.components.text_prompts import LONGEST
from adctl.engine.phases import Observe
from adctl.errors import UsageError
from adctl.image_sizes import ImageSize

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adctl.engine.phases import Phase

DEFAULT_BASE = "clip-vit-base-patch16"
_NORMAL = (
    "{}", "flawless {}", "perfect {}", "unblemished {}", "{} without flaw", "{} without defect", "{} without damage",
)  # fmt: skip
_ABNORMAL = ("damaged {}", "broken {}", "{} with flaw", "{} with defect", "{} with damage")
_TEMPLATES = (
    "a photo of a {}", "a photo of the {}", "a cropped photo of a {}", "a close-up photo of the {}",
    "a bright photo of a {}", "a dark photo of the {}", "there is a {} in the scene",
)  # fmt: skip
"""States and templates of WinCLIP, table 7; a part of its templates."""

_COLOURS = 3
_BASE = "clip."
_EPSILON = 1e-6


class ClipConfig(DetectorConfig):
    """Settings of the detection by words."""

    search_ranges: ClassVar[Mapping[str, Search]] = {
        "temperature": Search(0.003, 0.1, log=True),
        "blur": Search(0, 2),
        "score_share": Search(0.001, 0.1, log=True),
    }

    image_size: ImageSize = Field(224, description=DetectorConfig.model_fields["image_size"].description)
    base: str = Field(DEFAULT_BASE, description="Name of the CLIP; --weights FOLDER takes one from a folder")
    base_digest: str | None = Field(None, description="Digest of the CLIP; training sets it")
    object: str = Field("object", description="Name of what is seen, put in the place of {}")
    normal: tuple[str, ...] = Field(_NORMAL, min_length=1, description="Normal states; {} is the object")
    abnormal: tuple[str, ...] = Field(_ABNORMAL, min_length=1, description="Abnormal states; {} is the object")
    templates: tuple[str, ...] = Field(_TEMPLATES, min_length=1, description="Sentences around a state at {}")
    features: Literal["windows", "patches"] = Field(
        "windows", description="Parts compared with the texts: windows (WinCLIP), or single patches, which are faster"
    )
    windows: tuple[int, ...] = Field((2, 3), min_length=1, description="Sides of the windows, patches")
    memory: bool = Field(False, description="Compare patches with those of a few good images too")
    shots: int = Field(4, ge=1, le=64, description="Good images in the memory")
    temperature: float = Field(0.01, gt=0, description="Divisor of the cosine similarities")
    blur: float = Field(0.5, ge=0, description="Gaussian smoothing of the map, sigma in patches")
    score_share: float = Field(0.01, gt=0, le=1, description="Fraction of the highest cells whose mean is the score")

    @model_validator(mode="before")
    @classmethod
    def _single_texts(cls, values: dict[str, Any]) -> dict[str, Any]:
        names = ("normal", "abnormal", "templates")
        return {name: (one,) if name in names and isinstance(one, str) else one for name, one in values.items()}

    @field_validator("normal", "abnormal", "templates")
    @classmethod
    def _some_words(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not all(text.strip() for text in value):
            raise ValueError("must have words")
        return value

    @field_validator("channels")
    @classmethod
    def _colours(cls, value: int) -> int:
        if value not in (1, _COLOURS):
            raise ValueError("must be 1 or 3: CLIP takes colour images")
        return value


class Clip(Detector):
    """Probability of the abnormal texts for windows of the image, and distance to good patches.

    Attributes:
        clip: The frozen base model.
        text: Unit vectors [2,D] of the normal and the abnormal texts, kept in the model file.
        memory: Unit vectors [M,D] of the patches of good images, where `memory` is set.
    """

    Config = ClipConfig
    takes_base: ClassVar[bool] = True
    config: ClipConfig
    text: Tensor
    memory: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, config: ClipConfig) -> None:
        super().__init__(config)
        base_models.quiet()
        base = base_models.find_base(config.base, config.base_digest, CLIP_PARTS)
        self.clip = load_clip(base.folder)
        vision = self.clip.config.vision_config
        side, patch = config.sides[0], vision.patch_size
        if side % patch:
            raise UsageError(
                f"The CLIP '{config.base}' has patches of {patch} pixels, which does not divide {side}.",
                f"Give a multiple, such as --image-size {max(1, side // patch) * patch}.",
            )
        self.grid, self.resized = side // patch, side != vision.image_size
        if max(config.windows) > self.grid:
            raise UsageError(f"Windows of {max(config.windows)} patches do not fit into {self.grid}.")
        tokenizer = base_models.byte_tokenizer() if base.folder is None else base_models.load_tokenizer(base.folder)
        self.register_buffer("text", self._texts(tokenizer))
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)
        self.blur = GaussianBlur(config.blur)
        if config.memory:
            self.fitted = ("memory",)  # type: ignore[misc]  # only with a memory
            self.register_buffer("memory", torch.empty(0))
        self.register_state_dict_post_hook(_without_base)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_post_hook(_accept_missing_base)  # type: ignore[no-untyped-call]
        self._absorbed: list[Tensor] = []

    @classmethod
    def completed(
        cls, config: DetectorConfig, *, weights: str | None, epochs: int | None, labelled: bool
    ) -> DetectorConfig:
        """Return the settings with the name and the digest of the base model."""
        del epochs, labelled
        assert isinstance(config, ClipConfig)
        base = base_models.base_of_training(config.base, config.base_digest, CLIP_PARTS, weights)
        found = {"base": base.name} | ({} if base.digest is None else {"base_digest": base.digest})
        return ClipConfig(**{**config.model_dump(exclude_unset=True), **found})

    def phases(self) -> Sequence[Phase]:
        """Return no phase, or the one that fills the memory."""
        if not self.config.memory:
            return ()
        self._absorbed = []
        return (Observe(lambda images: self._patches(images)[1], self._absorbed.append, self._remember, "memory"),)

    def forward(self, images: Tensor) -> Prediction:
        """Score images [B,C,H,W]; the maps have the cells of the patches."""
        return self._predict(images, None)

    @classmethod
    def holds_out(cls, config: DetectorConfig) -> bool:
        """Return True: images of the memory are left out by their numbers."""
        del config
        return True

    def can_hold_out(self) -> bool:
        """Return True: images of the memory are left out by their numbers."""
        return True

    def held_out(self, images: Tensor, numbers: Sequence[int], together: int = 1) -> Prediction:
        """Score training images without their own patches in the memory."""
        if not self.config.memory:
            return self(images)
        cells = self.grid**2
        found = []
        for start in range(0, len(images), together):
            kept = torch.ones(len(self.memory), dtype=torch.bool, device=images.device)
            for number in numbers[start : start + together]:
                kept[number * cells : (number + 1) * cells] = False
            found.append(self._predict(images[start : start + together], kept if kept.any() else None))
        return Prediction(torch.cat([one.scores for one in found]), torch.cat([one.maps for one in found]))

    def check_state(self) -> None:
        """Check the shape of the memory.

        Raises:
            ModelFileError: It contradicts the base model.
        """
        if self.config.memory:
            self._require_state("memory", None, self.clip.config.vision_config.hidden_size)

    def train(self, mode: bool = True) -> Self:
        """Set the mode; the base model stays in evaluation."""
        super().train(mode)
        self.clip.eval()
        return self

    def _predict(self, images: Tensor, kept: Tensor | None) -> Prediction:
        """Return scores and maps, with a part [M] of the memory or with all of it."""
        hidden, patches = self._patches(images)
        whole = self._probability(self.clip.visual_projection(self._pooled(self._encoded(hidden))))
        if self.config.features == "patches":
            tokens = self.clip.vision_model.post_layernorm(self._encoded(hidden)[:, 1:])
            maps = self._probability(self.clip.visual_projection(tokens)).unflatten(1, (self.grid, self.grid))
        else:
            maps = torch.stack([self._window_map(hidden, side) for side in self.config.windows])
            maps = 1 / (1 / (maps + _EPSILON)).mean(0)
        score = whole
        if self.config.memory:
            known = self.memory if kept is None else self.memory[kept]
            distance = 0.5 * (1 - (patches @ known.T).amax(2))
            maps = maps + distance.unflatten(1, (self.grid, self.grid))
        maps = self.blur(maps)
        return Prediction(0.5 * (score + top_mean(maps, self.config.score_share)), maps)

    def _patches(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the vectors [B,1+N,D] before the layers, and unit vectors [B,N,D] of the patches after them."""
        pixels = (images.expand(-1, _COLOURS, -1, -1) - self.mean) / self.std
        vision = self.clip.vision_model
        hidden: Tensor = vision.pre_layrnorm(vision.embeddings(pixels, interpolate_pos_encoding=self.resized))
        return hidden, F.normalize(self._encoded(hidden)[:, 1:], dim=2)

    def _encoded(self, hidden: Tensor) -> Tensor:
        out: Tensor = self.clip.vision_model.encoder(inputs_embeds=hidden).last_hidden_state
        return out

    def _pooled(self, encoded: Tensor) -> Tensor:
        pooled: Tensor = self.clip.vision_model.post_layernorm(encoded[:, 0])
        return pooled

    def _probability(self, vectors: Tensor) -> Tensor:
        """Return the probability of the abnormal texts [...] for projected vectors [...,D]."""
        similarity = F.normalize(vectors.float(), dim=-1) @ self.text.T
        shares: Tensor = (similarity / self.config.temperature).softmax(-1)
        return shares[..., 1]

    def _window_map(self, hidden: Tensor, side: int) -> Tensor:
        """Return maps [B,h,w]: the harmonic mean of the probabilities of all windows over a patch (WinCLIP, 4.2)."""
        rows = self.grid - side + 1
        numbers = torch.arange(self.grid**2, device=hidden.device).view(1, 1, self.grid, self.grid)
        places = F.unfold(numbers.float(), side).long()[0].T  # [windows, side * side]
        cover = F.one_hot(places, self.grid**2).sum(1).to(hidden.dtype)  # [windows, patches]
        chosen = hidden[:, 1:][:, places.flatten()].unflatten(1, (rows * rows, side * side))
        start = hidden[:, None, :1].expand(-1, rows * rows, -1, -1)
        pooled = self._pooled(self._encoded(torch.cat([start, chosen], 2).flatten(0, 1)))
        found = self._probability(self.clip.visual_projection(pooled)).unflatten(0, (-1, rows * rows))
        harmonic = cover.sum(0) / ((1 / (found + _EPSILON)) @ cover)
        shaped: Tensor = harmonic.unflatten(1, (self.grid, self.grid))
        return shaped

    def _remember(self, update: Any) -> None:
        """Keep the patches of the first images."""
        patches = torch.cat(self._absorbed)[: self.config.shots]
        self._fit_buffer("memory", patches.flatten(0, 1))
        self._absorbed = []
        update(1, 1)

    @torch.no_grad()
    def _texts(self, tokenizer: Any) -> Tensor:
        """Return the mean unit vectors [2,D] of the normal and the abnormal texts."""
        config, rows = self.config, []
        for states in (config.normal, config.abnormal):
            texts = [
                template.replace("{}", state.replace("{}", config.object))
                for state in states
                for template in (config.templates if "{}" in state else ("{}",))
            ]
            tokens = tokenizer(texts, padding=True, return_tensors="pt")
            if tokens.input_ids.shape[1] > LONGEST:
                raise UsageError(
                    f"A text has {tokens.input_ids.shape[1]} tokens, more than the {LONGEST} that CLIP takes.",
                    "Give shorter words.",
                )
            pooled = self.clip.text_model(**tokens).pooler_output
            vectors = F.normalize(self.clip.text_projection(pooled).float(), dim=1)
            rows.append(F.normalize(vectors.mean(0), dim=0))
        return torch.stack(rows)


def _without_base(module: Any, state: dict[str, Any], prefix: str, _metadata: Any) -> None:
    """Leave the base model out of a state; `module` is part of the signature of such hooks."""
    del module
    for name in [name for name in state if name.startswith(prefix + _BASE)]:
        del state[name]


def _accept_missing_base(module: Any, keys: Any) -> None:
    """Accept a state without the base model."""
    del module
    keys.missing_keys[:] = [name for name in keys.missing_keys if not name.startswith(_BASE)]
