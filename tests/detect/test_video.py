"""Videos as they are read and written: frames, times, sound, damage, and what is left when something fails."""

import contextlib
import itertools
import re
import socket
import sys
import threading
import time
from fractions import Fraction

import cv2
import numpy as np
import pytest
from PIL import Image

from fanet_lightning.cli.errors import InputError
from fanet_lightning.detect import video
from fanet_lightning.detect.video import Frame, VideoReader, VideoWriter
from tests.data.download_server import Answer, file_server
from tests.detect.video_files import bar_edge, image_at, make_video, packets

av = pytest.importorskip("av", reason="videos need the package av: pip install 'fanet-lightning[video]'")


def read(path):
    with VideoReader(path) as reader:
        frames = list(reader)
    return frames, reader


def copied(source, target):
    """The video read and written again; the frames, the reader and the writer."""
    with VideoReader(source) as reader, VideoWriter(target, reader) as writer:
        frames = []
        for frame in reader:
            writer.write(frame.image_rgb, frame)
            frames.append(frame)
    return frames, reader, writer


def times(frames):
    return np.array([frame.time_seconds for frame in frames])


# Reading


@pytest.mark.parametrize("suffix, sound", [
    (".mp4", "aac"), (".mkv", "aac"), (".webm", "libopus"), (".avi", "pcm_s16le"), (".ts", "aac"),
])  # fmt: skip
def test_every_frame_of_every_kind_of_video_is_read(tmp_path, suffix, sound):
    frames, reader = read(make_video(tmp_path / f"video{suffix}", sound=sound))
    assert [frame.index for frame in frames] == list(range(50))
    np.testing.assert_allclose(times(frames), np.arange(50) / 25, atol=0.03)
    np.testing.assert_allclose(np.diff(times(frames)), 1 / 25, atol=0.002)
    assert reader.frames_per_second == pytest.approx(25, abs=0.01)
    assert abs(reader.frame_count - 50) <= 1 and reader.size_wh == (96, 64)
    assert (reader.broken, reader.frames_skipped, reader.frames_dropped, reader.is_live) == (None, 0, 0, False)
    for frame in frames[::7]:
        assert frame.image_rgb.shape == (64, 96, 3) and frame.image_rgb.dtype == np.uint8
        assert abs(bar_edge(frame.image_rgb) - 2 * frame.index % 96) <= 2
        assert np.abs(frame.image_rgb.astype(int) - image_at(frame.index)).mean() < 6  # 4:2:0 at the bar's edges


@pytest.mark.parametrize("turned, mirrored", [(90, False), (-90, False), (180, False), (0, True), (90, True)])
def test_images_that_were_filmed_sideways_are_given_upright(tmp_path, turned, mirrored):
    path = make_video(tmp_path / "video.mp4", frames=3, sound=None, turned=turned, mirrored=mirrored)
    expected = np.rot90(image_at(0), turned // 90)[:, :: -1 if mirrored else 1]
    frames, reader = read(path)
    image = frames[0].image_rgb
    assert reader.size_wh == expected.shape[1::-1] and image.shape == expected.shape and image.flags["C_CONTIGUOUS"]
    assert np.abs(image.astype(int) - expected).mean() < 8


def test_a_size_that_changes_midway_is_brought_to_the_first_one(tmp_path):
    first = make_video(tmp_path / "a.ts", frames=10, sound=None)
    second = make_video(tmp_path / "b.ts", frames=10, sound=None, size_wh=(192, 128))
    (tmp_path / "both.ts").write_bytes(first.read_bytes() + second.read_bytes())
    frames, _ = read(tmp_path / "both.ts")
    assert len(frames) > 10 and {frame.image_rgb.shape for frame in frames} == {(64, 96, 3)}


def test_untagged_videos_are_read_in_the_colors_that_players_show(tmp_path):
    """Without a tag, 720 rows and more mean BT.709, fewer BT.601."""
    color = np.array([40, 180, 60])
    for name, size_wh, matrix in (("hd.mkv", (1280, 720), "ITU709"), ("sd.mkv", (640, 480), "ITU601")):
        with av.open(str(tmp_path / name), "w") as output:
            track = output.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
            track.width, track.height = size_wh
            image = np.tile(color.astype(np.uint8), (size_wh[1], size_wh[0], 1))
            frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format="yuv420p", dst_colorspace=matrix)
            frame.colorspace = 2
            output.mux(track.encode(frame))
            output.mux(track.encode(None))
        with av.open(str(tmp_path / name)) as container:
            assert next(container.decode(video=0)).colorspace == 2
        frames, _ = read(tmp_path / name)
        np.testing.assert_allclose(frames[0].image_rgb.mean(axis=(0, 1)), color, atol=4, err_msg=name)


def halved(path):
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    return path


@pytest.mark.parametrize("name, sound", [("video.mkv", "aac"), ("video.webm", "libopus"), ("video.mp4", "aac")])
def test_a_video_that_breaks_off_gives_its_good_frames_and_says_where(tmp_path, name, sound):
    options = {"movflags": "faststart"} if name == "video.mp4" else None  # the index in front: readable without the end
    path = halved(make_video(tmp_path / name, frames=150, sound=sound, size_wh=(160, 120), options=options))
    frames, reader = read(path)
    assert 30 < len(frames) < 120
    np.testing.assert_allclose(times(frames), np.arange(len(frames)) / 25, atol=0.03)
    assert re.fullmatch(rf"{re.escape(str(path))}: breaks off after \d\.\d s of 6\.\d s \(.*\)", reader.broken)
    assert float(re.search(r"after (\S+) s", reader.broken)[1]) == pytest.approx(len(frames) / 25, abs=0.4)
    # What was good can be written, and its sound ends with it.
    _, _, writer = copied(path, tmp_path / "good.mp4")
    kept, reader = read(tmp_path / "good.mp4")
    assert len(kept) == len(frames) and reader.broken is None and writer.sound_kept
    assert packets(tmp_path / "good.mp4")[-1][1] == pytest.approx(len(frames) / 25, abs=0.1)


def test_damaged_frames_in_the_middle_are_counted_and_left_out(tmp_path):
    whole, damaged = make_video(tmp_path / "whole.mp4", frames=100, sound=None), tmp_path / "damaged.mp4"
    with av.open(str(whole)) as container, av.open(str(damaged), "w") as output:
        stream = container.streams.video[0]
        track = output.add_stream_from_template(stream)
        for index, packet in enumerate(p for p in container.demux(stream) if p.dts is not None):
            written = av.Packet(b"\xff" * 400) if index in (30, 31) else packet
            for key in ("pts", "dts", "time_base", "duration"):
                setattr(written, key, getattr(packet, key))
            written.stream = track
            output.mux(written)
    frames, reader = read(damaged)
    assert (len(frames), reader.frames_skipped, reader.broken) == (98, 2, None)
    assert times(frames)[-1] == pytest.approx(99 / 25)


def refused(source, **options):
    with pytest.raises(InputError) as caught:
        VideoReader(source, **options)
    line = str(caught.value)
    assert "\n" not in line
    return line


def test_what_is_no_video_is_refused_in_one_line(tmp_path):
    Image.new("RGB", (9, 9)).save(tmp_path / "a.jpg")
    with av.open(str(tmp_path / "music.m4a"), "w", format="mp4") as output:
        track = output.add_stream("aac", rate=44_100)
        block = av.AudioFrame.from_ndarray(np.zeros((1, 4096 * 2), np.int16), format="s16", layout="stereo")
        block.sample_rate = 44_100
        output.mux(track.encode(block))
        output.mux(track.encode(None))
    halved(make_video(tmp_path / "no_index.mp4", frames=20))
    (tmp_path / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(20_000))
    # A playlist that calls itself a video opens no other file.
    make_video(tmp_path / "secret.ts", frames=5, sound=None)
    (tmp_path / "list.mp4").write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{tmp_path}/secret.ts\n")
    (tmp_path / "concat.mp4").write_text("ffconcat version 1.0\nfile secret.ts\n")
    for name, said in {
        "none.mp4": "not a video that can be read (No such file", "noise.mp4": "not a video that can be read",
        "no_index.mp4": "not a video that can be read", "a.jpg": "not a video (FFmpeg takes it for ",
        "music.m4a": "holds no moving images", "list.mp4": "not a video", "concat.mp4": "not a video",
    }.items():  # fmt: skip
        assert f"{name}: {said}" in refused(tmp_path / name)
    assert refused("93") == refused(93) and refused(93).startswith("camera 93: ")
    assert refused(-1).startswith("camera -1: ")


def test_addresses_that_do_not_answer():
    unread = "not a video that can be read"
    assert f"rtsp://***@127.0.0.1:1/a: {unread} (Connection refused)" in refused("rtsp://me:secret@127.0.0.1:1/a")
    assert "ftp://127.0.0.1/video.mp4: not a video" in refused("ftp://127.0.0.1/video.mp4")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"rtsp://127.0.0.1:{silent.getsockname()[1]}/door"
        assert f"{address}: {unread} (no answer within 0.5 s)" in refused(address, timeout_seconds=0.5)


def test_a_video_is_read_from_an_address(tmp_path):
    make_video(tmp_path / "video.mkv", frames=20)
    with file_server() as server:
        address = server.serve("/video.mkv", Answer((tmp_path / "video.mkv").read_bytes()))
        frames, reader, writer = copied(address, tmp_path / "copy.mkv")
        assert len(frames) == 20 and not reader.is_live and writer.sound_kept
        assert "404" in refused(f"{server.url}/none.mkv")


def test_a_live_stream_that_falls_silent(tmp_path):
    """A server that sends 8 s of video at once and then nothing more."""
    content = make_video(tmp_path / "video.ts", frames=200, sound=None).read_bytes()
    with socket.create_server(("127.0.0.1", 0)) as server, contextlib.ExitStack() as held:

        def serve():
            held.enter_context(server.accept()[0]).sendall(content)

        threading.Thread(target=serve, daemon=True).start()
        with VideoReader(f"tcp://127.0.0.1:{server.getsockname()[1]}", timeout_seconds=1.0) as reader:
            assert reader.is_live and reader.frame_count is None
            frames = []
            for frame in reader:
                frames.append(frame)
                time.sleep(0.01)  # slower than they come, so some are dropped
    assert len(frames) + reader.frames_dropped == frames[-1].index + 1 > 150
    assert (np.diff(times(frames)) >= 0).all() and "nothing came for 1 s" in reader.broken


def test_a_camera_gives_recent_frames_with_the_time_they_came(tmp_path, monkeypatch):
    """OpenCV opens a video as it opens a camera, so a video, endlessly fast, stands in for one."""
    capture = cv2.VideoCapture(str(make_video(tmp_path / "live.avi", frames=40, sound=None)))
    assert capture.isOpened(), "this OpenCV reads no videos"
    taken = threading.Event()

    class Camera:
        """The second frame waits until the first is taken, however late a busy machine gets to that."""

        isOpened, get, release = capture.isOpened, capture.get, capture.release

        def read(self):
            if capture.get(cv2.CAP_PROP_POS_FRAMES) >= 1:
                taken.wait(300)
            return capture.read()

    monkeypatch.setattr(cv2, "VideoCapture", lambda index: Camera())
    monkeypatch.setattr(video.sys, "platform", "test")
    with VideoReader(0) as reader:
        assert (reader.name, reader.is_live, reader.frame_count, reader.size_wh) == ("camera 0", True, None, (96, 64))
        assert reader.frames_per_second == 25
        iterator = iter(reader)
        first = next(iterator)
        assert (first.index, first.time_seconds) == (0, 0.0)
        taken.set()
        # The reader is busy while 39 frames come: the last 8 are kept.
        deadline = time.monotonic() + 300
        while reader.broken is None and time.monotonic() < deadline:
            time.sleep(0.02)
        rest = list(iterator)
    assert [frame.index for frame in rest] == list(range(32, 40)) and reader.frames_dropped == 31
    assert (np.diff(times(rest)) >= 0).all() and rest[0].time_seconds > 0
    assert abs(bar_edge(rest[-1].image_rgb) - 78) <= 2  # orange stays orange: OpenCV's BGR was turned
    assert reader.broken == "camera 0: gives no more frames"


# Writing


@pytest.mark.parametrize("source, sound, target", [
    ("a.mp4", "aac", "b.mp4"), ("a.mkv", "libopus", "b.mp4"), ("a.mp4", "aac", "b.mkv"),
    ("a.webm", "libopus", "b.webm"), ("a.mov", "pcm_s16le", "b.mov"),
])  # fmt: skip
def test_images_times_and_sound_come_through(tmp_path, source, sound, target):
    make_video(tmp_path / source, sound=sound)
    frames, _, writer = copied(tmp_path / source, tmp_path / target)
    assert writer.sound_kept and writer.frames_written == 50
    assert not [note for note in writer.notes if "sound" in note]
    before, after = packets(tmp_path / source), packets(tmp_path / target)
    assert [data for data, _ in before] == [data for data, _ in after]
    again, reader_again = read(tmp_path / target)
    assert reader_again.frames_per_second == pytest.approx(25, abs=0.01)
    # Matroska holds no times below 0, so a priming packet of AAC moves images and sound alike.
    moved = (after[0][1] - before[0][1]) if target == "b.mkv" else 0.0
    np.testing.assert_allclose(times(again), times(frames) + moved, atol=0.0011)
    np.testing.assert_allclose([t for _, t in after], [t + moved for _, t in before], atol=0.0011)
    for old, new in zip(frames[::9], again[::9], strict=True):
        assert np.abs(old.image_rgb.astype(int) - new.image_rgb).mean() < 4
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([source, target])


def test_a_variable_rate_stays_variable(tmp_path):
    ticks = [0, 100, 140, 600, 601, 2000, 2040, 5000]
    make_video(tmp_path / "a.mp4", frames=8, ticks=ticks, time_base=Fraction(1, 1000), sound=None)
    for target in ("a.mp4", "b.mp4", "b.mkv", "b.webm"):
        if target != "a.mp4":
            copied(tmp_path / "a.mp4", tmp_path / target)
        frames, reader = read(tmp_path / target)
        assert reader.frame_count == 8 or target != "a.mp4"
        np.testing.assert_allclose(times(frames), np.array(ticks) / 1000, atol=1e-9, err_msg=target)


@pytest.mark.parametrize("source, sound, target, said", [
    ("a.mp4", "aac", "b.webm", "sound encoded again, aac to opus"),
    ("a.mov", "pcm_s16le", "b.mp4", "sound encoded again, pcm_s16le to aac"),
])  # fmt: skip
def test_sound_that_the_container_cannot_hold_is_encoded_again(tmp_path, source, sound, target, said):
    make_video(tmp_path / source, sound=sound)
    _, _, writer = copied(tmp_path / source, tmp_path / target)
    assert writer.sound_kept and writer.notes[-1:] == [said]
    with av.open(str(tmp_path / target)) as container:
        blocks = list(container.decode(audio=0))
    samples, rate = np.concatenate([b.to_ndarray().reshape(-1) for b in blocks]).astype(float), blocks[0].sample_rate
    assert len(samples) / rate == pytest.approx(2.0, abs=0.06)
    assert np.argmax(np.abs(np.fft.rfft(samples))) * rate / len(samples) == pytest.approx(440, abs=2)


def test_sound_and_images_of_a_video_that_begins_late_stay_together(tmp_path):
    make_video(tmp_path / "a.mkv")
    late = 50  # seconds
    with av.open(str(tmp_path / "a.mkv")) as container, av.open(str(tmp_path / "late.ts"), "w") as output:
        tracks = {stream.index: output.add_stream_from_template(stream) for stream in container.streams}
        for packet in container.demux():
            if packet.dts is not None:
                packet.pts += round(late / packet.time_base)
                packet.dts += round(late / packet.time_base)
                packet.stream = tracks[packet.stream.index]
                output.mux(packet)
    frames, reader, writer = copied(tmp_path / "late.ts", tmp_path / "b.mp4")
    assert reader.start_seconds > 49 and writer.sound_kept
    sound, images = packets(tmp_path / "late.ts"), packets(tmp_path / "late.ts", "video")
    apart = sound[0][1] - images[0][1]
    again, _ = read(tmp_path / "b.mp4")
    assert packets(tmp_path / "b.mp4")[0][1] - again[0].time_seconds == pytest.approx(apart, abs=0.002)
    np.testing.assert_allclose(times(again), times(frames), atol=0.001)


@pytest.mark.parametrize("target", ["b.mp4", "b.webm"])
def test_odd_sizes_are_padded_with_the_last_column_and_row(tmp_path, target):
    make_video(tmp_path / "a.mp4", frames=5, sound=None)
    image = np.empty((17, 33, 3), np.uint8)
    image[:, :16], image[:, 16:] = colors = [(200, 40, 40), (40, 180, 60)]
    with VideoReader(tmp_path / "a.mp4") as reader, VideoWriter(tmp_path / target, reader) as writer:
        for frame in reader:
            writer.write(image, frame)
    frames, reader = read(tmp_path / target)
    assert reader.size_wh == (34, 18) and len(frames) == 5
    last = frames[2].image_rgb.astype(int)
    np.testing.assert_allclose(last[:, 33], np.tile(colors[1], (18, 1)), atol=14)
    np.testing.assert_allclose(last[17, 4], colors[0], atol=14)


@pytest.mark.parametrize("keep", [False, True])
def test_a_failure_leaves_nothing_behind_and_close_keeps_what_is_there(tmp_path, keep):
    """20 of 50 frames; the reader's thread ends with the block."""
    make_video(tmp_path / "a.mp4")
    out = tmp_path / "out/b.mp4"
    out.parent.mkdir()
    out.write_bytes(b"older")
    with (
        pytest.raises(KeyboardInterrupt),
        VideoReader(tmp_path / "a.mp4") as reader,
        VideoWriter(out, reader) as writer,
    ):
        for frame in itertools.islice(reader, 20):
            writer.write(frame.image_rgb, frame)
        if keep:
            writer.close(keep=True)
            writer.close(keep=False)  # closed is closed
        raise KeyboardInterrupt
    assert not reader.finished and not reader._thread.is_alive()
    with pytest.raises(RuntimeError):  # a video is read once
        next(iter(reader))
    assert [p.name for p in out.parent.iterdir()] == ["b.mp4"]
    if keep:
        frames, reader = read(out)
        assert len(frames) == 20 and reader.broken is None
        assert packets(out)[-1][1] == pytest.approx(0.8, abs=0.05)
    else:
        assert out.read_bytes() == b"older"


def test_what_cannot_be_written_is_named(tmp_path):
    make_video(tmp_path / "a.mp4", frames=3)
    frame = Frame(np.zeros((64, 96, 3), np.uint8), 0.0, 0)
    with VideoReader(tmp_path / "a.mp4") as reader:
        with pytest.raises(InputError, match=r"b\.xyz: videos are written as \.mp4"):
            VideoWriter(tmp_path / "b.xyz", reader)
        writer = VideoWriter(tmp_path / "b.mp4", reader)
        writer.write(frame.image_rgb, frame)
        with pytest.raises(ValueError, match="a frame of 10x10"):
            writer.write(np.zeros((10, 10, 3), np.uint8), frame)
        writer.close()
        with pytest.raises(ValueError, match="is closed"):
            writer.write(frame.image_rgb, frame)
        # A folder that is a file; an encoder that refuses the size: nothing is left under the temporary name either.
        (tmp_path / "file").touch()
        (tmp_path / "out").mkdir()
        for path, shape, said in ((tmp_path / "file/b.mp4", (64, 96, 3), r" \((File exists|Not a directory)\)$"),
                                  (tmp_path / "out/b.webm", (2, 70_000, 3), "")):  # fmt: skip
            writer = VideoWriter(path, reader)
            with pytest.raises(InputError, match=rf"{path.name}: cannot be written{said}"):
                writer.write(np.zeros(shape, np.uint8), frame)
            writer.close()
        assert list((tmp_path / "out").iterdir()) == []


def test_without_the_package_av_the_line_to_install_it_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    assert refused("video.mp4") == "video.mp4: needs the package av; pip install 'fanet-lightning[video]'"
