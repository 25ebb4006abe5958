"""Artifacts: valid only when complete, unchanged and of the same inputs."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dinomed.errors import DinomedError
from dinomed.io.artifacts import ArtifactFolder, check_file, describe_file, hash_key

NAME, KEY = "features", {"backbone": "a", "blocks": [1, 2]}
SAME_FOLDER = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def write(folder: ArtifactFolder, content: bytes = b"first", key: object = KEY) -> None:
    folder.write(
        NAME, key, {"a.bin": lambda path: path.write_bytes(content), "b.bin": lambda path: path.write_bytes(b"b")}
    )


@pytest.fixture
def artifacts(tmp_path: Path) -> ArtifactFolder:
    folder = ArtifactFolder(tmp_path / "cache")
    write(folder)
    return folder


def test_an_artifact_is_valid_for_its_key_only(artifacts: ArtifactFolder) -> None:
    assert artifacts.is_valid(NAME, KEY)
    assert artifacts.read_key(NAME) == KEY
    assert not artifacts.is_valid(NAME, KEY | {"blocks": [1]})
    assert not artifacts.is_valid("other", KEY)


@SAME_FOLDER
@given(file=st.sampled_from(["a.bin", "b.bin"]), place=st.integers(0, 99), change=st.integers(1, 255))
def test_a_changed_byte_is_noticed_and_the_warning_names_the_file(
    artifacts: ArtifactFolder, capsys: pytest.CaptureFixture[str], file: str, place: int, change: int
) -> None:
    path = artifacts.path(file)
    before = path.read_bytes()
    changed = bytearray(before)
    changed[place % len(changed)] ^= change
    path.write_bytes(changed)
    capsys.readouterr()
    assert not artifacts.is_valid(NAME, KEY)
    (line,) = capsys.readouterr().err.splitlines()
    assert file in line
    assert "size or checksum does not match" in line
    path.write_bytes(before)
    assert artifacts.is_valid(NAME, KEY)


@SAME_FOLDER
@given(length=st.integers(0, 4))
def test_a_truncated_or_longer_file_is_noticed(artifacts: ArtifactFolder, length: int) -> None:
    path = artifacts.path("a.bin")
    path.write_bytes(b"first"[:length])
    assert not artifacts.is_valid(NAME, KEY)
    path.write_bytes(b"first" + b"\0" * (length + 1))
    assert not artifacts.is_valid(NAME, KEY)
    path.write_bytes(b"first")


@SAME_FOLDER
@given(
    record=st.one_of(
        st.binary(max_size=40),
        st.sampled_from([
            b"", b"[]", b"null", b"3", b'{"key": 1}', b"[" * 100_000, b'{"files": []}', b'{"files": {"a.bin": 3}}',
            json.dumps({"key": KEY, "files": {"a.bin": None}}).encode(), json.dumps({"key": KEY}).encode(),
            json.dumps({"key": KEY, "files": {"a.bin": {"bytes": 10**30, "sha256": "x"}}}).encode(),
            json.dumps({"key": KEY, "files": {"a.bin": {"bytes": -5, "sha256": "x"}}}).encode(),
            json.dumps({"key": KEY, "files": {"missing.bin": {"bytes": 0, "sha256": "x"}}}).encode(),
            json.dumps({"key": KEY, "files": {"a\0.bin": {"bytes": 0, "sha256": "x"}}}).encode(),
        ]),
    )
)  # fmt: skip
def test_a_damaged_record_makes_the_artifact_invalid_and_nothing_else(artifacts: ArtifactFolder, record: bytes) -> None:
    artifacts.record_path(NAME).write_bytes(record)
    assert not artifacts.is_valid(NAME, KEY)
    write(artifacts)
    assert artifacts.is_valid(NAME, KEY)


def test_a_writer_that_fails_leaves_no_artifact_and_no_temporary_file(artifacts: ArtifactFolder) -> None:
    def fail(path: Path) -> None:
        path.write_bytes(b"half")
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        artifacts.write(NAME, KEY, {"a.bin": lambda path: path.write_bytes(b"new"), "b.bin": fail})
    assert not artifacts.is_valid(NAME, KEY)  # the new a.bin stands beside the old b.bin
    assert artifacts.path("b.bin").read_bytes() == b"b"
    assert not list(artifacts.folder.glob(".tmp-*"))


@pytest.mark.skipif(os.name == "nt", reason="no SIGKILL")
def test_a_killed_writer_leaves_no_artifact_and_the_next_process_removes_what_it_left(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom dinomed.io.artifacts import ArtifactFolder\n"
        "def hang(path):\n    path.write_bytes(b'half')\n    print('writing', flush=True)\n    sys.stdin.read()\n"
        "writers = {'a.bin': lambda path: path.write_bytes(b'a'), 'b.bin': hang}\n"
        "ArtifactFolder(Path(sys.argv[1])).write('features', 1, writers)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    assert not ArtifactFolder.is_valid(_unopened(tmp_path), NAME, 1)  # seen by another process meanwhile
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert list(tmp_path.glob(".tmp-*"))
    folder = ArtifactFolder(tmp_path)
    assert not folder.is_valid(NAME, 1)
    assert not list(tmp_path.glob(".tmp-*"))
    assert not (tmp_path / "b.bin").exists()


def _unopened(path: Path) -> ArtifactFolder:
    """A view of the folder that does not clean it."""
    folder = ArtifactFolder.__new__(ArtifactFolder)
    folder.folder = path
    return folder


def test_other_artifacts_are_removed_and_other_files_stay(artifacts: ArtifactFolder) -> None:
    artifacts.write("old", 1, {"old.bin": lambda path: path.write_bytes(b"old")})
    (artifacts.folder / "notes.txt").write_text("of the user")
    artifacts.remove_others([NAME], [".bin"])
    assert sorted(path.name for path in artifacts.folder.iterdir()) == ["a.bin", "b.bin", "features.json", "notes.txt"]
    assert artifacts.is_valid(NAME, KEY)


def test_a_checked_file_that_is_missing_or_changed_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"content")
    description = describe_file(path)
    check_file(path, description)
    path.write_bytes(b"Content")
    with pytest.raises(DinomedError, match=r"a\.bin is damaged: size or checksum does not match"):
        check_file(path, description)
    path.unlink()
    with pytest.raises(DinomedError, match=r"a\.bin is missing"):
        check_file(path, description)


JSON_VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=5)),
    lambda values: st.one_of(st.lists(values, max_size=3), st.dictionaries(st.text(max_size=3), values, max_size=3)),
    max_leaves=8,
)


@given(first=JSON_VALUES, second=JSON_VALUES)
def test_keys_are_equal_exactly_when_their_values_are(first: object, second: object) -> None:
    same = json.dumps(first, sort_keys=True) == json.dumps(second, sort_keys=True)
    assert (hash_key(first) == hash_key(second)) == same
    assert hash_key({"a": first, "b": second}) == hash_key({"b": second, "a": first})
