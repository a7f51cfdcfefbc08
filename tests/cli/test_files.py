from pathlib import Path

import pytest

from fanet_lightning.cli.files import replaced, replaced_folder


def test_a_failure_keeps_the_old_file_and_leaves_no_rest(tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    path.write_text("old")
    with pytest.raises(RuntimeError), replaced(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["scores.json"]


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "predictions"
    path.mkdir()
    (path / "old.txt").write_text("old")
    with pytest.raises(RuntimeError), replaced_folder(path) as temporary:
        (temporary / "half.txt").write_text("half")
        raise RuntimeError
    assert [p.name for p in path.iterdir()] == ["old.txt"]
    with replaced_folder(path) as temporary:
        (temporary / "new.txt").write_text("new")
    assert [p.name for p in path.iterdir()] == ["new.txt"]
    assert [p.name for p in tmp_path.iterdir()] == ["predictions"]
