"""Files survive a crash whole, and what is private is readable by its owner only."""

import os
import re
import resource
import signal
import stat
import subprocess
import sys

import pytest

from assay.privacy import files
from assay.privacy.errors import BadInput
from assay.privacy.files import make_private_dir, read_toml, require_private, write_durably

# A process that may write 4 KiB to a file and is then told that there is no more room.
FULL_DISK = """
import sys
from pathlib import Path
from assay.privacy.files import write_durably
try:
    write_durably(Path(sys.argv[1]), bytes(1 << 20))
except OSError as error:
    sys.exit(f"OSError {error.errno}")
"""


def mode_of(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def usual_umask():
    before = os.umask(0o022)
    yield
    os.umask(before)


class TestDurableWrites:
    def test_new_content_replaces_old_content_whole(self, tmp_path):
        path = tmp_path / "state"
        write_durably(path, b"a longer old content")
        write_durably(path, b"new")
        assert path.read_bytes() == b"new"
        assert os.listdir(tmp_path) == ["state"]

    def test_empty_content_is_content(self, tmp_path):
        write_durably(tmp_path / "state", b"")
        assert (tmp_path / "state").read_bytes() == b""

    def test_a_full_disk_leaves_the_old_content_and_no_litter(self, tmp_path):
        path = tmp_path / "state"
        write_durably(path, b"old")

        def small_disk():
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

        done = subprocess.run(
            [sys.executable, "-c", FULL_DISK, str(path)],
            preexec_fn=small_disk,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert (done.returncode, done.stderr[:7]) == (1, "OSError")
        assert path.read_bytes() == b"old"
        assert os.listdir(tmp_path) == ["state"]

    def test_a_missing_directory_is_an_os_error_and_nothing_else(self, tmp_path):
        with pytest.raises(FileNotFoundError):
            write_durably(tmp_path / "nowhere" / "state", b"new")

    def test_content_is_on_disk_before_the_name_and_the_name_before_it_returns(self, tmp_path, monkeypatch):
        """The real calls run; only their order is written down."""
        calls = []
        fsync, replace = os.fsync, os.replace

        def noted_fsync(descriptor):
            kind = "directory" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file"
            size = os.fstat(descriptor).st_size
            calls.append(f"fsync {kind}" if kind == "directory" else f"fsync {kind} of {size}")
            fsync(descriptor)

        def noted_replace(source, target):
            calls.append("rename")
            replace(source, target)

        monkeypatch.setattr(os, "fsync", noted_fsync)
        monkeypatch.setattr(os, "replace", noted_replace)
        write_durably(tmp_path / "state", b"12345")
        assert calls == ["fsync file of 5", "rename", "fsync directory"]

    @pytest.mark.parametrize("mode", [0o600, 0o644])
    def test_the_mode_is_the_one_asked_for(self, tmp_path, usual_umask, mode):
        path = tmp_path / "state"
        write_durably(path, b"x", mode=mode)
        assert mode_of(path) == mode

    def test_a_secret_never_exists_with_a_wider_mode(self, tmp_path, usual_umask, monkeypatch):
        seen = []
        replace = os.replace

        def noted_replace(source, target):
            seen.append(mode_of(source))
            replace(source, target)

        monkeypatch.setattr(os, "replace", noted_replace)
        write_durably(tmp_path / "key", b"secret", mode=files.PRIVATE_FILE)
        assert seen == [0o600]


class TestPrivatePaths:
    def test_a_new_private_directory_and_its_new_parents_are_its_owners_alone(self, tmp_path, usual_umask):
        tmp_path.chmod(0o755)
        made = make_private_dir(tmp_path / "holder" / "keys")
        assert mode_of(made) == mode_of(made.parent) == 0o700
        assert mode_of(tmp_path) == 0o755

    def test_an_existing_directory_is_left_as_it_is(self, tmp_path):
        tmp_path.chmod(0o750)
        make_private_dir(tmp_path)
        assert mode_of(tmp_path) == 0o750

    @pytest.mark.parametrize("bit", [0o040, 0o020, 0o010, 0o004, 0o002, 0o001])
    def test_any_permission_of_others_is_refused_with_the_command_that_helps(self, tmp_path, bit):
        secret = tmp_path / "key"
        secret.write_bytes(b"secret")
        secret.chmod(0o600 | bit)
        with pytest.raises(BadInput, match=f"allowed: 0600. Run: chmod 600 {re.escape(str(secret))}"):
            require_private(secret)

    def test_a_directory_is_asked_for_mode_0700(self, tmp_path):
        tmp_path.chmod(0o755)
        with pytest.raises(BadInput, match=r"0755.*allowed: 0700.*chmod 700"):
            require_private(tmp_path)

    @pytest.mark.parametrize("mode", [0o600, 0o400, 0o700])
    def test_what_only_the_owner_can_use_passes(self, tmp_path, mode):
        secret = tmp_path / "key"
        secret.write_bytes(b"secret")
        secret.chmod(mode)
        require_private(secret)

    def test_a_missing_path_is_refused(self, tmp_path):
        with pytest.raises(BadInput, match="existing file or directory"):
            require_private(tmp_path / "key")


class TestToml:
    def test_a_table_is_read(self, tmp_path):
        (tmp_path / "a.toml").write_text('[holder]\nname = "north"\n', encoding="utf-8")
        assert read_toml(tmp_path / "a.toml") == {"holder": {"name": "north"}}

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            (b"a = ", "end of document"),
            (b"a = 1\na = 2\n", "line 2"),
            (b"a = 1\nb = [1,", "line 2|end of document"),
            (b"\xff\xfea = 1", "utf-8"),
            (b"a = 1" + b"0" * 5000, "a.toml"),
            (b"a = " + b"[" * 100_000, "a.toml"),
        ],
        ids=["no value", "twice", "cut off", "UTF-16", "endless number", "deep nesting"],
    )
    def test_what_is_not_toml_is_refused_in_one_line(self, tmp_path, content, words):
        path = tmp_path / "a.toml"
        path.write_bytes(content)
        with pytest.raises(BadInput, match=words) as caught:
            read_toml(path)
        assert len(str(caught.value).splitlines()) == 1

    def test_a_missing_file_and_a_directory_are_refused(self, tmp_path):
        for path in (tmp_path / "none.toml", tmp_path):
            with pytest.raises(BadInput, match="TOML file"):
                read_toml(path)
