"""Synthetic birds: families of sibling species that differ in one or two small parts.

They stand in for CUB-200-2011 (Wah et al., 2011) wherever pictures have to be free, small and reproducible. A family is a
body plan and a palette ("azure tern"). Its siblings share both and fill a grid over two of the nine `PARTS`, so any two of
them differ in one part or two. Pose, place, scale, scenery, light and sensor noise vary from picture to picture and say
nothing about the species.

Birds are drawn as flat polygons in a frame of their own: facing right, y upwards, half a body length as the unit.
"""

import math
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

PARTS = {
    "beak": ("short beak", "long beak", "stout beak", "curved beak"),
    "tail": ("square tail", "forked tail", "rounded tail", "pointed tail"),
    "wing": ("plain wings", "one wing bar", "two wing bars", "wing patch"),
    "crest": ("no crest", "swept crest", "upright crest", "nape tuft"),
    "crown": ("plain crown", "black cap", "chestnut cap", "white crown"),
    "eye": ("plain eye", "eye ring", "eye stripe", "pale brow"),
    "throat": ("plain throat", "black bib", "white throat", "rufous throat"),
    "breast": ("plain breast", "spotted breast", "streaked breast", "banded breast"),
    "legs": ("black legs", "yellow legs", "red legs", "blue legs"),
}


class Plan(NamedTuple):
    """A family's proportions in half body lengths; `pitch` and `cock` (of the tail) in degrees."""

    depth: float
    head: float
    neck: float
    tail: float
    wing: float
    leg: float
    pitch: float
    cock: float


PLANS = {
    "tern": Plan(0.50, 0.36, 0.02, 0.95, 0.45, 0.35, 6, 0),
    "wren": Plan(0.70, 0.43, 0.03, 0.60, -0.15, 0.50, 8, 45),
    "warbler": Plan(0.60, 0.41, 0.05, 0.75, 0.00, 0.50, 16, 0),
    "finch": Plan(0.64, 0.45, 0.05, 0.70, 0.05, 0.40, 24, -4),
    "sparrow": Plan(0.66, 0.43, 0.02, 0.75, 0.00, 0.45, 14, 4),
    "thrush": Plan(0.64, 0.40, 0.12, 0.75, 0.08, 0.65, 30, -8),
    "pipit": Plan(0.53, 0.36, 0.10, 0.85, 0.00, 0.60, 20, -6),
    "wagtail": Plan(0.54, 0.37, 0.06, 1.15, 0.00, 0.60, 8, 8),
    "tit": Plan(0.72, 0.50, 0.02, 0.70, -0.05, 0.40, 20, -4),
    "swallow": Plan(0.48, 0.39, 0.00, 0.95, 0.50, 0.25, 22, -6),
    "starling": Plan(0.62, 0.38, 0.10, 0.55, 0.12, 0.60, 26, -6),
    "plover": Plan(0.64, 0.46, 0.10, 0.50, 0.10, 0.85, 12, -8),
    "robin": Plan(0.74, 0.46, 0.05, 0.65, 0.00, 0.60, 28, 4),
    "flycatcher": Plan(0.57, 0.43, 0.06, 0.80, 0.12, 0.30, 40, -8),
    "jay": Plan(0.62, 0.44, 0.10, 1.00, 0.00, 0.55, 20, -4),
    "chat": Plan(0.65, 0.44, 0.10, 0.60, 0.02, 0.70, 32, 0),
}

# 21 and 16 have no common factor, so counting both round at once meets every pair of a colour and a body plan.
BACKS = {
    "azure": (74, 138, 200), "slate": (104, 118, 136), "olive": (124, 128, 66), "chestnut": (146, 84, 52),
    "golden": (214, 166, 58), "ashy": (146, 146, 142), "teal": (48, 134, 136), "rosy": (200, 118, 122),
    "umber": (112, 88, 66), "scarlet": (190, 62, 52), "moss": (92, 126, 74), "lilac": (142, 120, 174),
    "sandy": (190, 158, 112), "cobalt": (62, 88, 166), "amber": (208, 134, 56), "jade": (82, 158, 112),
    "plum": (124, 74, 110), "smoky": (112, 108, 112), "russet": (172, 98, 62), "lemon": (206, 194, 82),
    "cerulean": (92, 164, 190),
}  # fmt: skip
BELLIES = ((244, 240, 228), (236, 218, 178), (240, 206, 190), (240, 226, 140), (214, 220, 224), (226, 208, 226), (208, 222, 190))
BEAKS = ((58, 54, 54), (112, 96, 78), (226, 142, 48), (206, 178, 112))
LEGS = dict(zip(PARTS["legs"], ((44, 40, 40), (236, 196, 48), (206, 62, 48), (86, 130, 186))))
RANGES = (
    "", "northern ", "southern ", "eastern ", "western ", "mountain ", "lowland ", "island ",
    "forest ", "desert ", "marsh ", "river ", "coastal ", "meadow ", "polar ", "tropical ",
)  # fmt: skip
# The two ends of the out-of-focus gradient (top, bottom), then the colours of the leaves, waves or clouds on it.
SCENES = (
    ((150, 190, 226), (216, 226, 230), (236, 240, 242), (190, 206, 220), (120, 150, 110)),
    ((96, 134, 80), (60, 96, 58), (130, 160, 84), (74, 110, 66), (168, 172, 96)),
    ((150, 176, 182), (82, 124, 142), (178, 198, 200), (98, 138, 150), (140, 130, 104)),
    ((206, 190, 152), (140, 122, 92), (168, 150, 108), (190, 178, 140), (118, 124, 78)),
)
BLACK, WHITE, RUFOUS, BARK = (40, 38, 42), (248, 246, 240), (166, 84, 48), (104, 82, 64)

Colour = tuple[int, int, int]
Shape = tuple[np.ndarray, Colour]


@dataclass(frozen=True)
class Species:
    """One species. `traits` has one option of each of `PARTS`, in that order; `colours` are back, belly, wing and beak."""

    name: str
    family: str
    traits: tuple[str, ...]
    plan: Plan
    colours: tuple[Colour, Colour, Colour, Colour]


@dataclass(frozen=True)
class Birds:
    """Pictures sorted by species: images (N, P, P, 3) uint8, labels (N,) int64 into `species`, boxes (N, 4) int64 in pixels."""

    images: np.ndarray
    labels: np.ndarray
    boxes: np.ndarray
    species: tuple[Species, ...]


def species(count: int, *, seed: int = 0, family_size: int = 4) -> tuple[Species, ...]:
    """The first `count` species of the world `seed`; `species(n)[:k] == species(k)`.

    Families come in whole: species `s` belongs to family `s // family_size`. Another seed gives other families.
    Raises ValueError if `count` < 1, if a family cannot have that many siblings, or if the names run out.
    """
    most = len(PARTS["beak"]) ** 2
    if not 1 <= family_size <= most:
        raise ValueError(f"family_size={family_size}: two parts give a family 1 to {most} siblings; choose within that.")
    limit = len(RANGES) * len(BACKS) * len(PLANS) * family_size
    if not 1 <= count <= limit:
        raise ValueError(f"count={count}: with family_size={family_size} there are 1 to {limit} species; choose within that.")
    families = math.ceil(count / family_size)
    return tuple(bird for index in range(families) for bird in _family(index, seed, family_size))[:count]


def draw(
    count: int, per_species: int, *, pixels: int = 64, seed: int = 0, split: str = "train", family_size: int = 4
) -> Birds:
    """`per_species` pictures of each of the first `count` species, sorted by species: N = count * per_species.

    Picture i of species s depends on (seed, split, s, i) alone, so a larger call extends a smaller one; at another `pixels`
    it is the same scene with fresh sensor noise. `split` is any string. Raises ValueError if a number is out of range.
    """
    if per_species < 1:
        raise ValueError(f"per_species={per_species}: expected at least 1 picture of each species.")
    chosen = species(count, seed=seed, family_size=family_size)
    images = np.empty((count * per_species, pixels, pixels, 3), dtype=np.uint8)
    boxes = np.empty((count * per_species, 4), dtype=np.int64)
    for label, bird in enumerate(chosen):
        shapes = _bird(bird)
        for index in range(per_species):
            rng = np.random.default_rng([seed, zlib.crc32(split.encode()), label, index])
            row = label * per_species + index
            images[row], boxes[row] = _picture(shapes, bird.plan, pixels, rng)
    return Birds(images, np.repeat(np.arange(count), per_species), boxes, chosen)


def render(species: Species, *, pixels: int, rng: np.random.Generator) -> tuple[np.ndarray, tuple[int, int, int, int]]:
    """One picture: uint8 (pixels, pixels, 3), and the bird's box (x0, y0, x1, y1) in pixels, exclusive of x1 and y1.

    The box is inside the picture and tight to a pixel. Raises ValueError if `pixels` is too few to show a bird (16).
    """
    return _picture(_bird(species), species.plan, pixels, rng)


def _family(index: int, seed: int, size: int) -> list[Species]:
    pairs = len(BACKS) * len(PLANS)
    world = np.random.default_rng([seed, 0])
    back = world.permutation(list(BACKS))[index % len(BACKS)]
    noun = world.permutation(list(PLANS))[index % len(PLANS)]
    name = f"{RANGES[(seed + index // pairs) % len(RANGES)]}{back} {noun}"
    rng = np.random.default_rng([seed, 1, index])
    plan = Plan(*(value * rng.uniform(0.93, 1.07) for value in PLANS[noun]))
    base = np.clip(np.array(BACKS[back]) + rng.integers(-12, 13, 3), 0, 255)
    wing = base * rng.uniform(0.55, 0.75) + np.array(BLACK) * 0.15
    colours = tuple(_rgb(c) for c in (base, BELLIES[rng.integers(len(BELLIES))], wing, BEAKS[rng.integers(len(BEAKS))]))
    # Half of the parts stay plain, the first option, or every bird would wear every ornament.
    common = [str(options[max(0, rng.integers(-3, 4))]) for options in PARTS.values()]
    first, second = sorted(rng.choice(len(PARTS), 2, replace=False))
    side = math.ceil(math.sqrt(size))
    options = list(PARTS.values())
    one, two = (sorted(rng.choice(4, side, replace=False)) for _ in range(2))
    siblings = []
    for cell in range(size):
        traits = list(common)
        traits[first], traits[second] = options[first][one[cell // side]], options[second][two[cell % side]]
        full = f"{name}, {traits[first]}, {traits[second]}"
        siblings.append(Species(full, name, tuple(traits), plan, colours))
    return siblings


def _bird(bird: Species) -> dict[str, list[Shape]]:
    """The polygons of a bird in drawing order, by the joint that they turn with."""
    return {"legs": _legs(bird), "tail": _tail(bird), "body": _body(bird), "head": _head(bird), "wing": _wing(bird)}


def _legs(bird: Species) -> list[Shape]:
    colour, depth, leg = LEGS[bird.traits[8]], bird.plan.depth, bird.plan.leg
    shapes = []
    for x, shade in ((0.22, 0.8), (-0.05, 1.0)):
        ankle = (x + 0.08, -depth - leg)
        lines = [((x - 0.08, -0.8 * depth), ankle), (ankle, (x + 0.36, ankle[1] - 0.05)), (ankle, (x - 0.12, ankle[1] - 0.04))]
        shapes += [(_line(a, b, 0.055), _rgb(np.array(colour) * shade)) for a, b in lines]
    return shapes


def _tail(bird: Species) -> list[Shape]:
    length, colour = bird.plan.tail, bird.colours[2]
    end = -0.8 - length
    ends = {
        "square tail": [(end, 0.24), (end - 0.02, -0.16)],
        "forked tail": [(end - 0.3, 0.32), (end + 0.32, 0.04), (end - 0.3, -0.24)],
        "rounded tail": [(end + 0.25, 0.36), (end - 0.08, 0.2), (end - 0.08, -0.12), (end + 0.25, -0.28)],
        "pointed tail": [(end + 0.3, 0.18), (end - 0.4, 0.04), (end + 0.3, -0.1)],
    }[bird.traits[1]]
    shapes = [(np.array([(-0.6, 0.2), *ends, (-0.6, -0.16)]), colour)]
    dark = _rgb(np.array(colour) * 0.78)
    return shapes + [(_line((-0.8, y), (end + 0.3, 1.4 * y), 0.015), dark) for y in (0.1, -0.04)]


def _body(bird: Species) -> list[Shape]:
    back, belly, _, _ = bird.colours
    plan, breast = bird.plan, bird.traits[7]
    d, (x, y), r = plan.depth, _skull(plan), plan.head
    tall = np.array([1, d])
    outline = [(-1.15, 0.1), (-0.6, 0.6), (0.1, 1.02), (0.7, 1.0), (1.08, 0.3), (0.8, -0.75), (0.2, -1.1), (-0.5, -0.8)]
    front = [(-1.0, -0.15), (-0.2, -0.1), (0.5, 0.3), (0.86, 0.95), (1.07, 0.3), (0.8, -0.75), (0.2, -1.1), (-0.5, -0.8)]
    under = [(-0.8, -0.45), (0.1, -0.85), (0.9, -0.3), (0.8, -0.72), (0.2, -1.1), (-0.5, -0.8)]
    neck = np.array([(-0.1, 0.85 * d), (x - 1.05 * r, y + 0.2 * r), (x + 0.9 * r, y), (1.0, 0.3 * d), (0.5, 0.2 * d)])
    shapes = [(_smooth(np.array(outline) * tall), back), (_smooth(neck), back), (_smooth(np.array(front) * tall), belly)]
    shapes.append((_smooth(np.array(under) * tall), _rgb(np.array(belly) * 0.87)))
    if breast == "spotted breast":
        places = [(0.62, 0.3), (0.86, 0.25), (0.5, -0.1), (0.76, -0.12), (0.38, -0.48), (0.64, -0.5), (0.14, -0.72)]
        shapes += [(_disc(a, b * d, 0.065), BLACK) for a, b in places]
    if breast == "streaked breast":
        places = [(0.6, 0.1), (0.76, 0.15), (0.9, 0.1), (0.45, -0.4), (0.62, -0.4), (0.25, -0.65)]
        shapes += [(_line((a, b * d + 0.13), (a - 0.1, b * d - 0.13), 0.035), BLACK) for a, b in places]
    if breast == "banded breast":
        band = np.array([(0.3, 0.12), (0.6, 0.2), (1.02, 0.42), (1.02, 0.12), (0.62, -0.1), (0.36, -0.12)])
        shapes.append((_smooth(band * tall, rounds=1), BLACK))
    return shapes


def _head(bird: Species) -> list[Shape]:
    back, belly, wing, _ = bird.colours
    crest, crown, eye, throat = bird.traits[3:7]
    centre, r = np.array(_skull(bird.plan)), bird.plan.head
    cap = {"plain crown": back, "black cap": BLACK, "chestnut cap": RUFOUS, "white crown": WHITE}[crown]
    bib = {"plain throat": belly, "black bib": BLACK, "white throat": WHITE, "rufous throat": RUFOUS}[throat]
    crests = {
        "no crest": [],
        "swept crest": [(0.35, 0.8), (-0.5, 1.2), (-1.45, 1.15), (-0.85, 0.5)],
        "upright crest": [(0.45, 0.85), (-0.1, 1.75), (-0.6, 0.7)],
        "nape tuft": [(-0.5, 0.8), (-1.5, 0.45), (-1.25, 0.1), (-0.85, -0.1)],
    }[crest]
    shapes = [(np.array(crests), cap)] if crests else []
    shapes += _beak(bird) + [(_disc(0, 0, 1), back)]
    shapes.append((_smooth([(1.0, -0.2), (0.4, -0.22), (-0.1, -0.6), (-0.1, -1.15), (0.65, -1.1), (0.95, -0.6)]), bib))
    if crown != "plain crown":
        shapes.append((_smooth([(1.05, 0.3), (0.75, 0.95), (0.0, 1.15), (-0.8, 0.85), (-1.1, 0.15), (-0.3, 0.42)]), cap))
    if eye == "eye stripe":
        shapes.append((np.array([(0.98, 0.1), (0.35, 0.38), (-0.95, 0.12), (-0.95, -0.12), (0.35, 0.02)]), BLACK))
    if eye == "pale brow":
        shapes.append((np.array([(0.92, 0.38), (0.3, 0.66), (-0.9, 0.4), (-0.9, 0.24), (0.3, 0.42)]), WHITE))
    if eye == "eye ring":
        shapes.append((_disc(0.38, 0.18, 0.38), WHITE))
    shapes += [(_disc(0.38, 0.18, 0.2), (22, 20, 22)), (_disc(0.44, 0.25, 0.07), WHITE)]
    return [(centre + r * np.asarray(points), colour) for points, colour in shapes]


def _beak(bird: Species) -> list[Shape]:
    colour = bird.colours[3]
    upper, lower = {
        "short beak": ([(0.8, 0.3), (1.6, -0.02), (0.9, -0.02)], [(0.9, 0.0), (1.55, -0.02), (0.85, -0.22)]),
        "long beak": ([(0.8, 0.25), (2.35, -0.08), (0.9, -0.02)], [(0.9, 0.0), (2.2, -0.09), (0.85, -0.22)]),
        "stout beak": ([(0.7, 0.5), (1.25, 0.4), (1.65, -0.1), (0.9, -0.05)], [(0.9, 0.0), (1.5, -0.1), (0.8, -0.5)]),
        "curved beak": (
            [(0.8, 0.28), (1.5, 0.15), (1.9, -0.15), (2.1, -0.6), (1.65, -0.2), (0.9, -0.02)],
            [(0.9, 0.0), (1.5, -0.1), (1.8, -0.35), (1.4, -0.22), (0.85, -0.22)],
        ),
    }[bird.traits[0]]
    return [(np.array(lower), _rgb(np.array(colour) * 0.75)), (np.array(upper), colour)]


def _wing(bird: Species) -> list[Shape]:
    back, _, colour, _ = bird.colours
    mark, tip = bird.traits[2], -1.0 - bird.plan.wing
    tall = np.array([1, bird.plan.depth])
    outline = _smooth([(0.55, 0.5), (0.2, 0.75), (-0.5, 0.6), (tip, 0.15), (tip, 0.05), (-0.5, -0.25), (0.25, -0.4), (0.6, 0.0)])
    coverts = _smooth([(0.55, 0.5), (0.2, 0.75), (-0.3, 0.6), (-0.25, 0.1), (0.0, -0.2), (0.25, -0.38), (0.6, 0.0)])
    shapes = [(outline, colour), (coverts, _rgb((np.array(colour) + np.array(back)) / 2))]
    dark = _rgb(np.array(colour) * 0.72)
    shapes += [(_line((-0.25, y), (tip + 0.25 + 0.2 * k, 0.14 - 0.03 * k), 0.025), dark) for k, y in enumerate((0.3, 0.1, -0.1))]
    bars = {"one wing bar": (-0.14,), "two wing bars": (-0.14, 0.16)}.get(mark, ())
    for x in bars:
        bar = [(x - 0.1, 0.58), (x, 0.58), (x + 0.02, 0.2), (x + 0.16, -0.2), (x + 0.05, -0.24), (x - 0.1, 0.15)]
        shapes.append((np.array(bar), WHITE))
    if mark == "wing patch":
        shapes.append((_smooth([(-0.35, 0.4), (0.0, 0.42), (0.02, 0.0), (-0.3, 0.0)], rounds=2), WHITE))
    return [(np.asarray(points) * tall, tone) for points, tone in shapes]


def _picture(
    bird: dict[str, list[Shape]], plan: Plan, pixels: int, rng: np.random.Generator
) -> tuple[np.ndarray, tuple[int, int, int, int]]:
    if pixels < 16:
        raise ValueError(f"pixels={pixels}: a bird needs at least 16 pixels a side.")
    over = 3 if pixels < 128 else 2
    side = pixels * over
    points, feet = _pose(bird, plan, rng)
    picture = _scenery(side, feet, rng)
    pen = ImageDraw.Draw(picture)
    colours = [colour for shapes in bird.values() for _, colour in shapes]
    for polygon, colour in zip(points, colours, strict=True):
        pen.polygon((polygon * side).ravel().tolist(), fill=colour)
    low, high = _extent(points)
    x0, y0 = np.floor(low * pixels).astype(int).tolist()
    # Pillow paints the pixel that an edge ends in.
    x1, y1 = (np.floor(np.ceil(high * side) / over).astype(int) + 1).tolist()
    return _develop(picture.reduce(over), rng), (x0, y0, min(x1, pixels), min(y1, pixels))


def _pose(bird: dict[str, list[Shape]], plan: Plan, rng: np.random.Generator) -> tuple[list[np.ndarray], np.ndarray]:
    """The polygons and the point between the feet, in fractions of the picture, y downwards."""
    pitch, nod, wag, droop = rng.normal(0, 1, 4).clip(-2, 2) * (8, 7, 7, 3) + (plan.pitch, 0, plan.cock, 0)
    pivots = {"head": (0.6, 0.6 * plan.depth), "tail": (-0.75, 0.0), "wing": (0.4, 0.2 * plan.depth)}
    turns = {"head": nod - 0.6 * plan.pitch, "tail": -wag, "wing": droop, "legs": -0.8 * plan.pitch}
    flip, squeeze = rng.choice([-1, 1]), rng.uniform(0.88, 1.0)
    points = []
    for joint, shapes in bird.items():
        pivot = np.array(pivots.get(joint, (0.0, -0.8 * plan.depth)))
        inner, outer = _turn(turns.get(joint, 0.0)), _turn(pitch)
        points += [(((p - pivot) @ inner + pivot) @ outer) * (flip * squeeze, -1) for p, _ in shapes]
    low, high = _extent(points)
    scale = min(rng.uniform(0.165, 0.27), 0.94 / (high - low).max())
    room = 1 - (high - low) * scale
    corner = room * rng.uniform(0.03, 0.97, 2)
    points = [corner + (p - low) * scale for p in points]
    return points, np.mean([points[1].mean(0), points[4].mean(0)], axis=0)


def _scenery(side: int, feet: np.ndarray, rng: np.random.Generator) -> Image.Image:
    """A background out of focus, with blobs in the colours of birds, and a sharp perch under the feet."""
    top, bottom, *tones = SCENES[rng.integers(len(SCENES))]
    ends = np.array([top, bottom])[:, None] + rng.normal(0, 14, (2, 4, 3))
    small = Image.fromarray(ends.clip(0, 255).astype(np.uint8)).resize((48, 48), Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(small)
    tones = tones * 5 + [*BACKS.values(), *BELLIES, BLACK]
    blobs = rng.integers(8, 22)
    spots = rng.uniform((-4, -4, 2, 1), (52, 52, 9, 7), (blobs, 4))
    for (x, y, a, b), tone in zip(spots.tolist(), rng.integers(len(tones), size=blobs).tolist()):
        pen.ellipse((x - a, y - b, x + a, y + b), fill=tones[tone])
    picture = small.resize((side, side), Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(picture)
    tilt, thick, bend = rng.uniform((-0.25, 0.02, -0.1), (0.25, 0.05, 0.1))
    bark = _rgb(np.array(BARK) * rng.uniform(0.6, 1.4))
    left, right = feet + (-1, -tilt + bend), feet + (1, tilt + bend)
    below = np.array([0, thick])
    perch = np.array([left, feet - (0, 0.004), right, right + 0.6 * below, feet + below, left + 1.2 * below])
    pen.polygon((perch * side).ravel().tolist(), fill=bark)
    for x, lean, size in rng.uniform((-0.6, -1, 0.04), (0.6, 1, 0.1), (rng.integers(0, 7), 3)):
        stem = feet + (x, x * (tilt + np.sign(x) * bend) + 0.3 * thick)
        tip = stem + size * np.array([lean, 1.5 * np.sign(lean) * np.sqrt(1 - lean * lean)])
        leaf = _leaf(stem, tip)
        pen.polygon((leaf * side).ravel().tolist(), fill=tones[int(20 * abs(lean)) % len(tones)])
    return picture


def _develop(picture: Image.Image, rng: np.random.Generator) -> np.ndarray:
    """Light with a tint and a direction, then sensor noise."""
    image = np.asarray(picture).astype(np.float32)
    gain = rng.uniform(0.72, 1.18) * rng.uniform(0.93, 1.07, 3)
    across, down = np.linspace(-1, 1, len(image)) * rng.uniform(-0.15, 0.15, (2, 1))
    light = 1 + across[None, :] + down[:, None]
    image *= (light[..., None] * gain).astype(np.float32)
    image += rng.standard_normal(image.shape, dtype=np.float32) * np.float32(rng.uniform(2, 9))
    return image.clip(0, 255).astype(np.uint8)


def _skull(plan: Plan) -> tuple[float, float]:
    return 0.78, 0.85 * plan.depth + plan.neck + 0.1


def _extent(points: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    every = np.concatenate(points)
    return every.min(0), every.max(0)


def _rgb(colour: Iterable[float]) -> Colour:
    red, green, blue = (int(min(max(value, 0), 255)) for value in colour)
    return red, green, blue


def _turn(degrees: float) -> np.ndarray:
    """A rotation, anticlockwise with y upwards, for row vectors."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return np.array([[cos, sin], [-sin, cos]])


def _smooth(corners: Iterable[tuple[float, float]], *, rounds: int = 3) -> np.ndarray:
    """Chaikin's corner cutting (1974) of a closed polygon: (K, 2) to (K * 2 ** rounds, 2)."""
    points = np.asarray(corners, dtype=float)
    for _ in range(rounds):
        after = np.roll(points, -1, axis=0)
        points = np.stack([0.75 * points + 0.25 * after, 0.25 * points + 0.75 * after], axis=1).reshape(-1, 2)
    return points


def _disc(x: float, y: float, radius: float) -> np.ndarray:
    angles = np.linspace(0, 2 * np.pi, 20, endpoint=False)
    return np.stack([x + radius * np.cos(angles), y + radius * np.sin(angles)], axis=1)


def _line(start: tuple[float, float], end: tuple[float, float], width: float) -> np.ndarray:
    a, b = np.array(start), np.array(end)
    along = (b - a) / np.linalg.norm(b - a)
    side = width * np.array([-along[1], along[0]])
    return np.array([a + side, b + side, b - side, a - side])


def _leaf(stem: np.ndarray, tip: np.ndarray) -> np.ndarray:
    side = 0.3 * (tip - stem)[::-1] * (-1, 1)
    return _smooth([stem, stem + side, (stem + tip) / 2 + side, tip, (stem + tip) / 2 - side, stem - side], rounds=2)
