"""``scripts/download_wider_face.py`` and ``download_vgg16.py`` as people run them, against a server on this machine."""

import hashlib
import io
import json
import os
import random
import runpy
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from fanet_lightning.data.download import PARTS
from fanet_lightning.data.wider_face import load_wider_face
from tests.conftest import PROJECT_ROOT
from tests.data.download_server import Answer, FileServer, file_server, zipped
from tests.data.wider_files import numbered, write_wider

NAMES = {part: archive.name for part, archive in PARTS.items()}
SPLITS = ("train", "val", "test")
IMAGES = {"train": 5, "val": 3, "test": 2}


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The five archives in the official layout, each as small as it may be; those of WIDER_val with ballast."""
    root = tmp_path_factory.mktemp("wider")
    for split in SPLITS:
        write_wider(root, split, numbered(IMAGES[split]))
    for path in (root / "WIDER_val").rglob("*.jpg"):
        path.write_bytes(path.read_bytes() + random.Random(path.name).randbytes(120_000))
    labels = root / "wider_face_split"
    (labels / "wider_face_test_filelist.txt").write_text("".join(f"{name}.jpg\n" for name in numbered(IMAGES["test"])))
    (labels / "wider_face_test_bbx_gt.txt").unlink()
    made = {split: zipped({f"WIDER_{split}/": b"", **_files(root, f"WIDER_{split}")}) for split in SPLITS}
    made["annotations"] = zipped(_files(root, "wider_face_split"), zipfile.ZIP_DEFLATED)
    tools = {f"eval_tools/ground_truth/{name}": name.encode() for name in PARTS["ground_truth"].files}
    made["ground_truth"] = zipped(
        {"eval_tools/wider_eval.m": b"% not wanted", **tools, "__MACOSX/eval_tools/._x": b"x"}
    )
    return made


def _files(root: Path, folder: str) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted((root / folder).rglob("*")) if p.is_file()}


@pytest.fixture()
def server(archives: dict[str, bytes]) -> Iterator[FileServer]:
    with file_server() as running:
        for part, content in archives.items():
            running.serve(f"/{NAMES[part]}", Answer(content))
        yield running


@pytest.fixture()
def manifest(archives: dict[str, bytes], tmp_path: Path) -> Path:
    return write_manifest(tmp_path / "manifest.json", archives)


def write_manifest(path: Path, archives: Mapping[str, bytes], **changes: Any) -> Path:
    content = {
        part: {
            "size_bytes": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
            "images": IMAGES.get(part, 0),
            **changes,
        }
        for part, data in archives.items()
    }
    path.write_text(json.dumps(content))
    return path


Run = subprocess.CompletedProcess[str]


def environment(**variables: str) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    return {**clean, "NO_PROXY": "127.0.0.1", "OMP_NUM_THREADS": "1", **variables}


def command(*words: object) -> list[str]:
    return [sys.executable, str(PROJECT_ROOT / "scripts/download_wider_face.py"), *map(str, words)]


def run(*words: object, script: str = "download_wider_face", **env: str) -> Run:
    """The script as it is, without the seconds that a process of its own takes to start."""
    out, err = io.StringIO(), io.StringIO()
    path = PROJECT_ROOT / f"scripts/{script}.py"
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        for name in set(os.environ) - set(environment()):
            patch.delenv(name)
        for name, value in environment(**env).items():
            patch.setenv(name, value)
        patch.setattr(sys, "argv", [str(path), *map(str, words)])
        with pytest.raises(SystemExit) as left:
            runpy.run_path(str(path), run_name="__main__")
    return subprocess.CompletedProcess(sys.argv, int(left.value.code or 0), out.getvalue(), err.getvalue())


def run_process(*words: object, limit: Callable[[], None] | None = None) -> Run:
    return subprocess.run(
        command(*words), env=environment(), preexec_fn=limit, capture_output=True, text=True, timeout=300
    )


def error_of(done: Run) -> str:
    """The one line of an error; the lines before it are progress."""
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: ")
    assert done.stderr.count("error: ") == 1
    return last


def tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_everything_and_a_second_run(server: FileServer, manifest: Path, tmp_path: Path) -> None:
    root = tmp_path / "new/wider"
    done = run_process("--root", root, "--source", server.url, "--manifest", manifest)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in root.iterdir()} == {
        "WIDER_train", "WIDER_val", "WIDER_test", "wider_face_split", "eval_gt"
    }  # fmt: skip
    for split, count in IMAGES.items():
        assert [record.image_id for record in load_wider_face(root, split)] == list(numbered(count))  # type: ignore[arg-type]
        assert f"{root / f'WIDER_{split}'}: {count} images, {count} files unpacked" in done.stdout
    assert load_wider_face(root, "val")[2].boxes_xyxy.tolist() == [[2, 0, 14, 10], [2, 1, 14, 12]]
    assert {path.name for path in (root / "eval_gt").iterdir()} == set(PARTS["ground_truth"].files)
    assert f"data=wider_face data.root={root}" in done.stdout and "research only" in done.stdout
    assert "WIDER_val.zip: 100 %" in done.stderr and "unpacking WIDER_val.zip: 100 %" in done.stderr

    asked, before = len(server.asked), tree(root)
    again = run("--root", root, "--source", server.url, "--manifest", manifest)
    assert again.returncode == 0 and again.stderr == ""
    assert again.stdout.count("complete; nothing to do") == 5
    assert len(server.asked) == asked and tree(root) == before


def test_only_what_is_asked_for_and_kept_archives(
    server: FileServer, manifest: Path, archives: dict[str, bytes], tmp_path: Path
) -> None:
    root = tmp_path / "w"
    words = ("--root", root, "--source", f"{server.url}/", "--manifest", manifest, "--keep-archives")
    assert run(*words, "--parts", "val", "annotations").returncode == 0
    assert {path.name for path in root.iterdir()} == {
        "WIDER_val", "WIDER_val.zip", "wider_face_split", "wider_face_split.zip"
    }  # fmt: skip
    assert (root / "WIDER_val.zip").read_bytes() == archives["val"]
    more = run(*words, "--parts", "val", "test")
    assert f"{root / 'WIDER_val'}: 3 images, complete; nothing to do" in more.stdout
    assert [asked.path for asked in server.asked] == ["/WIDER_val.zip", "/wider_face_split.zip", "/WIDER_test.zip"]


def test_killed_in_the_middle_and_resumed(
    server: FileServer, manifest: Path, archives: dict[str, bytes], tmp_path: Path
) -> None:
    root, size = tmp_path / "w", len(archives["val"])
    assert size > 3 << 16, "several chunks"
    words = ("--root", root, "--source", server.url, "--manifest", manifest, "--parts", "val")
    part = root / ".download/WIDER_val.zip.part"
    for number, kind in enumerate((signal.SIGKILL, signal.SIGINT)):
        stalls = (1 << 16) + 1000
        server.serve("/WIDER_val.zip", Answer(archives["val"], stalls_after=stalls))
        process = subprocess.Popen(
            command(*words), env=environment(), stderr=subprocess.PIPE, text=True, preexec_fn=_heed_interrupts
        )
        wait_for(lambda least=(number + 1) * 50_000: part.is_file() and part.stat().st_size > least)
        if number == 0:
            second = run_process(*words)
            assert f"{root / '.download'}: another download is running there" in error_of(second)
        process.send_signal(kind)
        _, stderr = process.communicate(timeout=300)
        if kind == signal.SIGINT:
            assert process.returncode == 130
            assert "what has arrived is kept" in stderr and "Traceback" not in stderr
        assert not (root / "WIDER_val").exists()
    kept = part.stat().st_size
    server.serve("/WIDER_val.zip", Answer(archives["val"]))
    done = run(*words)
    assert done.returncode == 0, done.stderr
    assert server.asked[-1].range == f"bytes={kept}-"
    assert tree(root / "WIDER_val") == {"images", "images/0--Parade"} | {f"images/{name}.jpg" for name in numbered(3)}
    assert not (root / ".download").exists()


def _heed_interrupts() -> None:
    # A shell starts what it runs in the background with SIGINT ignored, and children inherit that.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


HOSTILE = {
    "too few": zipped({f"WIDER_val/images/e/{n}.jpg": b"x" for n in range(2)}),
    "damaged": zipped({f"WIDER_val/images/e/{n}.jpg": b"content%d" % n for n in range(3)}).replace(
        b"content1", b"context1"
    ),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_and_damaged_archives_leave_nothing(server: FileServer, tmp_path: Path, kind: str) -> None:
    """Their checksums are right: whoever made the list made the archive. A sound archive of too few images stays."""
    content, root = HOSTILE[kind], tmp_path / "a/b/w"
    server.serve("/WIDER_val.zip", Answer(content))
    other = write_manifest(tmp_path / "other.json", {"val": content})
    text = error_of(run("--root", root, "--source", server.url, "--manifest", other, "--parts", "val"))
    assert ("2 of 3" in text) == (kind == "too few") and ("has been removed" in text) == (kind != "too few")
    assert tree(tmp_path) == {"other.json"} or (kind == "too few" and (root / ".download/WIDER_val.zip").is_file())


@pytest.mark.parametrize("place", ["root", "source"])
def test_a_persons_own_archive_is_not_removed(tmp_path: Path, place: str) -> None:
    """Nor anything else that is there."""
    root, mirror = tmp_path / "w", tmp_path / "mirror"
    for folder in (root / "WIDER_val/images", mirror):
        folder.mkdir(parents=True)
    (root / "WIDER_val/images/own.jpg").write_bytes(b"mine")
    archive = (root if place == "root" else mirror) / "WIDER_val.zip"
    archive.write_bytes(HOSTILE["damaged"])
    words = ("--root", root, "--manifest", write_manifest(tmp_path / "other.json", {"val": HOSTILE["damaged"]}))
    text = error_of(run(*words, "--parts", "val", *(("--source", mirror) if place == "source" else ())))
    assert text.startswith(f"error: {archive}: ") and "delete it" in text
    assert archive.read_bytes() == HOSTILE["damaged"]
    assert (root / "WIDER_val/images/own.jpg").is_file() and not (root / ".download").exists()


def test_begun_earlier(server: FileServer, manifest: Path, archives: dict[str, bytes], tmp_path: Path) -> None:
    """Killed while unpacking: no network is needed to finish. A folder that is there is completed."""
    root = tmp_path / "w"
    (root / ".download/WIDER_val.unpacking/images").mkdir(parents=True)
    (root / ".download/WIDER_val.zip").write_bytes(archives["val"])
    done = run("--root", root, "--source", "http://127.0.0.1:9", "--manifest", manifest, "--parts", "val")
    assert done.returncode == 0, done.stderr
    assert tree(root) == {"WIDER_val", "WIDER_val/images", "WIDER_val/images/0--Parade"} | {
        f"WIDER_val/images/{name}.jpg" for name in numbered(3)
    }
    for number, content in enumerate((b"resized by its owner", b"")):
        (root / f"WIDER_val/images/0--Parade/0_Parade_00{number}.jpg").write_bytes(content)
    done = run("--root", root, "--source", server.url, "--manifest", manifest, "--parts", "val")
    assert "2 of 3" in done.stderr and "1 file unpacked; left alone" in done.stdout
    assert (root / "WIDER_val/images/0--Parade/0_Parade_000.jpg").read_bytes() == b"resized by its owner"
    assert (root / "WIDER_val/images/0--Parade/0_Parade_001.jpg").stat().st_size > 1000


@pytest.mark.parametrize("status", [404, 503])
def test_servers_that_do_not_give_it(server: FileServer, manifest: Path, tmp_path: Path, status: int) -> None:
    server.serve("/WIDER_val.zip", Answer(status=status))
    words = ("--source", server.url, "--manifest", manifest, "--parts", "val", "--retries", 1, "--wait", 0.01)
    text = error_of(run("--root", tmp_path / "w", *words))
    assert f"{server.url}/WIDER_val.zip answers {status}" in text and "by hand" in text
    # Nothing had arrived, so nothing is left, and a folder that was there stays.
    assert not (tmp_path / "w").exists()
    (tmp_path / "w").mkdir()
    error_of(run("--root", tmp_path / "w/new/deep", *words))
    assert list((tmp_path / "w").iterdir()) == []


def test_the_hub_under_another_address(
    server: FileServer, manifest: Path, archives: dict[str, bytes], tmp_path: Path
) -> None:
    server.serve("/hub/datasets/CUHK-CSE/wider_face/resolve/main/data/WIDER_val.zip", Answer(archives["val"]))
    done = run("--root", tmp_path, "--manifest", manifest, "--parts", "val", HF_ENDPOINT=f"{server.url}/hub/")
    assert done.returncode == 0, done.stderr


def test_no_space_is_said_before_anything_is_asked(
    server: FileServer, archives: dict[str, bytes], tmp_path: Path
) -> None:
    huge = write_manifest(tmp_path / "huge.json", archives, size_bytes=10**17)
    root = tmp_path / "w"
    text = error_of(run("--root", root, "--source", server.url, "--manifest", huge))
    assert "fetching and unpacking WIDER_train.zip, WIDER_val.zip, WIDER_test.zip" in text
    assert "TB" in text and "make room" in text
    assert server.asked == []


def test_the_disk_is_full_in_the_middle(
    server: FileServer, manifest: Path, archives: dict[str, bytes], tmp_path: Path
) -> None:
    """Stood in for by a limit on the size of files; what was written before it is of use afterwards."""
    resource = pytest.importorskip("resource")
    limit = 100_000
    assert len(archives["val"]) > limit
    root = tmp_path / "w"
    words = ("--root", root, "--source", server.url, "--manifest", manifest, "--parts", "val")
    done = run_process(*words, limit=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    assert "WIDER_val.zip.part: cannot be written (File too large); make room" in error_of(done)
    assert 0 < (root / ".download/WIDER_val.zip.part").stat().st_size <= limit
    assert run(*words).returncode == 0
    assert server.asked[-1].range is not None


def test_folders_that_take_nothing(server: FileServer, manifest: Path, tmp_path: Path) -> None:
    words = ("--source", server.url, "--manifest", manifest, "--parts", "val")
    (tmp_path / "file").write_text("")
    assert f"{tmp_path / 'file'} is not a folder" in error_of(run("--root", tmp_path / "file", *words))
    if Path("/proc/self").is_dir():
        assert "cannot write in /proc" in error_of(run("--root", "/proc/wider", *words))
    # A file in the way does not cost the archive.
    (tmp_path / "w/WIDER_val").mkdir(parents=True)
    (tmp_path / "w/WIDER_val/images").write_bytes(b"a file where a folder belongs")
    assert f"{tmp_path / 'w/WIDER_val/images'}" in error_of(run("--root", tmp_path / "w", *words))
    assert (tmp_path / "w/.download/WIDER_val.zip").is_file()


def test_archives_at_hand(manifest: Path, archives: dict[str, bytes], tmp_path: Path) -> None:
    mirror, root = tmp_path / "mirror", tmp_path / "w"
    mirror.mkdir()
    for part, content in archives.items():
        (mirror / NAMES[part]).write_bytes(content)
    done = run("--root", root, "--source", mirror, "--manifest", manifest)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in mirror.iterdir()} == set(NAMES.values()), "they are a person's"
    assert len(load_wider_face(root, "train")) == 5
    # In the folder itself, as other programs leave them.
    other = tmp_path / "other"
    other.mkdir()
    (other / "WIDER_val.zip").write_bytes(archives["val"])
    words = ("--root", other, "--source", "http://127.0.0.1:9", "--manifest", manifest, "--parts", "val")
    assert run(*words).returncode == 0
    assert tree(other) >= {"WIDER_val.zip", "WIDER_val/images"}
    (other / "WIDER_test.zip").write_bytes(archives["test"][:-1])
    words = ("--root", other, "--manifest", manifest, "--parts", "test")
    assert "WIDER_test.zip: has " in error_of(run(*words))
    (mirror / "WIDER_test.zip").unlink()
    words = ("--root", tmp_path / "third", "--source", mirror, "--manifest", manifest, "--parts", "test")
    assert "there is no WIDER_test.zip in it" in error_of(run(*words))


def test_the_list_of_test_images_is_needed_for_these_alone(archives: dict[str, bytes], tmp_path: Path) -> None:
    mirror, root = tmp_path / "mirror", tmp_path / "w"
    mirror.mkdir()
    with zipfile.ZipFile(io.BytesIO(archives["annotations"])) as archive:
        kept = {name: archive.read(name) for name in archive.namelist() if "test" not in name}
    assert len(kept) == 2
    fewer = {**archives, "annotations": zipped(kept)}
    for part, content in fewer.items():
        (mirror / NAMES[part]).write_bytes(content)
    words = ("--root", root, "--source", mirror, "--manifest", write_manifest(tmp_path / "fewer.json", fewer))
    done = run(*words, "--parts", "train", "val", "annotations")
    assert done.returncode == 0, done.stderr
    assert (len(load_wider_face(root, "train")), len(load_wider_face(root, "val"))) == (5, 3)
    assert run(*words, "--parts", "val", "annotations").stdout.count("complete; nothing to do") == 2
    assert "2 of 3 needed files" in error_of(run(*words, "--parts", "test", "annotations"))


def test_mistakes_on_the_command_line(tmp_path: Path) -> None:
    assert "No such file" in error_of(run("--manifest", tmp_path / "absent.json"))
    values = ("1", '{"size": 1}', '{"size_bytes": "1"}', '{"images": true}', '{"urls": "http://a"}', '{"sha256": "ab"}')
    for content in ("{", "[]", '{"vall": {}}', *(f'{{"val": {value}}}' for value in values)):
        (tmp_path / "m.json").write_text(content)
        assert f"--manifest={tmp_path / 'm.json'}: " in error_of(run("--manifest", tmp_path / "m.json"))
    assert "neither an http(s) address nor a folder" in error_of(run("--source", tmp_path / "absent"))
    for words, says in (
        (("--wait", -1), "--wait: -1 is no number"),
        (("--timeout", "nan"), "--timeout: nan is no number"),
        (("--parts", "vall"), "invalid choice: 'vall'"),
    ):
        wrong = run(*words)
        assert wrong.returncode == 2 and says in wrong.stderr and "Traceback" not in wrong.stderr


def test_the_official_table() -> None:
    """The numbers of images are WIDER FACE's; the paper has 32,203."""
    assert [PARTS[split].images for split in SPLITS] == [12_880, 3_226, 16_097]
    assert sum(archive.images for archive in PARTS.values()) == 32_203
    assert all(len(archive.sha256) == 64 for archive in PARTS.values())


def test_the_official_annotations_pass_the_official_checks(shared_data: Path, tmp_path: Path) -> None:
    """No manifest: size, checksum and content of the real archive are those of the table."""
    content = (shared_data / "wider_face/wider_face_split.zip").read_bytes()
    assert hashlib.md5(content).hexdigest() == "0e3767bcf0e326556d407bf5bff5d27c"
    with file_server() as running:
        running.serve("/wider_face_split.zip", Answer(content, breaks_after=2_000_000), Answer(content))
        done = run("--root", tmp_path, "--source", running.url, "--parts", "annotations", "--wait", 0.01)
    assert done.returncode == 0, done.stderr
    assert "wider_face_split: 7 files, 7 files unpacked" in done.stdout
    assert len((tmp_path / "wider_face_split/wider_face_val_bbx_gt.txt").read_text().split("\n")) > 39_708
    assert not (tmp_path / ".download").exists()


def test_vgg16_from_a_mirror(tmp_path: Path) -> None:
    content = random.Random(0).randbytes(300_000)
    digest = hashlib.sha256(content).hexdigest()[:8]
    with file_server() as running:
        url = running.serve(f"/vgg16-{digest}.pth", Answer(content, breaks_after=150_000), Answer(content))
        words = ("--root", tmp_path / "weights", "--source", url, "--wait", 0.01)
        done = run(*words, script="download_vgg16")
        assert done.returncode == 0, done.stderr
        path = tmp_path / f"weights/vgg16-{digest}.pth"
        assert path.read_bytes() == content and [path] == list(path.parent.iterdir())
        assert f"weights={path}" in done.stdout and "breaks off" in done.stderr
        assert running.asked[1].range is not None
        again = run(*words, script="download_vgg16")
        assert "nothing to do" in again.stdout and len(running.asked) == 2
        # Where torch.hub keeps its files, without --root.
        default = run("--source", url, script="download_vgg16", TORCH_HOME=str(tmp_path / "torch"))
        assert (tmp_path / f"torch/hub/checkpoints/vgg16-{digest}.pth").is_file()
        assert "weights=imagenet" in default.stdout
        running.serve("/vgg16-00000000.pth", Answer(content))
        new = tmp_path / "new"
        wrong = run("--root", new, "--source", f"{running.url}/vgg16-00000000.pth", script="download_vgg16")
        assert "the SHA-256" in error_of(wrong) and error_of(wrong).endswith(f"by hand and put it into {new}")
        assert not new.exists()


def test_vgg16_from_a_folder_without_network(tmp_path: Path) -> None:
    content = random.Random(0).randbytes(300_000)
    name = f"vgg16-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    stick, root = tmp_path / "stick", tmp_path / "new/weights"
    stick.mkdir()
    (stick / name).write_bytes(content)
    nowhere = {"HTTPS_PROXY": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9", "NO_PROXY": ""}

    def fetched(source: object, **words: str) -> Run:
        return run("--root", root, "--source", source, script="download_vgg16", **nowhere, **words)

    done = fetched(stick / name)
    assert done.returncode == 0, done.stderr
    assert [(path.name, path.read_bytes()) for path in root.iterdir()] == [(name, content)]
    assert "copied, its SHA-256 begins with" in done.stdout and f"weights={root / name}" in done.stdout
    assert "nothing to do" in fetched(stick / name).stdout
    shutil.rmtree(root.parent)
    # A folder has to have the official file: not there, and another one under its name.
    assert f"{stick / 'vgg16-397923af.pth'}: No such file" in error_of(fetched(stick))
    (stick / "vgg16-397923af.pth").write_bytes(content)
    assert f"{stick / 'vgg16-397923af.pth'}: has the SHA-256" in error_of(fetched(stick))
    assert not root.parent.exists()
    (stick / "mine.pth").write_bytes(content)
    assert "the name has no digest" in error_of(fetched(stick / "mine.pth"))
    assert "neither an http(s) address nor a file or folder" in error_of(fetched(tmp_path / "none"))
