"""Synthetic birds: families of sibling species that differ in one or two small parts.

They stand in for CUB-200-2011 (Wah et al., 2011) wherever images have to be free, small and reproducible. A
family is a body plan and a palette ("azure tern"). Its siblings share both and fill a grid over two of the
nine `PARTS`, so any two differ in one part or two. Pose, place, scale, scenery, light and sensor noise
vary from image to image and say nothing about the species. Birds are flat polygons in a frame of their own:
facing right, y up, unit half a body length.
"""

import math
import zlib
from collections import namedtuple
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

PARTS = {
    "beak": ("short beak", "long beak", "stout beak", "curved beak"),
    "tail": ("square tail", "forked tail", "rounded tail", "pointed tail"),
    "wing": ("plain wings", "one wing bar", "two wing bars", "wing patch"),
    "crest": ("no crest", "swept crest", "upright crest", "double crest"),
    "crown": ("plain crown", "black cap", "chestnut cap", "white crown"),
    "eye": ("plain eye", "eye ring", "eye stripe", "pale brow"),
    "throat": ("plain throat", "black bib", "white throat", "rufous throat"),
    "breast": ("plain breast", "spotted breast", "streaked breast", "banded breast"),
    "legs": ("black legs", "yellow legs", "red legs", "blue legs"),
}
# Proportions in half body lengths; pitch of the body and cock of the tail in degrees.
Plan = namedtuple("Plan", "depth head neck tail wing leg pitch cock")
PLANS = {
    "tern": (0.50, 0.36, 0.02, 0.95, 0.45, 0.35, 6, 0),
    "wren": (0.70, 0.43, 0.03, 0.60, -0.15, 0.50, 8, 45),
    "warbler": (0.60, 0.41, 0.05, 0.75, 0.00, 0.50, 16, 0),
    "finch": (0.64, 0.45, 0.05, 0.70, 0.05, 0.40, 24, -4),
    "sparrow": (0.66, 0.43, 0.02, 0.75, 0.00, 0.45, 14, 4),
    "thrush": (0.64, 0.40, 0.12, 0.75, 0.08, 0.65, 30, -8),
    "pipit": (0.53, 0.36, 0.10, 0.85, 0.00, 0.60, 20, -6),
    "wagtail": (0.54, 0.37, 0.06, 1.15, 0.00, 0.60, 8, 8),
    "tit": (0.72, 0.50, 0.02, 0.70, -0.05, 0.40, 20, -4),
    "swallow": (0.48, 0.39, 0.00, 0.95, 0.50, 0.25, 22, -6),
    "starling": (0.62, 0.38, 0.10, 0.55, 0.12, 0.60, 26, -6),
    "plover": (0.64, 0.46, 0.10, 0.50, 0.10, 0.85, 12, -8),
    "robin": (0.74, 0.46, 0.05, 0.65, 0.00, 0.60, 28, 4),
    "flycatcher": (0.57, 0.43, 0.06, 0.80, 0.12, 0.30, 40, -8),
    "jay": (0.62, 0.44, 0.10, 1.00, 0.00, 0.55, 20, -4),
    "chat": (0.65, 0.44, 0.10, 0.60, 0.02, 0.70, 32, 0),
}
# 15 colours and 16 plans have no common factor, so counting round both at once meets every pair.
BACKS = {
    "azure": (74, 138, 200),
    "slate": (104, 118, 136),
    "olive": (124, 128, 66),
    "jade": (82, 158, 112),
    "golden": (214, 166, 58),
    "ashy": (146, 146, 142),
    "teal": (48, 134, 136),
    "rosy": (200, 118, 122),
    "umber": (112, 88, 66),
    "amber": (208, 134, 56),
    "moss": (92, 126, 74),
    "lilac": (142, 120, 174),
    "sandy": (190, 158, 112),
    "cobalt": (62, 88, 166),
    "plum": (124, 74, 110),
}
BELLIES = (
    (244, 240, 228),
    (236, 218, 178),
    (240, 206, 190),
    (240, 226, 140),
    (214, 220, 224),
    (226, 208, 226),
)
BEAK_SHAPES = {  # lower and upper half, in units of the head
    "short beak": ([(0.9, 0.0), (1.5, -0.02), (0.85, -0.22)], [(0.8, 0.3), (1.55, -0.02), (0.9, -0.02)]),
    "long beak": ([(0.9, 0.0), (2.5, -0.09), (0.85, -0.24)], [(0.8, 0.28), (2.65, -0.08), (0.9, -0.02)]),
    "stout beak": (
        [(0.9, 0.0), (1.55, -0.15), (0.75, -0.6)],
        [(0.65, 0.6), (1.3, 0.48), (1.75, -0.2), (0.9, -0.05)],
    ),
    "curved beak": (
        [(0.9, 0.0), (1.7, -0.25), (0.85, -0.26)],
        [(0.8, 0.32), (1.6, 0.2), (2.3, -0.9), (1.6, -0.2)],
    ),
}
BEAKS = ((58, 54, 54), (112, 96, 78), (226, 142, 48), (206, 178, 112))
# fmt: off
RANGES = (
    "", "northern ", "southern ", "eastern ", "western ", "mountain ", "lowland ", "island ",
    "forest ", "desert ", "marsh ", "river ", "coastal ", "meadow ", "polar ", "tropical ",
)
# fmt: on
# Top and bottom of the gradient, then what floats on it: sky, foliage, water, dry grass.
SCENES = (
    ((150, 190, 226), (216, 226, 230), (236, 240, 242), (190, 206, 220), (120, 150, 110)),
    ((96, 134, 80), (60, 96, 58), (130, 160, 84), (74, 110, 66), (168, 172, 96)),
    ((150, 176, 182), (82, 124, 142), (178, 198, 200), (98, 138, 150), (140, 130, 104)),
    ((206, 190, 152), (140, 122, 92), (168, 150, 108), (190, 178, 140), (118, 124, 78)),
)
BLACK = (40, 38, 42)
WHITE = (248, 246, 240)
RUFOUS = (166, 84, 48)
BARK = (104, 82, 64)
Points = list[tuple[float, float]] | np.ndarray
Colour = tuple[int, int, int]
Box = tuple[int, int, int, int]
Polygon = tuple[Points, Colour]


@dataclass(frozen=True)
class Species:
    """A species of birds.

    traits: an option of each of `PARTS`, in that order.
    colours: of back, belly, wing and beak.
    """

    name: str
    family: str
    traits: tuple[str, ...]
    plan: Plan
    colours: tuple[Colour, Colour, Colour, Colour]


@dataclass(frozen=True)
class Birds:
    """Images sorted by species.

    images: (N, P, P, 3) uint8.
    labels: (N,) int64, indices into `species`.
    boxes: (N, 4) int64, pixels.
    """

    images: np.ndarray
    labels: np.ndarray
    boxes: np.ndarray
    species: tuple[Species, ...]


def species(count: int, *, seed: int = 0, family_size: int = 4) -> tuple[Species, ...]:
    """Return the first `count` species of the world `seed`, family after family.

    `species(n)[:k] == species(k)`. Another seed gives other families, if not always other names.

    Raises ValueError if two parts cannot tell `family_size` siblings apart, if `count` < 1, or if there are
    not so many names.
    """
    if not 1 <= family_size <= 16:
        raise ValueError(
            f"family_size={family_size}: two parts of four options make 1 to 16 siblings; "
            "ask for one of these."
        )
    limit = len(RANGES) * len(BACKS) * len(PLANS) * family_size
    if not 1 <= count <= limit:
        raise ValueError(
            f"count={count}: with family_size={family_size} there are 1 to {limit} species; "
            "ask for one of these."
        )
    birds: list[Species] = []
    for index in range(math.ceil(count / family_size)):
        birds += _create_family(index, seed, family_size)
    return tuple(birds[:count])


def render(
    species: Species, *, pixels: int, rng: np.random.Generator, size: float = 1.0
) -> tuple[np.ndarray, Box]:
    """Draw one image, uint8 (pixels, pixels, 3), and return it with the bird's box.

    The box (x0, y0, x1, y1), x1 and y1 exclusive, lies inside the image and is tight to a pixel.

    Raises ValueError if `pixels` < 16, too few to show a bird.
    """
    return _draw_image(species, _assemble(species), pixels, rng, size)


def draw(
    count: int,
    per_species: int,
    *,
    pixels: int = 64,
    seed: int = 0,
    split: str = "train",
    family_size: int = 4,
    size: float = 1.0,
) -> Birds:
    """Draw `per_species` images of each of the first `count` species: N = count * per_species.

    Image i of species s depends on (seed, split, s, i) alone, so a larger call extends a smaller one.

    split: any string.
    size: below 1, shrinks the birds.

    Raises ValueError if a number is out of range.
    """
    if per_species < 1:
        raise ValueError(f"per_species={per_species}: expected at least 1 picture of each species.")
    world = species(count, seed=seed, family_size=family_size)
    images = []
    boxes = []
    for label, bird in enumerate(world):
        parts = _assemble(bird)
        for index in range(per_species):
            rng = np.random.default_rng([seed, zlib.crc32(split.encode()), label, index])
            image, box = _draw_image(bird, parts, pixels, rng, size)
            images.append(image)
            boxes.append(box)
    labels = np.repeat(np.arange(count), per_species)
    return Birds(np.stack(images), labels, np.array(boxes, dtype=np.int64), world)


def _create_family(index: int, seed: int, size: int) -> list[Species]:
    world = np.random.default_rng([seed, 0])
    rng = np.random.default_rng([seed, 1, index])
    back = world.permutation(list(BACKS))[index % len(BACKS)]
    noun = world.permutation(list(PLANS))[index % len(PLANS)]
    family = f"{RANGES[(seed + index // (len(BACKS) * len(PLANS))) % len(RANGES)]}{back} {noun}"
    plan = Plan(*(np.array(PLANS[noun]) * rng.uniform(0.93, 1.07, 8)).tolist())
    base = _shade((np.array(BACKS[back]) + rng.integers(-12, 13, 3)).tolist())
    colours = (
        base,
        BELLIES[rng.integers(len(BELLIES))],
        _shade(base, rng.uniform(0.6, 0.8)),
        BEAKS[rng.integers(len(BEAKS))],
    )
    # More than half of the parts stay plain, the first option, or every bird would wear every ornament.
    common = [options[max(0, int(rng.integers(-3, 4)))] for options in PARTS.values()]
    side = math.ceil(math.sqrt(size))
    first, second = np.sort(rng.choice(len(PARTS), 2, replace=False)).tolist()
    first_options = np.sort(rng.choice(4, side, replace=False)).tolist()
    second_options = np.sort(rng.choice(4, side, replace=False)).tolist()
    parts = list(PARTS.values())
    siblings = []
    for number in range(size):
        row, column = divmod(number, side)
        traits = list(common)
        traits[first] = parts[first][first_options[row]]
        traits[second] = parts[second][second_options[column]]
        name = f"{family}, {traits[first]}, {traits[second]}"
        siblings.append(Species(name, family, tuple(traits), plan, colours))
    return siblings


def _assemble(bird: Species) -> tuple[dict[str, np.ndarray], list[tuple[int, int, Colour]]]:
    """Return the corners (V, 2) that turn with each joint, and all polygons in drawing order.

    A polygon is the first of its corners, the first of the next one's, and its colour.
    """
    joints = {
        "legs": _legs(bird),
        "tail": _tail(bird),
        "body": _body(bird),
        "head": _head(bird),
        "wing": _wing(bird),
    }
    corners = {}
    polygons = []
    first = 0
    for joint, shapes in joints.items():
        corners[joint] = np.concatenate([points for points, _ in shapes])
        for points, colour in shapes:
            polygons.append((first, first + len(points), colour))
            first += len(points)
    return corners, polygons


def _legs(bird: Species) -> list[Polygon]:
    colours = {
        "black legs": BLACK,
        "yellow legs": (236, 196, 48),
        "red legs": (206, 62, 48),
        "blue legs": (86, 130, 186),
    }
    colour = colours[bird.traits[8]]
    hip = -0.8 * bird.plan.depth
    foot = -bird.plan.depth - bird.plan.leg
    shapes: list[Polygon] = []
    for x, tone in ((0.22, _shade(colour, 0.8)), (-0.05, colour)):
        shapes.append((_line((x - 0.08, hip), (x + 0.08, foot), 0.055), tone))
        shapes.append((_line((x - 0.12, foot), (x + 0.36, foot), 0.05), tone))
    return shapes


def _tail(bird: Species) -> list[Polygon]:
    tip = -0.8 - bird.plan.tail
    colour = bird.colours[2]
    ends = {
        "square tail": [(tip, 0.24), (tip - 0.02, -0.16)],
        "forked tail": [(tip - 0.3, 0.36), (tip + 0.36, 0.04), (tip - 0.3, -0.28)],
        "rounded tail": [(tip + 0.25, 0.4), (tip - 0.08, 0.22), (tip - 0.08, -0.14), (tip + 0.25, -0.32)],
        "pointed tail": [(tip + 0.3, 0.18), (tip - 0.4, 0.04), (tip + 0.3, -0.1)],
    }[bird.traits[1]]
    feathers = [(_line((-0.8, y), (tip + 0.3, 1.4 * y), 0.02), _shade(colour, 0.78)) for y in (0.1, -0.04)]
    return [([(-0.6, 0.2), *ends, (-0.6, -0.16)], colour), *feathers]


def _body(bird: Species) -> list[Polygon]:
    back = bird.colours[0]
    belly = bird.colours[1]
    d = bird.plan.depth
    r = bird.plan.head
    x, y = _skull(bird.plan)
    tall = np.array([1, d])
    top = [(-1.15, 0.1), (-0.6, 0.6), (0.1, 1.02), (0.7, 1.0)]
    edge = [(-1.0, -0.15), (-0.2, -0.1), (0.5, 0.3), (0.86, 0.95)]
    outline = [*top, (1.08, 0.3), (0.8, -0.75), (0.2, -1.1), (-0.5, -0.8)]
    front = [*edge, (1.07, 0.3), (0.8, -0.75), (0.2, -1.1), (-0.5, -0.8)]
    under = [(-0.8, -0.45), (0.1, -0.85), (0.9, -0.3), (0.8, -0.72), (0.2, -1.1), (-0.5, -0.8)]
    neck = [(-0.1, 0.85 * d), (x - 1.05 * r, y + 0.2 * r), (x + 0.9 * r, y), (1.0, 0.3 * d), (0.5, 0.2 * d)]
    shapes = [(_smooth(outline) * tall, back), (_smooth(neck), back), (_smooth(front) * tall, belly)]
    shapes.append((_smooth(under) * tall, _shade(belly, 0.87)))
    spots = [
        (0.62, 0.3),
        (0.86, 0.25),
        (0.5, -0.1),
        (0.76, -0.12),
        (0.38, -0.48),
        (0.64, -0.5),
        (0.14, -0.72),
    ]
    band = [(0.3, 0.12), (0.6, 0.2), (1.02, 0.42), (1.02, 0.12), (0.62, -0.1), (0.36, -0.12)]
    marks = {
        "spotted breast": [_disc(a, b * d, 0.065) for a, b in spots],
        "streaked breast": [_line((a, b * d + 0.12), (a - 0.1, b * d - 0.12), 0.035) for a, b in spots],
        "banded breast": [_smooth(band) * tall],
    }
    return shapes + [(mark, BLACK) for mark in marks.get(bird.traits[7], [])]


def _head(bird: Species) -> list[Polygon]:
    back, _, _, horn = bird.colours
    beak, _, _, crest, crown, eye, throat, _, _ = bird.traits
    cap = {"plain crown": back, "black cap": BLACK, "chestnut cap": RUFOUS, "white crown": WHITE}[crown]
    bib = {"plain throat": back, "black bib": BLACK, "white throat": WHITE, "rufous throat": RUFOUS}[throat]
    lower, upper = BEAK_SHAPES[beak]
    plumes: dict[str, list[Polygon]] = {
        "swept crest": [([(0.35, 0.8), (-0.5, 1.2), (-1.45, 1.15), (-0.85, 0.5)], cap)],
        "upright crest": [([(0.45, 0.85), (-0.1, 1.75), (-0.6, 0.7)], cap)],
        "double crest": [([(0.5, 0.8), (0.35, 1.55), (-0.1, 1.0), (-0.75, 1.65), (-0.8, 0.6)], cap)],
    }
    marks: dict[str, list[Polygon]] = {
        "eye stripe": [([(0.98, 0.1), (0.35, 0.38), (-0.95, 0.12), (-0.95, -0.12), (0.35, 0.02)], BLACK)],
        "pale brow": [([(0.92, 0.38), (0.3, 0.66), (-0.9, 0.4), (-0.9, 0.24), (0.3, 0.42)], WHITE)],
        "eye ring": [(_disc(0.38, 0.18, 0.38), WHITE)],
    }
    chin = _smooth([(1.0, -0.2), (0.4, -0.22), (-0.1, -0.6), (-0.1, -1.15), (0.65, -1.1), (0.95, -0.6)])
    top = _smooth([(1.05, 0.3), (0.75, 0.95), (0.0, 1.15), (-0.8, 0.85), (-1.1, 0.15), (-0.3, 0.42)])
    shapes: list[Polygon] = [*plumes.get(crest, []), (lower, _shade(horn, 0.75)), (upper, horn)]
    shapes += [(_disc(0, 0, 1), back), (chin, bib), (top, cap), *marks.get(eye, [])]
    shapes += [(_disc(0.38, 0.18, 0.2), BLACK), (_disc(0.44, 0.25, 0.07), WHITE)]
    centre = np.array(_skull(bird.plan))
    return [(centre + bird.plan.head * np.asarray(points), colour) for points, colour in shapes]


def _wing(bird: Species) -> list[Polygon]:
    back, _, colour, _ = bird.colours
    mark = bird.traits[2]
    tip = -1.0 - bird.plan.wing
    outline = [(0.55, 0.5), (0.2, 0.75), (-0.5, 0.6), (tip, 0.1), (-0.5, -0.25), (0.25, -0.4), (0.6, 0.0)]
    coverts = [(0.55, 0.5), (0.2, 0.75), (-0.3, 0.6), (-0.25, 0.1), (0.0, -0.2), (0.25, -0.38), (0.6, 0.0)]
    shapes = [(_smooth(outline), colour), (_smooth(coverts), _shade((np.array(colour) + back) / 2))]
    for k, y in enumerate((0.3, 0.1, -0.1)):
        feather = _line((-0.25, y), (tip + 0.25 + 0.2 * k, 0.14 - 0.03 * k), 0.03)
        shapes.append((feather, _shade(colour, 0.72)))
    for x in {"one wing bar": [-0.14], "two wing bars": [-0.14, 0.16]}.get(mark, []):
        bar = [(-0.1, 0.58), (0.0, 0.58), (0.02, 0.2), (0.16, -0.2), (0.05, -0.24), (-0.1, 0.15)]
        shapes.append((np.array(bar) + (x, 0), WHITE))
    if mark == "wing patch":
        shapes.append((_smooth([(-0.35, 0.4), (0.0, 0.42), (0.02, 0.0), (-0.3, 0.0)]), WHITE))
    return [(np.asarray(points) * (1, bird.plan.depth), tone) for points, tone in shapes]


def _draw_image(
    bird: Species, parts: tuple, pixels: int, rng: np.random.Generator, size: float
) -> tuple[np.ndarray, Box]:
    if pixels < 16:
        raise ValueError(f"pixels={pixels}: a bird needs at least 16 pixels a side.")
    corners, polygons = parts
    over = 3 if pixels < 128 else 2
    side = pixels * over
    points, feet = _pose(corners, bird.plan, rng, size)
    picture = _scenery(side, feet, rng)
    pen = ImageDraw.Draw(picture)
    flat = (points * side).ravel().tolist()
    for first, last, colour in polygons:
        pen.polygon(flat[2 * first : 2 * last], fill=colour)
    x0, y0 = np.floor(points.min(0) * pixels).astype(int).tolist()
    x1, y1 = np.ceil(points.max(0) * pixels).astype(int).tolist()
    return _develop(picture.reduce(over), rng), (x0, y0, x1, y1)


def _pose(
    corners: dict[str, np.ndarray], plan: Plan, rng: np.random.Generator, size: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return all corners (V, 2) and the point between the feet, in shares of the image, y down."""
    angles = rng.normal(0, 1, 4).clip(-2, 2) * (8, 7, 7, 3) + (plan.pitch, 0, plan.cock, 0)
    pitch, nod, wag, droop = angles.tolist()
    turns = {  # of each joint: degrees, and the point that it turns about
        "legs": (-0.8 * plan.pitch, (0, -plan.depth)),
        "tail": (-wag, (-0.75, 0)),
        "body": (0.0, (0, 0)),
        "head": (nod - 0.6 * plan.pitch, (0.6, 0.6 * plan.depth)),
        "wing": (droop, (0.4, 0)),
    }
    turned = []
    for joint, (degrees, pivot) in turns.items():
        turned.append((corners[joint] - pivot) @ _turn(degrees) + pivot)
    points = np.concatenate(turned)
    # the whole bird: pitched, mirrored half of the time, narrowed as if seen at an angle, y turned down
    points = points @ _turn(pitch) * ((2 * rng.integers(2) - 1) * rng.uniform(0.88, 1.0), -1)
    low = points.min(0)
    high = points.max(0)
    scale = size * min(rng.uniform(0.18, 0.285), 0.94 / (high - low).max())
    points = (points - low) * scale + (1 - (high - low) * scale) * rng.uniform(0.03, 0.97, 2)
    legs = points[: len(corners["legs"])]
    return points, np.array([legs[:, 0].mean(), legs[:, 1].max()])


def _scenery(side: int, feet: np.ndarray, rng: np.random.Generator) -> Image.Image:
    """Draw a blurred gradient and blobs, a twig, and a perch under the feet (2,)."""
    top, bottom, *tones = SCENES[rng.integers(len(SCENES))]
    ends = np.array([top, bottom])[:, None] + rng.normal(0, 8, (2, 3, 3))
    far = Image.fromarray(ends.clip(0, 255).astype(np.uint8)).resize((64, 64), Image.Resampling.BILINEAR)
    pen = ImageDraw.Draw(far)
    plumage = (np.array([*BACKS.values(), *BELLIES, BLACK]) + top) // 2
    tones = tones * 6 + [tuple(tone) for tone in plumage.tolist()]
    blobs = rng.integers(8, 22)
    places = rng.uniform((-5, -5, 3, 2), (69, 69, 12, 9), (blobs, 4)).tolist()
    chosen = rng.integers(len(tones), size=blobs)
    for (x, y, a, b), tone in zip(places, chosen, strict=True):
        pen.ellipse((x - a, y - b, x + a, y + b), fill=tones[tone])
    far = far.filter(ImageFilter.BoxBlur(rng.uniform(0.7, 2.5)))
    near = far.resize((side, side), Image.Resampling.BILINEAR)
    pen = ImageDraw.Draw(near)
    tilt, bend, thick, shade = rng.uniform((-0.25, -0.1, 0.02, 0.6), (0.25, 0.1, 0.05, 1.4)).tolist()
    start, end = (rng.uniform(-0.2, 1.2, 2) * side).tolist()
    pen.line((0, start, side, end), fill=_shade(BARK, 2 - shade), width=round(0.4 * thick * side))
    upper = [feet - (1, tilt - bend), feet, feet + (1, tilt + bend)]
    lower = [point + (0, w * thick) for point, w in zip(upper[::-1], (0.6, 1.0, 1.3), strict=True)]
    pen.polygon((np.array(upper + lower) * side).ravel().tolist(), fill=_shade(BARK, shade))
    return near


def _develop(picture: Image.Image, rng: np.random.Generator) -> np.ndarray:
    """Add light with a tint and a direction, then sensor noise."""
    image = np.asarray(picture).astype(np.float32)
    across, down = np.linspace(-1, 1, len(image)) * rng.uniform(-0.15, 0.15, (2, 1))
    gain = rng.uniform(0.78, 1.15) * rng.uniform(0.93, 1.07, 3)
    image *= (1 + across + down[:, None]).astype(np.float32)[..., None] * gain.astype(np.float32)
    image += rng.standard_normal(image.shape, dtype=np.float32) * np.float32(rng.uniform(2, 8))
    return image.clip(0, 255).astype(np.uint8)


def _skull(plan: Plan) -> tuple[float, float]:
    return 0.78, 0.85 * plan.depth + plan.neck + 0.1


def _shade(colour: Iterable[float], factor: float = 1.0) -> Colour:
    red, green, blue = (int(min(max(value * factor, 0), 255)) for value in colour)
    return red, green, blue


def _turn(degrees: float) -> np.ndarray:
    cos = math.cos(math.radians(degrees))
    sin = math.sin(math.radians(degrees))
    return np.array([[cos, sin], [-sin, cos]])


def _smooth(corners: Points) -> np.ndarray:
    """Cut the corners of a closed polygon three times (Chaikin, 1974): (K, 2) to (8 K, 2)."""
    points = np.asarray(corners, dtype=float)
    for _ in range(3):
        after = np.roll(points, -1, axis=0)
        points = np.stack([0.75 * points + 0.25 * after, 0.25 * points + 0.75 * after], axis=1).reshape(-1, 2)
    return points


def _disc(x: float, y: float, radius: float) -> np.ndarray:
    angles = np.linspace(0, 2 * np.pi, 20, endpoint=False)
    return np.stack([x + radius * np.cos(angles), y + radius * np.sin(angles)], axis=1)


def _line(start: tuple[float, float], end: tuple[float, float], width: float) -> np.ndarray:
    """Return the corners (4, 2) of a straight stroke of half width `width`."""
    along = np.subtract(end, start)
    side = width * np.array([-along[1], along[0]]) / np.linalg.norm(along)
    return np.array([start + side, end + side, end - side, start - side])
