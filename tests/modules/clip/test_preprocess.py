from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from torchvision.transforms import RandomResizedCrop

import modules.clip.preprocess as module
from modules.clip.preprocess import (
    CLIP_MEAN,
    CLIP_STD,
    clip_crops,
    clip_preprocess,
    random_clip_preprocess,
    random_crops,
)

GOLDEN = Path(__file__).parents[2] / "golden" / "clip_preprocess"


def tensor(image: Image.Image) -> Tensor:
    """`[1, 3, H, W]` in [0, 1]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255


def levels(view: Tensor) -> Tensor:
    """What a view shows, in 8-bit levels."""
    std, mean = (torch.tensor(values)[:, None, None] for values in (CLIP_STD, CLIP_MEAN))
    return (view * std + mean) * 255


def assert_same(ours: Tensor, expected: Tensor) -> None:
    """To a hundredth of a level on average, and one where a value lies between two levels."""
    difference = (ours - expected).abs()
    assert difference.mean() < 0.01
    assert difference.max() < 1.01


def noise(height: int, width: int) -> Image.Image:
    generator = np.random.default_rng(height * width)
    return Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("name", ["256x256", "300x200", "97x131"])
def test_view_is_the_reference_s(name):
    golden = load_file(GOLDEN / "outputs.safetensors")[f"{name}.dataset_float32"]
    view = clip_preprocess(tensor(Image.open(GOLDEN / f"{name}.png").convert("RGB")), 224)
    assert view.shape == (1, 3, 224, 224)
    assert_same(levels(view[0]), levels(golden))


@pytest.mark.parametrize(("height", "width"), [(61, 47), (224, 500), (225, 333), (224, 224)])
def test_view_is_open_clip_s(height, width):
    image = noise(height, width)
    expected = open_clip.image_transform(224, is_train=False)(image)
    assert_same(levels(clip_preprocess(tensor(image), 224)[0]), levels(expected))


def test_rows_are_resized_before_columns():
    """As all releases of Pillow before 13 do; 13 shrinks the longer side of a tall image first."""
    image = noise(300, 100)
    scaled = image.resize((64, 300), Image.Resampling.BICUBIC)
    scaled = scaled.resize((64, 192), Image.Resampling.BICUBIC).crop((0, 64, 64, 128))
    assert_same(levels(clip_preprocess(tensor(image), 64)[0]), tensor(scaled)[0] * 255)


def test_batch_is_its_images():
    images = torch.rand(3, 3, 50, 70, generator=torch.Generator().manual_seed(0))
    together = clip_preprocess(images, 32)
    assert together.dtype == torch.float32
    assert torch.equal(together, torch.cat([clip_preprocess(image[None], 32) for image in images]))


def test_values_outside_the_range_are_clamped():
    images = torch.rand(1, 3, 40, 50, generator=torch.Generator().manual_seed(0)) * 1.4 - 0.2
    assert torch.equal(clip_preprocess(images, 32), clip_preprocess(images.clamp(0, 1), 32))
    assert levels(clip_preprocess(images, 40)).min() == pytest.approx(0, abs=1e-3)
    assert levels(clip_preprocess(images, 40)).max() == pytest.approx(255, abs=1e-3)


@pytest.mark.parametrize(("height", "width"), [(70, 90), (90, 70)])
def test_bands_make_the_same_view(height, width, monkeypatch):
    image = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0))
    whole = clip_preprocess(image, 32)
    monkeypatch.setattr(module, "BAND", 7 * width)
    assert torch.equal(clip_preprocess(image, 32), whole)


def test_levels_of_8_and_16_bit_are_those_of_floats():
    levels = torch.randint(0, 256, (1, 3, 50, 60), generator=torch.Generator().manual_seed(0))
    expected = clip_preprocess(levels / 255, 32)
    assert torch.equal(clip_preprocess(levels.to(torch.uint8), 32), expected)
    assert torch.equal(clip_preprocess((levels * 257).to(torch.uint16), 32), expected)


@pytest.mark.parametrize("dim", [2, 3])
def test_far_ends_of_a_narrow_image_are_not_looked_at(dim):
    image = torch.rand(1, 3, 2, 400, generator=torch.Generator().manual_seed(0))
    middle = image[..., 180:220]
    view, expected = (clip_preprocess(x.transpose(2, dim), 32) for x in (image, middle))
    assert torch.allclose(view, expected, atol=1e-5)


def test_half_precision_images_give_float32():
    images = torch.rand(1, 3, 40, 50).half()
    assert torch.equal(clip_preprocess(images, 32), clip_preprocess(images.float(), 32))


def test_windows_are_cut_at_the_image_s_own_scale_from_end_to_end():
    images = torch.randint(0, 256, (2, 3, 40, 72), generator=generator(0)).to(torch.uint8)
    views = clip_crops(images, 32, 3)
    assert views.shape == (2, 9, 3, 32, 32)
    for i, (top, left) in enumerate((t, x) for t in (0, 4, 8) for x in (0, 20, 40)):
        window = images[:, :, top : top + 32, left : left + 32]
        assert torch.equal(levels(views[:, i]).round(), window.float())


def test_windows_that_would_be_one_twice_are_one():
    images = torch.rand(1, 3, 20, 50, generator=generator(0))
    views = clip_crops(images, 32, 3)
    assert views.shape == (1, 3, 3, 32, 32)
    assert torch.equal(views[:, 0], clip_preprocess(images[..., :20], 32))
    assert clip_crops(images[..., :20], 32, 3).shape[1] == 1


def test_one_window_is_the_whole_image():
    images = torch.rand(2, 3, 50, 70, generator=generator(0))
    assert torch.equal(clip_crops(images, 32, 1)[:, 0], clip_preprocess(images, 32))


@pytest.mark.parametrize(("height", "width"), [(80, 100), (100, 80)])
def test_random_view_is_pillow_s_of_the_same_crop(height, width):
    image = noise(height, width)
    view = random_clip_preprocess(tensor(image), 64, (0.3, 1.0), [generator(5)])[0]
    (crop,) = random_crops([(height, width)], (0.3, 1.0), [generator(5)])
    right, bottom = crop.left + crop.width, crop.top + crop.height
    scaled = image.crop((crop.left, crop.top, right, bottom))
    scaled = scaled.resize((64, crop.height), Image.Resampling.BICUBIC)
    scaled = scaled.resize((64, 64), Image.Resampling.BICUBIC)
    assert_same(levels(view), tensor(scaled)[0] * 255)


def test_random_views_are_seeded_and_differ():
    images = torch.rand(1, 3, 60, 60).expand(4, -1, -1, -1)

    def views(*seeds):
        generators = [generator(seed) for seed in seeds]
        return random_clip_preprocess(images[: len(seeds)], 32, (0.9, 1.0), generators)

    found = views(1, 2, 1, 3)
    assert found.shape == (4, 3, 32, 32)
    assert torch.equal(found[0], found[2])
    assert not torch.equal(found[0], found[1])
    assert torch.equal(found[1:2], views(2))


@pytest.mark.parametrize(("height", "width"), [(256, 256), (200, 300), (300, 90)])
@pytest.mark.parametrize("scale", [(0.9, 1.0), (0.2, 0.7), (0.3, 0.31)])
def test_crops_are_distributed_as_torchvision_s(height, width, scale):
    """Means and spreads of place and size, over 4000 draws each, to five standard errors."""
    count = 4000
    torch.manual_seed(0)
    image = torch.empty(3, height, width)
    theirs = torch.tensor(
        [RandomResizedCrop.get_params(image, scale, (3 / 4, 4 / 3)) for _ in range(count)]
    ).double()
    ours = torch.tensor(
        random_crops([(height, width)] * count, scale, [generator(0)] * count)
    ).double()
    assert (ours >= 0).all()
    assert (ours[:, 0] + ours[:, 2] <= height).all()
    assert (ours[:, 1] + ours[:, 3] <= width).all()
    for moment in (1, 2):
        a, b = ours**moment, theirs**moment
        tolerance = 5 * ((a.var(dim=0) + b.var(dim=0)) / count).sqrt()
        assert ((a.mean(dim=0) - b.mean(dim=0)).abs() <= tolerance + 1e-9).all()


def test_crops_lie_everywhere():
    crops = random_crops([(8, 8)] * 2000, (0.5, 0.6), [generator(0)] * 2000)
    for height in {crop.height for crop in crops}:
        tops = {crop.top for crop in crops if crop.height == height}
        assert tops == set(range(8 - height + 1))
    for width in {crop.width for crop in crops}:
        lefts = {crop.left for crop in crops if crop.width == width}
        assert lefts == set(range(8 - width + 1))


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
