"""Prompts read through a frozen diffusion model: losses, prompts, base models, training and scoring."""

from __future__ import annotations

import json
import math
import random
import shutil
import sys
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch
from conftest import settings

pytest.importorskip("transformers")

from adctl.detectors.clip import Clip, ClipConfig
from adctl.detectors.components import base_models, map_losses
from adctl.detectors.components.clip_models import ClipSimilarity
from adctl.detectors.components.image_noise import ImageNoise
from adctl.detectors.components.stable_diffusion import SHAPES
from adctl.detectors.components.text_prompts import LONGEST, PromptLearner, nearest_words, tokens_of
from adctl.detectors.prompt import PromptConfig, PromptDetector
from adctl.engine.phases import Batch, total
from adctl.errors import DataError, ModelFileError, UsageError
from adctl.testing import DetectorContract

TINY = {"base": "random-tiny", "n_ctx": 4, "t_n_ctx": 2, "timesteps": (100,)}


class TestContract(DetectorContract):
    """The contract of detectors, on a small base with random weights."""

    arch = "prompt"
    options: ClassVar = {**TINY, "preset": "debug", "timesteps": (20,)}
    epochs = 12
    waits_for_host = True  # the scheduler of diffusers copies its table to the device


class TestClipContract(DetectorContract):
    """The contract of detectors, on a small CLIP with random weights and a memory."""

    arch = "clip"
    options: ClassVar = {"base": "random-tiny", "memory": True}


def new(**values):
    return PromptDetector(PromptConfig(**{"image_size": 64, **TINY, **values}))


@pytest.fixture(scope="module")
def detector():
    torch.manual_seed(0)
    return new()


def images(count=2, seed=0):
    pixels = torch.randint(0, 256, (count, 3, 64, 64), generator=torch.Generator().manual_seed(seed))
    return pixels / 255


# ---- losses, each against a case computed by hand

MAPS = torch.tensor([[[[0.9, 0.4]], [[0.1, 0.6]]]])
"""One image of two cells: the first is 0.1 abnormal, the second 0.6."""

MASKS = torch.tensor([[[0.0, 1.0]]])


def test_focal_loss():
    wanted = (-(0.1**2) * math.log(0.9) - 0.4**2 * math.log(0.6)) / 2
    assert map_losses.focal(MAPS, MASKS).item() == pytest.approx(wanted, rel=1e-5)


def test_dice_loss():
    abnormal = 1 - (2 * 0.6 + 1) / (0.7 + 1 + 1)
    normal = 1 - (2 * 0.9 + 1) / (1.3 + 1 + 1)
    assert map_losses.dice(MAPS, MASKS).item() == pytest.approx(abnormal + normal, rel=1e-5)


def test_image_loss():
    wanted = -(math.log(0.8) + math.log(0.7)) / 2
    assert map_losses.image_bce(torch.tensor([0.8, 0.3]), torch.tensor([1.0, 0.0])).item() == pytest.approx(wanted)


def test_sharpness_is_the_entropy_in_bits():
    half = torch.full((1, 2, 1, 3), 0.5)
    assert map_losses.sharpness(half).item() == pytest.approx(1)
    wanted = -(0.9 * math.log2(0.9) + 0.1 * math.log2(0.1) + 0.6 * math.log2(0.6) + 0.4 * math.log2(0.4)) / 2
    assert map_losses.sharpness(MAPS).item() == pytest.approx(wanted, rel=1e-5)


def test_coverage_is_the_share_outside_of_the_masks_of_defective_images():
    masses = torch.tensor([[[[0.0, 0.0]], [[0.1, 0.3]]], [[[0.0, 0.0]], [[0.5, 0.5]]]])
    masks = torch.cat([MASKS, torch.zeros(1, 1, 2)])
    assert map_losses.coverage(masses, masks).item() == pytest.approx(0.25, rel=1e-4)
    assert map_losses.coverage(masses, torch.zeros(2, 1, 2)).item() == 0


def test_consistency_adds_the_disagreement_of_layers_and_the_overlap_of_prompts():
    layers = torch.stack([MAPS, 1 - MAPS])
    between = ((0.1 - 0.5) ** 2 + (0.6 - 0.5) ** 2) / 2
    masses = torch.tensor([[[[0.2, 0.1]], [[0.1, 0.4]]]])
    overlap = (0.25 + 0.5) / 2
    assert map_losses.consistency(layers, masses).item() == pytest.approx(between + overlap, rel=1e-4)


def test_weights_of_losses_are_checked():
    assert map_losses.parse_weights("focal=1, dice=0") == {"focal": 1.0}
    for wrong in ("focal=x", "focal=-1", "focal=0", "blur=1", "focal=inf"):
        with pytest.raises(UsageError):
            map_losses.parse_weights(wrong)


# ---- noise


def test_noise_depends_on_the_image_alone():
    noise = ImageNoise((3, 64, 64), (2, 4, 16, 16))
    one, two = images(1), images(1, seed=1)
    together = noise(torch.cat([one, two]))
    assert torch.equal(noise(one)[0], together[0])
    assert torch.equal(noise(two)[0], together[1])
    assert together[0].mean().abs() < 0.1
    assert 0.9 < together.std() < 1.1
    changed = one.clone()
    changed[0, 0, 0, 0] = (changed[0, 0, 0, 0] + 0.5) % 1
    correlation = torch.corrcoef(torch.stack([noise(one).flatten(), noise(changed).flatten()]))[0, 1]
    assert correlation.abs() < 0.1


# ---- prompts


def test_exactly_the_prompts_get_gradients_and_the_base_stays_as_it_is(detector):
    before = {name: value.clone() for name, value in detector.base.state_dict().items()}
    (phase,) = detector.phases()
    trained = list(phase.parameters)
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    detector.train()
    total(phase.loss(Batch(images(), images(), keys=("train 0", "train 1")))).backward()
    optimizer.step()
    detector.eval()
    reached = {name for name, one in detector.named_parameters() if one.grad is not None and one.grad.any()}
    assert reached == {"prompts.context", "prompts.deep"}
    assert {id(one) for one in trained} == {id(one) for one in detector.prompts.parameters()}
    assert all(torch.equal(before[name], value) for name, value in detector.base.state_dict().items())
    assert set(detector.state_dict()) == {"prompts.context", "prompts.deep"}


def test_number_of_trained_parameters():
    """With shared context at width 768: 12 tokens in front, and 4 in each of 8 deeper layers."""

    def count(**values):
        learner = PromptLearner([[1], [2, 1]], (0, 3), 768, context=12, depth=9, deep=4, **values)
        return sum(one.numel() for one in learner.parameters())

    assert count(shared=True) == 12 * 768 + 8 * 4 * 768 == 33_792
    assert count(shared=False) == 2 * 33_792


def test_words_without_context_are_encoded_as_transformers_does(detector):
    text = detector.base.text
    tokenizer = base_models.byte_tokenizer()
    words = [tokens_of(one, tokenizer, 0) for one in ("zip", "bad zip")]
    learner = PromptLearner(words, (512, 513), 32, context=0, depth=1, deep=0, shared=False)
    with torch.no_grad():
        own = learner.encode(text)
        for number, ids in enumerate(words):
            tokens = torch.tensor([[512, *ids, 513]])
            torch.testing.assert_close(own[number, : tokens.shape[1]], text(tokens).last_hidden_state[0])


def test_too_many_and_no_words_are_refused():
    tokenizer = base_models.byte_tokenizer()
    with pytest.raises(UsageError, match=f"{LONGEST}"):
        tokens_of("long" * 18, tokenizer, 12)
    with pytest.raises(UsageError, match="no words"):
        tokens_of("  ", tokenizer, 0)


def test_nearest_words(detector):
    tokenizer = base_models.byte_tokenizer()
    table = detector.base.text.embeddings.token_embedding.weight
    ((best, *_),) = nearest_words(3 * table[65:66], table, tokenizer)
    assert best == (tokenizer.convert_ids_to_tokens(65), pytest.approx(1))


# ---- base models


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A small base in diffusers' layout."""
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    base_models.quiet()
    folder = tmp_path_factory.mktemp("bases") / "small"
    shapes = SHAPES["tiny"]
    torch.manual_seed(1)
    CLIPTextModel(CLIPTextConfig(**shapes["text"])).save_pretrained(folder / "text_encoder")
    AutoencoderKL(**shapes["vae"]).save_pretrained(folder / "vae")
    UNet2DConditionModel(**shapes["unet"]).save_pretrained(folder / "unet")
    DDPMScheduler(num_train_timesteps=1000, beta_schedule="scaled_linear").save_pretrained(folder / "scheduler")
    base_models.byte_tokenizer().save_pretrained(folder / "tokenizer")
    return folder


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty folder of fetched data."""
    monkeypatch.setenv("ADCTL_DATA_DIR", str(tmp_path / "data"))
    return tmp_path / "data"


def completed(config=None, weights=None, epochs=None, labelled=False):
    config = config or PromptConfig(**{**TINY, "base": "sd-2-1-base"}, image_size=64)
    return PromptDetector.completed(config, weights=weights, epochs=epochs, labelled=labelled)


def test_a_base_is_found_again_by_its_digest_and_another_is_refused(base, home, tmp_path):
    config = completed(weights=str(base))
    assert (config.base, config.learn_from) == ("small", "synthetic")
    detector = PromptDetector(config)
    assert not any(name.startswith("base.") for name in detector.state_dict())
    assert json.loads(next((home / "weights" / "bases").iterdir()).read_text())["folder"] == str(base)
    shutil.rmtree(home)
    with pytest.raises(UsageError, match="not on this machine") as raised:
        PromptDetector(config)
    assert "adctl fetch weights small" in raised.value.remedy
    other = home / "weights" / "small"
    shutil.copytree(base, other)
    PromptDetector(config)
    (other / "unet" / "config.json").write_text((other / "unet" / "config.json").read_text() + " ")
    with pytest.raises(ModelFileError, match="another base"):
        PromptDetector(config)


def test_pickles_damaged_and_incomplete_bases_are_refused(base, home, tmp_path):
    folder = tmp_path / "bad"
    shutil.copytree(base, folder)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelFileError, match="cannot be loaded"):
        PromptDetector(completed(weights=str(folder)))
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(ModelFileError, match="pickle") as raised:
        completed(weights=str(folder))
    assert "save_pretrained" in raised.value.remedy
    shutil.rmtree(folder / "vae")
    with pytest.raises(UsageError, match="no base model"):
        completed(weights=str(folder))
    with pytest.raises(UsageError, match="no folder"):
        completed(weights=str(tmp_path / "absent"))


def test_parts_of_different_widths_are_refused(base, home, tmp_path):
    folder = tmp_path / "mixed"
    shutil.copytree(base, folder)
    path = folder / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"cross_attention_dim": 48}))
    with pytest.raises(UsageError, match="width 32, but its denoiser reads width 48"):
        PromptDetector(completed(weights=str(folder)))


def test_an_embedded_base_needs_no_folder(base, home):
    config = PromptConfig(**{**TINY, "base": "x"}, image_size=64, embed_base=True)
    detector = PromptDetector(completed(config, weights=str(base))).eval()
    shutil.rmtree(home)
    loaded = PromptDetector(PromptConfig(**json.loads(detector.config.model_dump_json())))
    loaded.load_state(detector.state_dict())
    with torch.inference_mode():
        assert torch.equal(loaded.eval()(images()).scores, detector(images()).scores)


def test_sizes_and_settings_that_do_not_fit_are_refused(detector):
    with pytest.raises(UsageError, match="multiple of 8"):
        new(image_size=60)
    with pytest.raises(UsageError, match="resolution"), torch.no_grad():
        new(resolutions=(5,)).eval()(images())
    for wrong in ({"normal": " "}, {"timesteps": (1000,)}, {"t_n_ctx": 5}, {"loss": "blur=1"}, {"channels": 4}):
        with pytest.raises(ValueError, match=r"must|Unknown"):
            PromptConfig(**{**TINY, **wrong})


# ---- training


def test_painted_defects_are_the_same_each_time_and_encoded_once(detector, monkeypatch):
    encoded = []
    original = detector._encode
    monkeypatch.setattr(detector, "_encode", lambda batch: encoded.append(len(batch)) or original(batch))
    (phase,) = detector.phases()
    detector.train()
    keys = tuple(f"train {number}" for number in range(3))
    batch = Batch(images(3), images(3), keys=keys)
    for seed in range(12):
        torch.manual_seed(seed)
        phase.loss(batch)
    detector.eval()
    assert sum(encoded) <= len(keys) * (1 + detector.config.variants)
    first, second = (detector._painted(images(1)[0], torch.zeros(64, 64, dtype=torch.bool), "train 0", 2) for _ in "12")
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert torch.equal((first[0] != images(1)[0]).any(0), first[1])


def test_words_of_the_user_without_training(zippers, tmp_path):
    from adctl.model_file import load_model
    from adctl.training.single_run import train_once

    words = {"normal": "a flawless zipper", "abnormal": "a zipper with broken teeth"}
    result = train_once(
        settings(arch="prompt", data=zippers, runs=tmp_path, epochs=0, options={"base": "random-tiny", **words})
    )
    detector, header = load_model(result.model)
    assert detector.config.n_ctx == 0
    assert header.config["abnormal"] == words["abnormal"]
    assert not result.fit.history
    with pytest.raises(UsageError, match="at least 1"):
        train_once(settings(arch="cnn", data=zippers, runs=tmp_path, epochs=0))


# ---- CLIP


def clip(**values):
    return Clip(ClipConfig(**{"image_size": 64, "base": "random-tiny", **values})).eval()


def test_words_are_put_into_states_and_templates():
    one = clip(normal="a flawless {}", abnormal="{} with hole", object="zip", templates=("a photo of {}", "the {}"))
    same = clip(
        normal=("a photo of a flawless zip", "the a flawless zip"),
        abnormal=("a photo of zip with hole", "the zip with hole"),
    )
    torch.testing.assert_close(one.text, same.text)
    with pytest.raises(UsageError, match="tokens"):
        clip(normal="x" * 80)


@pytest.mark.parametrize("features", ["windows", "patches"])
def test_swapped_words_swap_the_probability(features):
    words = {"normal": "good", "abnormal": "a hole"}
    swapped = {"normal": "a hole", "abnormal": "good"}
    with torch.inference_mode():
        detector, other = (clip(features=features, windows=(8,), blur=0, **one) for one in (words, swapped))
        first, second = detector(images()), other(images())
    torch.testing.assert_close(first.maps + second.maps, torch.ones(2, 8, 8), rtol=1e-3, atol=1e-3)


def test_a_window_of_the_whole_image_gives_its_probability():
    detector = clip(windows=(8,), blur=0)
    with torch.inference_mode():
        hidden, _ = detector._patches(images())
        whole = detector.clip(
            input_ids=torch.tensor([[512, 65, 513]]), pixel_values=(images() - detector.mean) / detector.std
        ).image_embeds
        torch.testing.assert_close(
            detector._window_map(hidden, 8)[:, 0, 0], detector._probability(whole), atol=1e-4, rtol=1e-3
        )


def test_images_of_the_memory_are_left_out_of_their_own_scores():
    detector = clip(memory=True, shots=2)
    (phase,) = detector.phases()
    with torch.inference_mode():
        phase.absorb(phase.embed(images(3)))
        phase.finish(lambda _done, _all: None)
        own, fair = detector(images(3)), detector.held_out(images(3), [0, 1, 2])
    assert len(detector.memory) == 2 * 64
    assert (fair.maps[:2].amax((1, 2)) > own.maps[:2].amax((1, 2))).all()
    torch.testing.assert_close(fair.maps[2], own.maps[2])


# ---- labelled defects of other categories, and copies of bases


@pytest.fixture
def categories(tmp_path):
    """Two categories; the defects of the second one are painted squares."""
    from adctl.data.images import write_png

    random = np.random.default_rng(0)
    for name in ("cloth", "wood"):
        for part, count in (("train/good", 10), ("test/good", 3), ("test/hole", 5)):
            for number in range(count):
                pixels = random.integers(0, 256, (64, 64, 3), np.uint8)
                mask = np.zeros((64, 64, 3), np.uint8)
                if "hole" in part:
                    pixels[8:24, 32:48], mask[8:24, 32:48] = 0, 255
                    write_png(tmp_path / "data" / name / "ground_truth" / "hole" / f"{number}_mask.png", mask)
                write_png(tmp_path / "data" / name / part / f"{number}.png", pixels)
    return tmp_path / "data"


def auxiliary_plan(data, **options):
    from adctl.training.plan import plan_training

    options = {"base": "random-tiny", "preset": "debug", **options}
    return plan_training(settings(arch="prompt", data=data, category="cloth", auxiliary=data, options=options).settings)


def test_prompts_learn_from_the_defects_of_other_categories_alone(categories):
    from adctl.training.fitting import image_sources

    plan = auxiliary_plan(categories)
    assert plan.config.learn_from == "auxiliary"
    assert {sample.key.partition("/")[0] for sample in (*plan.learned, *plan.held_out)} == {"wood"}
    source, _ = image_sources(settings(arch="prompt").settings, plan)
    masks = source.defects(range(len(plan.learned)))
    defective = [sample.label == "hole" for sample in plan.learned]
    assert masks.any((1, 2)).tolist() == defective
    assert masks[defective.index(True)].sum() == 16 * 16
    both = auxiliary_plan(categories, learn_from="both")
    assert {sample.key.partition("/")[0] for sample in both.learned} == {"train", "wood"}


def test_a_test_image_of_the_category_or_a_missing_mask_among_them_is_refused(categories):
    copy = categories / "wood" / "test" / "good" / "9.png"
    shutil.copy(categories / "cloth" / "test" / "good" / "0.png", copy)
    with pytest.raises(DataError, match="test images of 'cloth' too"):
        auxiliary_plan(categories)
    copy.unlink()
    next((categories / "wood" / "ground_truth" / "hole").iterdir()).unlink()
    with pytest.raises(DataError, match="have no mask"):
        auxiliary_plan(categories)
    with pytest.raises(UsageError, match="needs labelled images"):
        completed(PromptConfig(**TINY, learn_from="both"))


def test_a_base_is_copied_without_pickles_and_found_by_its_name(base, home, tmp_path):
    from adctl.fetching.weights import fetch_weights

    source = tmp_path / "copy"
    shutil.copytree(base, source)
    (source / "unet" / "old.bin").write_bytes(b"pickle")
    fetched = fetch_weights("mine", source=source)
    assert fetched.path == home / "weights" / "mine"
    assert not list(fetched.path.rglob("*.bin"))
    config = completed(PromptConfig(**{**TINY, "base": "mine"}, image_size=64))
    assert config.base_digest == completed(weights=str(base)).base_digest


# ---- interruptions, pictures and statistics


def test_after_kill_9_the_prompts_are_those_of_the_uninterrupted_training(adctl, zippers):
    from safetensors.torch import load_file
    from test_resume import killed_at_random

    few = ["--arch", "prompt", "--weights", "random-tiny", "--data", zippers, "--image-size", "32", "--epochs", "3"]
    few += ["--set", "preset=debug", "--device", "cpu", "--workers", "0", "--checkpoint-minutes", "0.001"]
    few += ["--no-tensorboard", "--export", "none", "--batch-size", "4"]
    killed_at_random(adctl.folder, *few, "--name", "cut", draw=random.Random(0))
    runs = adctl.folder / "runs"
    if not (runs / "cut" / "model.safetensors").exists():
        assert adctl.json("train", "--resume", "cut")["result"]["fit"]["resumed_at"]
    adctl("train", *few, "--name", "whole")
    cut, whole = (load_file(runs / name / "model.safetensors") for name in ("cut", "whole"))
    assert set(whole) == {"prompts.context", "prompts.deep"}
    assert all(torch.equal(cut[name], value) for name, value in whole.items())


def test_an_explanation_holds_the_attention_to_each_prompt_its_statistics_and_words(detector):
    with torch.inference_mode():
        shown, masses = detector.explain(images()), detector.attention(images())
    assert [one.shape for one in shown.pictures.values()] == [(2, 1, 64, 64)] * 2
    assert all(float(one.max()) == pytest.approx(1, abs=1e-4) for one in shown.pictures.values())
    shares = masses[:, 1] / masses.sum(1)
    torch.testing.assert_close(shown.values["mean abnormal share"], shares.mean((1, 2)), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(shown.values["highest abnormal share"], shares.amax((1, 2)), rtol=1e-4, atol=1e-6)
    assert [name for name, _ in shown.words] == [f"{kind} {n}" for kind in ("normal", "abnormal") for n in range(1, 5)]
    assert all(len(words.split(", ")) == 3 for _, words in shown.words)


def test_report_and_tensorboard_show_attention_statistics_and_words(zippers, tmp_path):
    from adctl.config import LoadedSettings, ReportSettings, ScoreSettings, names_of
    from adctl.reporting.report import report
    from adctl.scoring.score import score
    from adctl.training.single_run import train_once

    options = {"base": "random-tiny", "preset": "debug"}
    trained = train_once(
        settings(arch="prompt", data=zippers, runs=tmp_path, epochs=1, log=("tensorboard",), options=options)
    )
    (events,) = trained.run.rglob("events.out.tfevents*")
    logged = events.read_bytes()
    assert all(name in logged for name in (b"attention/overlap of prompts", b"words", b"abnormal 1"))

    def loaded(given):
        return LoadedSettings(given, dict.fromkeys(names_of(type(given)), "test"))

    images = (str(zippers / "test" / "good"),)
    score(loaded(ScoreSettings(images=images, model=trained.model, out=tmp_path / "scored", device="cpu")))
    made = report(loaded(ReportSettings(scores=(tmp_path / "scored",), reconstructions=True, ci_samples=100)))
    page = made.page.read_text(encoding="utf-8")
    assert "Original, attention to the normal prompt, attention to the abnormal prompt, anomaly map, overlay" in page
    assert "Words nearest to the learnt tokens" in page
    assert "highest abnormal share" in page


def test_a_dry_run_forecasts_the_steps_without_the_base(zippers, home, monkeypatch):
    from adctl.cli.train import _steps
    from adctl.detectors import prompt
    from adctl.training.plan import plan_training
    from adctl.training.step_forecast import forecast_step, step_costs

    monkeypatch.setitem(prompt.PUBLISHED, "sd-2-1-base", "tiny")
    options = {"n_ctx": 4, "t_n_ctx": 2, "normal": "a", "abnormal": "b a"}
    wanted = settings(arch="prompt", data=zippers, options=options).settings
    found = forecast_step(plan_training(wanted), wanted)
    real = new(timesteps=(50, 200), normal="a", abnormal="b a")
    assert found.trained == sum(one.numel() for one in real.prompts.parameters())
    assert found.batch == 4
    counted = step_costs(real, 4)
    assert counted.kept.flops == found.kept.flops
    assert counted.kept.memory == pytest.approx(found.kept.memory, rel=0.02)
    assert found.encoding.flops > found.kept.flops
    assert found.recomputed.flops > found.kept.flops
    assert found.recomputed.memory < 0.9 * found.kept.memory
    assert dict(_steps(found))["prompts"] == "512 of 0.34 M parameters are trained"


# ---- similarity of whole images in a CLIP


def test_the_similarity_of_a_clip_is_half_of_the_score(detector, home):
    config = completed(PromptConfig(**{**TINY, "clip_similarity": "random-tiny"}, image_size=64), "random-tiny")
    both = PromptDetector(config).eval()
    both.load_state(detector.state_dict())
    detector.eval()
    with torch.inference_mode():
        alone, joined = detector(images()), both(images())
        probability = both.similarity(images(), both.clip_text())
        swapped = both.similarity(images(), both.clip_text().flip(0))
    torch.testing.assert_close(joined.scores, 0.5 * (alone.scores + probability))
    torch.testing.assert_close(probability + swapped, torch.ones(2))
    assert torch.equal(alone.maps, joined.maps)
    assert set(both.state_dict()) == {"prompts.context", "prompts.deep"}
    with pytest.raises(UsageError, match="vectors of length 32"):
        ClipSimilarity(None, SimpleNamespace(config=SimpleNamespace(vocab_size=9, hidden_size=8)))
    with pytest.raises(ValueError, match="stays outside"):
        PromptConfig(**TINY, embed_base=True, clip_similarity="random-tiny")


def test_prompts_are_encoded_in_the_clip_as_transformers_does(detector):
    words = {"normal": "a", "abnormal": "b a", "n_ctx": 0, "clip_similarity": "random-tiny"}
    both = new(**{**words, "t_n_ctx": 0}).eval()
    tokens = [[512, *ids, 513] for ids in both.prompts.words]
    with torch.no_grad():
        wanted = [
            both.similarity.clip.text_projection(both.similarity.clip.text_model(torch.tensor([ids])).pooler_output)
            for ids in tokens
        ]
        expected = torch.nn.functional.normalize(torch.cat(wanted), dim=1)
    torch.testing.assert_close(both.clip_text(), expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU, for the shapes of Stable Diffusion 2.1")
def test_a_step_in_float16_on_a_gpu(monkeypatch):
    from pathlib import Path

    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "examples" / "benchmarks"))
    from prompt import step_on_gpu

    found = step_on_gpu(steps=2)
    assert found["prompts_changed"]
    assert found["images_per_second_scored"] > 1


def test_a_missing_library_names_the_extra(monkeypatch):
    from adctl.errors import MissingExtraError

    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(MissingExtraError) as raised:
        new()
    assert "adctl[prompt]" in str(raised.value.remedy)


def test_memory_that_runs_out_halves_the_batch(zippers, tmp_path, monkeypatch):
    from adctl.training.single_run import train_once

    original, sizes = PromptDetector._masses, []

    def short_of_memory(self, latents, *rest):
        if self.training:
            sizes.append(len(latents))
            if len(latents) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory")
        return original(self, latents, *rest)

    monkeypatch.setattr(PromptDetector, "_masses", short_of_memory)
    options = {"base": "random-tiny", "preset": "debug"}
    result = train_once(settings(arch="prompt", data=zippers, runs=tmp_path, epochs=1, log=(), options=options))
    assert sizes[0] == 4
    assert max(sizes[1:]) <= 2
    assert result.fit.global_batch_size == 4
