"""A view is a pure function of (seed, epoch, index), and cutting is slicing."""

import numpy as np
import pytest
import torch

from fgkd.data import views


def draw(n, **changes):
    return views.sample_views(n, **({"seed": 5, "epoch": 2, "resize": 36, "crop": 32} | changes))


def rows(seen):
    return torch.stack([seen.top, seen.left, seen.flip.long()], 1)


@pytest.fixture
def images():
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (40, 36, 36, 3), dtype=np.uint8))


def test_an_images_view_does_not_depend_on_how_many_there_are():
    assert torch.equal(rows(draw(1000))[:7], rows(draw(7)))


def test_a_view_is_the_same_each_time_and_leaves_global_randomness_alone():
    before = torch.get_rng_state()
    assert torch.equal(rows(draw(50)), rows(draw(50)))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("change", [{"epoch": 3}, {"seed": 6}, {"seed": 2, "epoch": 5}])
def test_another_epoch_or_seed_gives_other_views(change):
    assert (rows(draw(200)) != rows(draw(200, **change))).any(1).float().mean() > 0.9


def test_views_are_the_same_on_every_machine():
    assert rows(draw(4)).tolist() == [[1, 2, 0], [3, 0, 1], [0, 0, 1], [0, 2, 1]]
    assert rows(draw(2, seed=2**63 - 1, epoch=0)).tolist() == [[0, 2, 0], [1, 2, 0]]


def test_crops_reach_every_place_equally_and_half_are_flipped():
    seen = draw(20_000)
    for corner in (seen.top, seen.left):
        counts = torch.bincount(corner, minlength=5)
        assert len(counts) == 5 and counts.min() > 3700 and counts.max() < 4300
    assert seen.flip.float().mean().item() == pytest.approx(0.5, abs=0.02)
    assert abs(np.corrcoef(seen.top, seen.left)[0, 1]) < 0.03


def test_a_crop_of_the_whole_image_has_one_place():
    seen = draw(50, crop=36)
    assert not seen.top.any() and not seen.left.any() and seen.flip.any()


@pytest.mark.parametrize("resize, crop, corner", [(36, 32, 2), (36, 36, 0), (35, 32, 1), (300, 224, 38)])
def test_the_centre_view_is_in_the_middle_and_not_flipped(resize, crop, corner):
    seen = views.centre(3, resize=resize, crop=crop)
    assert rows(seen).tolist() == [[corner, corner, 0]] * 3


def test_cutting_equals_slicing_each_image(images):
    seen = draw(40)
    assert seen.flip.any() and not seen.flip.all()
    found = views.crop_batch(images, seen, 32)
    assert found.dtype == torch.uint8 and found.shape == (40, 3, 32, 32)
    for i, image in enumerate(images.numpy()):
        top, left = seen.top[i], seen.left[i]
        expected = image[top : top + 32, left : left + 32]
        expected = expected[:, ::-1] if seen.flip[i] else expected
        assert np.array_equal(found[i].permute(1, 2, 0).numpy(), expected)


def test_a_gpu_s_way_of_cutting_gives_the_same_pixels(images):
    seen = draw(40)
    assert torch.equal(views._gather_crops(images, seen, 32), views.crop_batch(images, seen, 32))


def test_the_order_of_a_batch_does_not_change_an_images_view(images):
    seen, index = draw(40), torch.tensor([31, 4, 4, 17])
    found = views.crop_batch(images[index], seen[index], 32)
    assert torch.equal(found, views.crop_batch(images, seen, 32)[index])


def test_a_batch_of_views_is_channels_last(images):
    assert views.crop_batch(images, draw(40), 32).is_contiguous(memory_format=torch.channels_last)


def test_the_colour_of_a_drop_is_imagenets_wherever_it_was_first_asked_for(images):
    """It is kept: also where that was under inference mode, whose tensors no gradient may pass."""
    views._mean_colour.cache_clear()
    pixels, everywhere = images.permute(0, 3, 1, 2).float(), torch.full((40, 4, 4), 2.0).half()
    with torch.inference_mode():
        seen = views.drop(pixels, everywhere)
    torch.testing.assert_close(seen[7, :, 3, 5], 255 * torch.tensor([0.485, 0.456, 0.406]))
    pixels.requires_grad_()
    again = views.drop(pixels, everywhere)
    again.sum().backward()
    assert torch.equal(again, seen) and not pixels.grad.any()
