"""The synthetic birds: reproducible, fine-grained, and boxed where they are."""

import dataclasses

import numpy as np
import pytest

from fgkd.data import birds


@pytest.fixture(scope="module")
def flock():
    return birds.draw(8, 3, pixels=64, seed=5)


def test_the_same_call_draws_the_same_birds(flock):
    again = birds.draw(8, 3, pixels=64, seed=5)
    assert again.species == flock.species
    for field in ("images", "labels", "boxes"):
        np.testing.assert_array_equal(getattr(again, field), getattr(flock, field))


def test_pictures_labels_and_boxes_have_the_promised_shapes_and_types(flock):
    assert flock.images.shape == (24, 64, 64, 3) and flock.images.dtype == np.uint8
    assert (
        flock.labels.tolist() == [label for label in range(8) for _ in range(3)]
        and flock.labels.dtype == np.int64
    )
    assert flock.boxes.shape == (24, 4) and flock.boxes.dtype == np.int64
    assert len(flock.species) == 8


def test_a_larger_call_extends_a_smaller_one(flock):
    small = birds.draw(5, 2, pixels=64, seed=5)
    rows = [label * 3 + index for label in range(5) for index in range(2)]
    np.testing.assert_array_equal(small.images, flock.images[rows])
    np.testing.assert_array_equal(small.boxes, flock.boxes[rows])


def test_fewer_species_are_the_first_of_more():
    many = birds.species(50, seed=2)
    for count in (1, 4, 7, 49):
        assert birds.species(count, seed=2) == many[:count]


def test_no_two_pictures_of_a_species_nor_two_splits_are_alike(flock):
    other = birds.draw(8, 3, pixels=64, seed=5, split="test")
    every = np.concatenate([flock.images, other.images])
    assert len({image.tobytes() for image in every}) == len(every)


def test_render_draws_from_the_generator_it_is_given(flock):
    first, again, other = (
        birds.render(flock.species[0], pixels=64, rng=np.random.default_rng(key)) for key in (1, 1, 2)
    )
    np.testing.assert_array_equal(first[0], again[0])
    assert first[1] == again[1] and first[1] != other[1]


def test_siblings_share_plan_and_colours_and_differ_in_one_part_or_two():
    for size in (2, 4, 9, 16):
        world = birds.species(3 * size, seed=1, family_size=size)
        for start in range(0, len(world), size):
            family = world[start : start + size]
            assert len({(bird.family, bird.plan, bird.colours) for bird in family}) == 1
            for k, one in enumerate(family):
                for other in family[:k]:
                    assert 1 <= sum(a != b for a, b in zip(one.traits, other.traits, strict=True)) <= 2


def test_each_trait_is_an_option_of_its_part():
    for bird in birds.species(200):
        for trait, options in zip(bird.traits, birds.PARTS.values(), strict=True):
            assert trait in options


def test_each_option_of_a_part_changes_the_picture():
    bird = birds.species(1)[0]
    for place, options in enumerate(birds.PARTS.values()):
        looks = [
            dataclasses.replace(bird, traits=(*bird.traits[:place], o, *bird.traits[place + 1 :]))
            for o in options
        ]
        shown = {birds.render(look, pixels=64, rng=np.random.default_rng(0))[0].tobytes() for look in looks}
        assert len(shown) == len(options)


@pytest.mark.parametrize("family_size", [1, 4, 16])
def test_thousands_of_species_have_names_and_looks_of_their_own(family_size):
    world = birds.species(2000, seed=7, family_size=family_size)
    assert len({bird.name for bird in world}) == 2000
    assert len({(bird.plan, bird.colours, bird.traits) for bird in world}) == 2000


def test_another_seed_gives_other_families():
    study, pretext = birds.species(96, seed=0), birds.species(400, seed=1000)
    assert not {bird.name for bird in study} & {bird.name for bird in pretext}
    assert not {(bird.plan, bird.colours) for bird in study} & {(bird.plan, bird.colours) for bird in pretext}


def _painted(monkeypatch, bird, colour, pixels, seed):
    """The picture of a bird painted all over in one colour, and its box."""
    corners, polygons = birds._assemble(bird)
    with monkeypatch.context() as patch:
        patch.setattr(
            birds, "_assemble", lambda _: (corners, [(first, last, colour) for first, last, _ in polygons])
        )
        return birds.render(bird, pixels=pixels, rng=np.random.default_rng(seed))


@pytest.mark.parametrize("pixels", [32, 64, 225])
def test_the_box_holds_every_pixel_of_the_bird_and_hardly_more(monkeypatch, pixels):
    for seed, bird in enumerate(birds.species(40, seed=3)[:: 4 if pixels > 64 else 1]):
        dark, box = _painted(monkeypatch, bird, (0, 0, 0), pixels, seed)
        bright, _ = _painted(monkeypatch, bird, (255, 255, 255), pixels, seed)
        rows, columns = np.nonzero((dark != bright).any(axis=2))
        tight = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        slack = (tight - box) * (1, 1, -1, -1)
        assert slack.min() >= 0 and slack.max() <= 1


def test_boxes_lie_inside_the_picture_and_vary_in_place_and_size():
    boxes = birds.draw(24, 8, pixels=64).boxes
    wide, high = (boxes[:, 2:] - boxes[:, :2]).T
    assert boxes.min() >= 0 and boxes.max() <= 64
    area = wide * high / 64**2
    assert area.min() > 0.12 and area.max() < 0.8 and 0.25 < np.median(area) < 0.5
    assert np.ptp(boxes[:, 0]) > 20 and np.ptp(boxes[:, 1]) > 20 and np.ptp(wide) > 15


def test_a_change_of_plumage_changes_nothing_outside_the_box():
    for seed, bird in enumerate(birds.species(12)):
        other = dataclasses.replace(bird, colours=bird.colours[::-1])
        (first, box), (second, same) = (
            birds.render(b, pixels=64, rng=np.random.default_rng(seed)) for b in (bird, other)
        )
        x0, y0, x1, y1 = box
        assert box == same and (first != second).any()
        second[y0:y1, x0:x1] = first[y0:y1, x0:x1]
        np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: birds.species(0), "count=0"),
        (lambda: birds.species(10**6), "count=1000000"),
        (lambda: birds.species(4, family_size=0), "family_size=0"),
        (lambda: birds.species(4, family_size=17), "family_size=17"),
        (lambda: birds.draw(2, 0), "per_species=0"),
        (lambda: birds.draw(1, 1, pixels=15), "pixels=15"),
    ],
)
def test_an_impossible_request_is_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call()
