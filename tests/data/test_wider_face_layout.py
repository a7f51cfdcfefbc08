"""WIDER FACE on disk as people have it: half unpacked, or named in another letter case."""

import random
from pathlib import Path

import pytest

from fanet_lightning.cli.errors import InputError
from fanet_lightning.data.wider_face import load_wider_face
from tests.data.wider_files import numbered, write_wider


def refusal(root: Path, split: str = "val") -> str:
    with pytest.raises(InputError) as error:
        load_wider_face(root, split)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)
    return str(error.value)


def test_the_exact_name_comes_before_its_variants(tmp_path: Path) -> None:
    write_wider(tmp_path, "val", numbered(1))
    event = tmp_path / "WIDER_val/images/0--Parade"
    (event / "0_Parade_000.JPG").write_bytes(b"another")
    assert load_wider_face(tmp_path, "val")[0].path == event / "0_Parade_000.jpg"
    (event / "0_Parade_000.jpg").rename(event / "0_parade_000.jpg")
    text = refusal(tmp_path)
    assert "may be 0--Parade/0_Parade_000.JPG or 0--Parade/0_parade_000.jpg" in text


def test_a_half_unpacked_folder_is_named_with_what_completes_it(tmp_path: Path) -> None:
    root = tmp_path / "my data"
    write_wider(root, "val", numbered(4))
    (root / "WIDER_val/images/0--Parade/0_Parade_002.jpg").unlink()
    text = refusal(root)
    assert "1 of the 4 images of the val split are missing, the first is" in text
    assert f"complete the folder with 'fanet download wider_face --root '{root}' --parts val'" in text


def test_missing_parts_name_the_command(tmp_path: Path) -> None:
    command = f"fanet download wider_face --root {tmp_path} --parts"
    assert f"{command} train'" in refusal(tmp_path, "train")
    write_wider(tmp_path, "val", numbered(1))
    (tmp_path / "wider_face_split/wider_face_val_bbx_gt.txt").unlink()
    (tmp_path / "wider_face_split").rmdir()
    assert f"{command} annotations'" in refusal(tmp_path)


def test_any_letter_case_gives_the_same_records(tmp_path: Path) -> None:
    """Random cases of every name: records as from the official names, each at a file that is there."""
    chance = random.Random(0)
    faces = {**numbered(4), **numbered(4, "1--Riot"), **numbered(4, "2--Demonstration")}
    for number in range(12):
        root = tmp_path / str(number)
        write_wider(root, "val", faces)
        expected = load_wider_face(root, "val")
        for path in sorted((root / "WIDER_val/images").rglob("*"), reverse=True):
            if chance.random() < 0.5:
                path.rename(path.with_name("".join(chance.choice((c.lower(), c.upper())) for c in path.name)))
        found = load_wider_face(root, "val")
        assert [record.image_id for record in found] == [record.image_id for record in expected]
        for new, old in zip(found, expected, strict=True):
            assert new.path.is_file() and str(new.path).lower() == str(old.path).lower()
            assert (new.boxes_xyxy == old.boxes_xyxy).all()
