"""`course.py compact`: take what is new in a production log into Parquet, a partition a
day. The CSV stays as it is.

Run it once an hour or a day, also while the service writes. Ends with 0 when all whole
lines are taken, 2 when not."""

import argparse
import hashlib
import io
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

import utils
from tools.scale import parquet_log

KIT = Path(__file__).resolve().parents[2]
BLOCK = 16 << 20  # bytes of CSV in memory at once, about 110,000 lines
# bytes; no whole line is longer, as a field of Python's csv module has 131,072
# characters at most
LONGEST = 8 << 20
COMPARED = 4096  # bytes at either end of what is taken, by which the CSV is known again


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="course.py compact",
        description=__doc__.partition("\n\n")[0],
        epilog=__doc__.partition("\n\n")[2],
    )
    parser.add_argument(
        "--home",
        type=Path,
        default=KIT,
        help="folder of all artefacts (default: the kit)",
    )
    parser.add_argument(
        "--log", type=Path, help="the CSV (default: HOME/logs/production.csv)"
    )
    parser.add_argument(
        "--to",
        type=Path,
        help="folder of the Parquet files (default: beside the CSV, .parquet)",
    )
    return parser.parse_args(arguments)


def compact(csv: str | Path, folder: str | Path, block: int = BLOCK) -> dict:
    """Append to `folder` the lines of an inference log that it does not have yet.

    Memory does not grow with the log. Torn lines are left out and counted as
    `utils.read_log` does; an unfinished last line waits for the next call. A block's
    files are written first, then the manifest that names them together with the place
    in the CSV where the next begins: whatever has no name there was never taken. So a
    kill costs the block in progress, which the next call takes again, and no line is
    lost or doubled.

    Parameters
    ----------
    block : int
        Bytes of the CSV in memory at once. A call writes a file for each block and day.

    Returns
    -------
    dict, the manifest: `rows` (whole lines taken so far), `lines` and `torn` (of the
    whole CSV as far as it was read),
        `files` with their rows and bytes, `position` in the CSV.

    Raises
    ------
    CourseError
        No such CSV, or of another schema, or not the one of which the folder holds a
        part; a folder that holds something else; disk full. What was taken before is
        untouched, and so is the CSV.
    """
    parquet_log.library("pyarrow")
    csv, folder = Path(csv), Path(folder)
    log = utils.AppendOnlyCsv(csv, "inference", utils.LOG_COLUMNS)
    log.check()
    _check_folder(folder)
    with utils.locked(folder.with_name(f"{folder.name}.lock"), folder.name):
        manifest = _begin(csv, folder)
        for content, position in _blocks(
            csv, max(manifest["position"], len(log.header)), block
        ):
            rows, torn = log.split(content)
            table = utils.typed_log(rows)
            files = _write_days(table, manifest["rows"], folder, manifest["position"])
            manifest = (
                manifest
                | {
                    "position": position,
                    "rows": manifest["rows"] + len(table),
                    "files": manifest["files"] | files,
                    "lines": manifest["lines"] + torn + len(rows),
                    "torn": manifest["torn"] + torn + len(rows) - len(table),
                }
                | _ends(csv, position)
            )
            utils.write_json(folder / parquet_log.MANIFEST, manifest)
    unfinished = _is_unfinished(csv, max(manifest["position"], len(log.header)))
    return manifest | {
        "lines": manifest["lines"] + unfinished,
        "torn": manifest["torn"] + unfinished,
    }


def _check_folder(folder: Path) -> None:
    """Never write into a folder that holds something else, nor into one whose manifest
    is lost.
    """
    inside = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    foreign = [name for name in inside if not utils.LEFTOVER.fullmatch(name)]
    if folder.is_file() or (foreign and parquet_log.MANIFEST not in inside):
        raise utils.CourseError(
            f"{folder} holds something else than a compacted log"
            f" ({(foreign or ['a file'])[0]}, and no {parquet_log.MANIFEST}): give"
            " another folder with --to."
        )


def _begin(csv: Path, folder: Path) -> dict:
    """The manifest so far, less the files that a killed call had written and not yet
    named in it.
    """
    if not (folder / parquet_log.MANIFEST).exists():
        empty = {
            "schema": 1,
            "log": csv.name,
            "position": 0,
            "lines": 0,
            "torn": 0,
            "rows": 0,
            "files": {},
        }
        utils.write_json(folder / parquet_log.MANIFEST, empty | _ends(csv, 0))
    manifest = parquet_log.read_manifest(folder)
    taken = {name: manifest[name] for name in ("begins", "ends")}
    if (
        csv.stat().st_size < manifest["position"]
        or _ends(csv, manifest["position"]) != taken
    ):
        raise utils.CourseError(
            f"{csv} is not the log of which {folder} holds {manifest['rows']:,} lines"
            " (another was begun, or lines were changed): give another folder with"
            " --to."
        )
    for path in folder.glob("day=*/part-*.parquet"):
        if path.relative_to(folder).as_posix() not in manifest["files"]:
            path.unlink()
    return manifest


def _ends(csv: Path, position: int) -> dict[str, str]:
    """Digests of the first and the last bytes before `position`, which no writer
    changes any more.
    """
    length = min(position, COMPARED)
    with open(csv, "rb") as file:
        first = file.read(length)
        file.seek(position - length)
        last = file.read(length)
    return {
        name: hashlib.sha256(content).hexdigest()[:16]
        for name, content in (("begins", first), ("ends", last))
    }


def _blocks(csv: Path, position: int, size: int) -> Iterator[tuple[bytes, int]]:
    """Whole lines from `position` on, about `size` bytes at a time, and the position
    after them.
    """
    with open(csv, "rb") as file:
        file.seek(position)
        rest = b""
        while chunk := file.read(size):
            lines, end, rest = (rest + chunk).rpartition(b"\n")
            if end:
                yield lines + end, file.tell() - len(rest)
            rest = rest[:LONGEST]  # longer is torn, however it ends


def _write_days(
    table: pd.DataFrame, row: int, folder: Path, position: int
) -> dict[str, dict[str, int]]:
    """Write a block, a file for each of its days, named by where the block begins in
    the CSV.
    """
    pa, parquet = parquet_log.library("pyarrow"), parquet_log.library("pyarrow.parquet")
    table = table.assign(
        row=range(row, row + len(table)),
        timestamp=table["timestamp"].dt.tz_localize(None),
    )
    files = {}
    for day, part in table.groupby(
        table["timestamp"].to_numpy().astype("datetime64[D]")
    ):
        name, written = f"day={day:%Y-%m-%d}/part-{position:015d}.parquet", io.BytesIO()
        columns = pa.Table.from_pandas(
            part, parquet_log.schema(), nthreads=1, preserve_index=False
        )
        parquet.write_table(
            columns.replace_schema_metadata(),
            written,
            compression="zstd",
            row_group_size=122_880,
        )
        with utils.atomic(folder / name) as temporary:
            temporary.write_bytes(written.getvalue())
        files[name] = {"rows": len(part), "bytes": len(written.getvalue())}
    return files


def _is_unfinished(csv: Path, position: int) -> bool:
    """Does a line without an end follow, which `utils.read_log` counts as torn?"""
    with open(csv, "rb") as file:
        file.seek(position)
        return file.read(2) not in (b"", utils.TORN.encode())


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    csv = (
        (options.log or options.home / "logs" / "production.csv").expanduser().resolve()
    )
    folder = (options.to or csv.with_suffix(".parquet")).expanduser().resolve()
    try:
        before = (
            parquet_log.read_manifest(folder)["rows"]
            if (folder / parquet_log.MANIFEST).exists()
            else 0
        )
        manifest = compact(csv, folder)
    except utils.CourseError as error:
        print(error)
        return 2
    if manifest["torn"]:
        print(utils.torn_lines(csv, manifest["torn"], manifest["lines"]))
    days = {name.partition("/")[0] for name in manifest["files"]}
    size = sum(file["bytes"] for file in manifest["files"].values())
    print(
        f"{folder}: {manifest['rows'] - before:,} new lines; {manifest['rows']:,} in"
        f" all, {len(days)} days, {size / 2**20:,.1f} MiB (the CSV has"
        f" {csv.stat().st_size / 2**20:,.1f} MiB)"
    )
    return 0
