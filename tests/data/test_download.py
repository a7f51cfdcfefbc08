"""Files over HTTP from a server that misbehaves: complete and right, or not at all; WIDER FACE and VGG16 from it."""

import hashlib
import random
import shutil
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from filelock import FileLock
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torchvision.models import VGG16_Weights

from fanet_lightning.cli.errors import InputError
from fanet_lightning.data import download
from fanet_lightning.data.download import PARTS, RemoteFile, download_wider_face, fetch, main, unpack
from fanet_lightning.data.wider_face import load_wider_face
from tests.data.download_server import Answer, FileServer, file_server, zipped
from tests.data.wider_files import numbered, write_wider

CONTENT = random.Random(0).randbytes(400_000)
OTHER = random.Random(1).randbytes(400_000)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name, value in {"RETRIES": 3, "FIRST_WAIT_S": 0.001, "TIMEOUT_S": 5.0}.items():
        monkeypatch.setattr(download, name, value)


@pytest.fixture()
def server() -> Iterator[FileServer]:
    with file_server() as running:
        yield running


def remote(*urls: str, sized: bool = True) -> RemoteFile:
    return RemoteFile("a.zip", urls, hashlib.sha256(CONTENT).hexdigest(), len(CONTENT) if sized else None)


def fetched(folder: Path, file: RemoteFile) -> None:
    """The file is right and nothing else is left."""
    path = fetch(file, folder)
    assert path == folder / "a.zip" and path.read_bytes() == CONTENT
    assert [entry.name for entry in folder.iterdir()] == ["a.zip"]


def refused(folder: Path, file: RemoteFile) -> str:
    with pytest.raises(InputError) as error:
        fetch(file, folder)
    assert not (folder / "a.zip").exists() and "\n" not in str(error.value)
    return str(error.value)


def test_resumes_where_it_broke_off(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    url = server.serve("/a.zip", *(Answer(CONTENT, breaks_after=n) for n in (200_000, 100_000)), Answer(CONTENT))
    fetched(tmp_path, remote(url))
    begun = [int(asked.range.removeprefix("bytes=").rstrip("-")) for asked in server.asked[1:] if asked.range]
    # Up to a chunk of what was under way may be lost, no more.
    assert 200_000 - (1 << 16) < begun[0] <= 200_000
    assert begun[0] + 100_000 - (1 << 16) < begun[1] <= begun[0] + 100_000
    assert capsys.readouterr().err.count("; again in 0.001 s") == 2
    # As long as it gets on, retries do not run out.
    monkeypatch.setattr(download, "RETRIES", 1)
    url = server.serve("/b.zip", *[Answer(CONTENT, breaks_after=70_000)] * 10)
    fetched(tmp_path / "b", remote(url))


def test_resumes_in_another_call(server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refusal does not cost what has arrived, and the next address resumes it."""
    monkeypatch.setattr(download, "RETRIES", 0)
    refused(tmp_path, remote(server.serve("/a.zip", Answer(CONTENT, breaks_after=300_000))))
    kept = (tmp_path / "a.zip.part").stat().st_size
    assert kept > 200_000
    for answer in (
        Answer(b"<html>".ljust(400_000), headers={"Content-Type": "text/html"}, ranges=False),
        Answer(status=404),
        Answer(CONTENT, says_bytes=7, ranges=False),
    ):
        refused(tmp_path, remote(server.serve("/a.zip", answer)))
        assert (tmp_path / "a.zip.part").stat().st_size == kept
    server.serve("/1/a.zip", Answer(status=404))
    fetched(tmp_path, remote(f"{server.url}/1/a.zip", server.serve("/a.zip", Answer(CONTENT))))
    assert server.asked[-1].range == f"bytes={kept}-"


@pytest.mark.parametrize(
    ("answer", "requests", "says"),
    [
        (Answer(CONTENT, ranges=False, breaks_after=200_000), 4, "bytes read"),
        (Answer(OTHER), 2, hashlib.sha256(OTHER).hexdigest()[:16]),
        (Answer(CONTENT + b"x", bare=True), 2, "400,001"),
        (Answer(b"<!DOCTYPE html>", headers={"Content-Type": "text/html"}, bare=True), 1, "login page"),
        (Answer(status=404), 1, "404 Client Error"),
        (Answer(status=503), 4, "503 Server Error"),
        (Answer(CONTENT, stalls_after=0), 4, "timed out"),
    ],
)
def test_faults_that_do_not_pass(
    server: FileServer, tmp_path: Path, answer: Answer, requests: int, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "TIMEOUT_S", 0.2 if answer.stalls_after == 0 else 5.0)
    url = server.serve("/a.zip", answer)
    text = refused(tmp_path, remote(url))
    assert f"{url}: " in text and says in text and "--source" in text and "by hand" in text
    assert len(server.asked) == requests


def test_addresses_that_are_none(tmp_path: Path) -> None:
    for url in ("http://127.0.0.1:9/a.zip", "http://", "nonsense", "ftp://127.0.0.1/a.zip"):
        assert url in refused(tmp_path, remote(url))


def test_parts_of_an_earlier_try_that_are_of_no_use(server: FileServer, tmp_path: Path) -> None:
    url = server.serve("/a.zip", Answer(CONTENT))
    for number, part in enumerate((CONTENT, CONTENT + b"x", OTHER, OTHER[:10], b"")):
        written(tmp_path / str(number) / "a.zip.part", part)
        written(tmp_path / str(number) / "a.zip", b"not the file")
        fetched(tmp_path / str(number), remote(url))
    assert len(server.asked) == 1 + 1 + 2 + 1, "the first part was the complete file already"


FAULTS = st.one_of(
    st.builds(partial(Answer, CONTENT), breaks_after=st.integers(0, 400_000), ranges=st.booleans(), bare=st.booleans()),
    st.just(Answer(status=503)),
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(faults=st.lists(FAULTS, max_size=6))
@example([Answer(CONTENT, breaks_after=200_000), Answer(CONTENT, ranges=False)])
@example([Answer(OTHER, breaks_after=200_000)])
@example([Answer(CONTENT, bare=True, breaks_after=150_000), Answer(CONTENT, bare=True)])
def test_the_file_is_right_in_the_end(server: FileServer, tmp_path: Path, faults: list[Answer]) -> None:
    folder = tmp_path / "case"
    shutil.rmtree(folder, ignore_errors=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(download, "RETRIES", 20)
        patch.setattr(download, "FIRST_WAIT_S", 0)
        fetched(folder, remote(server.serve("/a.zip", *faults, Answer(CONTENT))))


def test_one_process_at_a_time(server: FileServer, tmp_path: Path) -> None:
    url = server.serve("/a.zip", Answer(CONTENT))
    with FileLock(tmp_path / ".a.zip.lock"):
        assert "another download" in refused(tmp_path, remote(url))
    assert server.asked == []


# Archives


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def written(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_what_a_folder_lacks_is_unpacked_and_other_files_stay(tmp_path: Path) -> None:
    """A person's resized or fixed images are theirs; hidden files and what leads out of the folder are left out."""
    inside = {"images/0--Parade/a.jpg": b"first", "images/0--Parade/b.jpg": b"second", "readme.txt": b""}
    outside = ("W/../evil.txt", "elsewhere/d.txt", "__MACOSX/W/._a.jpg", "W/images/._b.jpg", "W/.DS_Store")
    files = {
        "W/": b"",
        "W/images/": b"",
        **{f"W/{n}": data for n, data in inside.items()},
        **dict.fromkeys(outside, b"x"),
    }
    archive = written(tmp_path / "w.zip", zipped(files))
    assert unpack(archive, "W", tmp_path / "new/W") == 3
    assert tree(tmp_path) == {"w.zip": archive.read_bytes(), **{f"new/W/{name}": data for name, data in inside.items()}}
    own = {"images/0--Parade/a.jpg": b"smaller", "own.txt": b"mine"}
    for name, content in {**own, "images/0--Parade/b.jpg": b""}.items():
        written(tmp_path / "W" / name, content)
    assert unpack(archive, "W", tmp_path / "W") == 2
    assert tree(tmp_path / "W") == {**inside, **own}


# The commands


IMAGES = {"train": 5, "val": 3, "test": 2}


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The five archives in the official layout, each as small as it may be; those of WIDER_val with ballast."""
    root = tmp_path_factory.mktemp("wider")
    for split in IMAGES:
        write_wider(root, split, numbered(IMAGES[split]))
    for path in (root / "WIDER_val").rglob("*.jpg"):
        path.write_bytes(path.read_bytes() + random.Random(path.name).randbytes(120_000))
    (root / "wider_face_split/wider_face_test_filelist.txt").write_text("".join(f"{n}.jpg\n" for n in numbered(2)))
    files = tree(root)
    parts = {part: {n: data for n, data in files.items() if n.startswith(a.inner)} for part, a in PARTS.items()}
    parts["ground_truth"] = {f"eval_tools/ground_truth/{name}": name.encode() for name in PARTS["ground_truth"].files}
    return {part: zipped(own, zipfile.ZIP_DEFLATED) for part, own in parts.items()}


@pytest.fixture()
def mirror(server: FileServer, archives: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> str:
    """A server that has them, with the table of their sizes and sums."""
    for part, content in archives.items():
        digest = hashlib.sha256(content).hexdigest()
        small = replace(PARTS[part], size_bytes=len(content), sha256=digest, images=IMAGES.get(part, 0))
        monkeypatch.setitem(PARTS, part, small)
        server.serve(f"/{small.name}", Answer(content))
    return server.url


def error_of(*words: object) -> str:
    with pytest.raises((InputError, OSError)) as error:
        main(list(map(str, words)))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_everything_and_a_second_run(
    server: FileServer, mirror: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "new/wider"
    words = ["wider_face", "--root", str(root), "--source", mirror]
    assert main(words) == 0
    shown = capsys.readouterr()
    assert {path.name for path in root.iterdir()} == {archive.folder for archive in PARTS.values()}
    for split, count in IMAGES.items():
        assert [record.image_id for record in load_wider_face(root, split)] == list(numbered(count))  # type: ignore[arg-type]
        assert f"{root / f'WIDER_{split}'}: {count} files unpacked" in shown.out
    assert {path.name for path in (root / "eval_gt").iterdir()} == set(PARTS["ground_truth"].files)
    assert f"data=wider_face data.root={root}" in shown.out and "WIDER_val.zip" in shown.err
    asked, before = len(server.asked), tree(root)
    assert main(words) == 0
    assert capsys.readouterr().out.count("complete; nothing to do") == 5
    assert len(server.asked) == asked and tree(root) == before


@pytest.mark.parametrize("place", ["root", "source"])
def test_archives_at_hand_are_used_and_stay(
    mirror: str, archives: dict[str, bytes], tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil._ntuple_diskusage(10**10, 0, PARTS["val"].unpacked_bytes)  # no room for the archive again
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    archive = written(tmp_path / place / "WIDER_val.zip", archives["val"])
    words = ["wider_face", "--root", str(tmp_path / "root"), "--parts", "val"]
    words += ["--source", str(tmp_path / "source")] if place == "source" else []
    assert main(words) == 0
    assert archive.is_file() and len(list((tmp_path / "root/WIDER_val").rglob("*.jpg"))) == 3
    shutil.rmtree(tmp_path / "root/WIDER_val")
    archive.write_bytes(archives["val"][:-1])
    assert f"{archive}: has " in error_of(*words)
    assert archive.is_file()


def test_what_cannot_be_had_or_written(
    server: FileServer, mirror: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("wider_face", "--source", mirror, "--parts", "val", "--root")
    (tmp_path / "file").write_text("")
    assert "Not a directory" in error_of(*words, tmp_path / "file")
    assert "absent" in error_of("vgg16", "--source", tmp_path / "absent", "--root", tmp_path)
    monkeypatch.setitem(PARTS, "val", replace(PARTS["val"], images=4))
    assert "3 of 4 files after unpacking" in error_of(*words, tmp_path / "few")
    asked = len(server.asked)
    monkeypatch.setitem(PARTS, "val", replace(PARTS["val"], size_bytes=10**17))
    text = error_of(*words, tmp_path / "huge")
    assert "fetching WIDER_val.zip" in text and "TB" in text and len(server.asked) == asked


def test_the_official_annotations_pass_the_checks(
    server: FileServer, shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Size, checksum and content of the real archive are those of the table; the hub under another address."""
    content = (shared_data / "wider_face/wider_face_split.zip").read_bytes()
    hub = "/hub/datasets/CUHK-CSE/wider_face/resolve/main/data/wider_face_split.zip"
    server.serve(hub, Answer(content, breaks_after=2_000_000), Answer(content))
    monkeypatch.setenv("HF_ENDPOINT", f"{server.url}/hub/")
    (line,) = download_wider_face(tmp_path, ["annotations"])
    assert "wider_face_split: 7 files unpacked" in line
    assert [own.name for own in tmp_path.iterdir()] == ["wider_face_split"]
    assert len((tmp_path / "wider_face_split/wider_face_val_bbx_gt.txt").read_text().split("\n")) > 39_708


def test_vgg16(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From a mirror, where torch.hub keeps its files; then from a folder."""
    name = f"vgg16-{hashlib.sha256(CONTENT).hexdigest()[:8]}.pth"
    monkeypatch.setattr(VGG16_Weights.IMAGENET1K_V1._value_, "url", f"http://127.0.0.1:9/{name}")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    server.serve(f"/{name}", Answer(CONTENT, breaks_after=150_000), Answer(CONTENT))
    assert main(["vgg16", "--source", server.url]) == 0
    path = tmp_path / "torch/hub/checkpoints" / name
    assert path.read_bytes() == CONTENT and [path] == list(path.parent.iterdir())
    assert "weights=imagenet" in capsys.readouterr().out and server.asked[1].range is not None
    words = ["vgg16", "--root", str(tmp_path / "w"), "--source", str(path.parent)]
    assert main(words) == 0
    assert (tmp_path / "w" / name).read_bytes() == CONTENT
    assert f"weights={tmp_path / 'w'}" in capsys.readouterr().out
    (tmp_path / "w" / name).unlink()
    path.write_bytes(OTHER)
    assert f"{path}: has the SHA-256" in error_of(*words)
    assert list((tmp_path / "w").iterdir()) == []
