"""What others may leave in the exchanged folder, and what is lost or damaged there: no visit hangs, blocks or says what isn't so."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from studies import OFFICE, StudyFolders
from study_forgery import message

from distqexp.consortium.exchange import found_in, look
from distqexp.errors import FileContentError
from distqexp.federation.messages import peek

Begin = Callable[..., StudyFolders]


def litter(folder: Path, genuine: Path) -> None:
    """Files of the suffix of messages that are none."""
    os.mkfifo(folder / "pipe.message")
    (folder / "folder.message").mkdir()
    (folder / "dangling.message").symlink_to(folder / "nowhere")
    (folder / "link.message").symlink_to(genuine)
    (folder / "empty.message").touch()
    (folder / "junk.message").write_bytes(os.urandom(200))
    (folder / "cut.message").write_bytes(genuine.read_bytes()[:60])


NAMES = ["cut", "dangling", "empty", "folder", "junk", "link", "pipe"]


def test_what_is_no_message_stops_no_visit(begin: Begin) -> None:
    study = begin()
    litter(study.exchange, message(study, "plan-"))
    for visit in (
        study.sketch("north"),
        study.at("north").distqexp("study", "status", "exchange"),
        study.at("north").distqexp(*study.accept_command("north")),
    ):
        assert visit.code == 0, visit
        reasons = visit.reasons()
        assert len(reasons) == 6, reasons
        for name, line in zip(NAMES[:5], reasons[:5], strict=True):
            assert line.startswith(f"distqexp: left out of this visit, nobody signed it: exchange/{name}.message: "), (
                line
            )
        assert reasons[-1] == "distqexp: left out of this visit, nobody signed them: 2 more files of exchange"
    assert study.close().code == 2  # too few sites; nothing else is wrong
    assert [entry for entry in study.log("north") if entry.event["event"] == "refused"] == []


def test_each_file_that_is_no_message_is_told_why(
    begin: Begin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = message(begin(), "plan-")
    real = Path(shutil.copy(plan, tmp_path))
    litter(tmp_path, real)
    with socket.socket(socket.AF_UNIX) as listening:
        with monkeypatch.context() as here:
            here.chdir(tmp_path)  # a socket's path is short, and folders of tests are deep
            listening.bind("socket.message")
        (found,), others = look(tmp_path)
    assert found.path == real
    kinds = {Path(text.split(": ")[0]).name: text for text in others}
    assert sorted(kinds) == [f"{name}.message" for name in [*NAMES, "socket"]]
    for name in ("pipe", "folder", "dangling", "link", "socket"):
        assert "a link, a folder, a pipe or a device; expected a file" in kinds[f"{name}.message"]
        with pytest.raises(FileContentError):
            peek(tmp_path / f"{name}.message")
    for name in ("empty", "junk", "cut"):
        assert "message: " in kinds[f"{name}.message"]
    for path in tmp_path.glob("*.message"):
        if path != real:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    (tmp_path / "two\nlines\x1b[2J.message").touch()
    found_in(tmp_path)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.isprintable()


def test_what_was_sent_and_is_damaged_or_gone_is_mended_or_said(begin: Begin) -> None:
    study = begin()
    study.sketches(["north"])
    masked, seed = message(study, "masked-000-00-north"), next(study.exchange.glob("seed-000-00-north-*"))
    own = study.own("north") / "sent"
    whole = masked.read_bytes()
    damaged = whole[:-1] + bytes([whole[-1] ^ 1])

    masked.write_bytes(damaged)
    seed.unlink()
    seed.symlink_to(own / seed.name)
    again = study.sketch("north")
    assert again.code == 0
    assert [line.split(": ")[1] for line in again.reasons()[-2:]] == [
        f"exchange/{masked.name}",
        f"exchange/{seed.name}",
    ]
    assert masked.read_bytes() == whole
    assert not seed.is_symlink()

    masked.unlink()
    (own / masked.name).write_bytes(damaged)
    study.check_refused("north", study.sketch("north"), "its content is not the one that north signed")
    assert not masked.exists()
    (own / masked.name).write_bytes(whole)
    assert study.sketch("north").code == 0
    assert masked.read_bytes() == whole

    (own / seed.name).unlink()
    assert "was sent" in study.sketch("north").out  # it is in the folder
    seed.unlink()
    study.check_refused(
        "north", study.sketch("north"), "1 of its messages are neither in the home here nor in the exchanged folder"
    )
    shutil.rmtree(own)
    own.mkdir(mode=0o700)
    for path in study.exchange.glob("*-000-00-north-*"):
        path.unlink()
    study.check_refused("north", study.sketch("north"), f"restore the home, or let {OFFICE} repeat the round")
    assert study.charges("north") == [("site-north", "0", "committed")]
