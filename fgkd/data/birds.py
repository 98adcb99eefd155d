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
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image, ImageDraw, ImageFilter


def _read(value: Any) -> Any:
    """The value of a file, its lists as tuples, which Pillow takes for colours."""
    if isinstance(value, dict):
        return {name: _read(part) for name, part in value.items()}
    return tuple(map(_read, value)) if isinstance(value, list) else value


TEXT = Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8")
TABLES = _read(yaml.safe_load(TEXT))
PARTS: dict[str, tuple[str, ...]] = TABLES["parts"]
PLANS, BACKS, BELLIES, BEAKS = (TABLES[name] for name in ("plans", "backs", "bellies", "beaks"))
COLOURS, BODY, HEAD, WING = (TABLES[name] for name in ("colours", "body", "head", "wing"))
BLACK, WHITE, BARK = (COLOURS[name] for name in ("black", "white", "bark"))
RANGES, SCENES = TABLES["ranges"], TABLES["scenes"]
Plan = namedtuple("Plan", "depth head neck tail wing leg pitch cock")
Points = Sequence[tuple[float, float]] | np.ndarray
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
    region = RANGES[(seed + index // (len(BACKS) * len(PLANS))) % len(RANGES)]
    family = f"{region} {back} {noun}".strip()
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
    colour = TABLES["legs"][bird.traits[8]]
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
    ends = [(tip + x, y) for x, y in TABLES["tails"][bird.traits[1]]]
    feathers = [(_line((-0.8, y), (tip + 0.3, 1.4 * y), 0.02), _shade(colour, 0.78)) for y in (0.1, -0.04)]
    return [([(-0.6, 0.2), *ends, (-0.6, -0.16)], colour), *feathers]


def _body(bird: Species) -> list[Polygon]:
    back = bird.colours[0]
    belly = bird.colours[1]
    d = bird.plan.depth
    r = bird.plan.head
    x, y = _skull(bird.plan)
    tall = np.array([1, d])
    neck = [(-0.1, 0.85 * d), (x - 1.05 * r, y + 0.2 * r), (x + 0.9 * r, y), (1.0, 0.3 * d), (0.5, 0.2 * d)]
    shapes = [(_smooth(BODY["back"]) * tall, back), (_smooth(neck), back)]
    shapes.append((_smooth(BODY["front"]) * tall, belly))
    shapes.append((_smooth(BODY["under"]) * tall, _shade(belly, 0.87)))
    spots = BODY["spots"]
    marks = {
        "spotted breast": [_disc(a, b * d, 0.065) for a, b in spots],
        "streaked breast": [_line((a, b * d + 0.12), (a - 0.1, b * d - 0.12), 0.035) for a, b in spots],
        "banded breast": [_smooth(BODY["band"]) * tall],
    }
    return shapes + [(mark, BLACK) for mark in marks.get(bird.traits[7], [])]


def _head(bird: Species) -> list[Polygon]:
    back, _, _, horn = bird.colours
    beak, _, _, crest, crown, eye, throat, _, _ = bird.traits
    cap = COLOURS.get(crown.split()[0], back)  # black cap, white crown; plain ones are of the back's colour
    bib = COLOURS.get(throat.split()[0], back)
    lower, upper = TABLES["beak_shapes"][beak]
    plumes: list[Polygon] = [(HEAD[crest], cap)] if crest in HEAD else []
    marks: dict[str, list[Polygon]] = {
        "eye stripe": [(HEAD["eye stripe"], BLACK)],
        "pale brow": [(HEAD["pale brow"], WHITE)],
        "eye ring": [(_disc(0.38, 0.18, 0.38), WHITE)],
    }
    chin = _smooth(HEAD["chin"])
    top = _smooth(HEAD["top"])
    shapes: list[Polygon] = [*plumes, (lower, _shade(horn, 0.75)), (upper, horn)]
    shapes += [(_disc(0, 0, 1), back), (chin, bib), (top, cap), *marks.get(eye, [])]
    shapes += [(_disc(0.38, 0.18, 0.2), BLACK), (_disc(0.44, 0.25, 0.07), WHITE)]
    centre = np.array(_skull(bird.plan))
    return [(centre + bird.plan.head * np.asarray(points), colour) for points, colour in shapes]


def _wing(bird: Species) -> list[Polygon]:
    back, _, colour, _ = bird.colours
    mark = bird.traits[2]
    tip = -1.0 - bird.plan.wing
    outline = [(0.55, 0.5), (0.2, 0.75), (-0.5, 0.6), (tip, 0.1), (-0.5, -0.25), (0.25, -0.4), (0.6, 0.0)]
    between = _shade((np.array(colour) + back) / 2)
    shapes = [(_smooth(outline), colour), (_smooth(WING["coverts"]), between)]
    for k, y in enumerate((0.3, 0.1, -0.1)):
        feather = _line((-0.25, y), (tip + 0.25 + 0.2 * k, 0.14 - 0.03 * k), 0.03)
        shapes.append((feather, _shade(colour, 0.72)))
    for x in {"one wing bar": [-0.14], "two wing bars": [-0.14, 0.16]}.get(mark, []):
        shapes.append((np.array(WING["bar"]) + (x, 0), WHITE))
    if mark == "wing patch":
        shapes.append((_smooth(WING["patch"]), WHITE))
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
