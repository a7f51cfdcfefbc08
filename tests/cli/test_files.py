from pathlib import Path

import pytest

from fanet_lightning.cli.errors import InputError
from fanet_lightning.cli.files import check_replaceable, replaced, replaced_folder, walk_files


def test_a_failure_keeps_what_was_there_and_leaves_no_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "predictions"
    folder.mkdir()
    (folder / "old.txt").write_text("old")
    with pytest.raises(RuntimeError), replaced(folder / "old.txt") as temporary:
        temporary.write_text("half")
        raise RuntimeError
    with pytest.raises(RuntimeError), replaced_folder(folder) as temporary:
        (temporary / "half.txt").write_text("half")
        raise RuntimeError
    assert [(path.name, path.read_text()) for path in folder.iterdir()] == [("old.txt", "old")]
    with replaced_folder(folder) as temporary:
        (temporary / "new.txt").write_text("new")
    assert [path.name for path in folder.iterdir()] == ["new.txt"]
    assert [path.name for path in tmp_path.iterdir()] == ["predictions"]
    (tmp_path / "link").symlink_to(folder)
    with replaced_folder(tmp_path / "link") as temporary:
        (temporary / "newer.txt").touch()
    assert (tmp_path / "link").is_symlink() and [path.name for path in folder.iterdir()] == ["newer.txt"]
    monkeypatch.chdir(folder)
    with pytest.raises(InputError, match="working folder"):
        check_replaceable(Path(), "a report", ["newer.txt"])


def test_folders_whose_links_lead_to_each_other_are_walked_once_each(tmp_path: Path) -> None:
    for name, other in ("ab", "ba"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.jpg").touch()
        (tmp_path / name / "link").symlink_to(tmp_path / other)
    assert sorted(walk_files(tmp_path)) == ["a/link/x.jpg", "a/x.jpg", "b/link/x.jpg", "b/x.jpg"]
