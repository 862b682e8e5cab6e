"""`course.py pack`: the hand-in as one zip, secrets and pixel data left out, checked on
the way.

Ends with 0 when the zip was made (what the checks found is shown), 2 when there is
nothing to pack."""

import argparse
import hashlib
import os
import re
import tempfile
import zipfile
from collections import Counter
from pathlib import Path, PurePosixPath

import utils
from tools.grading.submission import (
    IGNORED,
    MIB,
    Finding,
    inputs_of,
    list_files,
    open_submission,
    shown,
    static_checks,
    worst_first,
)
from tools.shared.secrets import BINARY, is_secret_file, secrets_in

KIT = Path(__file__).resolve().parents[2]
MAX_LOG, MAX_FILE = 20 * MIB, 100 * MIB
# An allow-list, so that what nobody thought of stays at home. Of the project: what the
# group wrote, and what its code needs to run. The kit's tests and benchmarks stay out,
# as graders have their own.
PROJECT = re.compile(
    r"notebooks/[^/]+\.ipynb|[^/]+\.(py|md|pdf)|(?!tests|benchmarks)[^/]+/.+\.py|demo/.+\.(md|txt)|docs/.+\.md"
    r"|report/.+\.(typ|bib|toml)|tools/\w+/templates/.+\.(md|html|css)"
    r"|requirements[^/]*\.txt|constraints\.txt|LICENSE|Makefile|pyproject\.toml|\.github/workflows/[^/]+\.ya?ml"
)
# Of the home: the results that the record speaks of, and the report. TensorBoard's
# runs/ and the pixels stay out.
HOME = re.compile(
    r"course\.json|logs/[^/]+\.csv|data/[^/]+/index\.(csv|json)|exports/models/[^/]+\.onnx|exports/notebooks/theme[^/]+"
    r"|exports/[^/]+\.(onnx|trt|engine|json|csv|npz|md|txt)|exports/(figures|tables|predictions)/[^/]+\.(png|csv|npz)"
    r"|report/.+\.(pdf|typ|bib|toml|json|png|jpe?g|svg)"
)
CHECKPOINTS = {
    "checkpoints/baseline.pth",
    "checkpoints/best_model.pth",
    "checkpoints/model_retrained.pth",
}


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="course.py pack",
        description=__doc__.partition("\n\n")[0],
        epilog=__doc__.partition("\n\n")[2],
    )
    parser.add_argument(
        "--home", type=Path, help="folder of all artefacts (default: the project)"
    )
    parser.add_argument(
        "--project",
        type=Path,
        default=KIT,
        help="folder of notebooks and code (default: the kit)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        help="the zip (default: hand-in-<dataset>.zip in the home)",
    )
    return parser.parse_args(arguments)


def build(
    project: Path = KIT, home: Path | None = None, output: Path | None = None
) -> tuple[Path, list[Finding]]:
    """Pack a project and its home, and look at the zip as a grader will.

    The same files give the same bytes: names are sorted, and times are left out.

    Returns
    -------
    path of the zip, and the findings: what was left out, then what the static checks
    say of the zip, worst first.

    Raises
    ------
    utils.CourseError
        There is no record, or the zip cannot be written; an earlier zip is untouched.
    """
    project = Path(project).expanduser().resolve()
    home = Path(home).expanduser().resolve() if home else project
    record = utils.read_record(home)
    dataset = record.get("meta", {}).get("dataset")
    if dataset not in utils.DATASETS:
        raise utils.CourseError(
            f"{home} holds no results of a dataset: run"
            " notebooks/theme1_data_analysis.ipynb."
        )
    output = (
        Path(output).expanduser().resolve()
        if output
        else home / f"hand-in-{dataset}.zip"
    )
    chosen, findings = choose(project, home, record, output)
    with utils.atomic(output) as temporary:
        write(temporary, chosen)
    with tempfile.TemporaryDirectory() as work:
        seen = static_checks(open_submission(output, work))
    # what a group changed is for those to see who have the kit as it was
    if project == KIT:
        seen = [finding for finding in seen if finding.check != "kit files"]
    return output, worst_first(findings + seen)


def choose(
    project: Path, home: Path, record: dict, output: Path
) -> tuple[dict[str, Path], list[Finding]]:
    """What goes in, by name inside project/, and what was left out of it that a reader
    would look for.
    """
    needed = CHECKPOINTS | {
        name
        for section in record.values()
        for name in inputs_of(section)
        if re.fullmatch(r"checkpoints/[^/]+\.pth", name)
    }
    chosen, findings = {}, []
    links = [
        path.name
        for root in (project, home)
        for path in sorted(root.iterdir())
        if path.is_symlink() and path.is_dir() and path.name not in IGNORED
    ]
    findings += [
        _left_out(name, "it is a link to a folder, and links are not followed")
        for name in links
    ]
    for root, pattern, more in ((project, PROJECT, set()), (home, HOME, needed)):
        for path in candidates(root):
            name = path.as_posix()
            if is_secret_file(path):
                findings.append(_left_out(name, "it holds credentials", "fail"))
            elif (pattern.fullmatch(name) or name in more) and root / path != output:
                found = _problem(root, path)
                findings += found
                chosen |= {} if found else {name: root / path}
    return chosen, list(dict.fromkeys(findings)) + _machine(record, chosen)


def candidates(root: Path) -> list[Path]:
    """Regular files in the folders that the allow-lists name; nothing else is even
    looked at.
    """
    tops = {
        "notebooks",
        "demo",
        "docs",
        ".github",
        "checkpoints",
        "exports",
        "logs",
        "report",
    }
    tops |= {
        path.relative_to(root).parts[0]
        for depth in ("*/*.py", "*/*/*.py")
        for path in root.glob(depth)
    }
    found = []
    for top in sorted(tops - IGNORED):
        if (root / top).is_dir() and not (root / top).is_symlink():
            found += [Path(top) / path for path in list_files(root / top)[0]]
    found += [
        path.relative_to(root)
        for path in (root / "data").glob("*/index.*")
        if not path.is_symlink()
    ]
    found += [
        Path(path.name)
        for path in root.iterdir()
        if path.is_file() and not path.is_symlink()
    ]
    return sorted(
        path
        for path in found
        if not IGNORED.intersection(path.parts) and not _unfinished(path)
    )


def _unfinished(path: Path) -> bool:
    """Temporary and hidden files, and what a run that failed left behind."""
    hidden = any(part.startswith(".") for part in path.parts if part != ".github")
    return hidden and not is_secret_file(path) or ".failed" in path.name


def _problem(root: Path, path: Path) -> list[Finding]:
    """Why a file of the allow-list must stay out all the same."""
    name, size = path.as_posix(), (root / path).stat().st_size
    if shown(name) != name:
        return [
            _left_out(name, "its name holds characters that no other system can read")
        ]
    if size > (limit := MAX_LOG if path.parts[0] == "logs" else MAX_FILE):
        return [
            _left_out(name, f"it has {size / MIB:,.0f} MiB (limit: {limit / MIB:,.0f})")
        ]
    found = [] if path.suffix.lower() in BINARY else secrets_in(root, path)
    return [
        _left_out(where, f"{what[0].lower()}{what[1:]} stands in it", "fail")
        for what, where in found
    ]


def _left_out(where: str, why: str, verdict: str = "human") -> Finding:
    remedy = (
        "revoke it, remove it from the file, and pack again"
        if verdict == "fail"
        else "hand it in another way"
    )
    check = "secrets" if verdict == "fail" else "files"
    return Finding(
        check, verdict, f"Left out of the zip, as {why}: {remedy}.", shown(where), 0
    )


def _machine(record: dict, chosen: dict[str, Path]) -> list[Finding]:
    """Where the files tell of this machine. They are packed as they are: a record
    retouched is no record.
    """
    findings, source, own = (
        [],
        str(record["meta"].get("source")),
        os.path.expanduser("~"),
    )
    if source.startswith(("/", "~")) or re.match(r"[A-Za-z]:[\\/]", source):
        says = (
            f"The record names a folder of your machine ({shown(source)}): check that"
            " you may show it."
        )
        findings.append(Finding("absolute paths", "note", says, "course.json", 0))
    results = (
        name
        for name in sorted(chosen)
        if re.match(r"exports/.+\.(ipynb|json|txt)", name)
    )
    if telling := [
        name
        for name in results
        if len(own) > 1 and own.encode() in chosen[name].read_bytes()
    ]:
        says = (
            f"{len(telling)} files show your own folder, {shown(own)}: check that you"
            " may show it."
        )
        findings.append(Finding("absolute paths", "note", says, telling[0], 0))
    return findings


def write(path: Path, chosen: dict[str, Path]) -> None:
    """One folder, project/, with names in order and no times: the same files give the
    same bytes.
    """
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(chosen):
            about = zipfile.ZipInfo(
                str(PurePosixPath("project", name)), date_time=(1980, 1, 1, 0, 0, 0)
            )
            about.external_attr, about.create_system, about.compress_type = (
                0o644 << 16,
                3,
                zipfile.ZIP_DEFLATED,
            )
            archive.writestr(about, chosen[name].read_bytes())


def summary(path: Path, findings: list[Finding]) -> str:
    """What a group reads after packing: findings worst first, what remains, the zip
    with its size and hash.
    """
    marks = {"pass": "✓", "note": "·", "human": "?", "fail": "✗"}
    lines = [""]
    for finding in findings:
        lines += [f"{marks[finding.verdict]} {finding.check:<15} {finding.says}"]
        lines += (
            [f"{'':<18}{finding.where}"]
            if finding.where and finding.verdict != "pass"
            else []
        )
    left = sum(finding.verdict == "fail" for finding in findings)
    looks = sum(finding.verdict == "human" for finding in findings)
    with zipfile.ZipFile(path) as archive:
        parts = Counter(
            name.split("/")[1] if name.count("/") > 1 else "single files"
            for name in archive.namelist()
        )
    lines += [
        "",
        "In the zip: "
        + " · ".join(f"{part} {count}" for part, count in sorted(parts.items())),
        (
            f"Remains to do: {left} ✗ to correct, {looks} ? to look at."
            if left or looks
            else "Nothing remains."
        ),
        f"{path}  ({path.stat().st_size / MIB:.1f} MiB)",
        f"sha256 {hashlib.sha256(path.read_bytes()).hexdigest()}",
    ]
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    try:
        path, findings = build(options.project, options.home, options.output)
    except utils.CourseError as error:
        print(error)
        return 2
    print(summary(path, findings))
    return 0
