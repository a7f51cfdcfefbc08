"""What ``source=`` means, and images over HTTP."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from fanet_lightning.cli.errors import InputError
from fanet_lightning.detect.inputs import Sources, default_name, fetch_bytes, find_sources, split_source
from tests.data.download_server import Answer, FileServer, file_server


def image(path: Path, size: tuple[int, int] = (8, 6)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (90, 120, 40)).save(path, "PNG")
    return path


def names(sources: Sources) -> list[str]:
    return [item.name for item in sources.images]


def find(*parts: object) -> Sources:
    return find_sources([str(part) for part in parts])


def test_a_folder_is_searched_with_its_sub_folders_in_order_of_names(tmp_path: Path) -> None:
    for name in ("b/z.PNG", "a.jpg", "b/c/d.jpeg", "z.heic", ".hidden/e.jpg", ".f.jpg"):
        image(tmp_path / name)
    for name in ("notes.txt", "b/clip.MP4", "b/labels.json", "._a.jpg", ".DS_Store"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "b/c/round").symlink_to(tmp_path / "b")
    (tmp_path / "gone.jpg").symlink_to("nowhere")
    found = find(tmp_path)
    assert names(found) == ["a.jpg", "b/c/d.jpeg", "b/z.PNG", "gone.jpg", "z.heic"]
    assert found.images[1].location == tmp_path / "b/c/d.jpeg"
    assert [item.name for item in found.videos] == ["b/clip.MP4"]
    assert found.failed == {}


def test_a_pattern_names_files_from_its_fixed_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("in/b.jpg", "in/a.jpg", "in/c/d.jpg", "in/e.png", "in/.f.jpg"):
        image(tmp_path / name)
    (tmp_path / "in/x.jpg.txt").write_text("1")
    assert names(find(tmp_path / "in/*.jpg")) == ["a.jpg", "b.jpg"]
    assert names(find(tmp_path / "in/**/*.jpg")) == ["a.jpg", "b.jpg", "c/d.jpg"]
    assert names(find(tmp_path / "in/*")) == ["a.jpg", "b.jpg", "c/d.jpg", "e.png"]
    monkeypatch.chdir(tmp_path)
    assert names(find("i?/[ab].jpg")) == ["in/a.jpg", "in/b.jpg"]
    # A file of exactly this name is no pattern.
    image(tmp_path / "photo[1].jpg")
    assert names(find("photo[1].jpg")) == ["photo[1].jpg"]
    with pytest.raises(InputError, match=r"source=in/\*\.gif: no file matches"):
        find("in/*.gif")


def test_a_list_is_relative_to_itself_or_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside, other = image(tmp_path / "set/p/a b.jpg"), image(tmp_path / "set/b.jpg")
    far = image(tmp_path / "far/c.jpg")
    address = "https://example.org/x/d.jpg?w=5"
    listed = tmp_path / "set/list.txt"
    lines = ["\ufeff# faces", "p/a b.jpg", "", f"  {far}  ", "../far/c.jpg", "absent.jpg", address]
    listed.write_text("\n".join(lines), encoding="utf-8")
    found = find(listed)
    assert [item.name for item in found.images] == ["p/a b.jpg", "c.jpg", "absent.jpg", "d.jpg"]
    assert [found.images[index].location for index in (0, 1, 3)] == [inside, far, address]
    # As Windows writes them.
    listed = tmp_path / "list.txt"
    listed.write_bytes("./set/p/a b.jpg\r\nset\\b.jpg\r\n".encode("utf-16"))
    (tmp_path / "far").rename(tmp_path / "lists")
    listed = listed.rename(tmp_path / "lists/list.txt")
    monkeypatch.chdir(tmp_path)
    found = find(listed)
    assert [item.name for item in found.images] == ["set/p/a b.jpg", "set/b.jpg"]
    assert [Path(str(item.location)).resolve() for item in found.images] == [inside, other]


@pytest.mark.parametrize(("text", "parts"), [
    ("a.jpg, x/", ["a.jpg", "x/"]), ("b,c.jpg", ["b,c.jpg"]),  # there is one of this name
    ("[a.jpg,0]", ["a.jpg", "0"]), ("", []),
    ("https://h.org/a.jpg?crop=1,2,3,4&w=5", ["https://h.org/a.jpg?crop=1,2,3,4&w=5"]),
    ("http://h.org/a.jpg?b=1,2,http://h.org/b.jpg?x=3,4", ["http://h.org/a.jpg?b=1,2", "http://h.org/b.jpg?x=3,4"]),
    ("a.jpg, http://h.org/a.jpg?b=1,2, 0", ["a.jpg", "http://h.org/a.jpg?b=1,2", "0"]),
])  # fmt: skip
def test_commas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, parts: list[str]) -> None:
    image(tmp_path / "a.jpg"), image(tmp_path / "b,c.jpg")
    monkeypatch.chdir(tmp_path)
    assert split_source(text) == parts


def test_results_are_no_inputs(tmp_path: Path) -> None:
    for folder in ("a", "p/faces"):
        image(tmp_path / folder / "images/sub/x.jpg")
        image(tmp_path / folder / "crops/y.jpg")
        image(tmp_path / folder / "in.jpg")
        (tmp_path / folder / "done.jsonl").write_text('{"version": 1, "save": ["images"], "redact": null}\n')
    image(tmp_path / "images/mine.jpg")
    image(tmp_path / "other/images/z.jpg")
    (tmp_path / "other/done.jsonl").write_text('{"task": "of another program"}\n')
    expected = ["a/in.jpg", "images/mine.jpg", "other/images/z.jpg", "p/faces/in.jpg"]
    for source in (tmp_path, f"{tmp_path}/**/*.jpg", f"{tmp_path}/*"):
        assert names(find(source)) == expected
    # Whoever names a folder of results means it.
    for source in (tmp_path / "a/images", f"{tmp_path}/a/images/**/*.jpg"):
        assert names(find(source)) == ["sub/x.jpg"]
    (tmp_path / "a/in.jpg").unlink()
    for source in (tmp_path / "a", f"{tmp_path}/a/*/*.jpg"):
        with pytest.raises(InputError, match="no image in it"):
            find(source)


def test_no_two_inputs_share_a_name_or_a_stem(tmp_path: Path) -> None:
    for name in ("x/a.jpg", "x/a.png", "x/B.jpg", "x/b.jpg", "y/a.jpg", "x/c.jpg", "x/sub/c.jpg", "x/a.jpg.png"):
        image(tmp_path / name)
    found = find(tmp_path / "x", tmp_path / "y").images
    by_name = {item.name: item for item in found}
    assert by_name["a_2.jpg"].location == tmp_path / "y/a.jpg"
    # Alone of its name and stem: nothing is added. Equal stems keep their suffix.
    assert by_name["c.jpg"].stem == "c" and by_name["sub/c.jpg"].stem == "sub/c"
    assert {by_name[name].stem for name in ("a.jpg", "a.png")} == {"a.jpg", "a.png"}
    for texts in ([item.stem for item in found], [item.name for item in found]):
        assert len({text.casefold() for text in texts}) == 8
    # The frames of a video get names of images in a folder with its stem.
    image(tmp_path / "z/v/frame_000001.jpg")
    (tmp_path / "z/v.mp4").touch()
    assert [item.stem for item in find(tmp_path / "z").videos] == ["v.mp4"]


def test_what_a_file_without_a_telling_suffix_is(tmp_path: Path) -> None:
    image(tmp_path / "photo")
    (tmp_path / "mystery.dat").write_bytes(b"neither")
    (tmp_path / "clip.MOV").write_bytes(b"")
    found = find(*(tmp_path / name for name in ("photo", "mystery.dat", "clip.MOV")))
    assert names(found) == ["photo"] and [item.name for item in found.videos] == ["mystery.dat", "clip.MOV"]


def test_addresses_streams_and_cameras() -> None:
    found = find("http://h.org/p/a%20b.jpg?x=1", "https://h.org/clip.mp4", "rtsp://me:s@cret@cam.local/live", "0")
    assert names(found) == ["a b.jpg"]
    clip, stream, camera = found.videos
    assert clip.location == "https://h.org/clip.mp4" and clip.stem == "clip"
    assert stream.text == "rtsp://***@cam.local/live" and "cret" not in stream.text + stream.name
    assert stream.location == "rtsp://me:s@cret@cam.local/live"
    assert camera.location == 0 and camera.text == "camera 0" and camera.name.startswith("camera_0_")
    assert names(find("https://h.org/a:b*c.jpg", "https://h.org/")) == ["a_b_c.jpg", "h.org"]
    assert len(find(f"https://h.org/{'long' * 90}.jpg").images[0].name) == 100


def test_what_is_no_source(tmp_path: Path) -> None:
    image(tmp_path / "holiday.jpg")
    (tmp_path / "empty").mkdir()
    for name, content in {"empty/a.doc": b"", "nothing.txt": b"\n# nothing\n", "binary.txt": b"\x81\x82\xff"}.items():
        (tmp_path / name).write_bytes(content)
    for source, message in {
        "holiday.jpg/x": "no such file or folder; give", "empty": "empty: no image in it; give",
        "nothing.txt": "no image in it", "binary.txt": "not a text file", "ftp://h.org/a.jpg": "ftp:// is not read",
        "http://[abc/x.jpg": "look at the address",
    }.items():  # fmt: skip
        with pytest.raises(InputError, match=message):
            find(source if "://" in source else tmp_path / source)


def test_the_results_folder_is_called_after_the_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path)
    for source, expected in {
        f"{tmp_path}/photos/": "photos", "photos/*.jpg": "photos", f"{tmp_path}/clip.mp4": "clip",
        "https://h.org/p/a.jpg?b=c": "a", "rtsp://h.org/live": "live", "0": "camera_0", "*.jpg": tmp_path.name,
    }.items():  # fmt: skip
        assert default_name([source]) == expected, source
    assert default_name(["x/a.jpg", "b.jpg", "c.jpg"]) == "a_and_2_more"


# Over HTTP


@pytest.fixture
def server() -> Iterator[FileServer]:
    with file_server() as running:
        yield running


def fetched(url: str, seconds: float = 20.0) -> bytes:
    return fetch_bytes(url, 100_000, seconds)


def test_an_image_is_fetched_whole(server: FileServer) -> None:
    content = bytes(range(256)) * 300
    moved = Answer(status=302, headers={"Location": "/a.jpg"})
    for path, answer in {"/a.jpg": Answer(content), "/b.jpg": Answer(content, bare=True), "/c.jpg": moved}.items():
        assert fetched(server.serve(path, answer)) == content


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (Answer(status=404), "answers 404 Not Found"),
        (Answer(status=503), "answers 503 Service Unavailable"),
        (Answer(b"<p>", headers={"Content-Type": "text/html; charset=utf-8"}), "is an HTML page"),
        (Answer(b"x" * 300_000, bare=True), r"has more than max_download_mb=0\.1"),
        (Answer(b"x" * 5_000, breaks_after=1_000), r"cannot be fetched \(ProtocolError\)"),
        (Answer(status=302, headers={"Location": "/a.jpg"}), r"cannot be fetched \(TooManyRedirects\)"),
    ],
)
def test_an_answer_that_is_no_image(server: FileServer, answer: Answer, message: str) -> None:
    url = server.serve("/a.jpg", answer)
    with pytest.raises(InputError, match=f"^{url} {message}"):
        fetched(url)


def test_a_silent_server_and_none(server: FileServer) -> None:
    url = server.serve("/a.jpg", Answer(b"x" * 5_000, stalls_after=1_000))
    with pytest.raises(InputError, match="ReadTimeoutError"):
        fetched(url, seconds=0.3)
    with pytest.raises(InputError, match=r"cannot be fetched \(ConnectionError\)"):
        fetched("http://127.0.0.1:9/a.jpg")


def test_a_server_that_drips() -> None:
    """An endless answer, a byte at a time: no single read takes long, and the end never comes."""
    with socket.create_server(("127.0.0.1", 0)) as dripping:

        def drip() -> None:
            connection, _ = dripping.accept()
            with connection, contextlib.suppress(OSError):
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\n\r\n")
                while True:
                    connection.sendall(b"x")
                    time.sleep(0.01)

        threading.Thread(target=drip, daemon=True).start()
        with pytest.raises(InputError, match=r"is not here after download_seconds=0\.4"):
            fetched(f"http://127.0.0.1:{dripping.getsockname()[1]}/a.jpg", seconds=0.4)
