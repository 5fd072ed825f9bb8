"Augmentation at its edges: no images, other shapes and numbers, the input and the global generator left alone, stored results."

from importlib import resources

import pytest
import torch

from fmtut.augmentation import bilinear, flip, random_crop, rotate
from fmtut.environment import load_result

EVERY = {"rotate": lambda images: rotate(images, 17.0), "random_crop": lambda images: random_crop(images, 2), "flip": lambda images: flip(images)}
every = pytest.mark.parametrize("augment", EVERY.values(), ids=EVERY)


@every
@pytest.mark.parametrize("shape", [(0, 8, 8), (1, 1, 1), (3, 5, 9), (2, 1, 6)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_shape_and_type_stay(augment, shape, dtype):
    result = augment(torch.rand(shape).to(dtype))
    assert result.shape == shape and result.dtype == dtype and result.isfinite().all()


@every
def test_input_stays_and_is_not_shared(augment):
    images = torch.rand(16, 8, 8)
    kept = images.clone()
    augment(images).add_(1)
    assert torch.equal(images, kept)


@every
@pytest.mark.parametrize("images", [torch.rand(8, 8), torch.rand(2, 3, 8, 8), torch.zeros(2, 8, 8, dtype=torch.uint8)])
def test_wrong_images_are_refused(augment, images):
    with pytest.raises(ValueError, match="give floating-point numbers of shape"):
        augment(images)


@pytest.mark.parametrize("size", [1, 2, 7, 8, 33])
def test_quarter_turns_are_exact(size):
    images = torch.randn(4, size, size, dtype=torch.float64) * (1e12 * (torch.rand(4, size, size) < 0.3)) # zeros beside large numbers
    for turns in range(-5, 6):
        assert torch.equal(rotate(images, 90 * turns), images.rot90(turns % 4, (1, 2)))


@pytest.mark.parametrize("shape", [(4, 8, 8), (4, 5, 12)])
def test_nothing_changes_at_zero(shape):
    images = torch.randn(shape)
    for result in (rotate(images, 0), rotate(images, torch.zeros(4)), random_crop(images, 0), flip(images, 0)):
        assert torch.equal(result, images)


def test_a_turn_stays_in_range_and_back_again_is_near():
    images = torch.zeros(8, 41, 41)
    i = torch.arange(41.0) - 20
    images += torch.exp(-(i[:, None] ** 2 + i**2) / 60) * (1 + i / 30) # smooth, and 0 at the border
    degrees = torch.rand(8) * 360
    turned = rotate(images, degrees)
    assert turned.min() >= images.min() - 1e-6 and turned.max() <= images.max() + 1e-6
    torch.testing.assert_close(rotate(turned, -degrees), images, rtol=0, atol=0.02)


def test_positions_anywhere_give_zero_outside():
    far = torch.tensor([[-1e9, -1.0, 8.0, 1e9]])
    assert (bilinear(torch.ones(1, 8, 8), far, torch.full_like(far, 3)) == 0).all()
    assert (bilinear(torch.ones(1, 8, 8), torch.full_like(far, 3), far) == 0).all()


@pytest.mark.parametrize("shapes", [[(1, 5), (1, 5)], [(4, 5), (4, 5)], [(3, 5), (1, 5)], [(3, 5), (3, 4)], [(), ()]])
def test_positions_of_another_shape_are_refused(shapes):
    with pytest.raises(ValueError, match="with positions for 3 images"):
        bilinear(torch.rand(3, 8, 8), *map(torch.zeros, shapes))


def test_one_position_for_each_image():
    images = torch.rand(3, 8, 8)
    assert torch.equal(bilinear(images, torch.tensor([1, 2, 3]), torch.tensor([4, 0, 7])), images[range(3), [1, 2, 3], [4, 0, 7]])


@pytest.mark.parametrize("dtype, size", [(torch.float16, 64), (torch.bfloat16, 200), (torch.float32, 5000)])
def test_positions_of_few_digits_find_their_pixels(dtype, size):
    i = torch.arange(size)[-64:].to(dtype)
    images, places = torch.rand(1, size, size), i.long()
    found = bilinear(images, *(grid[None] for grid in torch.meshgrid(i, i, indexing="ij")))
    assert torch.equal(found[0], images[0][places][:, places])


def test_nan_is_refused_and_infinity_is_outside():
    images, zero = torch.ones(1, 8, 8), torch.zeros(1, 1)
    for rows, columns in ((zero + float("nan"), zero), (zero, zero + float("nan"))):
        with pytest.raises(ValueError, match="a position is NaN"):
            bilinear(images, rows, columns)
    assert bilinear(images, zero + float("inf"), zero - float("inf")) == 0
    for degrees in float("nan"), float("inf"), torch.tensor([float("nan")]):
        with pytest.raises(ValueError, match="an angle that is not finite"):
            rotate(images, degrees)


@pytest.mark.parametrize("turns", [10_001, 100_001, 1_000_003, -999_999_999])
def test_many_quarter_turns_are_exact(turns):
    images = torch.rand(2, 5, 5)
    assert torch.equal(rotate(images, 90 * turns), images.rot90(turns % 4, (1, 2)))


def test_no_gradient_reaches_the_angle():
    degrees = torch.tensor(3.0, requires_grad=True) # a gradient of 0 would be silent
    assert not rotate(torch.rand(1, 8, 8), degrees).requires_grad


def test_rotation_lets_gradients_through():
    images = torch.rand(2, 4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: rotate(x, torch.tensor([20.0, -75.0])), images)


@pytest.mark.parametrize("augment", [lambda images, g: random_crop(images, 2, g), lambda images, g: flip(images, 0.5, g)], ids=["random_crop", "flip"])
def test_a_generator_decides_alone(augment):
    images = torch.rand(64, 8, 8)
    before = torch.get_rng_state()
    first, again, other = (augment(images, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("degrees", [torch.zeros(1), torch.zeros(4, 1), [1.0, 2.0]])
def test_wrong_number_of_angles_is_refused(degrees):
    with pytest.raises(ValueError, match="give one angle, or one for each"):
        rotate(torch.rand(4, 8, 8), degrees)


def test_stored_results_have_five_seeds():
    stored = load_result("17_augmentation")
    assert len(stored["seeds"]) == 5 and (resources.files("fmtut") / "results" / "17_augmentation.json").stat().st_size < 40_000
    for values in stored["curve"].values():
        assert len(values) == len(stored["sizes"]) and all(len(row) == 5 for row in values)
    for values in stored["longer"].values():
        assert len(values) == 2 and all(len(row) == 5 for row in values)
