"""A study of Optuna that any number of workers share, in a file or a database."""

from __future__ import annotations

import time
import warnings
from contextlib import contextmanager, suppress
from pathlib import Path

from kit.files import (
    CourseError,
    clear_disk_errors,
    copy_back,
    copy_to_home,
    locked,
    make_parent,
)
from kit.home import Course

# Seconds between two signs of life of a worker, and of silence until it counts as dead.
HEARTBEAT, GRACE = 10, 60
DONE = ("COMPLETE", "PRUNED")


def quiet_optuna():
    """Optuna without its log of every trial, and without the words that there are no
    widgets and that its signs of life are experimental.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import optuna
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    return optuna


def open_study(course: Course, title: str, first: dict, storage: str | None = None):
    """The study of this title, new or as far as it has come; a new one begins with the
    parameters `first`.

    `storage` is the address of a database; None means a file in runs/ of the home.
    """
    optuna = quiet_optuna()
    file = make_parent(_file(course, title))
    if storage is None:
        copy_back(course, file)
    with locked(file.with_suffix(".lock")), clear_database_errors(storage or file):
        study = optuna.create_study(
            study_name=title,
            storage=_open_storage(optuna, storage or f"sqlite:///{file}"),
            pruner=optuna.pruners.MedianPruner(n_startup_trials=2, n_warmup_steps=0),
            load_if_exists=True,
        )
        tried = [
            trial.system_attrs.get("fixed_params", trial.params)
            for trial in study.trials
            if trial.state.name != "FAIL"
        ]
        if first not in tried:
            study.set_user_attr("own", first)
            study.enqueue_trial(first)
    return study


def _file(course: Course, title: str) -> Path:
    return course.local / "runs" / f"{title}.db"


def _open_storage(optuna, address: str):
    """The database; a worker that falls silent loses its trial to another one."""
    from sqlalchemy import event

    alone = address.startswith("sqlite")
    retry = optuna.storages.RetryHeartbeatStaleTrialCallback(max_retry=3)
    storage = optuna.storages.RDBStorage(
        address,
        engine_kwargs={"connect_args": {"timeout": GRACE}} if alone else {},
        heartbeat_interval=HEARTBEAT,
        grace_period=GRACE,
        heartbeat_stale_trial_callback=retry,
    )
    if alone:  # SQLite locks no rows: two workers would take the same waiting trial
        event.listen(storage.engine, "connect", _no_transaction_of_the_driver)
        event.listen(storage.engine, "begin", _lock_at_once)
        storage.engine.dispose()  # connections that were opened before
    return storage


def _no_transaction_of_the_driver(connection, _) -> None:
    connection.isolation_level = None


def _lock_at_once(connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def work_on(course: Course, study, objective, trials: int, storage=None) -> None:
    """Run trials until the study has so many, counting those of all workers, and none
    is left waiting by a dead one.
    """
    if trials < 1:
        raise CourseError(
            f"A search of {trials} trials finds nothing: ask for at least 1."
        )
    optuna, waited = quiet_optuna(), 0
    file = _file(course, study.study_name)
    with clear_database_errors(storage or file):
        while _count(study, "WAITING") or _count(study, *DONE) < trials:
            if _others_finish(study, trials) and waited < 10 * GRACE:
                time.sleep(1)
                waited += 1
                optuna.storages.fail_stale_trials(study)  # is one of them dead?
                continue
            _one_trial(study, objective)
            waited = 0
            if storage is None:
                copy_to_home(course, file)
    if not _count(study, "COMPLETE"):
        raise CourseError(
            "No trial of the search finished, every loss exploded: lower lr in the"
            " recipe to a tenth."
        )


def _one_trial(study, objective) -> None:
    """A trial, unless another worker takes it: one that falls silent, as a laptop that
    sleeps, counts as dead, and its trial is begun again by the next.
    """
    numbers = []

    def remembered(trial):
        numbers.append(trial.number)
        # a worker killed before its first sign of life would never count as dead
        study._storage.record_heartbeat(trial._trial_id)
        return objective(trial)

    try:
        study.optimize(remembered, n_trials=1)
    except Exception:  # what Optuna raises when told of a trial that has failed
        retried = [
            number
            for trial in study.get_trials(deepcopy=False)
            for number in trial.system_attrs.get("retry_history", ())
        ]
        if not set(numbers) & set(retried):
            raise


def _others_finish(study, trials: int) -> bool:
    """Whether the last trials are all with other workers."""
    begun = _count(study, *DONE, "RUNNING") >= trials
    return begun and not _count(study, "WAITING")


def _count(study, *states: str) -> int:
    trials = study.get_trials(deepcopy=False)
    return sum(trial.state.name in states for trial in trials)


@contextmanager
def clear_database_errors(where: str | Path):
    """Say in one sentence why a study cannot be read or written."""
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (SQLAlchemyError, StorageInternalError, ImportError) as error:
        kept = "The trials that are finished are all there."
        with suppress(type(error)), clear_disk_errors(where, kept):
            raise
        reason = str(error.__cause__ or error).splitlines()[0]
        raise CourseError(
            f"The study in {where} cannot be used ({reason}): see to the database, or"
            " move that file away, then run again; finished trainings load."
        ) from error
