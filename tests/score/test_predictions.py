"""Prediction files of WIDER FACE: what is accepted, the one line that each mistake gets, what is written."""

import random
import zipfile
from pathlib import Path

import pytest

from fanet_lightning.cli.errors import InputError
from fanet_lightning.score.wider_face.predictions import read_predictions, write_predictions
from tests.score.helpers import IDS, invalid, put, refused, rows_of


def text(name: str, *rows: str, count: str | None = None) -> str:
    return "\n".join([name, str(len(rows)) if count is None else count, *rows]) + "\n"


@pytest.mark.parametrize("packed", [False, True])
def test_layout_with_everything_that_is_allowed(tmp_path: Path, packed: bool) -> None:
    root = tmp_path / "run"
    rows = "1 2 3 4 0.5 \r\n\r\n1e1\t-2.5 +3 .25 1E-2\r\n7 7 0 0 1\r\n\r\n"
    put(root, IDS[0], f"{IDS[0].partition('/')[2]}.jpg  \r\n 3 \r\n{rows}")
    put(root, IDS[1], "0_Parade_b_2\n0\n")
    put(root, IDS[2], "1_Handshaking_c_3\n1\n1 2 3 4 0.25", suffix=".jpg.txt")
    for junk in ("0--Parade/.hidden.txt", "0--Parade/notes.md", "__MACOSX/._0_Parade_a_1.txt", "readme.txt"):
        put(root, junk, "junk", suffix="")
    source = root
    if packed:
        source = tmp_path / "run.zip"
        with zipfile.ZipFile(source, "w", zipfile.ZIP_DEFLATED) as archive:
            for path in sorted(root.rglob("*")):
                archive.write(path, path.relative_to(root))
    read = read_predictions(source, IDS)
    assert rows_of(read, 0) == [[1, 2, 3, 4, 0.5], [10, -2.5, 3, 0.25, 0.01], [7, 7, 0, 0, 1]]
    assert (rows_of(read, 1), rows_of(read, 2), read.missing) == ([], [[1, 2, 3, 4, 0.25]], ())


def test_images_without_a_file_and_files_outside_a_selection(tmp_path: Path) -> None:
    put(tmp_path, IDS[0], "broken")
    put(tmp_path, IDS[1], text("0_Parade_b_2", "1 2 3 4 0.5"))
    read = read_predictions(tmp_path, IDS[1:], known_ids=IDS)  # the first is not even opened
    assert read.starts.tolist() == [0, 1, 1]
    assert (rows_of(read, 0), read.missing) == ([[1, 2, 3, 4, 0.5]], (IDS[2],))
    refused(f"1 files, the first '{IDS[0]}.txt', are of images", read_predictions, tmp_path, IDS[1:])


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (text("0_Parade_a_1", "1 2 3 4 .5", count="2"), ":2: '2'"),
        (text("0_Parade_b_2", "1 2 3 4 .5"), ":1: the name line says '0_Parade_b_2'"),
        (text("0_Parade_a_1", "1 2 3 4 .5", "", "1 2 3 4", count="2"), ":5: '1 2 3 4'"),
        (text("0_Parade_a_1", "1 2 3 4 .5", "inf 2 3 4 .5"), ":4: 'inf"),
        (text("0_Parade_a_1", "1 2 -3 4 .5"), ":3: '1 2 -3"),
        ("0_Parade_a_1\n1\n1 2 3 4 .5\n".encode("utf-16"), "UTF-8"),
    ],
)
def test_mistakes_in_a_file(tmp_path: Path, content: str | bytes, line: str) -> None:
    put(tmp_path, IDS[1], text("0_Parade_b_2", "1 2 3 4 0.5"))
    path = put(tmp_path, IDS[0], content)
    message = refused(".", read_predictions, tmp_path, IDS)
    assert message.startswith(str(path)) and line in message


def test_mistakes_of_the_folder_and_the_zip(tmp_path: Path) -> None:
    refused(r"none cannot be read .*a folder or \.zip", read_predictions, tmp_path / "none", IDS)
    refused("no file of an image is in it; predictions are a folder", read_predictions, tmp_path, IDS)
    for suffix in (".txt", ".jpg.txt"):
        put(tmp_path, IDS[0], text("0_Parade_a_1"), suffix)
    refused(f"two files for '{IDS[0]}'", read_predictions, tmp_path, IDS)
    path = put(tmp_path, "run", "not a zip", ".zip")
    refused(f"^{path} cannot be read", read_predictions, path, IDS)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{IDS[0]}.txt", text("0_Parade_a_1", "1 2 3 4 x"))
    refused(f"^{path}/{IDS[0]}.txt:3: '1 2 3 4 x'", read_predictions, path, IDS)
    damaged = bytearray(path.read_bytes())
    damaged[damaged.index(b"1 2 3 4 x")] ^= 1
    path.write_bytes(damaged)
    refused("Bad CRC-32", read_predictions, path, IDS)


def test_rows_are_those_of_a_parser_line_by_line(tmp_path: Path) -> None:
    """What is accepted is what ``float`` makes of five words a line; all that is whole is accepted."""
    rng = random.Random(0)
    accepted = 0
    spellings = ["1", "-2.50", "+3", ".5", "6.", "1e2", "7E-3", "0.30000000000000004", "123456789.125", "5e-324"]
    sides = [spelling for spelling in spellings if spelling[0] != "-"]
    for _ in range(600):
        blank, end = rng.choice([" ", "\t", "  "]), rng.choice(["\n", "\r\n", " \n", "\n\n"])
        words = [[*rng.choices(spellings, k=2), *rng.choices(sides, k=3)] for _ in range(rng.randint(0, 3))]
        raw = bytearray((end.join([f"a\n{len(words)}", *map(blank.join, words)]) + rng.choice(["", "\n"])).encode())
        is_whole = rng.random() < 0.5
        if not is_whole:
            raw[rng.randrange(len(raw))] = rng.choice(b" \n\r\t\v\x00\x1c\x85.-+eE059naif_x,#\xc3")
        (tmp_path / "a.txt").write_bytes(raw)
        try:
            read = read_predictions(tmp_path, ["a"])
        except InputError:
            assert not is_whole
            continue
        accepted += 1
        lines = [line.split() for line in raw.decode().split("\n")[2:] if line.strip()]
        assert rows_of(read, 0) == [[float(word) for word in line] for line in lines]
    assert accepted > 200


def test_writing_replaces_predictions_and_nothing_else(tmp_path: Path) -> None:
    run, one = tmp_path / "run", ([[0, 0, 1, 1]], [0.5])
    write_predictions(run, {IDS[0]: ([[1, 2, 4.126, 2], [0, 0, 10, 20.5]], [0.25, 0.9999996])})
    assert (run / f"{IDS[0]}.txt").read_text() == (
        "0_Parade_a_1\n2\n0.00 0.00 10.00 20.50 1.000000\n1.00 2.00 3.13 0.00 0.250000\n"
    )
    write_predictions(run, {IDS[2]: one})
    invalid("negative side", write_predictions, run, {IDS[0]: one, IDS[1]: ([[5, 0, 1, 1]], [0.5])})
    assert [path.relative_to(run).as_posix() for path in run.rglob("*.txt")] == [f"{IDS[2]}.txt"]
    # A photo, and YOLO's labels.
    for own in (
        put(run, "0--Parade/photo", "keep me", suffix=".jpg"),
        put(tmp_path, "labels/photo", "0 0.5 0.5 0.1 0.1"),
    ):
        refused(
            "holds something else than predictions", write_predictions, own.parents[own.suffix == ".jpg"], {IDS[0]: one}
        )
        assert own.is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["labels", "run"]  # no temporary folder stays
