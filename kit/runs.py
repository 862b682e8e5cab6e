"""Work that is done once: finished it loads, new it runs."""

from __future__ import annotations

import io
import json
import os
import zipfile
from pathlib import Path

import torch

from kit.files import alone, atomic, now, read_json, write_json
from kit.fingerprint import fingerprint
from kit.home import Course
from kit.machine import hardware


def load_or_run(
    course: Course, name: str, function, *arguments, depends=(), again: bool = False
):
    """Run `function(*arguments)` once; later calls load its result at once and say when
    and where it was measured.

    Parameters
    ----------
    function : callable
        Returns values that JSON can hold. What the result depends on is found by
        itself: the code that it reaches, its arguments, the seed (see `fingerprint`).
    depends : sequence
        What no code says: the hardware of a measurement, versions of libraries.
    again : bool
        Run it even if a result is stored, and replace that: a benchmark on another day.
    """
    key = fingerprint(function, arguments, depends, course.seed)
    path = course.runs / f"{name}-{key}" / "result.json"
    with alone(course, path.parent.name):
        stored = read_json(path)
        if {"date", "hardware", "result"} <= stored.keys() and not again:
            print(f"{name}: loaded, measured {stored['date']} on {stored['hardware']}")
            return stored["result"]
        result = function(*arguments)
        write_json(path, {"date": now(), "hardware": hardware(), "result": result})
        return json.loads(path.read_text())["result"]


def tell_of_earlier(folder: Path, session) -> None:
    """Say why a network that was trained before is trained anew."""
    name = folder.name[:-13]  # less the identity
    earlier = [path for path in folder.parent.glob(f"{name}-{'?' * 12}/finished.pt")]
    if earlier and not (session.epoch or session.step):
        print(
            f"{name}: trains anew, as code, data, recipe or seed differ from"
            f" {len(earlier)} finished run(s) of it"
        )


def remove_running(running: Path, folder: Path) -> None:
    """Remove the saved steps of a finished training, here and in the home, a killed
    process's as well.
    """
    for left in (running, folder / "running.pt"):
        left.unlink(missing_ok=True)


def set_aside(path: Path) -> None:
    os.replace(path, path.with_suffix(".damaged"))
    print(f"{path} was damaged and is set aside: what it held is trained again.")


def save_state(path: Path, state: dict) -> Path:
    """torch.save through memory and a temporary file, so that a full disk raises and
    leaves the old file.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    with atomic(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())
    return path


def load_state(path: Path, device: torch.device) -> dict:
    """torch.load of plain values and tensors: no code of the file runs, and no zip in
    it grows when it is read.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as packed:
            # torch stores, plainly
            if (
                sum(entry.file_size for entry in packed.infolist())
                > path.stat().st_size
            ):
                raise ValueError("more content than the file has bytes")
    return torch.load(path, map_location=device, weights_only=True)
