"""Prediction files: what is accepted, and the one line that each mistake gets."""

import random
import zipfile
from pathlib import Path

import numpy as np
import pytest

from fanet_lightning.cli.errors import InputError
from fanet_lightning.score.inputs import missing_line
from fanet_lightning.score.wider_face.predictions import (
    PredictionFile,
    Predictions,
    parse_files,
    read_predictions,
)

IDS = ("0--Parade/0_Parade_a_1", "0--Parade/0_Parade_b_2", "1--Handshaking/1_Handshaking_c_3")


def text(name: str, *rows: str, count: str | None = None) -> str:
    return "\n".join([name, str(len(rows)) if count is None else count, *rows]) + "\n"


def put(root: Path, image_id: str, content: str | bytes, suffix: str = ".txt") -> Path:
    path = root / f"{image_id}{suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def rows_of(predictions: Predictions, image: int) -> list[list[float]]:
    rows = slice(*predictions.starts[image : image + 2].tolist())
    return np.column_stack([predictions.boxes_xywh[rows], predictions.scores[rows]]).tolist()


def one_line(error: pytest.ExceptionInfo[InputError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("packed", [False, True])
def test_layout_with_everything_that_is_allowed(tmp_path: Path, packed: bool) -> None:
    root = tmp_path / "run"
    put(
        root,
        IDS[0],
        f"{IDS[0].partition('/')[2]}.jpg  \r\n 3 \r\n1 2 3 4 0.5 \r\n\r\n1e1\t-2.5 +3 .25 1E-2\r\n7 7 0 0 1\r\n\r\n",
    )
    put(root, IDS[1], "0_Parade_b_2\n0\n")
    put(root, IDS[2], "1_Handshaking_c_3\n1\n1 2 3 4 0.25", suffix=".jpg.txt")
    put(root, "0--Parade/.hidden", "junk")
    put(root, "0--Parade/notes", "junk", suffix=".md")
    put(root, "__MACOSX/._0_Parade_a_1", "junk")
    put(root, "readme", "junk")
    source = root
    if packed:
        source = tmp_path / "run.zip"
        with zipfile.ZipFile(source, "w", zipfile.ZIP_DEFLATED) as archive:
            for path in sorted(root.rglob("*")):
                archive.write(path, path.relative_to(root))
    read = read_predictions(source, IDS, strict=True)
    assert rows_of(read, 0) == [[1, 2, 3, 4, 0.5], [10, -2.5, 3, 0.25, 0.01], [7, 7, 0, 0, 1]]
    assert rows_of(read, 1) == []
    assert rows_of(read, 2) == [[1, 2, 3, 4, 0.25]]
    assert read.missing == ()


def test_missing_images_count_as_empty_unless_strict(tmp_path: Path) -> None:
    put(tmp_path, IDS[1], text("0_Parade_b_2", "1 2 3 4 0.5"))
    read = read_predictions(tmp_path, IDS)
    assert read.starts.tolist() == [0, 0, 1, 1]
    assert read.missing == (IDS[0], IDS[2])
    assert missing_line(read.missing, 3) == f"2 of 3 images have no predictions and count as empty: {IDS[0]}, {IDS[2]}"
    with pytest.raises(InputError, match=f"2 of 3 images have no predictions, the first is '{IDS[0]}'"):
        read_predictions(tmp_path, IDS, strict=True)


def test_files_outside_a_selection_are_not_even_opened(tmp_path: Path) -> None:
    put(tmp_path, IDS[0], "broken")
    put(tmp_path, IDS[1], text("0_Parade_b_2", "1 2 3 4 0.5"))
    read = read_predictions(tmp_path, IDS[1:2], known_ids=IDS, strict=True)
    assert rows_of(read, 0) == [[1, 2, 3, 4, 0.5]]
    with pytest.raises(InputError, match="1 files are of images that the ground truth does not have"):
        read_predictions(tmp_path, IDS[1:2])


# Predictions: mistakes


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (text("0_Parade_a_1", "1 2 3 4 .5", count="2"), ":2: '2'"),
        (text("0_Parade_a_1", "1 2 3 4 .5", count="one"), ":2: 'one'"),
        (text("0_Parade_a_1", "1 2 3 4 .5", count="9" * 5000), ":2: '9"),
        (text("0_Parade_a_1", "1 2 3 4 .5", count="-1"), ":2: '-1'"),
        ("0_Parade_a_1", ":2: ''"),
        ("", ":1: the name line says ''; write '0_Parade_a_1'"),
        (text("0_Parade_b_2", "1 2 3 4 .5"), ":1: the name line says '0_Parade_b_2'"),
        (text("0_Parade_a_1", "1 2 3 4 .5", "", "1 2 3 4", count="2"), ":5: '1 2 3 4'"),
        (text("0_Parade_a_1", "1 2 3 4", "1 2 3 4"), ":3: '1 2 3 4'"),
        (text("0_Parade_a_1", "1,5 2 3 4 .5"), ":3: '1,5"),
        (text("0_Parade_a_1", "1 2 3 4 nan"), ":3: "),
        (text("0_Parade_a_1", "1 2 3 4 .5", "inf 2 3 4 .5"), ":4: 'inf"),
        (text("0_Parade_a_1", "1 2 3 4 1e999"), ":3: "),
        (text("0_Parade_a_1", "1 2 3 4-5 .5"), ":3: "),
        (text("0_Parade_a_1", "1 2 3 1_0 .5"), ":3: "),
        (text("0_Parade_a_1", "1 2 3 0x1 .5"), ":3: "),
        (text("0_Parade_a_1", "1 2 -3 4 .5"), ":3: a side"),
        ("0_Parade_a_1\n1\n1 2 3 4 .5\n".encode("utf-16"), "is not UTF-8 text"),
    ],
)
def test_mistakes_in_a_file(tmp_path: Path, content: str | bytes, line: str) -> None:
    put(tmp_path, IDS[1], text("0_Parade_b_2", "1 2 3 4 0.5"))
    path = put(tmp_path, IDS[0], content)
    with pytest.raises(InputError) as error:
        read_predictions(tmp_path, IDS)
    message = one_line(error)
    assert message.startswith(str(path))
    assert line in message
    assert len(message) < len(str(path)) + 250


def test_mistakes_of_the_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none cannot be read .*; give a folder or a \.zip"):
        read_predictions(tmp_path / "none", IDS)
    with pytest.raises(InputError, match="there are no predictions in it"):
        read_predictions(tmp_path, IDS)
    put(tmp_path / "deep", IDS[0], text("0_Parade_a_1"))
    with pytest.raises(InputError, match="there are no predictions in it; give what holds the event folders"):
        read_predictions(tmp_path, IDS)
    put(tmp_path, IDS[0], text("0_Parade_a_1"))
    put(tmp_path, IDS[0], text("0_Parade_a_1"), suffix=".jpg.txt")
    with pytest.raises(InputError, match=f"two files for image '{IDS[0]}'"):
        read_predictions(tmp_path, IDS)
    put(tmp_path / "surplus", "0--Parade/x", text("x"))
    put(tmp_path / "surplus", "0--Parade/y", text("y"))
    with pytest.raises(InputError, match=r"2 files are of images .*, the first is '0--Parade/x\.txt'"):
        read_predictions(tmp_path / "surplus", IDS)


def test_mistakes_of_the_zip(tmp_path: Path) -> None:
    path = tmp_path / "run.zip"
    path.write_bytes(b"not a zip")
    with pytest.raises(InputError, match=r"is not a readable \.zip"):
        read_predictions(path, IDS)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{IDS[0]}.txt", text("0_Parade_a_1", "1 2 3 4 x"))
    with pytest.raises(InputError) as error:
        read_predictions(path, IDS)
    assert one_line(error).startswith(f"{path}/{IDS[0]}.txt:3: '1 2 3 4 x'")
    damaged = bytearray(path.read_bytes())
    damaged[damaged.index(b"1 2 3 4 x")] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(InputError, match=r"is not a readable \.zip \(Bad CRC-32"):
        read_predictions(path, IDS)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{IDS[0]}.txt", text("0_Parade_a_1"))
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr(f"{IDS[0]}.txt", text("0_Parade_a_1"))
    with pytest.raises(InputError, match="two files for image"):
        read_predictions(path, IDS)


def test_rows_are_those_of_a_parser_line_by_line() -> None:
    """What is accepted is what ``float`` makes of five words a line; all that is whole is accepted."""
    rng = random.Random(0)
    accepted = 0
    spellings = ["1", "-2.50", "+3", ".5", "6.", "1e2", "7E-3", "0.30000000000000004", "123456789.125", "5e-324"]
    sides = [spelling for spelling in spellings if spelling[0] != "-"]
    for _ in range(3000):
        files, is_whole = [], True
        for name in ("a", "b")[: rng.randint(0, 2)]:
            blank, end = rng.choice([" ", "\t", "  "]), rng.choice(["\n", "\r\n", " \n", "\n\n"])
            words = [[*rng.choices(spellings, k=2), *rng.choices(sides, k=3)] for _ in range(rng.randint(0, 3))]
            content = end.join([f"{name}\n{len(words)}", *map(blank.join, words)]) + rng.choice(["", "\n"])
            raw = bytearray(content.encode())
            if rng.random() < 0.5:
                raw[rng.randrange(len(raw))] = rng.choice(b" \n\r\t\v\x00\x1c\x85.-+eE059naif_x,#\xc3")
                is_whole = False
            files.append(PredictionFile(f"{name}.txt", f"event/{name}", bytes(raw)))
        try:
            values, counts = parse_files(files)
        except InputError:
            assert not is_whole
            continue
        accepted += 1
        lines = [[line.split() for line in file.text.decode().split("\n")[2:] if line.strip()] for file in files]
        assert counts.tolist() == [len(own) for own in lines]
        assert values.tolist() == [[float(word) for word in line] for own in lines for line in own]
    assert accepted > 1000
