"""What a check runs: the submitted weights scored again, and the notebooks from
nothing. All of it in the sandbox.
"""

import json
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import utils
from kit import own
from kit.files import KIT
from kit.home import PREREQUISITES
from tools.grading import compare, parts, sandbox
from tools.grading.consistency import at
from tools.grading.finding import Check, Finding
from tools.grading.static.look import Look
from tools.grading.submission import MAX_RECORD, Submission, copy_code
from tools.shared.foreign import SubmissionError, read, read_json, shown

WEIGHTS, RERUN = Check("weights"), Check("re-execution")
SCORED = {
    "baseline_test_accuracy": "baseline",
    "optimized_test_accuracy": "optimised",
    "optimized_test_balanced_accuracy": "optimised",
    "optimized_test_auroc": "optimised",
    "onnx_max_abs_diff": "onnx",
    "int8_accuracy_drop": "int8",
    "clean_accuracy_before": "gate",
    "clean_accuracy_after": "gate",
    "drift_accuracy_before": "gate",
    "drift_accuracy_after": "gate",
}
STORED = re.compile(
    r"checkpoints/[^/]+\.pth|exports/(models/)?[^/]+\.onnx"
    r"|exports/predictions/[^/]+\.npz|exports/drift_report\.json"
)
SUPPLIED = {".py", ".typ", ".toml", ".bib", ".html", ".md", ".css"}
MAX_WEIGHTS = 4 * sandbox.GIB
BY_CHANCE = 1e-3


@dataclass
class Rerun:
    """What running the notebooks gave: one row a theme, the record that they wrote, and
    whatever was odd.
    """

    notebooks: list[dict] = field(default_factory=list)
    record: dict = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    @property
    def missing(self) -> dict[int, str]:
        """Why there is no figure of a theme."""
        return {
            row["theme"]: f"theme {row['theme']} {row['says']}"
            for row in self.notebooks
            if row["status"] != "ran"
        }


def threads_of(record: dict) -> int:
    """The thread count of a record; sums are split over it, so it changes the last
    digits.
    """
    found = re.search(
        r"(\d{1,3}) threads?", str(record.get("meta", {}).get("hardware", ""))
    )
    return int(found[1]) if found and 1 <= int(found[1]) <= 256 else 2


def source_of(submission: Submission, given: Path | None) -> str | None:
    """Where the images come from here: drawn, or the grader's own copy; None when there
    is none.
    """
    if submission.story["source"] == "sample":
        return "sample"
    return str(given) if given else None


# --------------------------------------------------------------------------------------
# Level evaluate
# --------------------------------------------------------------------------------------


def _copy_kit(kit: Path) -> None:
    """What scoring needs of this kit, the exercises too: `my_code.py` may use them."""
    caches = shutil.ignore_patterns("__pycache__")
    for name in ("kit", "tools", "exercises"):
        shutil.copytree(KIT / name, kit / name, ignore=caches)
    for name in ("utils.py", "sample_data.py"):
        shutil.copy(KIT / name, kit / name)


def score(
    submission: Submission,
    source: str,
    work: Path,
    last: int,
    limit: float,
    own: bool = True,
) -> tuple[dict, list[Finding]]:
    """Score what themes 1..last submitted with this kit; returns what
    tools/grading/score.py wrote, and findings.

    With `own=False` nothing of the group's code is there.
    """
    kit, home = work / "kit", work / "home"
    _copy_kit(kit)
    findings = _copy_networks(submission if own else None, kit, home)
    findings += _copy_weights(submission, home)
    index = Path("data") / submission.story["dataset"] / "index.csv"
    if index in submission.files:
        (work / "index.csv").write_bytes(read(submission.root, index, MAX_RECORD))
    plan = {
        "kit": str(kit),
        "home": str(home),
        "index": str(work / "index.csv"),
        "output": str(work / "scores.json"),
        "story": submission.story,
        "source": source,
        "last": last,
        **_models(submission.record),
    }
    path = utils.write_json(work / "plan.json", plan)
    threads = threads_of(submission.record)
    outcome = sandbox.run(
        [sys.executable, "-P", "-m", "tools.grading.score", str(path)],
        work,
        limit,
        readable=[] if source == "sample" else [source],
        environment={
            "COURSE_THREADS": threads,
            "PYTHONPATH": kit,
            "PYTHONUNBUFFERED": "1",  # its last line is the reason, where it fails
        },
    )
    scores = _json(work, Path("scores.json"))
    if outcome.rc == 0 and scores:
        machine = scores.get("hardware"), scores.get("environment") or {}
        same = not compare.differences(submission.record, *machine)
        findings += _scored(scores, same)
        return scores | {"seconds": outcome.seconds}, findings
    why = _last_line(outcome.tail)
    why = f"stopped as {outcome.why(limit)}" if outcome.stopped else why
    says = f"The submitted weights could not be scored: {why}."
    findings.append(WEIGHTS.fail(says, "checkpoints"))
    return {"headline": {}, "seconds": outcome.seconds}, findings


def score_with_the_kit(
    submission: Submission,
    source: str,
    work: Path,
    last: int,
    limit: float,
    theirs: dict,
) -> list[Finding]:
    """Hold the figures that the group's own networks gave against those of the kit's
    networks of the same name and the same weights.
    """
    scores, _ = score(submission, source, work, last, limit, own=False)
    ours, where = scores["headline"], own_networks(submission)[0]
    findings = [
        WEIGHTS.fail(
            f"{name} is {compare.text(theirs[name])} with the group's own networks, and"
            f" {compare.text(ours[name])} with the kit's and the same weights: its code"
            " changes the answers, read it.",
            where,
        )
        for name in sorted(ours.keys() & theirs.keys())
        if abs(ours[name] - theirs[name]) > 1e-3
    ]
    if unknown := sorted(theirs.keys() - ours.keys()):
        says = f"Only the group's own networks take its weights: {', '.join(unknown)}"
        findings.append(WEIGHTS.human(f"{says} rest on its code, read it.", where))
    if not findings:
        says = "With the kit's own networks the submitted weights give the same figures"
        findings.append(WEIGHTS.passed(f"{says}.", where))
    return findings


def _networks(submission: Submission) -> list[Path]:
    return [
        path
        for path in submission.files
        if path == Path(own.FILE) or path.parts[0] == "models" and path.suffix == ".py"
    ]


def _copy_networks(
    submission: Submission | None, kit: Path, home: Path
) -> list[Finding]:
    """The only foreign code of this level: my_code.py, which a home loads, and
    models/*.py. Without them, the kit's own.
    """
    (kit / "models").mkdir()
    (kit / "models" / "__init__.py").touch()
    for path in (KIT / "models").glob("*.py"):
        shutil.copy(path, kit / "models" / path.name)
    findings = []
    for path in _networks(submission) if submission else ():
        try:
            target = (home if path == Path(own.FILE) else kit) / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(read(submission.root, path))
        except SubmissionError as error:
            findings.append(WEIGHTS.human(str(error), shown(path)))
    return findings


def own_networks(submission: Submission) -> list[str]:
    """my_code.py, and modules in models/ that are not the kit's, byte for byte."""
    found = []
    for path in _networks(submission):
        kit = KIT / path
        try:
            same = kit.is_file() and kit.read_bytes() == read(submission.root, path)
        except SubmissionError:  # _copy_networks says so
            continue
        found += [] if same else [shown(path)]
    return found


def _copy_weights(submission: Submission, home: Path) -> list[Finding]:
    left = MAX_WEIGHTS
    for path in submission.files:
        if STORED.fullmatch(path.as_posix()):
            left -= (submission.root / path).stat().st_size
            if left < 0:
                says = "Checkpoints and models have more than 4 GiB together: the rest"
                return [WEIGHTS.human(f"{says} was not scored.", shown(path))]
            (home / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(submission.root / path, home / path, follow_symlinks=False)
    return []


def _models(record: dict) -> dict:
    """Names of the stored models and the drift that judges them, as the record tells;
    only plain hashes pass.
    """

    def hashes(theme):
        models = at(record, theme, "models")
        return {
            kind: name
            for kind, name in (models if isinstance(models, dict) else {}).items()
            if isinstance(name, str) and re.fullmatch(r"[0-9a-f]{16}", name)
        }

    drift = at(record, "theme6", "scenario")
    keys = ("kind", "severity", "seed")
    known = isinstance(drift, dict) and drift.keys() >= set(keys)
    return {
        "models": hashes("theme4"),
        "scenario": {key: drift[key] for key in keys} if known else {},
        "retrained": hashes("theme7"),
    }


def _scored(scores: dict, same: bool) -> list[Finding]:
    """Findings of a scoring that ran: pools, stored answers, the retrained model, parts
    that failed.
    """
    findings = []
    for part, told in scores.get("problems", {}).items():
        if part == "unseen":  # of what it could not load, others say so
            continue
        verdict = "human" if part in ("gate", "retrained", "int8") else "fail"
        says = f"{part} could not be scored: {shown(told)}"
        findings.append(WEIGHTS.finding(verdict, says, part))
    if seen := scores["facts"].get("pools"):
        findings.append(_pools(seen))
    for name, difference in scores.get("predictions", {}).items():
        findings.append(_stored_answers(name, difference, same))
    for name, counts in scores["facts"].get("unseen", {}).items():
        findings += _better_where_it_counts(name, counts)
    if seen := scores["facts"].get("retrained"):
        says = (
            "The retrained checkpoint and its exported file differ by"
            f" {seen['max_abs_diff']:.1g} at most; {seen['images_seen']} test and gate"
            " images are among those that it depends on."
        )
        well = seen["images_seen"] == 0 and seen["max_abs_diff"] <= 1e-3
        where = "checkpoints/model_retrained.pth"
        findings.append(WEIGHTS.finding("pass" if well else "fail", says, where))
    return findings


def _stored_answers(name: str, difference: float | str, same: bool) -> Finding:
    where = f"exports/predictions/{name}.npz"
    if isinstance(difference, str):
        return WEIGHTS.fail(f"The stored answers {name} are of {difference}.", where)
    if difference > (compare.SAME_ANSWERS if same else compare.NEAR_ANSWERS):
        says = f"The stored answers {name} are not those of the submitted weights:"
        says += f" they differ by {difference:.2g}."
        # processors without the instructions for INT8 round it otherwise
        soft = name.startswith("int8") and not same
        return WEIGHTS.finding("human" if soft else "fail", says, where)
    says = f"The stored answers {name} are those of the submitted weights (they differ"
    elsewhere = ", on another machine" * (not same)
    return WEIGHTS.passed(f"{says} by {difference:.1g}{elsewhere}).", where)


def _better_where_it_counts(name: str, counts: dict) -> Iterator[Finding]:
    """A network knows neither the test images nor those of pool gate, and these are
    like what it was trained on: on them it should be at least as good.
    """
    from scipy.stats import fisher_exact

    shares, table = [], []
    for pool in ("test", "gate"):
        right, n = counts[pool]
        shares.append(f"{right} of {n} {pool} images")
        table.append([right, n - right])
    if fisher_exact(table, "greater").pvalue < BY_CHANCE:
        says = f"{name} is right on {' and on '.join(shares)}: hardly by chance. Was it"
        says += " trained, or chosen, on test images? Read the training."
        yield WEIGHTS.human(says, f"checkpoints/{name}")


def _pools(seen: dict) -> Finding:
    check, where = Check("pools"), "data/*/index.csv"
    if seen["moved"]:
        says = (
            f"{seen['moved']} of {seen['images']} images are in another pool than the"
            f" kit puts them ({'; '.join(map(shown, seen['examples'][:3]))}): ask why,"
            " as images that judge may have been trained on."
        )
        return check.fail(says, where)
    if seen["changed"] or seen["shared"] < max(seen["images"], seen["submitted"]):
        says = (
            f"The images differ: {seen['submitted']} in the submitted index,"
            f" {seen['images']} here, {seen['changed']} of the shared ones with other"
            " bytes: check that --source is the same dataset."
        )
        return check.human(says, where)
    says = f"All {seen['images']} images are in the pool that the kit puts them in."
    return check.passed(says, where)


# --------------------------------------------------------------------------------------
# Level full
# --------------------------------------------------------------------------------------


def rerun(
    submission: Submission, source: str, work: Path, last: int, limit: float, **changes
) -> Rerun:
    """Run themes 1..last of a copy of the code, with nothing that they could load.

    Parameters
    ----------
    limit : float
        Seconds a notebook may take.
    **changes
        Of the story: another seed, another profile.
    """
    from tqdm import tqdm

    work.mkdir(parents=True, exist_ok=True)
    project, story, result = work / "project", submission.story | changes, Rerun()
    what = f"{submission.name[:20]} seed {story['seed']}"
    project.mkdir()
    result.findings += copy_code(submission, project) + _complete(project)
    parameters = {
        "DATASET": story["dataset"],
        "SOURCE": source,
        "PROFILE": story["profile"],
        "DRIVE": False,
        "IMAGE_SIZE": story["image_size"],
        "SEED": story["seed"],
        "HOME": str(project),
    }
    found, threads = notebooks(submission), threads_of(submission.record)
    for theme in tqdm(
        range(1, last + 1), what, unit="theme", leave=False, disable=None
    ):
        row = _blocked(theme, found, project, story["dataset"])
        if row is None:
            row = _execute(theme, found[theme], parameters, work, limit, threads)
        result.notebooks.append(row)
    result.record = _json(project, Path("exports/results.json"))
    return result


def _complete(project: Path) -> list[Finding]:
    """Files of the kit that notebooks need and the course's layout does not ask for:
    ours where there are none.

    Of the exercises always ours: an edited check would call every answer right.
    """
    needed = [Path("utils.py"), Path("sample_data.py")]
    for folder in ("kit", "models", "exercises", "tools", "report"):
        paths = sorted((KIT / folder).rglob("*"))
        needed += [path.relative_to(KIT) for path in paths if path.suffix in SUPPLIED]
    told = []
    for path in needed:
        exercise = path.parts[0] == "exercises"
        there = (project / path).exists() or "sections" in path.parts[:-1]
        if there and not exercise:
            continue
        (project / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(KIT / path, project / path)
        if path.parts[0] not in ("exercises", "kit", "tools", "report"):
            told.append(path.as_posix())
    says = f"Not handed in, so the kit's own were used: {', '.join(told)}."
    return [RERUN.note(says)] if told else []


def notebooks(submission: Submission) -> dict[int, str]:
    """The notebook of each theme: the one that the static checks read."""

    def places() -> Iterator[list]:
        for theme, path in Look(submission).places.items():
            yield [theme, str(path)]

    ((_, found, _),) = parts.each({"notebooks": places})
    return dict(found)


def _blocked(theme: int, found: dict, project: Path, dataset: str) -> dict | None:
    """A row for a theme that cannot run: no notebook, or what it needs
    was not written.
    """
    row = {
        "theme": theme,
        "notebook": shown(found.get(theme, "")),
        "seconds": 0.0,
        "layer": "",
    }
    if theme not in found:
        return row | {"status": "missing", "says": "has no notebook"}
    needed, writer = PREREQUISITES.get(theme, ("", ""))
    if needed and not (project / needed.format(dataset=dataset)).exists():
        says = (
            f"was skipped: {needed.format(dataset=dataset)} is missing, which {writer}"
            " writes"
        )
        return row | {"status": "skipped", "says": says}
    return None


def _execute(
    theme: int, name: str, parameters: dict, work: Path, limit: float, threads: int
) -> dict:
    project, source = work / "project", parameters["SOURCE"]
    script = KIT / "tools" / "notebooks" / "rerun.py"
    arguments = (script, KIT, project, name, json.dumps(parameters))
    outcome = sandbox.run(
        [sys.executable, "-P", *map(str, arguments)],
        work,
        limit,
        readable=[KIT / "tools", *([source] if source != "sample" else [])],
        environment={"COURSE_THREADS": threads},
    )
    status, says = "ran", ""
    if outcome.stopped:
        status, what = "stopped", outcome.why(limit)
        says = f"was stopped as {what}, in {_running_cell(project, name)}"
    elif outcome.rc:
        told = _last_line(outcome.tail.replace(f"{project}/", ""))
        status, says = "failed", f"failed in {told}"
    return {
        "theme": theme,
        "notebook": shown(name),
        "seconds": outcome.seconds,
        "layer": outcome.layer,
        "status": status,
        "says": says,
    }


def _running_cell(project: Path, name: str) -> str:
    """The cell that papermill marked as running when it was stopped."""
    copies = sorted(
        (project / "exports" / "notebooks").glob(f".{Path(name).stem}.*.running.ipynb")
    )
    copy = copies[0].relative_to(project) if copies else Path("none")
    for number, cell in enumerate(_json(project, copy).get("cells", [])):
        if cell.get("metadata", {}).get("papermill", {}).get("status") == "running":
            lines = "".join(cell.get("source", "")).strip().splitlines() or [""]
            return f"cell {number} ({shown(lines[0][:80])})"
    return "no cell that it named: it had not begun, or wrote too much"


def _last_line(tail: str) -> str:
    lines = [line for line in tail.strip().splitlines() if line.strip()]
    return shown(lines[-1][:300]) if lines else "no cell: it ended without a word"


def _json(root: Path, path: Path) -> dict:
    """A file that foreign code may have written: no link, bounded, and {} if it is not
    what it should be.
    """
    if any((root / parent).is_symlink() for parent in path.parents):
        return {}
    try:
        values = read_json(root, path, MAX_RECORD)
    except SubmissionError:
        return {}
    return values if isinstance(values, dict) else {}


def findings_of(run: Rerun) -> list[Finding]:
    """What went wrong while the notebooks ran."""
    findings = list(run.findings)
    for row in run.notebooks:
        if row["status"] == "ran":
            continue
        # of a theme that is missing, another finding says so
        noted = row["status"] == "skipped" and not row["notebook"]
        says = f"Theme {row['theme']} {row['says']}."
        where = row["notebook"] or "notebooks/"
        findings.append(RERUN.finding("note" if noted else "fail", says, where))
    if run.notebooks and all(row["status"] == "ran" for row in run.notebooks):
        count = len(run.notebooks)
        says = f"{count} notebooks ran from nothing, each in a fresh kernel."
        findings.append(RERUN.passed(says))
    return findings
