"""Published WIDER FACE precision-recall curves: 40 methods on val, 41 on test, FANet and S3FD (``SFD``) among them.

Source: the results page of the benchmark, http://shuoyang1213.me/WIDERFACE/. The names are those of that page, so
``FAN`` is the Face *Attention* Network and ``SFD`` is S3FD.

The package has a compact copy, made by ``scripts/make_published_curves.py``. The AP step on it gives every published
AP to all four decimals; it is off by at most 6e-6 from that on the original points. No stored value is off by more
than 1/65535, and no point that was left out is farther than 0.001 from the line through the others.
"""

import difflib
import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np

from fanet_lightning.cli.errors import InputError
from fanet_lightning.score.curves import Floats
from fanet_lightning.score.inputs import check_choice

HOMEPAGE = "http://shuoyang1213.me/WIDERFACE/"
FILE = Path(__file__).with_name("published_curves") / "wider_face.npz"
STEPS = 65535
SPLITS = ("val", "test")

# What a short name of the page stands for, where it misleads; and what people call a method that the page calls else.
FULL_NAMES = {"FAN": "Face Attention Network", "SFD": "S3FD"}
ALIASES = {"S3FD": "SFD", "S³FD": "SFD"}


def published_methods(split: str = "val") -> dict[str, dict[str, float]]:
    """Method → setting → published AP in [0, 1], the best on ``hard`` first; InputError: another split."""
    check_choice("split", split, SPLITS)
    ap = {key.partition("/")[2]: own for key, own in _copy()[0].items() if key.startswith(f"{split}/")}
    return {name: dict(ap[name]) for name in sorted(ap, key=lambda name: (-ap[name]["hard"], name))}


def published_curve(method: str, split: str = "val", setting: str = "hard") -> tuple[Floats, Floats]:
    """Precision and recall, (T,) float64 each in [0, 1], read-only, at descending thresholds; T differs from curve to
    curve. Their area by :func:`fanet_lightning.score.curves.average_precision` is the published AP.

    ``method`` is a name of :func:`published_methods`, or S3FD; InputError: a method or split that is not there.
    """
    points = _copy()[1][f"{split}/{method_name(method, split)}", setting]
    return points[:, 0], points[:, 1]


def method_name(method: str, split: str = "val") -> str:
    """The page's name of a method: ``S3FD`` → ``SFD``, small letters as they come; InputError names the nearest one."""
    known = {name.lower(): name for name in published_methods(split)}
    name = ALIASES.get(method.upper(), method).lower()
    if name not in known:
        near = known[difflib.get_close_matches(name, known, n=1, cutoff=0)[0]]
        raise InputError(f"'{method}' has no published curve on WIDER FACE {split}: did you mean '{near}'?")
    return known[name]


@lru_cache(maxsize=1)
def _copy() -> tuple[Mapping[str, Mapping[str, float]], Mapping[tuple[str, str], Floats]]:
    """ "split/method" → setting → AP; ("split/method", setting) → points (T, 2)."""
    with np.load(FILE) as arrays:
        ap: dict[str, dict[str, float]] = json.loads(str(arrays["header"]))["ap"]
        # Differences modulo 65536: adding up in uint16 undoes them.
        ends = np.cumsum(arrays["points"].astype(np.int64))[:-1]
        columns = [np.split(arrays[name], ends) for name in ("precision", "recall")]
    curves = {}
    keys = [(key, setting) for key, settings in ap.items() for setting in settings]
    for key, *pair in zip(keys, *columns, strict=True):
        points = np.column_stack([np.cumsum(column, dtype=np.uint16) for column in pair]) / STEPS
        points.flags.writeable = False
        curves[key] = points
    return ap, curves
