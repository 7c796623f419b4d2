"""Whether somebody else could have written a file, or could replace it: owner and mode of all that leads to it."""

import os
import pwd
import stat
from pathlib import Path

import pytest
from modes import pretend_owners

from domains import ownership
from domains.ownership import others_may_change

STRANGER = 4242


@pytest.fixture
def owners(monkeypatch):
    return pretend_owners(monkeypatch)


@pytest.fixture
def file(tmp_path):
    """A file two private folders down."""
    for folder in (tmp_path / "outer", tmp_path / "outer" / "inner"):
        folder.mkdir(mode=0o700)
    made = tmp_path / "outer" / "inner" / "file"
    made.touch(0o600)
    made.chmod(0o600)
    return made


def test_what_only_we_can_write_is_ours(file, owners):
    assert others_may_change(file) is None
    for owned in (file, file.parent, file.parent.parent):
        owners[owned] = 0  # root may do everything anyway
    assert others_may_change(file) is None


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644, 0o400, 0o444, 0o755])
def test_others_may_read(file, owners, mode):
    file.chmod(mode)
    for folder in (file.parent, file.parent.parent):
        folder.chmod(0o755)
    assert others_may_change(file) is None


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666, 0o777, 0o660])
def test_a_file_that_others_may_write(file, owners, mode):
    file.chmod(mode)
    assert f"{file} is writable by others (mode {mode:04o}); run chmod 600" in others_may_change(file)


@pytest.mark.parametrize("mode", [0o720, 0o702, 0o777, 0o770, 0o2770])
@pytest.mark.parametrize("up", [0, 1])
def test_a_folder_above_that_others_may_write(file, owners, mode, up):
    folder = file.parents[up]
    folder.chmod(mode)
    assert others_may_change(file) == (
        f"the folder {folder} is writable by others (mode {stat.S_IMODE(folder.stat().st_mode):04o}); run chmod go-w "
        f"{folder}"
    )


@pytest.mark.parametrize("mode", [0o666, 0o622])
def test_of_what_is_no_file_no_mode_is_proposed(file, owners, mode):
    file.unlink()
    os.mkfifo(file)
    file.chmod(mode)
    assert others_may_change(file) == f"{file} is a device, pipe or socket; name a plain file"


@pytest.mark.parametrize("mode", [0o1777, 0o1770, 0o1775])
def test_in_a_sticky_folder_others_can_not_replace_what_is_ours(file, owners, mode):
    file.parent.chmod(mode)
    assert others_may_change(file) is None
    file.chmod(0o666)
    assert "is writable by others" in others_may_change(file)
    file.chmod(0o600)
    owners[file] = STRANGER  # but they may put something there first
    assert "belongs to" in others_may_change(file)


@pytest.mark.parametrize("which", ["file", "inner", "outer"])
def test_the_owner_may_always_write(file, owners, which):
    owned = next(path for path in (file, *file.parents) if path.name == which)
    owners[owned] = STRANGER
    told = others_may_change(file)
    assert told.startswith(f"{owned} belongs to user {STRANGER}; work as user {STRANGER}, or make it ")
    assert told.endswith(f"{pwd.getpwuid(os.geteuid()).pw_name}'s with chown")
    assert "\n" not in told


def test_for_root_nobody_else_is_trusted(file, owners, monkeypatch):
    us = os.geteuid()
    owners |= dict.fromkeys(file.parents, 0) | {file: us or STRANGER}
    monkeypatch.setattr(ownership.os, "geteuid", lambda: 0)
    assert "belongs to" in others_may_change(file)


# ---------------------------------------------------------------------------------------------------------------- links


@pytest.fixture
def linked(tmp_path, file):
    """A link in a folder of its own that leads to the file."""
    (tmp_path / "links").mkdir(mode=0o700)
    link = tmp_path / "links" / "link"
    link.symlink_to(file)
    return link


@pytest.mark.parametrize("where", ["links", "outer", "outer/inner"])
def test_both_ends_of_a_link_count(tmp_path, linked, owners, where):
    assert others_may_change(linked) is None
    (tmp_path / where).chmod(0o777)
    assert f"the folder {tmp_path / where} is writable by others" in others_may_change(linked)


def test_the_owner_of_a_link_could_point_it_elsewhere(linked, owners):
    linked.parent.chmod(0o1777)
    owners[linked] = STRANGER
    assert f"{linked} belongs to" in others_may_change(linked)


@pytest.mark.parametrize("target", ["../outer/inner/file", "../outer/./inner/../inner/file", "../hop/inner/file"])
def test_relative_links_and_links_to_folders(tmp_path, linked, file, owners, target):
    (tmp_path / "hop").symlink_to("outer")
    linked.unlink()
    linked.symlink_to(target)
    assert others_may_change(linked) is None
    file.parent.chmod(0o777)
    assert str(file.parent) in others_may_change(linked)


def test_dots_lead_where_the_system_leads_them(tmp_path, file, owners):
    (tmp_path / "far").mkdir(mode=0o700)
    (tmp_path / "far" / "hop").symlink_to(file.parent)  # far/hop/.. is outer, not far
    (tmp_path / "outer" / "other").touch(0o600)
    assert others_may_change(tmp_path / "far" / "hop" / ".." / "other") is None
    (tmp_path / "outer").chmod(0o777)
    assert str(tmp_path / "outer") in others_may_change(tmp_path / "far" / "hop" / ".." / "other")


def test_links_in_a_circle_are_refused(tmp_path, owners):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    assert "can't be followed" in others_may_change(tmp_path / "a")


def test_what_does_not_exist_is_judged_by_its_folders(file, owners):
    missing = file.with_name("later") / "deeper"
    assert others_may_change(missing) is None
    assert others_may_change(file / "below") is None
    file.parent.chmod(0o777)
    assert "is writable by others" in others_may_change(missing)


def test_a_path_from_the_working_folder(file, owners, monkeypatch):
    monkeypatch.chdir(file.parent)
    assert others_may_change(Path("file")) is None
    file.parent.parent.chmod(0o777)
    assert str(file.parent.parent) in others_may_change(Path("file"))
