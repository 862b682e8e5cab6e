"""The production log and its alerts, as theme 5 and later runs have written them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

import utils


@dataclass(frozen=True)
class Journal:
    """What HOME/logs says now: the log and the alerts of all runs."""

    log: pd.DataFrame
    alerts: pd.DataFrame


def read_journal(home: Path) -> Journal:
    """Read both files; a home in which nothing has rung yet has no alerts.

    Raises
    ------
    CourseError
        No production log, an empty one, or one of another schema.
    """
    log = utils.read_log(home / "logs" / "production.csv")
    if log.empty:
        raise utils.CourseError(
            "logs/production.csv has no lines: run notebooks/theme5_monitoring.ipynb"
            " first."
        )
    path = home / "logs" / "alerts.csv"
    alerts = (
        utils.read_alerts(path)
        if path.exists()
        else pd.DataFrame(columns=list(utils.ALERT_COLUMNS))
    )
    return Journal(log, alerts)


def list_runs(journal: Journal, home: Path) -> dict[str, str]:
    """A label for each run, newest first, by run id; theme 5's quiet day and drill bear
    their names.
    """
    theme5 = utils.read_json(home / "exports" / "results.json").get("theme5")
    runs = theme5.get("runs") if isinstance(theme5, dict) else None
    names = (
        {str(run): name for name, run in runs.items()} if isinstance(runs, dict) else {}
    )
    table = journal.log.groupby("run_id")["timestamp"].agg(["min", "max", "size"])
    labels = {}
    for run, row in table.sort_index(ascending=False).iterrows():
        name = f"{names[run]} · " if run in names else ""
        labels[run] = (
            f"{name}{row['min']:%Y-%m-%d %H:%M} to {row['max']:%H:%M} UTC ·"
            f" {row['size']:,} requests · {run}"
        )
    return labels


def first_run(labels: dict[str, str]) -> str:
    """The run to show first: the drill, which has something to show,
    else the newest.
    """
    return next(
        (run for run, label in labels.items() if label.startswith("drill")),
        next(iter(labels)),
    )


def windows_of(
    journal: Journal, run: str, home: Path
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rolling statistics of one run, against the quiet day of this home, and the alerts
    that these windows raised.
    """
    stored = utils.read_json(home / "exports" / "monitoring_baseline.json").get(
        "quantities"
    )
    whole = isinstance(stored, dict) and set(utils.COMPARED) <= stored.keys()
    windows = utils.window_statistics(
        journal.log[journal.log["run_id"] == run], baseline=stored if whole else None
    )
    return windows, alerts_of(windows, journal.alerts)


def alerts_of(windows: pd.DataFrame, alerts: pd.DataFrame) -> pd.DataFrame:
    """The alerts that were raised on these windows.

    Alerts have a run of their own, and replayed days share one date: a run of alerts
    belongs to the windows that show most of its values at their times. One value alone
    may agree by chance, as when both are 0.
    """
    rows = windows.set_index("timestamp")

    def agrees(alert) -> bool:
        if alert.timestamp not in rows.index or alert.metric not in rows:
            return False
        return bool(
            np.isclose(
                rows.at[alert.timestamp, alert.metric],
                alert.value,
                rtol=1e-4,
                atol=1e-9,
            )
        )

    same = pd.Series(
        [agrees(alert) for alert in alerts.itertuples()],
        index=alerts.index,
        dtype=float,
    )
    return alerts[same.groupby(alerts["run_id"]).transform("mean") > 0.5].reset_index(
        drop=True
    )
