"""Logs that outgrow memory: what is compacted is what `read_log` reads, and answers as
the DataFrame does.
"""

import json
import math
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from killing import error_of, killed, killed_in_writing, leftovers, on_full_disk

duckdb, parquet = pytest.importorskip("duckdb"), pytest.importorskip("pyarrow.parquet")

import course  # noqa: E402
import utils  # noqa: E402
from tools.scale import compact as compaction  # noqa: E402
from tools.scale import parquet_log  # noqa: E402
from tools.scale.compact import compact  # noqa: E402
from tools.scale.parquet_log import MANIFEST, open_log  # noqa: E402

KIT = Path(utils.__file__).parent
DAY = datetime(2026, 3, 1, 20, tzinfo=UTC)
EXACT = [
    "timestamp",
    "window",
    "requests",
    "throughput",
    "error_rate",
    "latency_p50",
    "latency_p95",
    "latency_p99",
]
TORN = [
    '2026-03-01T10:00:00.000Z,r,h,"img',
    "2026-03-01T10:00",
    "\0\0\0",
    '"',
    "a,b",
    "x" * 200_000,
    "2026-03-01T10:00:00.000Z,r,h,i,one,0.5,1,1,,,,ok,",
    "10:00,r,h,i,1,0.5,1,1,,,,ok,",
    '2026-03-01T10:00:00.000Z,r,h,i,1,0.5,1,1,,,,ok,"{""si',
    b"\xff\xfe,\xc3".decode(errors="surrogateescape"),
    "2026-03-01T10:00:00.000Z,r,h,i,,0.5,1,1,,,,ok,",
    "2026-03-01T10:00:00.000Z,r,h,i,1,1e20,1,1,,,,ok,",
]
pytestmark = [
    pytest.mark.scale,
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*"),
]


def write_log(path: Path, seed: int, requests: int = 600, hours: float = 30) -> Path:
    """Draw a log of three runs over two midnights: batches, failures, blanks, no image,
    a gap of a day, torn lines.
    """
    rng, torn = (
        np.random.default_rng(seed),
        iter(np.random.default_rng(seed).permutation(TORN)),
    )
    loggers = [utils.InferenceLogger(path, f"run{k}") for k in range(3)]
    times = DAY + np.sort(rng.random(requests)) * timedelta(hours=hours)
    times[requests // 2 :] += timedelta(hours=24)
    # on a tick, at midnight, out of order
    times[:3] = [DAY, DAY + timedelta(hours=4), DAY + timedelta(minutes=30)]
    at = 0
    while at < requests:
        n = min(int(rng.integers(1, 5)), requests - at)
        failed, blind = rng.random() < 0.1, rng.random() < 0.1
        nothing = [None] * n
        image = dict.fromkeys(
            ("brightness", "contrast", "sharpness"), nothing if blind else None
        )
        image = {
            name: value or list(rng.normal(120, 12, n)) for name, value in image.items()
        }
        if rng.random() < 0.1 and not blind:
            image["contrast"] = [0.5] * n
        loggers[rng.integers(3)].log_batch(
            nothing if failed else rng.choice(3, n, p=(0.2, 0.7, 0.1)),
            nothing if failed else 1 - 0.5 * rng.random(n) ** 3,
            rng.lognormal(1, 0.5, n),
            model="0123456789abcdef",
            timestamp=list(times[at : at + n]),
            image=[f'a "{k}", é.png' for k in range(n)],
            status="ValueError" if failed else "ok",
            **image,
            **({"site": "Lyon"} if rng.random() < 0.2 else {}),
        )
        if rng.random() < 0.15:
            with path.open("a", errors="surrogateescape") as file:
                file.write(next(torn, ""))
        at += n
    return path


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    """A folder with production.csv and, compacted in one go, production.parquet; read
    only.
    """
    folder = tmp_path_factory.mktemp("small")
    compact(write_log(folder / "production.csv", 0), folder / "production.parquet")
    return folder


@pytest.fixture
def own(small, tmp_path) -> Path:
    """A private copy, to break; the folder with
    production.csv and production.parquet.
    """
    return Path(shutil.copytree(small, tmp_path / "own"))


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def same_as_csv(csv: Path, folder: Path) -> pd.DataFrame:
    """Assert that the compacted log is what `read_log` reads, in types, values and
    order; return that.
    """
    log = utils.read_log(csv)
    pd.testing.assert_frame_equal(open_log(folder).to_pandas(), log)
    return log


# --- compaction


@pytest.mark.parametrize(
    "seed",
    [0, 1, 2, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(3, 30))],
)
def test_what_is_compacted_is_what_read_log_reads(tmp_path, capsys, seed):
    """In blocks of a few lines, while the file grows by pieces that end anywhere, also
    in the middle of a line.
    """
    whole = write_log(tmp_path / "whole.csv", seed, 200).read_bytes()
    csv, folder, rng = (
        tmp_path / "production.csv",
        tmp_path / "p.parquet",
        np.random.default_rng(seed),
    )
    for end in [*sorted(rng.integers(0, len(whole), 5).tolist()), len(whole)]:
        csv.write_bytes(whole[:end])
        manifest = compact(csv, folder, block=int(rng.integers(100, 3000)))
        capsys.readouterr()
        log = same_as_csv(csv, folder)
        told = capsys.readouterr().out
        assert manifest["rows"] == len(log) and csv.read_bytes() == whole[:end]
        mine = (
            utils.torn_lines(csv, manifest["torn"], manifest["lines"])
            if manifest["torn"]
            else ""
        )
        assert told.strip() == mine, "torn lines are counted differently"
    assert (
        manifest["torn"] > 3
        and manifest["position"] <= len(whole)
        and not leftovers(tmp_path)
    )


def test_one_partition_a_day_and_types_for_other_readers(small):
    folder = small / "production.parquet"
    days = {path.name for path in folder.glob("day=*")}
    log = utils.read_log(small / "production.csv")
    assert (
        days
        == {f"day={day:%Y-%m-%d}" for day in log["timestamp"].dt.floor("D").unique()}
        and len(days) >= 3
    )
    # pandas' own reader of partitioned folders passes over the manifest
    found = pd.read_parquet(folder)
    assert (
        len(found) == len(log)
        and (
            found["timestamp"].dt.strftime("%Y-%m-%d") == found["day"].astype(str)
        ).all()
    )
    answer = (
        duckdb.connect()
        .execute(f"SELECT count(*), count(DISTINCT row) FROM '{folder}/*/*.parquet'")
        .fetchall()
    )
    assert answer == [(len(log), len(log))]


def test_nothing_new_changes_nothing(own):
    before = files_of(own)
    compact(own / "production.csv", own / "production.parquet")
    assert files_of(own).items() == before.items() | {("production.parquet.lock", b"")}


def test_only_new_lines_are_taken(own):
    csv, folder = own / "production.csv", own / "production.parquet"
    before, position = (
        files_of(folder),
        json.loads((folder / MANIFEST).read_text())["position"],
    )
    utils.InferenceLogger(csv, "later").log_batch(
        [1, 0], [0.9, 0.8], [1.0, 2.0], timestamp=DAY
    )
    compact(csv, folder)
    new = files_of(folder).keys() - before.keys()
    assert new == {f"day=2026-03-01/part-{position:015d}.parquet"}
    assert {
        name: content
        for name, content in files_of(folder).items()
        if name in before and name != MANIFEST
    } == {name: content for name, content in before.items() if name != MANIFEST}
    assert len(open_log(folder, "later")) == 2 and len(same_as_csv(csv, folder)) == len(
        open_log(folder)
    )


def test_an_empty_log_and_one_whose_header_is_torn(tmp_path):
    csv, folder = tmp_path / "p.csv", tmp_path / "p.parquet"
    csv.write_text("# inference log, schema 1\ntimestamp,ru")
    assert (
        compact(csv, folder)["rows"] == 0
        and len(open_log(folder)) == 0
        and open_log(folder).to_pandas().empty
    )
    utils.InferenceLogger(csv).log(1, 0.5, 1.0)
    assert compact(csv, folder)["rows"] == 1
    same_as_csv(csv, folder)


def test_a_writer_at_work_loses_nothing(tmp_path):
    code = (
        "import sys, utils\nlogger = utils.InferenceLogger(sys.argv[1])\nfor i in"
        " range(2000):\n    logger.log_batch([0] * 3, [0.5] * 3, [1.0] * 3,"
        " image=[f'{i}-{k}' for k in range(3)])"
    )
    csv, folder = tmp_path / "p.csv", tmp_path / "p.parquet"
    utils.InferenceLogger(csv)
    writer, calls = subprocess.Popen([sys.executable, "-c", code, str(csv)], cwd=KIT), 0
    while writer.poll() is None:
        compact(csv, folder)
        calls += 1
    assert writer.wait() == 0 and calls > 1
    compact(csv, folder)
    assert len(same_as_csv(csv, folder)) == 6000


@pytest.mark.slow
def test_two_at_once_double_nothing(own):
    csv, folder = own / "production.csv", own / "twice.parquet"
    code = (
        "import sys; from tools.scale.compact import compact; compact(sys.argv[1],"
        " sys.argv[2], block=2000)"
    )
    children = [
        subprocess.Popen([sys.executable, "-c", code, str(csv), str(folder)], cwd=KIT)
        for _ in range(2)
    ]
    assert [child.wait() for child in children] == [0, 0]
    same_as_csv(csv, folder)


def test_blocks_are_small_whatever_the_lines_are(tmp_path, monkeypatch):
    monkeypatch.setattr(compaction, "LONGEST", 300)
    content = (
        b"".join(b"x" * length + b"\n" for length in (5, 0, 90, 5000, 3)) + b"open"
    )
    (tmp_path / "p.csv").write_bytes(content)
    blocks = list(compaction._blocks(tmp_path / "p.csv", 0, 100))
    assert (
        max(len(block) for block, _ in blocks) <= 400
        and blocks[-1][1] == len(content) - 4
    )
    lines = b"".join(block for block, _ in blocks).split(b"\n")
    assert [min(len(line), 300) for line in lines] == [5, 0, 90, 300, 3, 0]
    assert [at for _, at in blocks] == sorted(at for _, at in blocks)
    assert all(content[:at].endswith(b"\n") for _, at in blocks)


def test_command_line(own, capsys):
    (own / "logs").mkdir()
    shutil.copy(own / "production.csv", own / "logs")
    assert course.main(["compact", "--home", str(own)]) == 0
    told = capsys.readouterr().out.splitlines()
    assert "lines are torn (by a crash) and left out" in told[0]
    assert told[1].startswith(str(own / "logs" / "production.parquet"))
    rows = len(utils.read_log(own / "production.csv"))
    assert (
        f"{rows:,} new lines; {rows:,} in all" in told[1]
        and "MiB (the CSV has" in told[1]
    )
    capsys.readouterr()
    assert (
        course.main(["compact", "--home", str(own)]) == 0
        and ": 0 new lines" in capsys.readouterr().out
    )
    assert course.main(["compact", "--home", str(own / "nowhere")]) == 2
    assert "production.csv is missing: run notebooks/theme5" in capsys.readouterr().out
    assert not (own / "nowhere").exists()


# --- kills and full disks


def test_killed_at_every_file_operation(tmp_path):
    """Whatever is in the folder after a kill is a beginning of the log, and the next
    call makes it whole.
    """
    csv, folder = (
        write_log(tmp_path / "production.csv", 2, 50),
        tmp_path / "production.parquet",
    )
    compact(csv, folder)
    before, rows = files_of(folder), len(utils.read_log(csv))
    write_log(csv, 1, 30)
    log, content, step = utils.read_log(csv), csv.read_bytes(), 1
    while killed(step, lambda: compact(csv, folder, block=3000)):
        found = open_log(folder).to_pandas()
        assert len(found) >= rows
        pd.testing.assert_frame_equal(found, log.head(len(found)))
        # less at once: what the killed call left has other days
        compact(csv, folder, block=1000)
        pd.testing.assert_frame_equal(open_log(folder).to_pandas(), log)
        listed = json.loads((folder / MANIFEST).read_text())["files"]
        assert {name for name in files_of(folder) if name.endswith(".parquet")} == set(
            listed
        )
        assert csv.read_bytes() == content and not leftovers(tmp_path)
        shutil.rmtree(folder)
        for name, data in before.items():
            utils.make_parent(folder / name).write_bytes(data)
        step += 1
    assert step > 15


@pytest.mark.slow
def test_killed_from_the_first_byte_on(own):
    csv, folder, step = own / "production.csv", own / "new.parquet", 1
    while killed(step, lambda: compact(csv, folder, block=30_000)):
        compact(csv, folder)
        same_as_csv(csv, folder)
        shutil.rmtree(folder)
        step += 1
    assert step > 40


def test_killed_in_the_middle_of_a_file(own):
    csv, folder = own / "production.csv", own / "new.parquet"
    assert killed_in_writing(3000, lambda: compact(csv, folder))
    assert len(open_log(folder)) == 0
    compact(csv, folder)
    same_as_csv(csv, folder)


def test_full_disk(own):
    csv, folder = own / "production.csv", own / "production.parquet"
    noise = np.random.default_rng(0).random(2000)
    utils.InferenceLogger(csv, "later").log_batch(
        [1] * 2000, noise, noise, timestamp=DAY
    )
    before, log = files_of(folder), csv.read_bytes()
    told = on_full_disk(lambda: compact(csv, folder), size=5000)
    assert (
        "could not be written (File too large" in told
        and "free some space" in told
        and "untouched" in told
    )
    assert files_of(folder) == before and csv.read_bytes() == log and not leftovers(own)
    compact(csv, folder)
    same_as_csv(csv, folder)


def test_full_disk_of_its_own(own, small_disk):
    disk = small_disk(64 << 10)
    csv = own / "production.csv"
    told = error_of(lambda: compact(csv, disk / "production.parquet", block=4000))
    assert (
        "could not be written (No space left on device" in told
        and "MB are free on that disk" in told
    )
    assert len(open_log(disk / "production.parquet")) > 0
    pd.testing.assert_frame_equal(
        (found := open_log(disk / "production.parquet").to_pandas()),
        utils.read_log(csv).head(len(found)),
    )


# --- wrong input


@pytest.mark.parametrize(
    "content, told",
    [
        (b"# inference log, schema 2\na,b\n1,2\n", "has another schema"),
        (b"\x89PNG\r\n", "has another schema"),
        (None, r"is missing: run notebooks/theme5_monitoring\.ipynb"),
    ],
)
def test_a_csv_that_is_no_log(tmp_path, content, told):
    csv = tmp_path / "p.csv"
    if content:
        csv.write_bytes(content)
    with pytest.raises(utils.CourseError, match=told):
        compact(csv, tmp_path / "p.parquet")
    assert [path.name for path in tmp_path.iterdir()] == ["p.csv"] * bool(content)
    assert content is None or csv.read_bytes() == content


@pytest.mark.parametrize(
    "change",
    [
        lambda whole: whole[:3000],
        lambda whole: whole.replace(b"run0", b"run9"),
        lambda whole: whole[: whole.index(b"\n", 100) + 1] + whole[5000:],
        lambda whole: (
            b"# inference log, schema 1\n"
            + b",".join(name.encode() for name in utils.LOG_COLUMNS)
            + b"\n"
        ),
    ],
)
def test_another_log_is_not_mixed_in(own, change):
    csv, folder = own / "production.csv", own / "production.parquet"
    csv.write_bytes(change(csv.read_bytes()))
    before = files_of(folder)
    with pytest.raises(
        utils.CourseError,
        match="is not the log of which .*parquet holds .*another folder",
    ):
        compact(csv, folder)
    assert files_of(folder) == before


@pytest.mark.parametrize(
    "name", ["notes.txt", "day=2026-03-01/part-000000000000000.parquet"]
)
def test_a_folder_of_something_else(own, name):
    utils.make_parent(own / "other" / name).write_text("mine")
    for attempt in (
        lambda: compact(own / "production.csv", own / "other"),
        lambda: open_log(own / "other"),
    ):
        with pytest.raises(utils.CourseError, match=f"other .*no {MANIFEST}"):
            attempt()
    assert files_of(own / "other") == {name: b"mine"}
    with pytest.raises(
        utils.CourseError, match="holds something else than a compacted log"
    ):
        compact(own / "production.csv", own / "production.csv")


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"schema": 1}', "nested"])
def test_a_damaged_manifest(own, content):
    path = own / "production.parquet" / MANIFEST
    path.write_text("[" * 100_000 if content == "nested" else content)
    for attempt in (open_log, lambda folder: compact(own / "production.csv", folder)):
        with pytest.raises(
            utils.CourseError,
            match=f"{MANIFEST} is damaged: bring it back from a copy, or rename",
        ):
            attempt(own / "production.parquet")
    assert len(list(own.rglob("*.parquet"))) > 3


EMPTY = {"rows": 0, "bytes": 0}


@pytest.mark.parametrize(
    "change",
    [
        {"position": -1},
        {"rows": "3"},
        {"rows": 3},
        {"files": []},
        {"schema": 2},
        {"begins": 5},
        {"torn": None},
        {"files": {"../x.parquet": EMPTY}, "rows": 0},
        {"lines": 1.5},
        {"files": {"day=2026-13-45/part-000000000000000.parquet": EMPTY}, "rows": 0},
    ],
)
def test_a_manifest_that_says_something_impossible(own, change):
    path = own / "production.parquet" / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(utils.CourseError, match="is damaged"):
        open_log(own / "production.parquet")


def spoil_missing(path):
    path.unlink()


def spoil_cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def spoil_emptied(path):
    path.write_bytes(b"")


def spoil_no_parquet(path):
    path.write_bytes(np.random.default_rng(0).bytes(9000))


def spoil_column_type(path):
    parquet.write_table(
        (table := parquet.read_table(path, partitioning=None)).set_column(
            table.schema.get_field_index("confidence"),
            "confidence",
            table["confidence"].cast("string"),
        ),
        path,
    )


def spoil_column_missing(path):
    parquet.write_table(
        parquet.read_table(path, partitioning=None).drop_columns("status"), path
    )


def spoil_rows(path):
    parquet.write_table(parquet.read_table(path, partitioning=None).slice(3), path)


@pytest.mark.parametrize(
    "spoil, told",
    [
        (spoil_missing, r"is missing \(1 of \d+ files are\)"),
        (spoil_cut, "is damaged"),
        (spoil_emptied, "is damaged"),
        (spoil_no_parquet, "is damaged"),
        (spoil_rows, r"is not what was written \(\d+ requests in"),
        (
            spoil_column_type,
            r"has another schema \(confidence is string and not double\)",
        ),
        (
            spoil_column_missing,
            r"has another schema \(status is missing and not string\)",
        ),
    ],
)
def test_a_partition_that_is_not_as_it_was_written(own, spoil, told):
    folder = own / "production.parquet"
    path = sorted(folder.rglob("*.parquet"))[1]
    rows = json.loads((folder / MANIFEST).read_text())["files"][
        path.relative_to(folder).as_posix()
    ]["rows"]
    spoil(path)
    before = files_of(folder)
    with pytest.raises(
        utils.CourseError, match=f"{path.name}, {rows} requests, {told}"
    ) as error:
        open_log(folder)
    assert str(error.value).endswith(
        f"or rename {folder} and run `python course.py compact` again."
    )
    assert files_of(folder) == before
    folder.rename(own / "old.parquet")  # the advice, followed
    compact(own / "production.csv", folder)
    same_as_csv(own / "production.csv", folder)


def test_a_whole_day_missing_names_how_many(own):
    folder = own / "production.parquet"
    shutil.rmtree(folder / "day=2026-03-02")
    with pytest.raises(
        utils.CourseError,
        match="day=2026-03-02/part-0+.parquet, .* requests, is missing",
    ):
        open_log(folder)


def test_a_file_that_breaks_while_it_is_read(own):
    """The footer is as it was written, what stands before it is not."""
    folder = own / "production.parquet"
    log, path = open_log(folder), sorted(folder.rglob("*.parquet"))[0]
    content = bytearray(path.read_bytes())
    content[4:4000] = bytes(3996)
    path.write_bytes(content)
    with pytest.raises(
        utils.CourseError,
        match="production.parquet could not be read .*bring it back from a copy",
    ):
        log.to_pandas()
    path.unlink()
    with pytest.raises(utils.CourseError, match="could not be read"):
        utils.window_statistics(log)


def test_too_little_memory_is_one_sentence(own):
    log = open_log(own / "production.parquet", memory="1MB")
    with pytest.raises(utils.CourseError, match=r"needs more memory .*memory='4GB'"):
        log.to_pandas()


# --- answers: those of the DataFrame


def compare_windows(tmp_path: Path, seed: int, cases, requests: int = 500) -> None:
    csv, folder = write_log(tmp_path / "p.csv", seed, requests), tmp_path / "p.parquet"
    compact(csv, folder, block=20_000)
    for run_id in (None, "run1"):
        table, log = utils.read_log(csv, run_id), open_log(folder, run_id)
        baseline = utils.monitoring_baseline(table)
        for minutes, every, compared, until in cases:
            arguments = minutes, every, baseline if compared else None, until
            expected, found = (
                utils.window_statistics(table, *arguments),
                utils.window_statistics(log, *arguments),
            )
            pd.testing.assert_frame_equal(found, expected, rtol=1e-9, atol=1e-9)
            pd.testing.assert_frame_equal(
                found[EXACT], expected[EXACT], check_exact=True
            )
            assert len(found.columns) == 15 + 5 * compared


LATE, EARLY = pd.Timestamp("2026-03-05T07:00Z"), datetime(2026, 3, 2, 3)


@pytest.mark.parametrize(
    "minutes, every, compared, until",
    [
        (30, 10, True, None),
        (25, 10, False, LATE),
        (120, 60, True, EARLY),
        (1, 1440, True, None),
        (3000, 60, True, LATE),
    ],
)
def test_windows_are_those_of_the_table(
    tmp_path, monkeypatch, minutes, every, compared, until
):
    """Overlapping, apart, longer than a day; also where a day is read in parts."""
    monkeypatch.setattr(parquet_log, "ROWS_AT_ONCE", 40 if every == 10 else 2_000_000)
    compare_windows(tmp_path, minutes, [(minutes, every, compared, until)])


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_windows_of_many_logs_are_those_of_the_table(tmp_path, monkeypatch, seed):
    rng = np.random.default_rng(seed)
    monkeypatch.setattr(parquet_log, "ROWS_AT_ONCE", int(rng.integers(20, 300)))
    cases = [
        (
            int(rng.integers(1, 200)),
            int(rng.choice([1, 7, 10, 30, 60, 90, 1440])),
            bool(rng.integers(2)),
            until,
        )
        for until in (None, LATE, EARLY)
    ]
    compare_windows(tmp_path, seed, cases, int(rng.integers(350, 1500)))


@pytest.mark.parametrize("seed", range(2))
def test_baseline_budget_and_length_are_those_of_the_table(tmp_path, seed):
    csv, folder = write_log(tmp_path / "p.csv", seed, 900), tmp_path / "p.parquet"
    compact(csv, folder, block=9000)
    for run_id in (None, "run0"):
        table, log = utils.read_log(csv, run_id), open_log(folder, run_id)
        expected, found = (
            utils.monitoring_baseline(table),
            utils.monitoring_baseline(log),
        )
        assert list(found) == list(expected) and len(log) == len(table)
        for name in expected:
            assert found[name] == pytest.approx(expected[name], rel=1e-9)
        for limit in (0.1, 3.0, 50.0):
            pd.testing.assert_series_equal(
                utils.error_budget(log, 0.98, limit),
                utils.error_budget(table, 0.98, limit),
            )


def test_one_window_against_numpy(small):
    """Not through any function of ours: the lines of a window, taken from the text by
    hand.
    """
    lines = [
        line.split(",")
        for line in (small / "production.csv").read_text(errors="replace").split("\n")
    ]
    log = utils.read_log(small / "production.csv")
    row = utils.window_statistics(open_log(small / "production.parquet"), 60, 60).iloc[
        3
    ]
    since, until = row["timestamp"] - timedelta(hours=1), row["timestamp"]
    assert len(lines) > len(log)
    part = log[(log["timestamp"] > since) & (log["timestamp"] <= until)]
    fine = part[part["status"] == "ok"]
    assert row["requests"] == len(part) > 10 and row["error_rate"] == 1 - len(
        fine
    ) / len(part)
    for quantile in (50, 95, 99):
        assert row[f"latency_p{quantile}"] == np.percentile(
            fine["latency_ms"].to_numpy(), quantile
        )
    assert row["blank_share"] == pytest.approx(
        np.mean(fine["contrast"].to_numpy() < 2), rel=1e-12
    )
    assert row["brightness"] == pytest.approx(
        math.fsum(fine["brightness"].dropna()) / fine["brightness"].count()
    )


@pytest.mark.parametrize(
    "seed",
    [
        0,
        pytest.param(1, marks=pytest.mark.slow),
        pytest.param(2, marks=pytest.mark.slow),
    ],
)
def test_alerts_replayed_are_the_same(tmp_path, seed):
    csv, folder = write_log(tmp_path / "p.csv", seed, 3000, 20), tmp_path / "p.parquet"
    compact(csv, folder)
    table = utils.read_log(csv)
    baseline = utils.monitoring_baseline(table.head(400))
    rules = [
        *utils.default_rules(4.0),
        utils.AlertRule("busy", "requests", ">", 400, window=120),
    ]
    told = []
    for name, log in (("table", table), ("parquet", open_log(folder))):
        windows, events = utils.watch(
            log, utils.AlertManager(rules, tmp_path / f"{name}.csv", "run"), baseline
        )
        told.append((windows, events, utils.read_alerts(tmp_path / f"{name}.csv")))
    for expected, found in zip(*told, strict=True):
        pd.testing.assert_frame_equal(found, expected, rtol=1e-9, atol=1e-9)
    assert len(told[0][1]) > 3


def test_lines_on_a_tick_and_one_nanosecond_after_it(tmp_path):
    csv, folder = tmp_path / "p.csv", tmp_path / "p.parquet"
    utils.InferenceLogger(csv, "r")
    with csv.open("a") as file:
        for time in (
            "01T00:00:00",
            "01T00:10:00",
            "02T00:00:00",
            "02T00:00:00.000000001",
            "03T00:00:00",
        ):
            file.write(f"2026-03-{time}Z,r,h,i,1,0.5,1,1,,,,ok,\n")
    compact(csv, folder)
    same_as_csv(csv, folder)
    # the first line ends no window of 10
    for minutes, expected in ((10, [1, 1, 1, 1]), (20, [2, 1, 1, 2, 1, 1])):
        windows = utils.window_statistics(open_log(folder), minutes, 10)
        assert windows["requests"][windows["requests"] > 0].tolist() == expected
        pd.testing.assert_frame_equal(
            windows, utils.window_statistics(utils.read_log(csv), minutes, 10)
        )


def test_the_oldest_and_the_youngest_time_that_fits(tmp_path):
    csv, folder = tmp_path / "p.csv", tmp_path / "p.parquet"
    utils.InferenceLogger(csv, "r")
    with csv.open("a") as file:
        for time in (
            "1677-09-21T00:12:44",
            "2262-04-11T23:47:16",
            "0001-01-01T00:00:00",
            "1969-12-31T23:59:59.999",
        ):
            file.write(f"{time}Z,r,h,i,1,0.5,1,1,,,,ok,\n")
    compact(csv, folder)
    assert len(same_as_csv(csv, folder)) == 3
    with pytest.raises(
        utils.CourseError,
        match="The log goes from 1677-09-21 to 2262-04-11, more than 20,000 steps",
    ):
        utils.window_statistics(open_log(folder))
    assert utils.error_budget(open_log(folder))["requests"] == 3


def test_numbers_that_are_missing(tmp_path):
    """An answered request without a latency, and one without an image."""
    csv, folder = tmp_path / "p.csv", tmp_path / "p.parquet"
    logger = utils.InferenceLogger(csv, "r")
    for k in range(120):
        logger.log(
            1,
            0.9 if k % 3 else math.nan,
            2.0 if k % 50 else None,
            timestamp=DAY + timedelta(minutes=k),
            brightness=100.0 + k if k % 4 else None,
        )
    compact(csv, folder)
    table, log = same_as_csv(csv, folder), open_log(folder)
    baseline = utils.monitoring_baseline(log)
    assert baseline["low_confidence_share"]["mean"] == 0 and math.isnan(
        baseline["contrast"]["mean"]
    )
    assert utils.error_budget(log)["bad"] == utils.error_budget(table)["bad"] == 3
    expected = utils.window_statistics(table, baseline=utils.monitoring_baseline(table))
    pd.testing.assert_frame_equal(
        utils.window_statistics(log, baseline=baseline), expected, rtol=1e-9, atol=1e-9
    )


def test_nothing_to_say_is_said_as_for_a_table(small, tmp_path):
    csv, folder = tmp_path / "p.csv", tmp_path / "p.parquet"
    utils.InferenceLogger(csv, "r").log_batch([1] * 99, [0.9] * 99, [1.0] * 99)
    compact(csv, folder)
    with pytest.raises(
        utils.CourseError, match="baseline of 99 answered requests is too short"
    ):
        utils.monitoring_baseline(open_log(folder))
    nobody = open_log(small / "production.parquet", "nobody")
    with pytest.raises(utils.CourseError, match="The log has no lines"):
        utils.window_statistics(nobody)
    with pytest.raises(utils.CourseError, match="baseline of 0 answered"):
        utils.monitoring_baseline(nobody)
    with pytest.raises(
        utils.CourseError, match=r"error_budget needs log lines \(0 given\)"
    ):
        utils.error_budget(nobody)
    with pytest.raises(
        utils.CourseError, match=r"an objective between 0 and 1 \(99 given\)"
    ):
        utils.error_budget(open_log(folder), 99)
    assert nobody.to_pandas().empty and list(nobody.drift_windows(5)) == []


def test_a_closer_look_at_an_hour(small):
    table, log = (
        utils.read_log(small / "production.csv"),
        open_log(small / "production.parquet"),
    )
    since, until = pd.Timestamp("2026-03-01T23:30Z"), datetime(2026, 3, 2, 0, 30)
    part = table[
        (table["timestamp"] > since)
        & (table["timestamp"] <= pd.Timestamp(until, tz="UTC"))
    ]
    pd.testing.assert_frame_equal(
        log.to_pandas(since, until), part.reset_index(drop=True)
    )
    assert 5 < len(part) < len(table)


@pytest.mark.parametrize("requests", [1, 7, 50, 100_000])
def test_drift_windows_are_consecutive_requests(small, requests, monkeypatch):
    monkeypatch.setattr(parquet_log, "ROWS_AT_ONCE", 90)
    table = utils.read_log(small / "production.csv").sort_values(
        "timestamp", kind="stable"
    )
    names = ["brightness", "contrast", "sharpness"]
    seen = table[(table["status"] == "ok") & table["brightness"].notna()].set_index(
        "timestamp"
    )[names]
    windows = list(open_log(small / "production.parquet").drift_windows(requests))
    assert len(windows) == len(seen) // requests
    for k, window in enumerate(windows):
        pd.testing.assert_frame_equal(
            window, seen.iloc[k * requests : (k + 1) * requests]
        )


def test_drift_windows_go_into_the_ks_test(tmp_path):
    """The service is compared with its own quiet beginning; then the scanner grows
    darker.
    """
    csv, folder, rng = (
        tmp_path / "p.csv",
        tmp_path / "p.parquet",
        np.random.default_rng(0),
    )
    for k, dark in enumerate((0, 0, 0, 25)):
        image = {
            "brightness": rng.normal(120 - dark, 10, 200),
            "contrast": rng.normal(50, 5, 200),
        }
        utils.InferenceLogger(csv).log_batch(
            [1] * 200,
            [0.9] * 200,
            [1.0] * 200,
            sharpness=rng.normal(300, 30, 200),
            timestamp=[DAY + timedelta(hours=k, seconds=i) for i in range(200)],
            **image,
        )
    compact(csv, folder)
    reference, *windows = open_log(folder).drift_windows(200)
    results = [
        utils.ks_test(reference, window, names=list(window)) for window in windows
    ]
    assert [result.drift for result in results] == [False, False, True]
    assert results[-1].features["drift"].to_dict() == {
        "brightness": True,
        "contrast": False,
        "sharpness": False,
    }
    with pytest.raises(utils.CourseError, match="window of 0 requests"):
        next(open_log(folder).drift_windows(0))


def test_only_what_is_asked_for_is_in_memory(tmp_path, monkeypatch):
    """Each query of a log of forty days sees the files of one of them."""
    csv, folder = tmp_path / "p.csv", tmp_path / "p.parquet"
    utils.InferenceLogger(csv).log_batch(
        [1] * 400,
        [0.9] * 400,
        [1.0] * 400,
        timestamp=[DAY + timedelta(hours=2.4 * k) for k in range(400)],
    )
    compact(csv, folder)
    log, asked = open_log(folder), []
    database = log._database

    class Watched:
        def execute(self, question, values):
            asked.append(len(values["files"]))
            return database.execute(question, values)

    assert len(log) == 400
    monkeypatch.setattr(log, "_database", Watched())
    utils.window_statistics(log, 180, 60)
    list(log.drift_windows(10))
    log.to_pandas(DAY, DAY + timedelta(hours=1))
    assert set(asked) == {1} and len(asked) == 83


@pytest.mark.slow
def test_peak_memory_does_not_grow_with_the_log(tmp_path):
    """Four times the days cost the table hundreds of MiB, and DuckDB and compaction
    hardly anything.

    From ten days on: below, DuckDB's own buffers are still growing.
    """
    code = """
import re, sys, utils
from tools.scale.compact import compact
from tools.scale.parquet_log import open_log
csv, folder = sys.argv[2:]
def peak():  # that of getrusage begins with what the parent of a process had
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024
before = peak()
if sys.argv[1] == "compact":
    compact(csv, folder, block=1 << 20)
else:
    log = utils.read_log(csv) if sys.argv[1] == "table" else open_log(folder)
    utils.watch(log, baseline=utils.monitoring_baseline(log))
print(peak() - before)
"""
    peak = {}
    for days in (10, 40):
        csv, rng = tmp_path / f"{days}.csv", np.random.default_rng(0)
        for day in range(days):
            n = 20_000
            utils.InferenceLogger(csv).log_batch(
                rng.integers(0, 2, n),
                rng.random(n),
                rng.lognormal(1, 0.5, n),
                brightness=rng.normal(120, 9, n),
                timestamp=[
                    DAY + timedelta(days=day, seconds=4.3 * k) for k in range(n)
                ],
            )
        for what in ("compact", "table", "parquet"):
            command = [
                sys.executable,
                "-c",
                code,
                what,
                str(csv),
                str(tmp_path / f"{days}.parquet"),
            ]
            done = subprocess.run(
                command, cwd=KIT, capture_output=True, text=True, check=True
            )
            peak[what, days] = float(done.stdout.splitlines()[-1])
    growth = {
        what: peak[what, 40] - peak[what, 10]
        for what in ("compact", "table", "parquet")
    }
    assert growth["table"] > 300 and max(growth["parquet"], growth["compact"]) < 30, (
        peak
    )
