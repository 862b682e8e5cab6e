"""Logs that outgrow memory: what is compacted is what `read_log` reads, and its windows
are those of theme 5.
"""

import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

duckdb = pytest.importorskip("duckdb")

import utils  # noqa: E402
from tools import cli  # noqa: E402
from tools.scale import logs  # noqa: E402

KIT = Path(utils.__file__).parent
DAY = datetime(2026, 3, 1, 20, tzinfo=UTC)
pytestmark = [
    pytest.mark.scale,
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*"),
]


def write_log(path: Path, seed: int, requests: int = 600, hours: float = 30) -> Path:
    """Draw a log of three runs over two midnights: batches, failures, blanks, no image,
    a gap of a day; a crash tore its last line.
    """
    rng = np.random.default_rng(seed)
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
        image = {
            name: nothing if blind else list(rng.normal(120, 12, n))
            for name in ("brightness", "contrast", "sharpness")
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
        at += n
    with path.open("a") as file:
        file.write(rng.choice(['2026-03-09T10:00:00.000Z,r,h,"i', "2026", '"', "a,b,"]))
    return path


@pytest.fixture
def csv(tmp_path) -> Path:
    return write_log(tmp_path / "production.csv", 0)


@pytest.fixture
def folder(csv) -> Path:
    """Where the log is compacted to: three days and more, beside the CSV."""
    logs.compact(csv, csv.with_suffix(".parquet"))
    return csv.with_suffix(".parquet")


def lines_of(folder: Path) -> list[tuple]:
    """What DuckDB alone reads in the folder, in an order of its own."""
    names = ("run_id", "image", "pred_class", "latency_ms", "contrast", "status")
    asked = f"SELECT timestamp, {', '.join(names)} FROM '{folder}/*/*.parquet' ORDER BY"
    return duckdb.sql(f"{asked} ALL").fetchall()


@pytest.mark.parametrize("seed", range(4))
def test_what_is_compacted_is_what_read_log_reads(tmp_path, seed):
    csv, folder = tmp_path / "production.csv", tmp_path / "production.parquet"
    log = utils.read_log(write_log(csv, seed))
    assert logs.compact(csv, folder) == len(log)
    found = duckdb.sql(f"SELECT * FROM '{folder}/*/*.parquet'").df()
    found["timestamp"] = found["timestamp"].dt.tz_localize("UTC")
    days = found["day"].dt.strftime("%Y-%m-%d")
    assert (found["timestamp"].dt.strftime("%Y-%m-%d") == days).all()
    order = ["timestamp", "run_id", "latency_ms", "image"]
    found, log = (
        table[list(utils.LOG_COLUMNS)].fillna({"image": "", "extra": ""})
        for table in (found, log)
    )
    pd.testing.assert_frame_equal(
        found.sort_values(order, ignore_index=True),
        log.sort_values(order, ignore_index=True),
        check_dtype=False,
    )


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("minutes", "every"), [(30, 10), (7, 10), (25, 10), (60, 15), (1440, 60)]
)
def test_windows_are_those_of_theme_5(tmp_path, seed, minutes, every):
    csv = write_log(tmp_path / "production.csv", seed)
    expected = utils.window_statistics(utils.read_log(csv), minutes, every)
    pd.testing.assert_frame_equal(logs.windows(csv, minutes, every), expected)


def test_windows_of_the_folder_and_a_line_on_a_tick(folder, csv):
    utils.InferenceLogger(csv).log(1, 0.5, 1.0, timestamp=DAY + timedelta(days=9))
    expected = utils.window_statistics(utils.read_log(csv))
    assert len(logs.windows(folder)) < len(expected)  # not compacted yet
    logs.compact(csv, folder)
    pd.testing.assert_frame_equal(logs.windows(folder), expected)


def test_again_changes_nothing_and_new_lines_are_added_once(folder, csv):
    before = lines_of(folder)
    logs.compact(csv, folder)
    assert lines_of(folder) == before
    later = DAY + timedelta(days=9)
    utils.InferenceLogger(csv, "later").log_batch(
        [1, 0], [0.9, 0.8], [1.0, 2.0], timestamp=later
    )
    assert logs.compact(csv, folder) == len(before) + 2
    assert {path.name for path in csv.parent.iterdir()} <= {
        csv.name,
        folder.name,
        f"{csv.name}.lock",
        f".{folder.name}.lock",
    }


def test_command_line(csv, capsys):
    (csv.parent / "logs").mkdir()
    csv.rename(csv.parent / "logs" / csv.name)
    home = str(csv.parent)
    assert cli.main(["compact", "--home", home]) == 0
    assert "production.parquet: 600 requests, 4 days" in capsys.readouterr().out
    assert cli.main(["compact", "--home", f"{home}/nowhere"]) == 2
    assert "production.csv is missing: run notebooks/theme5" in capsys.readouterr().err
    assert cli.main(["compact", "--home", home, "--output", home]) == 2
    assert "holds something else than a compacted log" in capsys.readouterr().err


def test_a_log_without_lines(tmp_path):
    csv = tmp_path / "production.csv"
    utils.InferenceLogger(csv)
    assert logs.compact(csv, tmp_path / "log") == 0
    with pytest.raises(utils.CourseError, match="The log has no lines"):
        logs.windows(tmp_path / "log")


@pytest.mark.slow
def test_peak_memory_does_not_grow_with_the_log(tmp_path):
    """As long a log again, at the same traffic, takes no more memory."""
    code = (
        "import resource, sys\nfrom tools.scale import logs\n"
        "logs.connect()\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024\n"
        "before = peak()\n"
        "logs.compact(sys.argv[1], sys.argv[1] + '.parquet')\n"
        "logs.windows(sys.argv[1] + '.parquet')\n"
        "print(peak() - before)"
    )
    grown = []
    for days in (10, 20):
        csv = tmp_path / f"{days}.csv"
        utils.InferenceLogger(csv)
        line = "{},r,h,i,1,0.9,2.5,1,120,50,300,ok,,1\n".format
        times = pd.date_range(DAY, periods=days * 50_000, freq="1728ms")
        with open(csv, "a") as file:
            file.writelines(map(line, times.strftime("%Y-%m-%dT%H:%M:%S.%fZ")))
        done = subprocess.run(
            [sys.executable, "-c", code, csv], cwd=KIT, capture_output=True, check=True
        )
        grown.append(float(done.stdout))
    assert grown[1] < grown[0] + 100 < 700, grown
