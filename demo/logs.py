"""The production log and its alerts, as theme 5 and later runs have written them."""

from pathlib import Path

import pandas as pd

import utils


def read_both(home: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The log and the alerts of all runs; where nothing has rung yet there are none.

    Raises
    ------
    CourseError
        No production log, an empty one, or one of another schema.
    """
    log, path = utils.read_log(home / "logs" / "production.csv"), home / "logs"
    if log.empty:
        raise utils.CourseError(utils.NO_LINES)
    if (path / "alerts.csv").exists():
        return log, utils.read_alerts(path / "alerts.csv")
    return log, pd.DataFrame(columns=list(utils.ALERT_COLUMNS))


def list_runs(log: pd.DataFrame, alerts: pd.DataFrame) -> dict[str, str]:
    """A label for each run by its id; first those in which an alert rang, then the
    newest.
    """
    rang = log["run_id"].isin(alerts["run_id"])
    table = (
        log.assign(rang=rang)
        .groupby("run_id")
        .agg(
            rang=("rang", "max"),
            first=("timestamp", "min"),
            last=("timestamp", "max"),
            requests=("timestamp", "size"),
        )
    )
    table = table.sort_index(ascending=False).sort_values(
        "rang", ascending=False, kind="stable"
    )
    return {
        run: f"{row['first']:%Y-%m-%d %H:%M} to {row['last']:%H:%M} UTC ·"
        f" {row['requests']:,} requests{' · alerts' * row['rang']} · {run}"
        for run, row in table.iterrows()
    }


def windows_of(log: pd.DataFrame, run: str, home: Path) -> pd.DataFrame:
    """Rolling statistics of one run, against the quiet day of this home if it has
    one.
    """
    stored = utils.read_json(home / "exports" / "monitoring_baseline.json")
    normal = stored.get("quantities")
    whole = isinstance(normal, dict) and set(utils.COMPARED) <= normal.keys()
    lines = log[log["run_id"] == run]
    return utils.window_statistics(lines, baseline=normal if whole else None)
