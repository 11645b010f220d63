"""Parts of the objects of the shapes world, one function per category.

Each function of (draw, main, second) lists the parts of an object in units of
its own, y up, front toward +z. `draw(low, high)` gives a size, `main` and
`second` are the two colors [3]. categories.build centers and scales the object.
"""

from collections.abc import Callable

import numpy as np

from gen3d.data.shapes.primitives import (
  X,
  Z,
  ball,
  both,
  box,
  capsule,
  cone,
  corners,
  cylinder,
  prism,
  tilt,
  torus,
  tube,
)

# (low, high) -> a number between. The order of calls is part of the data set:
# each takes the next number of an example's generator.
Draw = Callable[[float, float], float]
Builder = Callable[[Draw, np.ndarray, np.ndarray], list[np.ndarray]]

DARK, PALE, GLASS = (0.10, 0.10, 0.12), (0.93, 0.90, 0.82), (0.60, 0.82, 0.93)
WOOD, STEEL = (0.52, 0.34, 0.18), (0.62, 0.64, 0.68)
LAMP, GOLD, ROSE = (1.00, 0.95, 0.62), (0.95, 0.75, 0.20), (0.95, 0.45, 0.50)


# Furniture.


def _chair(draw, main, second):
  w, seat, back = draw(.38, .5), draw(.42, .6), draw(.55, .85)
  return [
      box((0, seat, 0), (w, .06, w), main),
      box((0, seat + back / 2, -w + .05), (w, back / 2, .05), main,
          rotation=tilt(draw(-8, 0))),
      *corners(box((w - .07, seat / 2, w - .07), (.055, seat / 2, .055),
                   second))]


def _table(draw, main, second):
  w, d, h = draw(.6, .9), draw(.42, .6), draw(.5, .7)
  return [box((0, h, 0), (w, .06, d), main),
          *corners(cylinder((w - .12, h / 2, d - .12), .065, h / 2, second))]


def _sofa(draw, main, second):
  w, h = draw(.75, 1.0), draw(.5, .65)
  return [
      box((0, .2, 0), (w, .16, .4), main, .04),
      box((0, h - .1, -.33), (w, h - .1, .13), main, .05),
      *both(box((w, .32, 0), (.12, .3, .42), main, .06)),
      *both(box((w / 2 - .04, .42, .06), (w / 2 - .08, .09, .3), second, .05)),
      *both(box((w / 2 - .04, .66, -.16), (w / 2 - .1, .18, .07), second, .05))]


def _lamp(draw, main, second):
  h, r = draw(.75, 1.1), draw(.36, .5)
  return [cylinder((0, .04, 0), .3, .04, second),
          cylinder((0, h / 2, 0), .045, h / 2, second),
          tube((0, h + .15, 0), r * .78, .02, .28, main, taper=r * .26),
          ball((0, h + .08, 0), .13, LAMP)]


# Vehicles.


def _car(draw, main, second):
  length, h, w = draw(.85, 1.05), draw(.17, .22), draw(.4, .46)
  wheel = draw(.19, .23)
  top = .2 + 2 * h
  cabin = draw(.24, .3)
  # Windows are boxes through the cabin: a wider, shorter one for the sides, and
  # a narrower, longer one for front and back.
  return [
      box((0, .2 + h, 0), (w, h, length), main, .08),
      box((0, top + cabin - .08, -.12), (w * .82, cabin, length * .5), main,
          .06, taper=.1),
      box((0, top + cabin - .05, -.12), (w * .88, cabin * .5, length * .4),
          GLASS, .02, taper=.09),
      box((0, top + cabin - .05, -.12), (w * .68, cabin * .5, length * .56),
          GLASS, .02, taper=.1),
      *corners(cylinder((w - .02, wheel, length * .58), wheel, .09, second,
                        X)),
      *both(ball((w * .62, .22 + h, length - .02), (.09, .08, .05), LAMP)),
      *both(box((w * .68, .24 + h, -length), (.08, .05, .03), (.8, .05, .05))),
      box((0, .16, length - .02), (w * .9, .05, .04), STEEL)]


def _truck(draw, main, second):
  w, load, h = draw(.4, .48), draw(.55, .75), draw(.38, .5)
  wheel = .19
  return [
      box((0, .2, -.05), (w * .9, .06, load + .3), DARK),
      box((0, .26 + h, -.32), (w, h, load), second, .02),
      box((0, .55, load - .02), (w * .95, .34, .26), main, .06),
      box((0, .7, load + .17), (w * .8, .14, .1), GLASS),
      *corners(cylinder((w - .04, wheel, load * .75), wheel, .09, DARK, X)),
      *both(ball((w * .68, .34, load + .25), (.08, .08, .04), LAMP)),
      box((0, .24, load + .22), (w * .9, .06, .05), STEEL)]


def _airplane(draw, main, second):
  length, span, r = draw(.8, .95), draw(.75, .95), draw(.18, .22)
  return [
      ball((0, 0, 0), (r, r, length), main),
      *both(box((span / 2, -.02, .08), (span / 2, .025, .17), second, .02,
                rotation=tilt(draw(8, 22), 'y'))),
      *both(box((.2, .04, -length * .86), (.2, .02, .09), second, .015)),
      box((0, .2, -length * .88), (.02, .18, .11), second, .015,
          rotation=tilt(-20)),
      ball((0, r * .6, length * .55), (r * .6, r * .6, .18), GLASS),
      *both(capsule((span * .45, -.1, .05), (span * .45, -.1, .25), .065,
                    STEEL))]


def _boat(draw, main, second):
  length, mast = draw(.7, .9), draw(1.0, 1.3)
  # The hull widens upwards (a negative taper), and a cone is its bow. Sails are
  # plates that lean in by nearly their half depth: triangles.
  return [
      prism((0, .14, -.06), (.3, .14, length * .8), main, corner=.22,
            taper=-.06, edge=.02),
      cone((0, .16, length * .5), (0, .22, length * 1.15), .24, main),
      box((0, .31, -.2), (.16, .1, .2), PALE),
      cylinder((0, mast / 2 + .2, .12), .035, mast / 2, WOOD),
      prism((0, mast * .5 + .42, -.22), (.018, mast * .36, .16), second,
            lean=.15, edge=.01, rotation=tilt(12)),
      prism((0, mast * .45 + .36, .36), (.018, mast * .28, .1), second,
            lean=.09, edge=.01, rotation=tilt(-12)),
      box((0, mast + .25, .04), (.015, .05, .09), ROSE, .01)]


def _rocket(draw, main, second):
  h, r = draw(.55, .75), draw(.22, .28)
  nose = draw(.35, .5)
  return [
      cylinder((0, .25 + h, 0), r, h, main, edge=.03),
      cone((0, .22 + 2 * h, 0), (0, .25 + 2 * h + nose, 0), r, second),
      *both(box((r + .1, .3, 0), (.15, .22, .03), second,
                rotation=tilt(22, 'z'))),
      *both(box((0, .3, r + .1), (.03, .22, .15), second,
                rotation=tilt(-22, 'x')), axis=2),
      ball((0, .35 + h * 1.3, r - .03), (.12, .12, .07), GLASS),
      torus((0, .35 + h * 1.3, r - .02), .12, .03, STEEL, Z),
      cylinder((0, .18, 0), r * .7, .1, STEEL, taper=.05)]


# Tools.


def _hammer(draw, main, second):
  h, head = draw(1.1, 1.4), draw(.34, .44)
  return [
      cylinder((0, h / 2, 0), .075, h / 2, second, edge=.03),
      box((0, h, 0), (head * .5, .13, .13), main, .02),
      cylinder((head * .75, h, 0), .17, head * .35, main, X, edge=.02),
      *[box((-head * .75, h - .02, z), (head * .4, .05, .05), main, .02,
            rotation=tilt(18, 'z')) for z in (-.07, .07)],
      cylinder((0, .12, 0), .095, .13, DARK, edge=.03)]


def _umbrella(draw, main, second):
  r, h = draw(.7, .85), draw(1.1, 1.35)
  angles = np.arange(8) * np.pi / 4
  hook = draw(.1, .13)
  # Two tapered disks stand for the dome of the canopy; ribs divide it in eight.
  return [
      cylinder((0, h + .14, 0), r * .62, .1, main, edge=.02, taper=r * .32),
      cylinder((0, h + .3, 0), r * .17, .09, main, edge=.02, taper=r * .16),
      *[capsule((0, h + .3, 0), (r * .97 * np.sin(a), h + .06,
                                 r * .97 * np.cos(a)), .03, main)
        for a in angles],
      cylinder((0, h / 2 + .12, 0), .04, h / 2 + .14, second),
      cylinder((0, h + .42, 0), .03, .07, second),
      capsule((0, .02, 0), (.08, -.05, 0), .055, second),
      capsule((.08, -.05, 0), (hook + .08, 0, 0), .055, second),
      capsule((hook + .08, 0, 0), (hook + .1, .1, 0), .055, second)]


def _mug(draw, main, second):
  r, h = draw(.38, .48), draw(.42, .55)
  # The stripe is a little wider than the wall, so that only it is visible.
  return [
      tube((0, h, 0), r, .045, h, main, edge=.02),
      cylinder((0, .06, 0), r * .97, .06, main),
      tube((0, h, 0), r + .02, .04, h * .28, second),
      torus((r + .1, h, 0), h * .45, .07, main, Z),
      cylinder((0, h * 1.5, 0), r * .9, .03, (.30, .17, .08))]


# Food.


def _apple(draw, main, second):
  r = draw(.48, .56)
  fat = draw(.9, 1.0)
  # Five balls around the axis leave dimples at the stem and at the bottom.
  return [
      *[ball((.12 * np.sin(a), 0, .12 * np.cos(a)),
             (r, r * fat, r), main) for a in np.arange(5) * 2 * np.pi / 5],
      capsule((0, r * fat - .1, 0), (.06, r * fat + .26, .03), .04, WOOD),
      ball((.22, r * fat + .15, .02), (.2, .04, .1), second,
           rotation=tilt(25, 'z'))]


def _ice_cream(draw, main, second):
  r, h = draw(.36, .42), draw(.8, 1.0)
  # Six small balls cover the circle in which the scoop meets the cone.
  return [
      cone((0, h, 0), (0, 0, 0), r, second),
      torus((0, h, 0), r * .92, .06, second),
      ball((0, h + r * .55, 0), r, main),
      *[ball((r * .8 * np.sin(a), h + .06, r * .8 * np.cos(a)), .13, main)
        for a in np.arange(6) * np.pi / 3],
      ball((.04, h + r * 1.6, 0), .12, (.85, .08, .12))]


def _cake(draw, main, second):
  r, h = draw(.62, .75), draw(.18, .24)
  return [
      cylinder((0, .03, 0), r + .15, .03, PALE),
      cylinder((0, .06 + h, 0), r, h, main, edge=.03),
      torus((0, .08 + 2 * h, 0), r - .03, .085, second),
      cylinder((0, .06 + 3 * h, 0), r * .6, h, main, edge=.03),
      cylinder((0, .07 + 4 * h, 0), r * .58, .05, second, edge=.04),
      torus((0, .06 + 4 * h, 0), r * .58, .075, second),
      *[cylinder((.24 * np.sin(a), .25 + 4 * h, .24 * np.cos(a)), .035, .14,
                 c) for a, c in zip(np.arange(3) * 2 * np.pi / 3,
                                    (ROSE, GLASS, LAMP))],
      *[ball((.24 * np.sin(a), .44 + 4 * h, .24 * np.cos(a)),
             (.035, .065, .035), (1., .6, .1))
        for a in np.arange(3) * 2 * np.pi / 3]]


# Toys.


def _snowman(draw, main, second):
  a, b, c = draw(.46, .54), draw(.33, .4), draw(.25, .29)
  y1, y2 = a + a * .75 + b * .5, a + a * .75 + b * 1.3 + c * .6
  return [
      ball((0, a * .95, 0), (a, a * .95, a), main),
      ball((0, y1, 0), b, main), ball((0, y2, 0), c, main),
      cone((0, y2 - .02, c * .85), (0, y2 - .04, c + .26), .07,
           (.98, .5, .08)),
      *both(ball((.1, y2 + .08, c * .9), .05, DARK)),
      ball((0, y1 + .1, b), .05, DARK), ball((0, y1 - .08, b), .05, DARK),
      cylinder((0, y2 + c * .75, 0), c * 1.3, .03, second),
      cylinder((0, y2 + c * .75 + .17, 0), c * .8, .17, second),
      *both(capsule((b * .8, y1 + .05, 0), (b + .38, y1 + .25, .05), .035,
                    WOOD))]


def _robot(draw, main, second):
  w, h, head = draw(.3, .38), draw(.32, .4), draw(.2, .25)
  base = .42
  top = base + 2 * h
  return [
      box((0, base + h, 0), (w, h, .24), main, .04),
      box((0, top + head + .06, 0), (head * 1.2, head, head), main, .04),
      cylinder((0, top + .03, 0), .09, .06, STEEL),
      *both(ball((.11, top + head + .1, head), (.075, .075, .05), LAMP)),
      box((0, top + head - .06, head), (.13, .03, .03), DARK, .01),
      *both(capsule((w + .12, top - .12, 0), (w + .18, base + .05, .08), .1,
                    second)),
      *both(ball((w + .18, base - .02, .1), .12, second)),
      *both(box((.17, .22, 0), (.11, .22, .13), STEEL, .03)),
      *both(box((.17, .06, .06), (.13, .06, .2), DARK, .03)),
      box((0, base + h * 1.2, .24), (w * .55, h * .3, .03), GLASS, .01),
      cylinder((0, top + 2 * head + .14, 0), .025, .1, STEEL),
      ball((0, top + 2 * head + .26, 0), .06, (.85, .1, .1))]


def _duck(draw, main, second):
  r, head = draw(.42, .5), draw(.27, .32)
  y, z = r * 1.1 + head * .75, r * .6
  return [
      ball((0, r * .75, 0), (r, r * .75, r * 1.3), main),
      cone((0, r * .9, -r * .8), (0, r * 1.5, -r * 1.6), r * .5, main, .02),
      ball((0, y, z), head, main),
      ball((0, y - .06, z + head + .06), (.17, .045, .17), second),
      ball((0, y - .01, z + head + .02), (.13, .06, .13), second),
      *both(ball((head * .55, y + .1, z + head * .75), .055, DARK)),
      *both(ball((r * .92, r * .85, -.06), (.1, r * .42, r * .72), main,
                 rotation=tilt(12)))]


# Plants.


def _tree(draw, main, second):
  h, r = draw(.4, .55), draw(.36, .46)
  y = 2 * h + r * .5
  return [
      cylinder((0, h, 0), draw(.1, .14), h, second, taper=.03),
      ball((0, y + r * .3, 0), (r, r * .95, r), main),
      *[ball((r * .75 * np.sin(a), y + .06 * (-1) ** i, r * .75 * np.cos(a)),
             r * .62, main) for i, a in enumerate(
                 np.arange(6) * np.pi / 3 + .3)],
      ball((.08, y + r * .95, 0), r * .6, main)]


def _cactus(draw, main, second):
  h, r = draw(.55, .75), draw(.17, .21)
  left, right = draw(.5, .8), draw(.7, 1.0)
  arm = lambda x, y: [
      capsule((0, y, 0), (x, y, 0), .105, main),
      capsule((x, y, 0), (x, y + .32, 0), .105, main)]
  return [
      cylinder((0, .17, 0), .27, .17, second, edge=.02, taper=-.06),
      cylinder((0, .34, 0), .36, .05, second, edge=.02),
      capsule((0, .3, 0), (0, .4 + 2 * h, 0), r, main),
      *arm(-.4, .35 + left * h), *arm(.4, .35 + right * h),
      *[ball((.1 * np.sin(a), .42 + 2 * h + r, .1 * np.cos(a)), .07, ROSE)
        for a in np.arange(3) * 2 * np.pi / 3]]


def _mushroom(draw, main, second):
  r, h = draw(.5, .62), draw(.34, .44)
  y = 2 * h
  # Azimuths, and distances from the axis as fractions of the cap's radius.
  # Their heights are those of the ellipsoid.
  spots = [(0.1, .35), (1.3, .8), (2.5, .75), (3.8, .8), (5.0, .72)]
  lift = r * .62
  return [
      cylinder((0, h, 0), .19, h, second, edge=.05, taper=.05),
      ball((0, y + .02, 0), (r, lift, r), main),
      cylinder((0, y - .02, 0), r * .8, .06, second, taper=-.06),
      *[ball((r * s * np.sin(a), y + lift * np.sqrt(1 - s * s),
              r * s * np.cos(a)), (.12, .09, .12), PALE) for a, s in spots]]


# Animals.


def _cat(draw, main, second):
  body, head = draw(.42, .52), draw(.27, .31)
  y, z = .62 + head * .55, body + .1
  return [
      capsule((0, .48, -body), (0, .5, body - .1), .25, main),
      ball((0, y, z), (head * 1.08, head * .95, head * .9), main),
      *both(cone((head * .6, y + head * .5, z - .02),
                 (head * .8, y + head * 1.45, z), .14, main)),
      *both(ball((.12, y + .05, z + head * .8), (.06, .075, .05),
                 (.35, .75, .25))),
      *both(ball((.12, y + .05, z + head * .93), (.028, .06, .03), DARK)),
      ball((0, y - .07, z + head * .92), (.06, .04, .04), ROSE),
      ball((0, y - .12, z + head * .8), (.12, .07, .08), PALE),
      *corners(capsule((.16, .12, body * .78), (.16, .4, body * .78), .085,
                       main)),
      *corners(ball((.16, .07, body * .78 + .02), (.1, .08, .12), second)),
      capsule((0, .6, -body - .12), (0, 1.05, -body - .34), .06, main)]


def _rabbit(draw, main, second):
  r, head, ear = draw(.36, .42), draw(.26, .3), draw(.3, .4)
  y, z = r * 1.75 + head * .55, .14
  return [
      ball((0, r * 1.0, 0), (r * .95, r, r), main),
      ball((0, y, z), head, main),
      *both(ball((.12, y + head * .8 + ear, z - .05), (.085, ear, .055),
                 second, rotation=tilt(-9, 'z'))),
      *both(ball((.12, y + .06, z + head * .86), .05, DARK)),
      ball((0, y - .04, z + head), (.05, .04, .04), ROSE),
      box((0, y - .15, z + head * .9), (.05, .05, .02), PALE, .01),
      *both(ball((.2, .08, r * .75), (.12, .09, .22), main)),
      *both(ball((.2, r * 1.1, r * .8), (.08, .16, .09), main)),
      ball((0, r * .6, -r * 1.0), .13, PALE)]


def _fish(draw, main, second):
  length, h, w = draw(.6, .75), draw(.34, .44), draw(.17, .22)
  return [
      ball((0, 0, 0), (w, h, length), main),
      *[box((0, s * .2, -length - .12), (.025, .2, .12), second, .02,
            rotation=tilt(s * 38)) for s in (1, -1)],
      box((0, h + .02, -.05), (.025, .13, .28), second, .02,
          rotation=tilt(-12), lean=.1),
      *both(box((w + .08, -.08, .1), (.12, .02, .1), second, .015,
                rotation=tilt(-30, 'z'))),
      *both(ball((w * .75, .08, length * .62), .09, PALE)),
      *both(ball((w * .75 + .07, .08, length * .66), .05, DARK)),
      ball((0, -.06, length * .97), (.08, .05, .05), ROSE)]


# Buildings.


def _house(draw, main, second):
  w, d, h = draw(.5, .62), draw(.48, .6), draw(.32, .42)
  roof = draw(.26, .36)
  # The taper is nearly half the roof's width, so that it ends in a ridge.
  return [
      box((0, h, 0), (w, h, d), main, .01),
      prism((0, 2 * h + roof - .02, 0), (w * .5 + .08, roof, d + .12), second,
            taper=w * .5 + .06),
      box((w * .55, 2 * h + roof * 1.3, -d * .3), (.08, .28, .08),
          (.6, .28, .2), .01),
      box((0, .24, d), (.13, .24, .03), WOOD, .01),
      ball((.08, .24, d + .04), .03, GOLD),
      *both(box((w * .62, h * 1.15, d), (.12, .13, .02), GLASS, .01)),
      *both(box((w, h * 1.15, 0), (.02, .14, .2), GLASS, .01)),
      box((0, h * 1.15, -d), (.2, .14, .02), GLASS, .01)]


def _castle(draw, main, second):
  w, h, tower = draw(.46, .56), draw(.3, .38), draw(.48, .6)
  r = draw(.17, .2)
  return [
      box((0, h, 0), (w, h, w), main, .01),
      *corners(cylinder((w, tower, w), r, tower, second)),
      *corners(cone((w, 2 * tower - .02, w),
                    (w, 2 * tower + .36, w), r * 1.25, second)),
      box((0, h + .22, -.05), (.2, h + .2, .2), main, .01),
      *corners(box((.14, 2 * h + .48, .14 - .05), (.06, .08, .06), main, .01)),
      prism((0, .2, w), (.16, .2, .03), WOOD, edge=.01),
      cylinder((0, .38, w), .16, .03, WOOD, Z),
      *both(box((w * .62, h * 1.3, w), (.05, .1, .02), DARK, .01))]


BUILDERS: dict[str, Builder] = {
    'chair': _chair, 'table': _table, 'sofa': _sofa, 'lamp': _lamp,
    'car': _car, 'truck': _truck, 'airplane': _airplane, 'boat': _boat,
    'rocket': _rocket, 'hammer': _hammer, 'umbrella': _umbrella, 'mug': _mug,
    'apple': _apple, 'ice cream': _ice_cream, 'cake': _cake,
    'snowman': _snowman, 'robot': _robot, 'duck': _duck, 'tree': _tree,
    'cactus': _cactus, 'mushroom': _mushroom, 'cat': _cat, 'rabbit': _rabbit,
    'fish': _fish, 'house': _house, 'castle': _castle}
