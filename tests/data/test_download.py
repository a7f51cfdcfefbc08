"""Files over HTTP from a server that misbehaves: whole and right, or not at all."""

import hashlib
import random
import shutil
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fanet_lightning.cli.errors import InputError
from fanet_lightning.data import download as disk_space
from fanet_lightning.data.download import Patience, RemoteFile, check_space, fault, fetch, size_text
from tests.data.download_server import Answer, FileServer, file_server

CONTENT = random.Random(0).randbytes(400_000)
OTHER = random.Random(1).randbytes(400_000)
QUICK = Patience(retries=3, first_wait_s=0.001, timeout_s=5)


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture()
def server() -> Iterator[FileServer]:
    with file_server() as running:
        yield running


def remote(*urls: str, content: bytes = CONTENT, sized: bool = True) -> RemoteFile:
    digest = hashlib.sha256(content).hexdigest()
    return RemoteFile("a.zip", urls, digest, len(content) if sized else None)


def fetched(folder: Path, file: RemoteFile, patience: Patience = QUICK) -> tuple[bytes, list[str]]:
    said: list[str] = []
    path = fetch(file, folder, patience=patience, say=said.append)
    assert path == folder / "a.zip"
    assert [entry.name for entry in folder.iterdir()] == ["a.zip"], "nothing else is left"
    return path.read_bytes(), said


def refused(folder: Path, file: RemoteFile, patience: Patience = QUICK) -> str:
    with pytest.raises(InputError) as error:
        fetch(file, folder, patience=patience, say=lambda text: None)
    assert not (folder / "a.zip").exists()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_plain_transfer_and_its_progress(server: FileServer, tmp_path: Path) -> None:
    url = server.serve("/a.zip", Answer(CONTENT))
    seen: list[tuple[int, int | None]] = []
    path = fetch(remote(url), tmp_path / "new/folder", say=print, progress=lambda *amounts: seen.append(amounts))
    assert path.read_bytes() == CONTENT
    assert seen[0] == (0, 400_000) and seen[-1] == (400_000, 400_000)
    assert seen == sorted(seen)
    # What is there and right is not asked for again.
    fetch(remote(url), tmp_path / "new/folder")
    assert len(server.asked) == 1


def test_goes_on_where_it_broke_off(server: FileServer, tmp_path: Path) -> None:
    url = server.serve(
        "/a.zip",
        Answer(CONTENT, etag='"one"', breaks_after=200_000),
        Answer(CONTENT, etag='"one"', breaks_after=100_000),
        Answer(CONTENT, etag='"one"'),
    )
    content, said = fetched(tmp_path, remote(url))
    assert content == CONTENT
    first, second, third = server.asked
    assert (first.range, first.if_range) == (None, None)
    # Up to a chunk of what was under way may be lost, no more.
    begun = [int(asked.range.removeprefix("bytes=").rstrip("-")) for asked in (second, third)]
    assert 200_000 - (1 << 16) < begun[0] <= 200_000
    assert begun[0] + 100_000 - (1 << 16) < begun[1] <= begun[0] + 100_000
    assert second.if_range == third.if_range == '"one"'
    assert all("breaks off" in line for line in said) and len(said) == 2


def test_goes_on_after_a_killed_process(server: FileServer, tmp_path: Path) -> None:
    url = server.serve("/a.zip", Answer(CONTENT, etag='"one"', breaks_after=300_000))
    assert "kept" in refused(tmp_path, remote(url), Patience(retries=0))
    kept = (tmp_path / "a.zip.part").stat().st_size
    assert kept > 200_000
    server.serve("/a.zip", Answer(CONTENT, etag='"one"'))
    assert fetched(tmp_path, remote(url))[0] == CONTENT
    assert server.asked[-1].range == f"bytes={kept}-"


def test_more_interruptions_than_retries_as_long_as_it_gets_on(server: FileServer, tmp_path: Path) -> None:
    url = server.serve("/a.zip", *[Answer(CONTENT, breaks_after=70_000)] * 10)
    assert fetched(tmp_path, remote(url), Patience(retries=1, first_wait_s=0.001))[0] == CONTENT


def test_a_server_that_never_gets_further_is_given_up(server: FileServer, tmp_path: Path) -> None:
    url = server.serve("/a.zip", Answer(CONTENT, ranges=False, breaks_after=200_000))
    assert "breaks off" in refused(tmp_path, remote(url))
    assert len(server.asked) == 1 + QUICK.retries


def test_ignored_ranges_begin_anew(server: FileServer, tmp_path: Path) -> None:
    url = server.serve("/a.zip", Answer(CONTENT, breaks_after=200_000), Answer(CONTENT, ranges=False))
    content, said = fetched(tmp_path, remote(url))
    assert content == CONTENT
    assert any("begins anew" in line for line in said)


def test_a_range_that_was_not_asked_for(server: FileServer, tmp_path: Path) -> None:
    url = server.serve("/a.zip", Answer(CONTENT, breaks_after=200_000), Answer(CONTENT, shift=5), Answer(CONTENT))
    content, said = fetched(tmp_path, remote(url))
    assert content == CONTENT
    assert any("another range" in line for line in said)
    assert server.asked[-1].range is None


def test_a_file_that_changes_between_tries(server: FileServer, tmp_path: Path) -> None:
    url = server.serve(
        "/a.zip", Answer(OTHER, etag='"old"', breaks_after=200_000), Answer(CONTENT, etag='"new"')
    )  # fmt: skip
    content, said = fetched(tmp_path, remote(url))
    assert content == CONTENT
    assert server.asked[1].if_range == '"old"'
    assert any("begins anew" in line for line in said)


def test_of_an_older_version_nothing_is_kept(server: FileServer, tmp_path: Path) -> None:
    url = server.serve("/a.zip", Answer(OTHER, etag='"old"', breaks_after=300_000))
    refused(tmp_path, remote(url), Patience(retries=0))
    server.serve("/a.zip", Answer(CONTENT, etag='"new"', breaks_after=150_000))
    refused(tmp_path, remote(url), Patience(retries=0))
    part = (tmp_path / "a.zip.part").read_bytes()
    assert 0 < len(part) <= 150_000 and CONTENT.startswith(part)


def test_a_change_that_the_server_does_not_own_up_to(server: FileServer, tmp_path: Path) -> None:
    """Without validators two versions are joined; the checksum finds it, and everything is fetched once more."""
    url = server.serve("/a.zip", Answer(OTHER, breaks_after=200_000), Answer(CONTENT))
    content, said = fetched(tmp_path, remote(url))
    assert content == CONTENT
    assert any("once more from the beginning" in line for line in said)
    assert [asked.range is None for asked in server.asked] == [True, False, True]


def test_an_etag_that_changes_in_the_middle(server: FileServer, tmp_path: Path) -> None:
    """A server that knows no If-Range gives the rest of the new version under a new ETag."""
    server.serve("/a.zip", Answer(OTHER, etag='"old"', breaks_after=200_000))
    url = f"{server.url}/a.zip"
    refused(tmp_path, remote(url), Patience(retries=0))
    (tmp_path / "a.zip.part.json").write_text(f'{{"url": "{url}", "etag": "\\"new\\""}}')
    # Its validator names the new version, so that the range is granted, but the answer's ETag is a third one.
    rest = {"Content-Range": f"bytes {_kept(tmp_path)}-399999/400000"}
    server.serve("/a.zip", Answer(CONTENT, status=206, headers=rest, etag='"third"'), Answer(CONTENT))
    assert fetched(tmp_path, remote(url))[0] == CONTENT


def _kept(folder: Path) -> int:
    return (folder / "a.zip.part").stat().st_size


@pytest.mark.parametrize("says", [399_999, 400_001, 0])
def test_lies_about_the_size_are_refused_at_once(server: FileServer, tmp_path: Path, says: int) -> None:
    url = server.serve("/a.zip", Answer(CONTENT, says_bytes=says))
    assert f"announces {says:,} bytes, a.zip has 400,000" in refused(tmp_path, remote(url))
    assert len(server.asked) == 1


def test_more_bytes_than_the_file_has(server: FileServer, tmp_path: Path) -> None:
    url = server.serve("/a.zip", Answer(CONTENT + b"x", bare=True))
    assert "more than the 400,000 bytes" in refused(tmp_path, remote(url))


def test_without_a_length_the_end_is_known_by_the_size(server: FileServer, tmp_path: Path) -> None:
    url = server.serve("/a.zip", Answer(CONTENT, bare=True, breaks_after=150_000), Answer(CONTENT, bare=True))
    assert fetched(tmp_path, remote(url))[0] == CONTENT


def test_of_a_file_of_unknown_size_the_checksum_decides(server: FileServer, tmp_path: Path) -> None:
    url = server.serve("/a.zip", Answer(CONTENT[:-1]), Answer(CONTENT))
    content, said = fetched(tmp_path, remote(url, sized=False))
    assert content == CONTENT
    assert "SHA-256" in said[0]


def test_joined_by_accident_more_than_once(server: FileServer, tmp_path: Path) -> None:
    parts = [Answer(OTHER, breaks_after=200_000), Answer(CONTENT)]
    url = server.serve("/a.zip", *parts, *parts, Answer(CONTENT))
    assert fetched(tmp_path, remote(url))[0] == CONTENT


def test_a_damaged_file_is_fetched_twice_and_then_refused(server: FileServer, tmp_path: Path) -> None:
    url = server.serve("/a.zip", Answer(OTHER))
    assert f"the SHA-256 {hashlib.sha256(OTHER).hexdigest()[:16]}" in refused(tmp_path, remote(url))
    assert len(server.asked) == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["text/html; charset=utf-8", "application/octet-stream"])
def test_a_page_instead_of_the_file(server: FileServer, tmp_path: Path, kind: str) -> None:
    page = b"\n<!DOCTYPE html><html>Please log in</html>".ljust(400_000)
    url = server.serve("/a.zip", Answer(page, headers={"Content-Type": kind}))
    assert "a proxy's or a login page" in refused(tmp_path, remote(url))
    assert len(server.asked) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("sized", [True, False])
@pytest.mark.parametrize("headers", [{}, {"Content-Type": "application/zip"}, {"Content-Type": "text/html"}])
def test_a_page_of_another_size(server: FileServer, tmp_path: Path, sized: bool, headers: dict[str, str]) -> None:
    """That it is a page says more than that its size is wrong; nothing empty is left of it."""
    for page in (b"\r\n <html>Log in</html>", b"<html>Log in</html>".ljust(500_000)):
        url = server.serve("/a.zip", Answer(page, headers=headers))
        text = refused(tmp_path, remote(url, sized=sized))
        assert f"{url} answers a page of markup instead of the file (a proxy's or a login page);" in text
        assert "announces" not in text
        assert list(tmp_path.iterdir()) == []


def test_an_empty_part_is_not_left(server: FileServer, tmp_path: Path) -> None:
    """Whatever ended a transfer before its first byte, and whoever left such a part before."""
    url = server.serve("/a.zip", Answer(CONTENT, breaks_after=0))
    (tmp_path / "a.zip.part").write_bytes(b"")
    assert "breaks off" in refused(tmp_path, remote(url), Patience(retries=0))
    assert list(tmp_path.iterdir()) == []


def test_a_page_does_not_cost_what_has_arrived(server: FileServer, tmp_path: Path) -> None:
    url = server.serve("/a.zip", Answer(CONTENT, breaks_after=300_000))
    refused(tmp_path, remote(url), Patience(retries=0))
    kept = _kept(tmp_path)
    for answer in (
        Answer(b"<html>", ranges=False, headers={"Content-Type": "text/html"}),
        Answer(b"<html>".ljust(400_000), ranges=False),
        Answer(status=404),
        Answer(CONTENT, says_bytes=7, ranges=False),
    ):
        server.serve("/a.zip", answer)
        refused(tmp_path, remote(url))
        assert _kept(tmp_path) == kept


@pytest.mark.parametrize("status, phrase", [(404, "Not Found"), (403, "Forbidden"), (401, "Unauthorized"), (204, "No")])
def test_refusals_are_not_repeated(server: FileServer, tmp_path: Path, status: int, phrase: str) -> None:
    url = server.serve("/a.zip", Answer(status=status))
    assert f"{url} answers {status} {phrase}" in refused(tmp_path, remote(url))
    assert len(server.asked) == 1


@pytest.mark.parametrize("status", [503, 500, 429, 408])
def test_passing_faults_are_waited_for(server: FileServer, tmp_path: Path, status: int) -> None:
    url = server.serve("/a.zip", Answer(status=status), Answer(status=status), Answer(CONTENT))
    content, said = fetched(tmp_path, remote(url))
    assert content == CONTENT
    assert [line.split(";")[-1] for line in said] == [" again in 0.001 s", " again in 0.002 s"]


def test_passing_faults_that_do_not_pass(server: FileServer, tmp_path: Path) -> None:
    url = server.serve("/a.zip", Answer(status=503))
    assert "answers 503 Service Unavailable, tried 4 times" in refused(tmp_path, remote(url))
    assert len(server.asked) == 4


def test_retry_after_is_kept_to(server: FileServer, tmp_path: Path) -> None:
    url = server.serve("/a.zip", Answer(status=429, headers={"Retry-After": "1"}), Answer(CONTENT))
    begin = time.monotonic()
    _, said = fetched(tmp_path, remote(url))
    assert time.monotonic() - begin >= 1
    assert said == ["a.zip: answers 429 Too Many Requests; again in 1 s"]


def test_retry_after_as_a_date_and_an_unreasonable_one(server: FileServer, tmp_path: Path) -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(hours=1))
    for header in (date, "3600"):
        url = server.serve("/a.zip", Answer(status=429, headers={"Retry-After": header}))
        text = refused(tmp_path, remote(url))
        assert "asks to come back in 3600 s" in text or "asks to come back in 3599 s" in text or "360" in text
    past = format_datetime(datetime.now(UTC) - timedelta(hours=1), usegmt=False)
    url = server.serve(
        "/a.zip", *(Answer(status=503, headers={"Retry-After": h}) for h in (past, "soon")), Answer(CONTENT)
    )
    assert fetched(tmp_path, remote(url))[1][0].endswith("again in 0 s")


def test_redirects_are_followed_and_circles_are_not(server: FileServer, tmp_path: Path) -> None:
    server.serve("/b", Answer(status=302, headers={"Location": "/a.zip"}))
    server.serve("/a.zip", Answer(CONTENT, etag='"one"', breaks_after=200_000), Answer(CONTENT, etag='"one"'))
    assert fetched(tmp_path / "1", remote(f"{server.url}/b"))[0] == CONTENT
    assert server.asked[-1].range is not None and server.asked[-1].if_range == '"one"'
    server.serve("/c", Answer(status=302, headers={"Location": "/c"}))
    assert "redirects in a circle" in refused(tmp_path / "2", remote(f"{server.url}/c"))


def test_no_network(tmp_path: Path) -> None:
    patience = Patience(retries=1, first_wait_s=0.001)
    assert "refused, tried 2 times" in refused(tmp_path, remote("http://127.0.0.1:9/a.zip"), patience)
    text = refused(tmp_path, remote("http://nobody.invalid/a.zip"), patience)
    assert "http://nobody.invalid/a.zip cannot be reached" in text and "not resolved" in text
    assert "give another --source" in text


def test_a_name_that_is_not_resolved(tmp_path: Path) -> None:
    """Asked for once more, whatever the patience with servers; the reason is said once, with what else can be done."""
    said: list[str] = []
    urls = ("http://nobody.invalid/a.zip", "http://nobody-else.invalid/a.zip")
    with pytest.raises(InputError) as error:
        fetch(
            remote(*urls), tmp_path, patience=Patience(20, 0.001), say=said.append, by_hand="fetch it by hand into /d"
        )
    assert str(error.value) == (
        f"cannot fetch a.zip: {urls[0]} cannot be reached: its name is not resolved (no network?), tried 2 times, "
        f"likewise {urls[1]}; look at the address and the network and run again, or give another --source, "
        "or fetch it by hand into /d"
    )
    assert [line.endswith("again in 0.001 s") for line in said] == [True, False, True]
    assert "tried once;" in refused(tmp_path, remote(urls[0]), Patience(retries=0))
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_goes_away_in_the_middle(
    server: FileServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A name that has been resolved once is waited for as everything else."""
    import socket

    server.serve("/a.zip", Answer(CONTENT, breaks_after=200_000), Answer(CONTENT))
    resolve, lookups = socket.getaddrinfo, iter([True, False, False, False, True])

    def resolve_now_and_then(host: str, *rest: Any, **more: Any) -> Any:
        assert host == "files.invalid"
        if next(lookups):
            return resolve("127.0.0.1", *rest, **more)
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", resolve_now_and_then)
    url = f"{server.url.replace('127.0.0.1', 'files.invalid')}/a.zip"
    content, said = fetched(tmp_path, remote(url), Patience(retries=4, first_wait_s=0.001))
    assert content == CONTENT
    assert ["not resolved" in line for line in said] == [False, True, True, True]


def test_a_proxy_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert "the proxy does not connect" in refused(tmp_path, remote("http://nobody.invalid/a"), Patience(retries=0))


def test_silence(tmp_path: Path) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/a.zip"
        assert "is silent for 0.2 s" in refused(tmp_path, remote(url), Patience(retries=0, timeout_s=0.2))


@pytest.mark.parametrize("url", ["http://", "nonsense", "ftp://127.0.0.1/a.zip"])
def test_addresses_that_are_none(tmp_path: Path, url: str) -> None:
    assert "cannot be asked" in refused(tmp_path, remote(url))


def test_the_next_address_goes_on_with_the_part(server: FileServer, tmp_path: Path) -> None:
    server.serve("/1/a.zip", Answer(CONTENT, etag='"here"', breaks_after=300_000), Answer(status=404))
    server.serve("/2/a.zip", Answer(CONTENT, etag='"there"'))
    content, said = fetched(tmp_path, remote(f"{server.url}/1/a.zip", f"{server.url}/2/a.zip"))
    assert content == CONTENT
    last = server.asked[-1]
    assert last.range is not None and last.if_range is None, "the validator of one address is none of the other's"
    assert "answers 404 Not Found; asking the next address" in said[-1]


def test_parts_of_an_earlier_try_that_are_of_no_use(server: FileServer, tmp_path: Path) -> None:
    url = server.serve("/a.zip", Answer(CONTENT))
    for number, part in enumerate((CONTENT, CONTENT + b"x", OTHER, OTHER[:10], b"")):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "a.zip.part").write_bytes(part)
        (folder / "a.zip.part.json").write_text("{no json")
        (folder / "a.zip").write_bytes(b"not the file")
        assert fetched(folder, remote(url))[0] == CONTENT
    # The first part was the whole file already.
    assert len(server.asked) == 1 + 1 + 2 + 1


def test_a_wrong_file_of_unknown_size_that_the_server_cannot_go_on_with(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "a.zip.part").write_bytes(CONTENT + b"too long")
    url = server.serve("/a.zip", Answer(CONTENT))
    assert fetched(tmp_path, remote(url, sized=False))[0] == CONTENT
    assert [asked.range for asked in server.asked] == ["bytes=400008-", None]


def test_a_folder_that_takes_nothing(server: FileServer, tmp_path: Path) -> None:
    url = server.serve("/a.zip", Answer(CONTENT))
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file/sub.*Not a directory"):
        fetch(remote(url), tmp_path / "file" / "sub")


def test_ctrl_c_leaves_what_has_arrived(server: FileServer, tmp_path: Path) -> None:
    url = server.serve("/a.zip", Answer(CONTENT))

    def interrupt(done: int, total: int | None) -> None:
        if done > 100_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(remote(url), tmp_path, progress=interrupt)
    kept = _kept(tmp_path)
    assert kept > 100_000
    fetch(remote(url), tmp_path, say=lambda text: None)
    assert server.asked[-1].range == f"bytes={kept}-"


FAULTS = st.one_of(
    st.builds(lambda n: Answer(CONTENT, etag='"v"', breaks_after=n), st.integers(0, 400_000)),
    st.builds(lambda n: Answer(CONTENT, ranges=False, breaks_after=n), st.integers(0, 400_000)),
    st.builds(lambda n: Answer(OTHER, etag='"w"', breaks_after=n), st.integers(0, 399_999)),
    st.builds(lambda n: Answer(OTHER, breaks_after=n), st.integers(0, 399_999)),
    st.builds(lambda n: Answer(CONTENT, shift=n), st.integers(1, 9)),
    st.builds(lambda n: Answer(CONTENT, bare=True, breaks_after=n), st.integers(0, 400_000)),
    st.just(Answer(status=503)),
    st.just(Answer(status=429, headers={"Retry-After": "0"})),
)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(faults=st.lists(FAULTS, max_size=6))
def test_whatever_goes_wrong_the_file_is_right_in_the_end(
    server: FileServer, tmp_path: Path, faults: list[Answer]
) -> None:
    """Passing faults in any order, then a sound server: the file is right, whatever had been put together before."""
    folder = tmp_path / "case"
    shutil.rmtree(folder, ignore_errors=True)
    url = server.serve("/a.zip", *faults, Answer(CONTENT, etag='"v"'))
    path = fetch(remote(url), folder, patience=Patience(20, 0, 5), say=lambda text: None)
    assert path.read_bytes() == CONTENT
    assert [entry.name for entry in folder.iterdir()] == ["a.zip"]


def test_two_halves_in_two_threads_do_not_share_anything(server: FileServer, tmp_path: Path) -> None:
    url = server.serve("/a.zip", Answer(CONTENT))
    threads = [
        threading.Thread(target=fetch, args=(remote(url), tmp_path / str(k)), kwargs={"say": lambda text: None})
        for k in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all((tmp_path / str(k) / "a.zip").read_bytes() == CONTENT for k in range(4))


def test_fault_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-4, example B.1
    assert fault(path, RemoteFile("a", (), abc, 3)) is None
    assert fault(path, RemoteFile("a", (), abc[:8].upper())) is None
    assert fault(path, RemoteFile("a", (), abc, 4)) == "has 3 bytes, not 4"
    assert fault(path, RemoteFile("a", (), "00" * 32, 3)) == "has the SHA-256 ba7816bf8f01cfea…, not 0000000000000000…"


def test_space_is_asked_for_where_the_folder_will_be(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = []

    def usage(path: Path) -> shutil._ntuple_diskusage:
        asked.append(path)
        return shutil._ntuple_diskusage(10**9, 10**9 - 5000, 5000)

    monkeypatch.setattr(disk_space.shutil, "disk_usage", usage)
    check_space(tmp_path / "not/yet", 5000, "fetching")
    with pytest.raises(InputError, match=r"5\.1 kB.* 5 kB"):
        check_space(tmp_path / "not/yet", 5100, "fetching")
    assert asked == [tmp_path, tmp_path]


def test_no_room_for_what_the_server_announces(
    server: FileServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Of a file of unknown size, the answer says how large it is."""
    usage = shutil._ntuple_diskusage(10**9, 10**9 - 399_999, 399_999)
    monkeypatch.setattr(disk_space.shutil, "disk_usage", lambda path: usage)
    url = server.serve("/a.zip", Answer(CONTENT))
    assert "a.zip of 400 kB still takes 400 kB, " in refused(tmp_path, remote(url, sized=False))
    assert list(tmp_path.iterdir()) == []
    # What has arrived already needs no room.
    (tmp_path / "a.zip.part").write_bytes(CONTENT[:1])
    assert fetched(tmp_path, remote(url, sized=False))[0] == CONTENT


def test_one_process_at_a_time(server: FileServer, tmp_path: Path) -> None:
    url = server.serve("/a.zip", Answer(CONTENT))
    with FileLock(tmp_path / "a.zip.lock"), pytest.raises(InputError, match="another process is fetching it"):
        fetch(remote(url), tmp_path)
    assert server.asked == []


def test_sizes_in_words() -> None:
    assert [size_text(n) for n in (0, 999, 1000, 1_465_602_149, 3_591_642, 2e12)] == [
        "0 bytes", "999 bytes", "1 kB", "1.47 GB", "3.59 MB", "2 TB",
    ]  # fmt: skip
