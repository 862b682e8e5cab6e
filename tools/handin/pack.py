"""The hand-in as one zip: what goes in, what stays at home, and what a grader would
find in it.
"""

import hashlib
import os
import re
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import utils
from kit.archive import MANGLED
from kit.home import on_colab
from kit.record import read_record
from tools.grading import static
from tools.grading.finding import Finding, worst_first
from tools.grading.submission import IGNORED, inputs_of, list_files, open_submission
from tools.shared.foreign import MIB, shown
from tools.shared.pictures import PRINTED, kind_of
from tools.shared.secrets import BINARY, is_secret_file, secrets_in

KIT = Path(__file__).resolve().parents[2]
MAX_LOG, MAX_FILE = 20 * MIB, 100 * MIB
MARKS = {"pass": "✓", "note": "·", "human": "?", "fail": "✗"}
# An allow-list, so that what nobody thought of stays at home. Of the project: what the
# group wrote, and what its code needs to run. The kit's tests and benchmarks stay out,
# as graders have their own.
OWN = r"(?!(tests|benchmarks|exports|logs|report)/)[^/]+/.+"  # inside a folder
PROJECT = "|".join(
    (
        r"(?!course\.json)[^/]+\.(py|md|pdf|toml|ya?ml|json)",
        r"(requirements|constraints)[^/]*\.txt|LICENSE|Makefile",
        OWN + r"\.(py|ipynb|md|txt|toml|ya?ml|json|css|html)",
        r"report/.+\.(typ|bib|toml)",
        r"\.github/workflows/[^/]+\.ya?ml",
    )
)
# Of the home: the results that the record speaks of, and the report. TensorBoard's
# runs/ and the pixels stay out.
HOME = "|".join(
    (
        r"course\.json|my_code\.py",
        r"logs/[^/]+\.csv",
        r"data/[^/]+/index\.(csv|json)",
        r"exports/models/[^/]+\.onnx",
        r"exports/notebooks/theme[^/]+",
        r"exports/[^/]+\.(onnx|trt|engine|json|csv|npz|md|txt)",
        r"exports/(figures|tables|predictions)/[^/]+\.(png|csv|npz)",
        r"report/.+\.(pdf|typ|bib|toml|json|csv|md|txt)",
        r"checkpoints/(baseline|best_model|model_retrained)\.pth",
    )
)
# Of pictures, whatever the ending of their names, those that the report prints; in
# these folders of the project, and in these of the home.
PROJECT_PICTURES = r"(demo|docs|screenshots)/.+"
HOME_PICTURES = r"(report(?!/fonts)|exports/figures)/.+"
# What the system, or an office program, leaves beside the files that it shows.
LITTER = re.compile(r"(?i)thumbs\.db|desktop\.ini|icon\r|~\$.*|.*~|.*\.(bak|tmp|swp)")
# Folders that are looked into without any code in them.
NAMED = set(
    "notebooks demo docs screenshots config configs .github"
    " checkpoints exports logs report".split()
)


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
    record = read_record(home)
    dataset = record.get("meta", {}).get("dataset")
    if dataset not in utils.DATASETS:
        raise utils.CourseError(
            f"{home} holds no results of a dataset: run"
            " notebooks/theme1_data_analysis.ipynb."
        )
    output = Path(output or home / f"hand-in-{dataset}.zip").expanduser().resolve()
    chosen, findings = choose(project, home, record, output)
    with utils.atomic(output) as temporary:
        write(temporary, chosen)
    with tempfile.TemporaryDirectory() as work:
        seen = static.checks(open_submission(output, work))
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
    needed = {name for section in record.values() for name in inputs_of(section)}
    needed = {name for name in needed if re.fullmatch(r"checkpoints/[^/]+\.pth", name)}
    chosen, findings = {}, []
    for root in (project, home):
        for path in sorted(root.iterdir()):
            if path.is_symlink() and path.is_dir() and path.name not in IGNORED:
                why = "it is a link to a folder, and links are not followed"
                findings.append(_left_out(path.name, why))
    for root, pattern, pictures, more in (
        (project, PROJECT, PROJECT_PICTURES, set()),
        (home, HOME, HOME_PICTURES, needed),
    ):
        for path in candidates(root):
            name = path.as_posix()
            if is_secret_file(path):
                findings.append(_left_out(name, "it holds credentials", "fail"))
            elif root / path == output:
                continue
            elif name in more or _is_taken(root, path, pattern, pictures):
                if problems := list(_problems(root, path)):
                    findings += problems
                else:
                    chosen[name] = root / path
            elif re.fullmatch(pictures, name) and not LITTER.fullmatch(path.name):
                why = "it is neither text nor a PNG, JPEG, GIF, WebP, SVG or PDF"
                findings.append(_left_out(name, why))
    return chosen, list(dict.fromkeys(findings)) + _machine(record, chosen)


def _is_taken(root: Path, path: Path, pattern: str, pictures: str) -> bool:
    """By its name; in a folder of pictures, by what it holds."""
    name = path.as_posix()
    if re.fullmatch(pattern, name, re.IGNORECASE):
        return True
    return bool(re.fullmatch(pictures, name)) and kind_of(root / path) in PRINTED


def candidates(root: Path) -> list[Path]:
    """Regular files of the folders that are named or hold code; nothing else is even
    looked at, and no other run that lies there.
    """
    code = [*root.glob("*/*.py"), *root.glob("*/*/*.py")]
    tops = NAMED | {path.relative_to(root).parts[0] for path in code}
    found = [Path(path.name) for path in root.iterdir()]
    found += [path.relative_to(root) for path in (root / "data").glob("*/index.*")]
    found = [path for path in found if _is_regular(root / path)]
    for top in tops - IGNORED:
        folder = root / top
        a_run = (folder / "course.json").exists() or (folder / "check.json").exists()
        if folder.is_dir() and not folder.is_symlink() and not a_run:
            found += [Path(top) / path for path in list_files(folder)[0]]
    return sorted(
        path
        for path in set(found)
        if not IGNORED.intersection(path.parts) and not _unfinished(path)
    )


def _is_regular(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _unfinished(path: Path) -> bool:
    """Temporary and hidden files, and what a run that failed left behind."""
    hidden = any(part.startswith(".") for part in path.parts if part != ".github")
    return hidden and not is_secret_file(path) or ".failed" in path.name


def _problems(root: Path, path: Path) -> Iterator[Finding]:
    """Why a file of the allow-list must stay out all the same."""
    name, size = path.as_posix(), (root / path).stat().st_size
    limit = MAX_LOG if path.parts[0] == "logs" else MAX_FILE
    if MANGLED.search(name):
        why = "its name holds characters that no other system can read"
        yield _left_out(name, why)
    elif size > limit:
        why = f"it has {size / MIB:,.0f} MiB (limit: {limit / MIB:,.0f})"
        yield _left_out(name, why)
    elif path.suffix.lower() not in BINARY:
        for leak in secrets_in(root, path):
            why = f"{leak.what[0].lower()}{leak.what[1:]} stands in it"
            if leak.sure:
                yield _left_out(leak.where, why, "fail")


def _left_out(where: str, why: str, verdict: str = "human") -> Finding:
    check, remedy = "files", "hand it in another way"
    if verdict == "fail":
        check = "secrets"
        remedy = "revoke it, remove it from the file, and pack again"
    says = f"Left out of the zip, as {why}: {remedy}."
    return Finding(check, verdict, says, shown(where), 0)


def _machine(record: dict, chosen: dict[str, Path]) -> list[Finding]:
    """Where the files tell of this machine. They are packed as they are: a record
    retouched is no record.
    """
    findings, own = [], os.path.expanduser("~")
    source = str(record["meta"].get("source"))
    if re.match(r"[/~]|[A-Za-z]:[\\/]", source):
        says = (
            f"The record names a folder of your machine ({shown(source)}): check that"
            " you may show it."
        )
        findings.append(Finding("absolute paths", "note", says, "course.json", 0))
    results = [
        name
        for name in sorted(chosen)
        if re.match(r"exports/.+\.(ipynb|json|txt)", name)
        and own.encode() in chosen[name].read_bytes()
    ]
    if results and len(own) > 1:
        says = (
            f"{len(results)} files show your own folder, {shown(own)}: check that you"
            " may show it."
        )
        findings.append(Finding("absolute paths", "note", says, results[0], 0))
    return findings


def write(path: Path, chosen: dict[str, Path]) -> None:
    """One folder, project/, with names in order and no times: the same files give the
    same bytes.
    """
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(chosen):
            inside = str(PurePosixPath("project", name))
            about = zipfile.ZipInfo(inside, date_time=(1980, 1, 1, 0, 0, 0))
            about.external_attr = 0o644 << 16
            about.create_system = 3
            about.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(about, chosen[name].read_bytes())


def hand_in(home: Path) -> None:
    """Pack the kit with this home, say what was found, and on Colab offer the zip."""
    archive, findings = build(home=home)
    print(summary(archive, findings))
    if on_colab():
        from google.colab import files

        files.download(str(archive))


def summary(path: Path, findings: list[Finding]) -> str:
    """What a group reads after packing: findings worst first, what remains, the zip
    with its size and hash.
    """
    lines = [""]
    for finding in findings:
        lines.append(f"{MARKS[finding.verdict]} {finding.check:<15} {finding.says}")
        if finding.where and finding.verdict != "pass":
            lines.append(f"{'':<18}{finding.where}")
    verdicts = Counter(finding.verdict for finding in findings)
    with zipfile.ZipFile(path) as archive:
        names = [name.split("/")[1:] for name in archive.namelist()]
    parts = Counter(name[0] if len(name) > 1 else "single files" for name in names)
    counts = " · ".join(f"{part} {count}" for part, count in sorted(parts.items()))
    remains = "Nothing remains."
    if verdicts["fail"] or verdicts["human"]:
        remains = (
            f"Remains to do: {verdicts['fail']} ✗ to correct, {verdicts['human']} ? to"
            " look at."
        )
    lines += [
        "",
        f"In the zip: {counts}",
        remains,
        f"{path}  ({path.stat().st_size / MIB:.1f} MiB)",
        f"sha256 {hashlib.sha256(path.read_bytes()).hexdigest()}",
    ]
    return "\n".join(lines)
