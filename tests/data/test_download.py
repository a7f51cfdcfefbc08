"""Files over HTTP from a server that misbehaves, and archives from strangers: complete and right, or not at all."""

import hashlib
import random
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from fanet_lightning.cli.errors import InputError
from fanet_lightning.data.download import (
    Patience,
    RemoteFile,
    UnusableArchive,
    check_space,
    count_files,
    fault,
    fetch,
    unpack,
)
from tests.data.download_server import Answer, FileServer, file_server, symlink, zipped, zipped_members

CONTENT = random.Random(0).randbytes(400_000)
OTHER = random.Random(1).randbytes(400_000)
QUICK = Patience(retries=3, first_wait_s=0.001, timeout_s=5)
ONCE = Patience(retries=0)


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture()
def server() -> Iterator[FileServer]:
    with file_server() as running:
        yield running


def remote(*urls: str, sized: bool = True) -> RemoteFile:
    return RemoteFile("a.zip", urls, hashlib.sha256(CONTENT).hexdigest(), len(CONTENT) if sized else None)


def fetched(folder: Path, file: RemoteFile, patience: Patience = QUICK) -> list[str]:
    """What was said; the file is right and nothing else is left."""
    said: list[str] = []
    path = fetch(file, folder, patience=patience, say=said.append)
    assert path == folder / "a.zip" and path.read_bytes() == CONTENT
    assert [entry.name for entry in folder.iterdir()] == ["a.zip"]
    return said


def refused(folder: Path, file: RemoteFile, patience: Patience = QUICK) -> str:
    with pytest.raises(InputError) as error:
        fetch(file, folder, patience=patience, say=lambda text: None)
    assert not (folder / "a.zip").exists() and "\n" not in str(error.value)
    return str(error.value)


def kept_bytes(folder: Path) -> int:
    return (folder / "a.zip.part").stat().st_size


def test_a_plain_transfer_and_its_progress(server: FileServer, tmp_path: Path) -> None:
    url = server.serve("/a.zip", Answer(CONTENT))
    seen: list[tuple[int, int | None]] = []
    path = fetch(remote(url), tmp_path / "new/folder", progress=lambda *amounts: seen.append(amounts))
    assert path.read_bytes() == CONTENT
    assert seen[0] == (0, 400_000) and seen[-1] == (400_000, 400_000) and seen == sorted(seen)
    fetch(remote(url), tmp_path / "new/folder")
    assert len(server.asked) == 1, "what is there and right is not asked for again"


def test_resumes_where_it_broke_off(server: FileServer, tmp_path: Path) -> None:
    url = server.serve("/a.zip", *(Answer(CONTENT, breaks_after=n) for n in (200_000, 100_000)), Answer(CONTENT))
    said = fetched(tmp_path, remote(url))
    begun = [int(asked.range.removeprefix("bytes=").rstrip("-")) for asked in server.asked[1:] if asked.range]
    # Up to a chunk of what was under way may be lost, no more.
    assert 200_000 - (1 << 16) < begun[0] <= 200_000
    assert begun[0] + 100_000 - (1 << 16) < begun[1] <= begun[0] + 100_000
    assert all("breaks off" in line for line in said) and len(said) == 2
    # As long as it gets on, retries do not run out.
    url = server.serve("/b.zip", *[Answer(CONTENT, breaks_after=70_000)] * 10)
    fetched(tmp_path / "b", remote(url), Patience(retries=1, first_wait_s=0.001))


@pytest.mark.parametrize("how", ["server", "interrupt"])
def test_resumes_in_another_process(server: FileServer, tmp_path: Path, how: str) -> None:
    if how == "server":
        url = server.serve("/a.zip", Answer(CONTENT, breaks_after=300_000))
        assert "kept" in refused(tmp_path, remote(url), ONCE)
    else:
        url = server.serve("/a.zip", Answer(CONTENT))

        def interrupt(done: int, total: int | None) -> None:
            if done > 200_000:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            fetch(remote(url), tmp_path, progress=interrupt)
    kept = kept_bytes(tmp_path)
    assert kept > 200_000
    server.serve("/a.zip", Answer(CONTENT))
    fetched(tmp_path, remote(url))
    assert server.asked[-1].range == f"bytes={kept}-"


@pytest.mark.parametrize(
    ("answer", "requests", "says"),
    [
        (Answer(CONTENT, says_bytes=399_999), 1, "399,999"),
        (Answer(CONTENT, says_bytes=0), 1, "announces 0"),
        (Answer(CONTENT + b"x", bare=True), 1, "more than"),
        (Answer(CONTENT, ranges=False, breaks_after=200_000), 4, "breaks off"),
        (Answer(OTHER), 2, hashlib.sha256(OTHER).hexdigest()[:16]),
        (Answer(b"\n<!DOCTYPE html>".ljust(400_000)), 1, "login page"),
        (Answer(status=404), 1, "404 Not Found"),
        (Answer(status=204), 1, "204 No"),
        (Answer(status=503), 4, "503 Service Unavailable, tried 4 times"),
        (Answer(status=429, headers={"Retry-After": "3600"}), 1, "3600 s"),
        (Answer(status=302, headers={"Location": "/a.zip"}), 31, "cannot be asked"),
    ],
)
def test_faults_that_do_not(server: FileServer, tmp_path: Path, answer: Answer, requests: int, says: str) -> None:
    url = server.serve("/a.zip", answer)
    text = refused(tmp_path, remote(url))
    assert f"{url} " in text and says in text and "give another --source" in text
    assert len(server.asked) == requests
    assert says == "breaks off" or says == "more than" or list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("page", [b"\r\n <html>Log in</html>", b"<html>Log in</html>".ljust(500_000)])
def test_a_page_where_the_size_is_unknown(server: FileServer, tmp_path: Path, page: bytes) -> None:
    assert "login page" in refused(tmp_path, remote(server.serve("/a.zip", Answer(page)), sized=False))
    assert list(tmp_path.iterdir()) == []


def test_of_a_file_of_unknown_size_the_checksum_decides(server: FileServer, tmp_path: Path) -> None:
    url = server.serve("/a.zip", Answer(CONTENT[:-1]), Answer(CONTENT))
    assert "SHA-256" in fetched(tmp_path, remote(url, sized=False))[0]


def test_a_refusal_does_not_cost_what_has_arrived(server: FileServer, tmp_path: Path) -> None:
    url = server.serve("/a.zip", Answer(CONTENT, breaks_after=300_000))
    refused(tmp_path, remote(url), ONCE)
    kept = kept_bytes(tmp_path)
    for answer in (
        Answer(b"<html>".ljust(400_000), ranges=False),
        Answer(status=404),
        Answer(CONTENT, says_bytes=7, ranges=False),
    ):
        server.serve("/a.zip", answer)
        refused(tmp_path, remote(url))
        assert kept_bytes(tmp_path) == kept


@pytest.mark.parametrize(
    ("answer", "waits"),
    [
        (Answer(status=503), [" again in 0.001 s", " again in 0.002 s"]),
        (Answer(status=429, headers={"Retry-After": "0"}), [" again in 0 s"] * 2),
    ],
)
def test_waits(server: FileServer, tmp_path: Path, answer: Answer, waits: list[str]) -> None:
    said = fetched(tmp_path, remote(server.serve("/a.zip", answer, answer, Answer(CONTENT))))
    assert [line.split(";")[-1] for line in said] == waits


def test_no_network(tmp_path: Path) -> None:
    """The same reason for several addresses is said once."""
    text = refused(tmp_path, remote("http://127.0.0.1:9/a.zip"), Patience(retries=1, first_wait_s=0.001))
    assert "refused" in text and "tried 2 times" in text
    urls = ("http://nobody.invalid/a.zip", "http://nobody.invalid/b.zip")
    text = refused(tmp_path, remote(*urls), ONCE)
    assert all(url in text for url in urls) and text.count("resolve") == 1
    assert list(tmp_path.iterdir()) == []


def test_silence(server: FileServer, tmp_path: Path) -> None:
    url = server.serve("/a.zip", Answer(CONTENT, stalls_after=0))
    assert "timed out" in refused(tmp_path, remote(url), Patience(retries=0, timeout_s=0.2))


@pytest.mark.parametrize("url", ["http://", "nonsense", "ftp://127.0.0.1/a.zip"])
def test_addresses_that_are_none(tmp_path: Path, url: str) -> None:
    assert "cannot be asked" in refused(tmp_path, remote(url))


def test_the_next_address_resumes_the_part(server: FileServer, tmp_path: Path) -> None:
    server.serve("/1/a.zip", Answer(CONTENT, breaks_after=300_000), Answer(status=404))
    server.serve("/2/a.zip", Answer(CONTENT))
    said = fetched(tmp_path, remote(f"{server.url}/1/a.zip", f"{server.url}/2/a.zip"))
    assert server.asked[-1].range is not None and "asking the next address" in said[-1]


def test_parts_of_an_earlier_try_that_are_of_no_use(server: FileServer, tmp_path: Path) -> None:
    url = server.serve("/a.zip", Answer(CONTENT))
    for number, part in enumerate((CONTENT, CONTENT + b"x", OTHER, OTHER[:10], b"")):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "a.zip.part").write_bytes(part)
        (folder / "a.zip").write_bytes(b"not the file")
        fetched(folder, remote(url))
    assert len(server.asked) == 1 + 1 + 2 + 1, "the first part was the complete file already"
    (tmp_path / "a.zip.part").write_bytes(CONTENT + b"too long")
    for entry in range(5):
        shutil.rmtree(tmp_path / str(entry))
    fetched(tmp_path, remote(url, sized=False))
    assert [asked.range for asked in server.asked[-2:]] == ["bytes=400008-", None]


FAULTS = st.one_of(
    st.builds(lambda n: Answer(CONTENT, breaks_after=n), st.integers(0, 400_000)),
    st.builds(lambda n: Answer(CONTENT, ranges=False, breaks_after=n), st.integers(0, 400_000)),
    st.builds(lambda n: Answer(OTHER, breaks_after=n), st.integers(0, 399_999)),
    st.builds(lambda n: Answer(CONTENT, shift=n), st.integers(1, 9)),
    st.builds(lambda n: Answer(CONTENT, bare=True, breaks_after=n), st.integers(0, 400_000)),
    st.just(Answer(status=503)),
    st.just(Answer(status=429, headers={"Retry-After": "0"})),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(faults=st.lists(FAULTS, max_size=6))
@example([Answer(CONTENT, breaks_after=200_000), Answer(CONTENT, ranges=False)])
@example([Answer(CONTENT, breaks_after=200_000), Answer(CONTENT, shift=5)])
@example([Answer(OTHER, breaks_after=200_000), Answer(CONTENT), Answer(OTHER, breaks_after=200_000)])
@example([Answer(CONTENT, bare=True, breaks_after=150_000), Answer(CONTENT, bare=True)])
def test_whatever_goes_wrong_the_file_is_right_in_the_end(
    server: FileServer, tmp_path: Path, faults: list[Answer]
) -> None:
    folder = tmp_path / "case"
    shutil.rmtree(folder, ignore_errors=True)
    fetched(folder, remote(server.serve("/a.zip", *faults, Answer(CONTENT))), Patience(20, 0, 5))


def test_fault_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-4, example B.1
    assert fault(path, RemoteFile("a", (), abc, 3)) is None
    assert fault(path, RemoteFile("a", (), abc[:8].upper())) is None
    assert fault(path, RemoteFile("a", (), abc, 4)) == "has 3 bytes, not 4"
    assert "ba7816bf8f01cfea" in str(fault(path, RemoteFile("a", (), "00" * 32, 3)))


def test_free_space(server: FileServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Asked for where the folder will be; of a file of unknown size, the answer says how large it is."""
    usage = shutil._ntuple_diskusage(10**9, 10**9 - 399_999, 399_999)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    check_space(tmp_path / "not/yet", 399_999, "fetching")
    with pytest.raises(InputError, match="fetching takes 500 kB"):
        check_space(tmp_path / "not/yet", 500_000, "fetching")
    url = server.serve("/a.zip", Answer(CONTENT))
    assert "a.zip of 400 kB takes 400 kB" in refused(tmp_path, remote(url, sized=False))
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "a.zip.part").write_bytes(CONTENT[:1])  # what has arrived already needs no room
    fetched(tmp_path, remote(url, sized=False))


def test_one_process_at_a_time_and_no_folder(server: FileServer, tmp_path: Path) -> None:
    url = server.serve("/a.zip", Answer(CONTENT))
    with FileLock(tmp_path / "a.zip.lock"), pytest.raises(InputError, match="another download"):
        fetch(remote(url), tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file"):
        fetch(remote(url), tmp_path / "file" / "sub")
    assert server.asked == []


def written(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
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
INSIDE = {"images/0--Parade/a.jpg": b"first", "images/0--Parade/b.jpg": b"second", "images/1--Riot/c.jpg": b"third",
          "readme.txt": b""}  # fmt: skip


def test_a_new_folder_appears_complete(tmp_path: Path) -> None:
    archive = written(tmp_path / "w.zip", zipped({"W/": b"", "W/images/": b"", **FILES}))
    written(tmp_path / "work/W.unpacking/images/stranger.jpg", b"of a killed process")
    seen: list[tuple[int, int]] = []
    assert unpack(archive, "W", tmp_path / "W", tmp_path / "work", lambda *n: seen.append(n)) == (4, [])
    assert tree(tmp_path / "W") == INSIDE
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert list((tmp_path / "work").iterdir()) == []
    unpack(archive, "W/images", tmp_path / "deep/er", tmp_path / "work")
    assert tree(tmp_path / "deep/er") == {n.removeprefix("images/"): d for n, d in INSIDE.items() if d}


def test_a_begun_folder_is_completed_and_other_files_stay(tmp_path: Path) -> None:
    """A person's resized or fixed images are theirs."""
    archive, folder = written(tmp_path / "w.zip", zipped(FILES)), tmp_path / "W"
    own = {"images/0--Parade/a.jpg": b"FIRST", "images/0--Parade/b.jpg": b"smaller", "own.txt": b"mine"}
    for name, content in {**own, "images/1--Riot/c.jpg": b""}.items():
        written(folder / name, content)
    assert unpack(archive, "W", folder, tmp_path / "work") == (2, ["images/0--Parade/b.jpg"])
    assert tree(folder) == {**INSIDE, **own}


HARMLESS = zipfile.ZipInfo("W/a.jpg")


def member(name: str, mode: int = 0) -> tuple[zipfile.ZipInfo, bytes]:
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    return info, b"x"


@pytest.mark.parametrize(
    "members",
    [
        *([member(name)] for name in ("../evil", "W/../../evil", "/etc/evil", "//host/evil", "C:/evil", "W/..", "W/a:b",
                                      "W\\..\\evil", "..\\evil", "W/a\nb")),
        *([member("W/link", mode)] for mode in (0o120777, 0o020666, 0o060666, 0o010666, 0o140666)),
        [symlink("W/out", ".."), (zipfile.ZipInfo("W/out/evil"), b"x")],
    ],
)  # fmt: skip
def test_hostile_members(tmp_path: Path, members: list[tuple[zipfile.ZipInfo, bytes]]) -> None:
    archive = written(tmp_path / "w.zip", zipped_members([(HARMLESS, b"x"), *members]))
    with pytest.raises(UnusableArchive) as error:
        unpack(archive, "W", tmp_path / "W", tmp_path / "work")
    assert "\n" not in str(error.value)
    assert tree(tmp_path) == {"w.zip": archive.read_bytes()}


@pytest.mark.parametrize(
    "content",
    [
        zipped({"W/image.jpgZ/../../evil": b"x"}).replace(b"jpgZ", b"jpg\0"),
        zipped({"W/a.jpg": bytes(10**7)}, zipfile.ZIP_DEFLATED),
        b"",
        b"PK\5\6",
        b"<html>",
        b"PK\3\4" + bytes(100),
    ],
)
def test_bombs_and_what_is_no_archive(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(UnusableArchive):
        unpack(written(tmp_path / "w.zip", content), "W", tmp_path / "W", tmp_path / "work")
    assert not (tmp_path / "W").exists()


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_damage_anywhere_is_named_or_harmless(tmp_path: Path, compression: int) -> None:
    """Bytes changed, cut or put in: either an error, or no content that was not there; never half a folder."""
    sound, failed = zipped(FILES, compression), 0
    for seed in range(200):
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
        archive, target = written(tmp_path / "w.zip", bytes(content)), tmp_path / "out/W"
        try:
            unpack(archive, "W", target, tmp_path / "work")
        except (InputError, OSError):
            failed += 1
            assert not target.exists(), seed
        # Names are under no checksum, the content is.
        assert set(tree(tmp_path / "out").values()) <= set(FILES.values()), seed
        assert {path.name for path in tmp_path.iterdir()} <= {"w.zip", "work", "out"}, seed
        assert tree(tmp_path / "work") == {}, seed
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
    assert 60 < failed < 200


def test_counting(tmp_path: Path) -> None:
    sizes = {"a.jpg": 1, "b.JPG": 1, "c.jpg": 0, ".d.jpg": 1, "e.png": 1, ".h/f.jpg": 1}
    for name, size in sizes.items():
        for place in (tmp_path, tmp_path / "one/two"):
            written(place / name, bytes(size))
    (tmp_path / "broken.jpg").symlink_to("nowhere")
    (tmp_path / "folder.jpg").mkdir()
    assert count_files(tmp_path, ".jpg") == 4 and count_files(tmp_path) == 6
    assert count_files(tmp_path / "absent", ".jpg") == 0
