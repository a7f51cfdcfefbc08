"""Makes ``wider_scoring.json``: a small run of our own, and what the slow oracle says about it.

    python tests/golden/make_wider_scoring.py

The numbers belong to the rules, so they change only when the rules were read wrongly.
"""

import json
import random
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from tests.score import wider_oracle  # noqa: E402

EVENTS = ("0--Parade", "12--Group", "61--Street_Battle")


def main() -> None:
    rng = random.Random(1712)
    images = {}
    for i in range(12):
        faces, easy, hard, rows = [], [], [], []
        for _ in range(rng.choice([0, 1, 3, 9])):
            side = rng.choice([3, 6, 14, 40, 90])
            face = [rng.randrange(900), rng.randrange(600), side, side + rng.randrange(side)]
            faces.append(face)
            easy.append(side >= 40)
            hard.append(side >= 6)
            for _ in range(rng.choice([0, 1, 1, 2])):
                shift = [rng.uniform(-0.3, 0.3) * side for _ in range(4)]
                box = [round(max(value + move, 0.0), 2) for value, move in zip(face, shift, strict=True)]
                rows.append([*box, round(rng.betavariate(4, 2), 4)])
        for _ in range(rng.choice([0, 2, 5])):
            rows.append([rng.randrange(900), rng.randrange(600), 30, 40.25, round(rng.betavariate(2, 5), 4)])
        image_id = f"{EVENTS[i // 4]}/{EVENTS[i // 4].replace('--', '_')}_{i}"
        images[image_id] = {
            "faces": faces,
            "counted": {"easy": easy, "medium": hard, "hard": [True] * len(faces)},
            "rows": rows,
        }
    ap = {
        setting: wider_oracle.curve([(v["faces"], v["counted"][setting], v["rows"]) for v in images.values()])[2]
        for setting in ("easy", "medium", "hard")
    }
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in images.items())
    (HERE / "wider_scoring.json").write_text(f'{{"ap": {json.dumps(ap)},\n "images": {{\n{lines}\n}}}}\n')


if __name__ == "__main__":
    main()
