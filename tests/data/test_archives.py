"""Archives from strangers: what leaves the folder, fills the disk or is damaged is refused by name."""

import random
import shutil
import struct
import zipfile
from pathlib import Path

import pytest

from fanet_lightning.cli.errors import InputError
from fanet_lightning.data.download import Unpacked, UnusableArchive, count_files, members_of, unpack, unpacked_bytes
from tests.data.download_server import symlink, zipped, zipped_members


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


FILES = {
    "W/images/0--Parade/a.jpg": b"first",
    "W/images/0--Parade/b.jpg": b"second",
    "W/images/1--Riot/c.jpg": b"third",
    "W/readme.txt": b"",
    "elsewhere/d.txt": b"not asked for",
    "__MACOSX/W/._a.jpg": b"x",
    "W/images/._b.jpg": b"x",
    "W/.DS_Store": b"x",
}
INSIDE = {"images/0--Parade/a.jpg": b"first", "images/0--Parade/b.jpg": b"second", "images/1--Riot/c.jpg": b"third"}
ALL_INSIDE = {**INSIDE, "readme.txt": b""}


def test_a_new_folder_appears_whole(tmp_path: Path) -> None:
    archive = written(tmp_path / "w.zip", zipped({"W/": b"", "W/images/": b"", **FILES}))
    members = members_of(archive, "W")
    assert [str(member.path) for member in members] == list(ALL_INSIDE)
    assert unpacked_bytes(members) == 3 * 4096
    seen: list[tuple[int, int]] = []
    assert unpack(archive, members, tmp_path / "W", tmp_path / "work", lambda *n: seen.append(n)) == Unpacked(4, [])
    assert tree(tmp_path / "W") == ALL_INSIDE
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert list((tmp_path / "work").iterdir()) == []


def test_a_folder_inside_goes_where_it_is_wanted(tmp_path: Path) -> None:
    archive = written(tmp_path / "w.zip", zipped(FILES))
    unpack(archive, members_of(archive, "W/images"), tmp_path / "deep/er", tmp_path / "work")
    assert tree(tmp_path / "deep/er") == {name.removeprefix("images/"): data for name, data in INSIDE.items()}


def test_a_begun_folder_is_completed_and_other_files_stay(tmp_path: Path) -> None:
    archive = written(tmp_path / "w.zip", zipped(FILES))
    folder = tmp_path / "W"
    (folder / "images/0--Parade").mkdir(parents=True)
    written(folder / "images/0--Parade/a.jpg", b"first")
    written(folder / "images/0--Parade/b.jpg", b"sec")
    written(folder / "images/0--Parade/.c.jpg.part", b"th")
    written(folder / "own.txt", b"mine")
    before = (folder / "images/0--Parade/a.jpg").stat().st_mtime_ns
    assert unpack(archive, members_of(archive, "W"), folder, tmp_path / "work") == Unpacked(3, [])
    assert tree(folder) == {**ALL_INSIDE, "own.txt": b"mine", "images/0--Parade/.c.jpg.part": b"th"}
    assert (folder / "images/0--Parade/a.jpg").stat().st_mtime_ns == before
    assert unpack(archive, members_of(archive, "W"), folder, tmp_path / "work") == Unpacked(0, [])


@pytest.mark.parametrize(
    ("there", "replaced"),
    [(b"", True), (b"s", True), (b"secon", True), (bytes(6), True), (b"sec\0\0\0", True), (b"second", False),
     (b"secOnd", False), (b"econd", False), (b"second ", False), (b"second\0", False), (b"sed", False)],
)  # fmt: skip
def test_only_beginnings_are_replaced(tmp_path: Path, there: bytes, replaced: bool) -> None:
    """Somebody's resized or mended images are theirs."""
    archive = written(tmp_path / "w.zip", zipped(FILES))
    path = tmp_path / "W/images/0--Parade/b.jpg"
    path.parent.mkdir(parents=True)
    written(path, there)
    done = unpack(archive, members_of(archive, "W"), tmp_path / "W", tmp_path / "work")
    assert done.written == 3 + replaced
    assert path.read_bytes() == (b"second" if replaced else there)
    other = there not in (b"second",) and not replaced
    assert [str(name) for name in done.different] == (["images/0--Parade/b.jpg"] if other else [])


def test_what_a_killed_process_left_is_swept_away(tmp_path: Path) -> None:
    archive = written(tmp_path / "w.zip", zipped(FILES))
    (tmp_path / "work/W.unpacking/images").mkdir(parents=True)
    written(tmp_path / "work/W.unpacking/images/stranger.jpg", b"x")
    unpack(archive, members_of(archive, "W"), tmp_path / "W", tmp_path / "work")
    assert tree(tmp_path / "W") == ALL_INSIDE


@pytest.mark.parametrize(
    "name",
    ["../evil", "W/../../evil", "W/images/../../../evil", "/etc/evil", "//host/evil", "C:/evil", "C:evil", "W/..",
     "W/a:b", "..", "W\\..\\evil", "..\\evil", "W/a\\b", "W/a\nb", "."],
)  # fmt: skip
def test_names_that_lead_out(tmp_path: Path, name: str) -> None:
    archive = written(tmp_path / "w.zip", zipped_members([(zipfile.ZipInfo(name), b"x")]))
    with pytest.raises(InputError) as error:
        members_of(archive, "W")
    assert str(error.value).startswith(f"{archive}: not unpacked, the name {name!r}")
    assert "\n" not in str(error.value)


def test_a_name_cut_short_by_a_nul(tmp_path: Path) -> None:
    content = zipped({"W/image.jpgZ/../../evil": b"x"}).replace(b"jpgZ", b"jpg\0")
    with pytest.raises(InputError, match="control character"):
        members_of(written(tmp_path / "w.zip", content), "W")


@pytest.mark.parametrize("mode", [0o120777, 0o020666, 0o060666, 0o010666, 0o140666])
def test_links_and_devices(tmp_path: Path, mode: int) -> None:
    info = zipfile.ZipInfo("W/link")
    info.external_attr = mode << 16
    archive = written(tmp_path / "w.zip", zipped_members([(info, b"/etc/passwd")]))
    with pytest.raises(InputError, match="W/link"):
        members_of(archive, "W")


def test_a_link_and_a_file_through_it(tmp_path: Path) -> None:
    members = [symlink("W/out", ".."), (zipfile.ZipInfo("W/out/evil"), b"x")]
    with pytest.raises(InputError, match="symbolic link"):
        members_of(written(tmp_path / "w.zip", zipped_members(members)), "W")


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("second", ["W/a.jpg", "W//a.jpg", "W/./a.jpg"])
def test_a_name_twice(tmp_path: Path, second: str) -> None:
    archive = written(
        tmp_path / "w.zip", zipped_members([(zipfile.ZipInfo(n), b"x") for n in ("W/a.jpg", second)])
    )  # fmt: skip
    with pytest.raises(InputError, match="is in it twice"):
        members_of(archive, "W")


def test_files_where_folders_belong(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'a/b'"):
        members_of(written(tmp_path / "1.zip", zipped({"W/a": b"x", "W/a/b": b"x"})), "W")
    with pytest.raises(InputError, match="'W'"):
        members_of(written(tmp_path / "2.zip", zipped({"W": b"x"})), "W")
    good = written(tmp_path / "3.zip", zipped(FILES))
    written(tmp_path / "W", b"a file")
    with pytest.raises(InputError, match="W is a file"):
        unpack(good, members_of(good, "W"), tmp_path / "W", tmp_path / "work")
    (tmp_path / "V/images").mkdir(parents=True)
    written(tmp_path / "V/images/1--Riot", b"a file")
    with pytest.raises(InputError, match=r"V/images/1--Riot.*cannot be written"):
        unpack(good, members_of(good, "W"), tmp_path / "V", tmp_path / "work")


def test_bombs(tmp_path: Path) -> None:
    archive = written(tmp_path / "w.zip", zipped({"W/a.jpg": bytes(10**7)}, zipfile.ZIP_DEFLATED))
    with pytest.raises(InputError, match="10,000,000"):
        members_of(archive, "W")


def test_overlapping_members(tmp_path: Path) -> None:
    """Two entries of the directory at the same bytes: together they are more than the archive has."""
    content = zipped({"W/a.jpg": random.Random(0).randbytes(9000), "W/b.jpg": random.Random(1).randbytes(9000)})
    cut = content.index(b"PK\3\4", 1)
    directory = content.index(b"PK\1\2")
    second = content.index(b"PK\1\2", directory + 1)
    entries = bytearray(content[directory:])
    at = second - directory
    entries[at + 42 : at + 46] = bytes(4)  # its offset is the first member's
    end = entries.index(b"PK\5\6")
    entries[end + 16 : end + 20] = struct.pack("<I", cut)  # where the directory begins
    archive = written(tmp_path / "w.zip", content[:cut] + bytes(entries))
    with pytest.raises(InputError, match="18,000"):
        members_of(archive, "W")


def test_encrypted_members(tmp_path: Path) -> None:
    content = bytearray(zipped({"W/a.jpg": b"x"}))
    for mark, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        content[content.index(mark) + offset] |= 1
    with pytest.raises(InputError, match=r"W/a\.jpg.*encrypted"):
        members_of(written(tmp_path / "w.zip", bytes(content)), "W")


def test_a_member_larger_than_stated(tmp_path: Path) -> None:
    """The directory states 10 bytes, 5,000 follow: no more than 10 are written, and the checksum gives it away."""
    content = bytearray(zipped({"W/a.jpg": bytes(range(250)) * 20}, zipfile.ZIP_DEFLATED))
    at = content.index(b"PK\1\2") + 24
    content[at : at + 4] = struct.pack("<I", 10)
    archive = written(tmp_path / "w.zip", bytes(content))
    with pytest.raises(InputError, match=r"W/a\.jpg.*Bad CRC-32"):
        unpack(archive, members_of(archive, "W"), tmp_path / "W", tmp_path / "work")
    assert not (tmp_path / "W").exists() and list((tmp_path / "work").iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"PK\5\6", b"<html>", b"PK\3\4" + bytes(100)])
def test_what_is_no_archive(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(InputError, match="not a readable zip"):
        members_of(written(tmp_path / "w.zip", content), "W")


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_damage_anywhere_is_named_or_harmless(tmp_path: Path, compression: int) -> None:
    """Bytes changed, cut or put in: either one line, or no content that was not there; never half a folder."""
    sound = zipped(FILES, compression)
    refused = 0
    for seed in range(300):
        chance = random.Random(seed)
        content = bytearray(sound)
        for _ in range(chance.randint(1, 3)):
            at = chance.randrange(len(content))
            match chance.choice(["change", "change", "cut", "insert"]):
                case "change":
                    content[at] = chance.randrange(256)
                case "cut":
                    del content[at : at + chance.randint(1, 40)]
                case "insert":
                    content[at:at] = chance.randbytes(chance.randint(1, 20))
        archive = written(tmp_path / "w.zip", bytes(content))
        target = tmp_path / "out/W"
        try:
            unpack(archive, members_of(archive, "W"), target, tmp_path / "work")
        except InputError as error:
            refused += 1
            assert "\n" not in str(error), seed
            assert not target.exists(), seed
        else:
            # Names are under no checksum, the content is.
            assert not target.exists() or set(tree(target).values()) <= set(FILES.values()), seed
        assert {path.name for path in tmp_path.iterdir()} <= {"w.zip", "work", "out"}, seed
        assert not (tmp_path / "work").exists() or not list((tmp_path / "work").iterdir()), seed
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
    assert 100 < refused < 300


def test_only_the_archives_own_faults_make_it_unusable(tmp_path: Path) -> None:
    good, bad = written(tmp_path / "w.zip", zipped(FILES)), written(tmp_path / "b.zip", b"<html>")
    with pytest.raises(UnusableArchive, match="delete it") as unusable:
        members_of(bad, "W")
    assert (unusable.value.fault, unusable.value.remedy) == (
        "not a readable zip (File is not a zip file)", "fetch it again"
    )  # fmt: skip
    written(tmp_path / "W", b"a file")
    (tmp_path / "folder.zip").mkdir()
    for action in (
        lambda: unpack(good, members_of(good, "W"), tmp_path / "W", tmp_path / "work"),
        lambda: members_of(tmp_path / "folder.zip", "W"),
    ):
        with pytest.raises(InputError) as other:
            action()
        assert not isinstance(other.value, UnusableArchive)


def test_counting(tmp_path: Path) -> None:
    sizes = {"a.jpg": 1, "b.JPG": 1, "c.jpg": 0, ".d.jpg": 1, "e.png": 1, ".h/f.jpg": 1}
    for name, size in sizes.items():
        for place in (tmp_path, tmp_path / "one/two"):
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes(bytes(size))
    (tmp_path / "broken.jpg").symlink_to("nowhere")
    (tmp_path / "folder.jpg").mkdir()
    assert count_files(tmp_path, ".jpg") == 4 and count_files(tmp_path) == 6
    assert count_files(tmp_path / "absent", ".jpg") == 0
