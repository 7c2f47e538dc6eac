"""The artifact store: published whole or not at all, refused where a byte differs, the same under every URL."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

import fsspec
import pytest

from orchestrator.errors import ArtifactError
from orchestrator.store import local_tree
from orchestrator.store.artifacts import ArtifactStore
from tests.folders import contents


@pytest.fixture(params=["file", "memory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ArtifactStore:
    """A store of each kind: used in place, and downloaded from."""
    match request.param:
        case "file":
            url = f"file://{tmp_path / 'the store'}"
        case "memory":
            url = f"memory://{uuid.uuid4().hex}/artifacts"
        case "s3":
            url = f"s3://{request.getfixturevalue('bucket')}/artifacts"
    return ArtifactStore(url, tmp_path / "cache")


@pytest.fixture
def local(tmp_path: Path) -> ArtifactStore:
    """A store in a folder."""
    return ArtifactStore(f"file://{tmp_path / 'store'}", tmp_path / "cache")


@pytest.fixture
def result(tmp_path: Path) -> Path:
    """A directory to publish."""
    folder = tmp_path / "result"
    (folder / "shards").mkdir(parents=True)
    (folder / "manifest.json").write_text('{"a": 1}')
    (folder / "shards" / "one.jsonl").write_bytes(b"x" * 3_000_000)
    return folder


def damage(path: Path, content: bytes) -> None:
    path.chmod(0o644)
    path.write_bytes(content)


def test_what_is_published_is_fetched_byte_for_byte(store: ArtifactStore, result: Path) -> None:
    published = store.publish(result)
    fetched = store.fetch(published.digest)
    assert contents(fetched) == {
        "manifest.json": b'{"a": 1}',
        "shards/one.jsonl": b"x" * 3_000_000,
    }
    assert published.num_bytes == 3_000_008
    assert [entry.path for entry in published.files] == ["manifest.json", "shards/one.jsonl"]
    assert store.verify(published.digest) == []
    assert store.exists(published.digest)


def test_the_digest_is_of_the_manifest_of_paths_sizes_and_hashes(store: ArtifactStore, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "a.txt").write_text("abc")
    sha256 = hashlib.sha256(b"abc").hexdigest()
    manifest = (
        '{\n "files": [\n  {\n   "path": "a.txt",\n   "sha256": "'
        + sha256
        + '",\n   "size": 3\n  }\n ],\n "format": 1\n}\n'
    )
    assert store.publish(tmp_path / "one").digest == "sha256:" + hashlib.sha256(manifest.encode()).hexdigest()


def test_the_same_content_is_stored_once(local: ArtifactStore, result: Path, tmp_path: Path) -> None:
    first = local.publish(result)
    place = local.fetch(first.digest)
    times = [path.stat().st_mtime_ns for path in place.rglob("*")]
    os.utime(result / "manifest.json", (1, 1))
    assert local.publish(result) == first
    assert [path.stat().st_mtime_ns for path in place.rglob("*")] == times
    assert len(list((tmp_path / "store").iterdir())) == 1


def test_a_name_or_a_byte_makes_another_digest(store: ArtifactStore, result: Path) -> None:
    digests = {store.publish(result).digest}
    (result / "manifest.json").rename(result / "renamed.json")
    digests.add(store.publish(result).digest)
    (result / "renamed.json").write_text('{"a": 2}')
    digests.add(store.publish(result).digest)
    assert len(digests) == 3


def test_the_published_copy_does_not_change_with_its_source(store: ArtifactStore, result: Path) -> None:
    digest = store.publish(result).digest
    (result / "manifest.json").write_text("changed")
    assert (store.fetch(digest) / "manifest.json").read_text() == '{"a": 1}'


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda files: damage(files / "manifest.json", b'{"a": 2}'), "file manifest.json has SHA-256"),
        (lambda files: damage(files / "manifest.json", b"{"), "file manifest.json has 1 bytes, its manifest says 8"),
        (lambda files: (files / "shards" / "one.jsonl").unlink(), r"file shards/one\.jsonl is missing"),
        (lambda files: (files / "extra.txt").write_text("x"), r"file extra\.txt does not belong to it"),
        (lambda files: damage(files.parent / "manifest.json", b"{}"), "its manifest was changed"),
        (lambda files: (files.parent / "manifest.json").unlink(), "half-written: it has no manifest"),
    ],
)
def test_a_tampered_artifact_is_refused(local: ArtifactStore, result: Path, change, complaint: str) -> None:
    digest = local.publish(result).digest
    change(local.fetch(digest))  # also after it was checked once in this process
    with pytest.raises(ArtifactError, match=complaint) as error:
        local.fetch(digest)
    assert digest in str(error.value)
    assert "Restore it from backup" in str(error.value)
    assert len(local.verify(digest)) == 1


def test_a_change_that_keeps_size_and_time_is_found_by_verify(local: ArtifactStore, result: Path) -> None:
    digest = local.publish(result).digest
    file = local.fetch(digest) / "manifest.json"
    times = file.stat()
    damage(file, b'{"a": 2}')
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert local.verify(digest)[0].startswith("file manifest.json has SHA-256")


def test_a_damaged_artifact_is_healed_by_publishing_it_again(store: ArtifactStore, result: Path) -> None:
    digest = store.publish(result).digest
    tampered_at_its_source(store, digest)
    assert store.verify(digest) != []
    assert store.publish(result).digest == digest
    assert store.verify(digest) == []


def tampered_at_its_source(store: ArtifactStore, digest: str) -> None:
    """Change a file where the store keeps it, through fsspec as anybody could."""
    fs, root = fsspec.core.url_to_fs(store.url)
    path = f"{root}/{digest[7:]}/files/manifest.json"
    if store.url.startswith("file"):
        os.chmod(path, 0o644)
    fs.pipe_file(path, b'{"a": 2}')


def test_a_tampered_download_is_refused_and_not_kept(tmp_path: Path, result: Path) -> None:
    url = f"memory://{uuid.uuid4().hex}"
    digest = ArtifactStore(url, tmp_path / "one").publish(result).digest
    other = ArtifactStore(url, tmp_path / "two")
    tampered_at_its_source(other, digest)
    with pytest.raises(ArtifactError, match=r"file manifest\.json has SHA-256"):
        other.fetch(digest)
    assert list((tmp_path / "two" / "artifacts").iterdir()) == []


def test_a_damaged_cache_is_filled_again(tmp_path: Path, result: Path) -> None:
    store = ArtifactStore(f"memory://{uuid.uuid4().hex}", tmp_path / "cache")
    digest = store.publish(result).digest
    damage(store.fetch(digest) / "manifest.json", b"{")
    assert (store.fetch(digest) / "manifest.json").read_text() == '{"a": 1}'


def test_a_remote_publication_without_manifest_does_not_exist(tmp_path: Path, result: Path) -> None:
    store = ArtifactStore(f"memory://{uuid.uuid4().hex}", tmp_path / "cache")
    digest = store.publish(result).digest
    fs, root = fsspec.core.url_to_fs(store.url)
    fs.rm_file(f"{root}/{digest[7:]}/manifest.json")
    assert not store.exists(digest)
    assert store.verify(digest) == ["it is half-written: it has no manifest"]
    with pytest.raises(ArtifactError, match="half-written: it has no manifest"):
        ArtifactStore(store.url, tmp_path / "other").fetch(digest)


def test_an_absent_artifact_is_named(store: ArtifactStore) -> None:
    digest = "sha256:" + "0" * 64
    with pytest.raises(ArtifactError, match=digest):
        store.fetch(digest)
    assert store.verify(digest) == ["it is missing"]
    assert not store.exists(digest)


def test_a_deleted_artifact_is_gone(store: ArtifactStore, result: Path) -> None:
    digest = store.publish(result).digest
    store.delete(digest)
    store.delete(digest)
    assert not store.exists(digest)
    with pytest.raises(ArtifactError):
        store.fetch(digest)


@pytest.mark.parametrize("digest", ["", "sha256:", "0" * 64, "sha256:../../etc", "sha256:" + "g" * 64])
def test_what_is_no_digest_is_refused(store: ArtifactStore, digest: str) -> None:
    with pytest.raises(ArtifactError, match="is not an artifact digest"):
        store.fetch(digest)


@pytest.mark.parametrize("name", ["model.bin", "state.pt", "x.PKL", "optimizer.pth"])
def test_formats_that_run_code_are_refused(store: ArtifactStore, result: Path, name: str) -> None:
    (result / name).write_bytes(b"x")
    with pytest.raises(ArtifactError, match="run code"):
        store.publish(result)


def test_what_is_no_file_is_refused(store: ArtifactStore, result: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="not a directory"):
        store.publish(result / "manifest.json")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArtifactError, match="holds no files"):
        store.publish(tmp_path / "empty")
    (result / "link").symlink_to(tmp_path)
    with pytest.raises(ArtifactError, match="link to a directory"):
        store.publish(result)
    (result / "link").unlink()
    (result / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ArtifactError, match="link to nothing"):
        store.publish(result)


def test_a_link_to_a_file_is_stored_as_the_file(store: ArtifactStore, tmp_path: Path) -> None:
    (tmp_path / "weights.safetensors").write_bytes(b"weights")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").symlink_to(tmp_path / "weights.safetensors")
    fetched = store.fetch(store.publish(tmp_path / "model").digest) / "model.safetensors"
    assert not fetched.is_symlink()
    assert fetched.read_bytes() == b"weights"


def test_an_unusable_url_says_what_is_expected(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="ORCHESTRATOR_ARTIFACT_URL"):
        ArtifactStore("nonsense://x", tmp_path)


def test_eight_publishers_of_the_same_content_leave_one_sound_copy(
    local: ArtifactStore, result: Path, tmp_path: Path
) -> None:
    barrier, digests = threading.Barrier(8), []

    def publish() -> None:
        barrier.wait()
        digests.append(local.publish(result).digest)

    threads = [threading.Thread(target=publish) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(digests) == 8
    assert len(set(digests)) == 1
    assert local.verify(digests[0]) == []
    assert [path.name for path in (tmp_path / "store").iterdir()] == [digests[0][7:]]


PUBLISH = """
import sys
from pathlib import Path
from tests.folders import contents
from orchestrator.store.artifacts import ArtifactStore
store = ArtifactStore(sys.argv[1], Path(sys.argv[2]))
print("ready", flush=True)
print(store.publish(Path(sys.argv[3])).digest, flush=True)
"""


@pytest.mark.parametrize("delay_s", [0.0, 0.01, 0.03, 0.1])
def test_a_publisher_killed_at_any_moment_leaves_a_whole_artifact_or_none(
    local: ArtifactStore, tmp_path: Path, delay_s: float
) -> None:
    big = tmp_path / "big"
    big.mkdir()
    for number in range(20):
        (big / f"{number}.txt").write_bytes(os.urandom(1_000_000))
    command = [sys.executable, "-c", PUBLISH, local.url, str(tmp_path / "cache"), str(big)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(delay_s)  # where it is killed does not matter: the outcome is checked for every moment
        process.kill()
    there = [path for path in (tmp_path / "store").glob("*") if not path.name.startswith(local_tree.ASIDE_PREFIX)]
    for path in there:
        assert local.verify(f"sha256:{path.name}") == []
    assert local.verify(local.publish(big).digest) == []


def test_what_a_dead_publisher_left_is_cleared_after_a_day(local: ArtifactStore, result: Path, tmp_path: Path) -> None:
    young, old = (tmp_path / "store" / f"{local_tree.ASIDE_PREFIX}{name}" for name in ("young", "old"))
    for path in (young, old):
        path.mkdir(parents=True)
    two_days_ago = time.time() - 2 * 24 * 3600
    os.utime(old, (two_days_ago, two_days_ago))
    local.publish(result)
    assert (young.exists(), old.exists()) == (True, False)


def test_a_hard_link_to_a_sound_file_is_shared_and_to_a_damaged_one_is_not(
    local: ArtifactStore, result: Path, tmp_path: Path
) -> None:
    first = local.fetch(local.publish(result).digest)
    (tmp_path / "next").mkdir()
    os.link(first / "shards" / "one.jsonl", tmp_path / "next" / "one.jsonl")
    (tmp_path / "next" / "two.jsonl").write_text("new")
    second = local.fetch(local.publish(tmp_path / "next").digest)
    assert (second / "one.jsonl").samefile(first / "shards" / "one.jsonl")
    damage(first / "shards" / "one.jsonl", b"changed")
    published = local.publish(tmp_path / "next")
    assert {entry.path: entry.size for entry in published.files} == {"one.jsonl": 7, "two.jsonl": 3}
    assert local.verify(published.digest) == []
    assert not (local.fetch(published.digest) / "one.jsonl").samefile(first / "shards" / "one.jsonl")
