"""Static checks of a submission: everything that can be seen without running a line of
it.
"""

import ast
import json
import math
import re
import shlex
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import utils
from tools.grading.consistency import contradictions
from tools.grading.parsing import (
    MAX_NOTEBOOK,
    NOT_PYTHON,
    Cell,
    Notebook,
    Source,
    parse_cell,
    read_notebook,
)
from tools.grading.pdf import PAGES, SECTIONS, read_pdf, section_of
from tools.grading.submission import (
    MIB,
    Finding,
    Submission,
    SubmissionError,
    few,
    inputs_of,
    is_artefact,
    is_check,
    is_code,
    is_report,
    read,
    shown,
    worst_first,
)
from tools.shared.secrets import (
    ARCHIVES,
    BINARY,
    is_secret_file,
    secrets_in,
    secrets_in_zip,
)

THEMES = {
    1: "data_analysis",
    2: "baseline_model",
    3: "optimization",
    4: "onnx_deployment",
    5: "monitoring",
    6: "drift_detection",
    7: "retraining",
    8: "synthesis",
}
MAX_MODEL, MAX_TEXT = 500 * MIB, 20 * MIB
# all files together
MAX_SEARCHED, MAX_NOTEBOOKS, MAX_MODULES = 64 * MIB, 256 * MIB, 32 * MIB
MAX_SECONDS = 40  # of parsing


# --------------------------------------------------------------------------------------
# Reading: notebooks and modules, each once
# --------------------------------------------------------------------------------------


@dataclass
class Look:
    """A submission with what several checks need, read once."""

    submission: Submission
    unreadable: list[Finding] = field(default_factory=list)
    notebook_bytes: int = 0

    @property
    def root(self) -> Path:
        return self.submission.root

    @cached_property
    def paths(self) -> set[str]:
        return {path.as_posix() for path in self.submission.files}

    def read(self, path: Path | str, most: int = MAX_TEXT) -> bytes:
        return read(self.root, Path(path), most)

    def size(self, path: Path | str) -> int:
        try:
            return (self.root / path).lstat().st_size
        except OSError:
            return 0

    def themes(self, folder: str) -> dict[int, Path]:
        """Path of each theme's notebook in a folder; of several, the first by name."""
        found = {}
        for path in self.submission.files:
            theme = re.match(r"theme[ _-]?([1-8])(?!\d)", path.name, re.IGNORECASE)
            if (
                path.parent == Path(folder)
                and path.suffix == ".ipynb"
                and theme
                and ".failed" not in path.name
            ):
                found.setdefault(int(theme[1]), path)
        return dict(sorted(found.items()))

    @cached_property
    def places(self) -> dict[int, Path]:
        """Path of each theme's notebook, in notebooks/ or beside it."""
        return self.themes(".") | self.themes("notebooks")

    @cached_property
    def notebooks(self) -> dict[int, Notebook]:
        return self._opened(self.places)

    @cached_property
    def executed(self) -> dict[int, Notebook]:
        return self._opened(self.themes("exports/notebooks"))

    @cached_property
    def others(self) -> list[Notebook]:
        """Notebooks that belong to no theme, or are a theme's second one."""
        extra = [
            path
            for path in self.submission.files
            if path.suffix == ".ipynb" and is_code(path)
        ]
        extra = [path for path in extra if path not in self.places.values()]
        return list(self._opened(dict(enumerate(extra))).values())

    def _opened(self, places: dict[int, Path]) -> dict[int, Notebook]:
        found = {}
        for theme, path in places.items():
            try:
                self.notebook_bytes += (
                    self.size(path) if self.size(path) <= MAX_NOTEBOOK else 0
                )
                if self.notebook_bytes > MAX_NOTEBOOKS:
                    raise SubmissionError(
                        "Not read, as the notebooks together are too large: clear their"
                        " outputs."
                    )
                found[theme] = read_notebook(self.root, path)
            except SubmissionError as error:
                self.unreadable.append(
                    Finding("notebooks", "fail", str(error), shown(path))
                )
        return found

    @cached_property
    def modules(self) -> dict[Path, str]:
        """Text of each Python module of the submission."""
        found, total = {}, 0
        for path in (
            path
            for path in self.submission.files
            if path.suffix == ".py" and is_code(path)
        ):
            try:
                if (total := total + self.size(path)) > MAX_MODULES:
                    raise SubmissionError(
                        "Not read, as the modules together are too large to be written"
                        " by hand."
                    )
                found[path] = self.read(path, MIB).decode(errors="replace")
            except SubmissionError as error:
                self.unreadable.append(
                    Finding("required files", "human", str(error), shown(path))
                )
        return found

    @cached_property
    def sources(self) -> list[Source]:
        """Python that the group may have written: cells, and modules that are not the
        kit's own.
        """
        found, self.until = [], time.monotonic() + MAX_SECONDS
        for notebook in [*self.notebooks.values(), *self.others]:
            for cell in notebook.code:
                if "injected-parameters" not in cell.tags:
                    self._parse(found, notebook.path, cell, cell.source)
        for path, text in self.modules.items():
            if text != _kit_text(path):
                self._parse(found, path, None, text)
        return found

    def _parse(
        self, found: list[Source], path: Path, cell: Cell | None, text: str
    ) -> None:
        try:
            if time.monotonic() > self.until:
                raise ValueError("the files before it took too long")
            tree = parse_cell(text) if cell else ast.parse(text)
            found.append(Source(path, cell, tree, list(ast.walk(tree))))
        except (*NOT_PYTHON, RuntimeError) as error:
            # RuntimeError: IPython gives up on hundreds of magics
            where = f"{shown(path)}, cell {cell.number}" if cell else shown(path)
            says = (
                "This does not parse as Python"
                f" ({shown(error) or type(error).__name__}): correct it and run it."
            )
            self.unreadable.append(
                Finding("notebooks" if cell else "required files", "human", says, where)
            )


def _kit_text(path: Path) -> str | None:
    """The kit's own file of that name, if there is one."""
    file = utils.KIT / path
    return (
        file.read_text(encoding="utf-8")
        if path.suffix == ".py" and file.is_file()
        else None
    )


# --------------------------------------------------------------------------------------
# Required files and notebooks
# --------------------------------------------------------------------------------------

REQUIRED = {  # what the course asks for: who makes it, and the criterion it serves
    "utils.py": ("copy it from the kit", 2),
    "models/baseline_cnn.py": ("copy it from the kit", 2),
    "models/optimized_cnn.py": ("copy it from the kit", 2),
    "checkpoints/best_model.pth": ("run theme 3", 2),
    "checkpoints/model_retrained.pth": ("run theme 7", 2),
    "exports/model.onnx": ("run theme 4", 2),
    "requirements.txt": ("copy it from the kit and add what you import", 2),
    "README.md": ("write how your results are reproduced", 4),
}


def required_files(look: Look) -> list[Finding]:
    """The layout that the course text recommends; TensorRT is a bonus, and the report
    has a check of its own.
    """
    findings = []
    for theme, name in THEMES.items():
        if theme not in look.places:
            says = (
                f"Theme {theme} is missing: hand in"
                f" notebooks/theme{theme}_{name}.ipynb."
            )
            findings.append(Finding("required files", "fail", says, "notebooks", 1))
    for path, (remedy, criterion) in REQUIRED.items():
        if path not in look.paths:
            findings.append(
                Finding(
                    "required files",
                    "fail",
                    f"{path} is missing: {remedy}.",
                    path,
                    criterion,
                )
            )
        elif look.size(path) == 0:
            findings.append(
                Finding(
                    "required files",
                    "fail",
                    f"{path} is empty: {remedy}.",
                    path,
                    criterion,
                )
            )
    if not findings:
        findings.append(
            Finding(
                "required files",
                "pass",
                "All eight themes and all required files are there.",
                criterion=1,
            )
        )
    if any(
        path.startswith("exports/") and path.endswith((".trt", ".engine"))
        for path in look.paths
    ):
        findings.append(
            Finding(
                "required files",
                "note",
                "A TensorRT engine is there (bonus): see theme 4.",
                "exports",
                2,
            )
        )
    return findings


def notebooks(look: Look) -> list[Finding]:
    """Each notebook is clean, or was executed from top to bottom in a fresh kernel."""
    findings, states, unproven = [], Counter(), []
    for theme, notebook in look.notebooks.items():
        state, found = _execution(notebook)
        if state == "clean" and theme in look.executed:
            copy = look.executed[theme]
            state, found = _execution(copy)
            found += _same_code(notebook, copy)
        elif state == "clean":
            unproven.append(str(theme))
        states[state] += not found
        findings += found
    if unproven:
        says = (
            f"Themes {', '.join(unproven)}: clean, and no executed copy shows that they"
            " run."
        )
        findings.append(Finding("notebooks", "note", says, "notebooks"))
    for notebook in look.others:
        findings += _execution(notebook)[1]
    for state, count in states.items():
        if count:
            says = (
                f"{count} {state}"
                if state != "executed"
                else f"{count} executed from top to bottom, without errors"
            )
            findings.append(Finding("notebooks", "pass", f"Notebooks: {says}."))
    look.sources  # noqa: B018 - cells that do not parse are this check's to say
    return findings + [
        finding for finding in look.unreadable if finding.check == "notebooks"
    ]


def _execution(notebook: Notebook) -> tuple[str, list[Finding]]:
    """'clean', 'executed' or 'partly', and what is wrong with it."""

    def finding(verdict: str, cell: Cell, says: str) -> Finding:
        return Finding(
            "notebooks", verdict, says, f"{shown(notebook.path)}, cell {cell.number}"
        )

    counts = [cell.count for cell in notebook.code]
    if not any(counts) and not any(cell.outputs for cell in notebook.code):
        return "clean", []
    found = []
    for cell in notebook.code:
        for output in (
            output for output in cell.outputs if output.get("output_type") == "error"
        ):
            error = shown(f"{output.get('ename')}: {output.get('evalue')}"[:120])
            found.append(
                finding(
                    "fail",
                    cell,
                    f"This cell ended with {error}. Correct it and run the whole"
                    " notebook.",
                )
            )
    if never := [cell for cell in notebook.code if cell.count is None]:
        says = (
            f"Cells that were not run: {len(never)}, this one first. Choose Restart and"
            " run all."
        )
        found.append(finding("human", never[0], says))
    run = [cell for cell in notebook.code if cell.count is not None]
    for before, cell in zip(run, run[1:], strict=False):
        if cell.count <= before.count:
            says = (
                f"Out of order: this cell ran as [{cell.count}], the one above as"
                f" [{before.count}]."
            )
            found.append(finding("fail", cell, f"{says} Choose Restart and run all."))
    if (
        not never
        and not found
        and (gap := [cell for n, cell in enumerate(run, 1) if cell.count != n])
    ):
        says = (
            "In order, but not in one go from a fresh kernel (this cell is"
            f" [{gap[0].count}]): restart and run all."
        )
        found.append(finding("human", gap[0], says))
    return "partly executed" if never else "executed", found


# a newer kit changes it, which changes no result
BOOTSTRAP = "# Bootstrap, the same in all notebooks"


def _same_code(notebook: Notebook, copy: Notebook) -> list[Finding]:
    """The executed copy must be of this very code, less the cell with the runner's
    parameters.
    """
    ours = [
        cell.source.strip()
        for cell in notebook.code
        if not cell.source.startswith(BOOTSTRAP)
    ]
    ran = [
        cell.source.strip()
        for cell in copy.code
        if "injected-parameters" not in cell.tags
        and not cell.source.startswith(BOOTSTRAP)
    ]
    if ours == ran:
        return []
    differ = sum((Counter(ours) - Counter(ran)).values()) or sum(
        (Counter(ran) - Counter(ours)).values()
    )
    says = (
        f"The executed copy is of other code (differing cells: {differ or 'order'}):"
        " run the theme again."
    )
    return [Finding("notebooks", "human", says, shown(copy.path))]


# --------------------------------------------------------------------------------------
# Environment: what is imported must be declared
# --------------------------------------------------------------------------------------

DISTRIBUTIONS = {
    "PIL": "pillow",
    "sklearn": "scikit-learn",
    "skimage": "scikit-image",
    "cv2": "opencv-python",
    "yaml": "pyyaml",
    "bs4": "beautifulsoup4",
    "mpl_toolkits": "matplotlib",
    "dateutil": "python-dateutil",
    "umap": "umap-learn",
    "dotenv": "python-dotenv",
    "tensorrt": "tensorrt-cu12",
    "pytorch_lightning": "pytorch-lightning",
}
# a notebook's own
ALWAYS_THERE = {
    "google",
    "IPython",
    "ipykernel",
    "ipywidgets",
    "pip",
    "setuptools",
    "__main__",
}


def environment(look: Look) -> list[Finding]:
    """Versions are pinned, and all that is imported is declared."""
    requirements, findings = _requirements(look)
    findings += [_pinned(look, requirements)]
    installed = _installed_in_cells(look)
    for name, source in installed.items():
        says = (
            f"{shown(name)} is installed by a cell: add it to requirements.txt, with"
            " its version."
        )
        findings.append(Finding("environment", "note", says, source))
    declared = _with_dependencies({*requirements, *installed})
    undeclared, optional = _undeclared(look, declared)
    for name, places in undeclared.items():
        more = f" (and {len(places) - 1} more times)" if len(places) > 1 else ""
        says = (
            f"{shown(name)} is imported{more} and not in requirements.txt: add it, with"
            " its version."
        )
        findings.append(Finding("environment", "fail", says, places[0]))
    for name, places in optional.items():
        says = f"{shown(name)} is used if it is there, and is not in the requirements."
        findings.append(Finding("environment", "note", says, places[0]))
    if look.sources and not undeclared:
        findings.append(
            Finding("environment", "pass", "Everything that is imported is declared.")
        )
    return findings


def _requirements(look: Look) -> tuple[dict[str, bool], list[Finding]]:
    """Names in requirements*.txt, and whether each is pinned with ==."""
    from packaging.requirements import InvalidRequirement, Requirement

    found, findings = {}, []
    for path in look.submission.files:
        if not (
            is_code(path)
            and re.fullmatch(r"requirements.*\.txt", path.name)
            and len(path.parts) <= 2
        ):
            continue
        for number, line in enumerate(
            look.read(path, MIB).decode(errors="replace").splitlines(), 1
        ):
            line = re.sub(r"(^|\s)#.*", "", line).strip()
            if not line or line.startswith("-"):
                continue
            try:
                requirement = Requirement(line)
                found[_plain(requirement.name)] = any(
                    part.operator == "==" for part in requirement.specifier
                )
            except InvalidRequirement:
                says = (
                    f"pip does not understand {shown(line[:60])!r}: correct this line."
                )
                findings.append(
                    Finding(
                        "environment", "fail", says, f"{shown(path)}, line {number}"
                    )
                )
    return found, findings


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _pinned(look: Look, requirements: dict[str, bool]) -> Finding:
    pins = 0
    if "constraints.txt" in look.paths:
        pins = len(
            re.findall(
                rb"^[\w.-]+\s*==", look.read("constraints.txt", MIB), re.MULTILINE
            )
        )
    if pins:
        return Finding(
            "environment",
            "pass",
            f"constraints.txt pins {pins} packages.",
            "constraints.txt",
        )
    if requirements and all(requirements.values()):
        return Finding(
            "environment",
            "pass",
            "requirements.txt pins every package.",
            "requirements.txt",
        )
    if "exports/environment.txt" in look.paths:
        says = (
            "Nothing is pinned, but exports/environment.txt names the versions of the"
            " run: add constraints.txt."
        )
        return Finding("environment", "note", says, "exports/environment.txt")
    says = (
        "No version is pinned: hand in constraints.txt (`pip freeze >"
        " constraints.txt`)."
    )
    return Finding("environment", "fail", says, "requirements.txt")


def _calls(source: Source, *names: str) -> Iterator[ast.Call]:
    """Calls of a function or method of one of these names."""
    for node in source.nodes:
        if isinstance(node, ast.Call):
            name = getattr(node.func, "attr", getattr(node.func, "id", None))
            if name in names:
                yield node


def _commands(source: Source) -> Iterator[tuple[ast.Call, str]]:
    """Shell lines and magics of a cell, as text."""
    for call in _calls(
        source, "system", "getoutput", "run_line_magic", "run_cell_magic"
    ):
        words = [
            part.value
            for part in call.args
            if isinstance(part, ast.Constant) and isinstance(part.value, str)
        ]
        yield call, " ".join(words)


def _installed_in_cells(look: Look) -> dict[str, str]:
    """Packages that cells install with pip, and where."""
    found = {}
    for source in look.sources:
        for call, command in _commands(source) if source.cell else ():
            if match := re.search(r"\bpip3?\s+install\s+([^\n;&|]+)", command):
                try:
                    words = shlex.split(match[1])
                except ValueError:
                    words = match[1].split()
                for word in (word for word in words if re.match(r"[A-Za-z]", word)):
                    found.setdefault(
                        _plain(re.split(r"[\[<>=!~; @]", word)[0]), source.where(call)
                    )
    return found


def _with_dependencies(names: set[str]) -> set[str]:
    """Those names and what they bring with them, as far as this machine knows."""
    found, waiting = set(), list(names)
    while waiting:
        if (name := waiting.pop()) not in found:
            found.add(name)
            waiting += _needs(name)
    return found


@cache
def _needs(name: str) -> list[str]:
    """What an installed package asks for, extras aside."""
    from packaging.requirements import Requirement

    try:
        needs = map(Requirement, metadata.requires(name) or ())
    except metadata.PackageNotFoundError:
        return []
    return [
        _plain(need.name)
        for need in needs
        if not need.marker or need.marker.evaluate({"extra": ""})
    ]


@cache
def _providers() -> dict[str, list[str]]:
    """Which installed packages bring a module: it takes a second to find out."""
    return dict(metadata.packages_distributions())


def _undeclared(
    look: Look, declared: set[str]
) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Imported packages that no requirement covers, with the places; those that may be
    absent apart.
    """
    known, undeclared, optional = _providers(), {}, {}
    for source in look.sources:
        local = _local_modules(look, source.path) | _imports_of_kit(source.path)
        guarded = _guarded(source)
        for node in source.nodes:
            for name in _imported(node):
                if (
                    name in local
                    or name in sys.stdlib_module_names
                    or name in ALWAYS_THERE
                ):
                    continue
                candidates = {
                    *map(_plain, known.get(name, ())),
                    _plain(DISTRIBUTIONS.get(name, name)),
                }
                if not candidates & declared:
                    package = DISTRIBUTIONS.get(name) or next(
                        iter(known.get(name, ())), name
                    )
                    where = source.where(node)
                    (optional if node in guarded else undeclared).setdefault(
                        package, []
                    ).append(where)
    return undeclared, {
        name: places for name, places in optional.items() if name not in undeclared
    }


@cache
def _imports_of_kit(path: Path) -> set[str]:
    """What the kit's own file of that name imports: another version of it is no fault
    of the group's.
    """
    text = _kit_text(path)
    return (
        {name for node in ast.walk(ast.parse(text)) for name in _imported(node)}
        if text
        else set()
    )


def _imported(node: ast.AST) -> list[str]:
    """Top-level names of an import statement."""
    if isinstance(node, ast.Import):
        return [alias.name.partition(".")[0] for alias in node.names]
    absolute = isinstance(node, ast.ImportFrom) and node.module and not node.level
    return [node.module.partition(".")[0]] if absolute else []


def _guarded(source: Source) -> set[ast.AST]:
    """Import statements whose failure is caught."""
    tries = [node for node in source.nodes if isinstance(node, ast.Try)]
    return {
        inner
        for node in tries
        for statement in node.body
        for inner in ast.walk(statement)
        if _imported(inner)
    }


def _local_modules(look: Look, path: Path) -> set[str]:
    """Modules and packages of the submission that a file finds at its root or beside
    itself.
    """
    names = set()
    for module in look.modules:
        for base in (Path(), Path("notebooks"), path.parent):
            if module.is_relative_to(base):
                names.add(module.relative_to(base).parts[0].removesuffix(".py"))
    return names


# --------------------------------------------------------------------------------------
# Seeds
# --------------------------------------------------------------------------------------


def seeds(look: Look) -> list[Finding]:
    """SEED of every notebook is that of the record, and it reaches the course."""
    recorded, findings = look.submission.story.get("seed"), []
    for theme, notebook in look.notebooks.items():
        sources = [source for source in look.sources if source.path == notebook.path]
        values = [
            (value, source, node)
            for source in sources
            for value, node in _seed_values(source.tree)
        ]
        findings += _seeding(theme, notebook, sources, values)
        injected = _injected_seed(look.executed.get(theme))
        for value, source, node in values[:1]:
            if recorded is not None and value != recorded and injected != recorded:
                says = (
                    f"SEED is {value} here and {recorded} in the record: write"
                    f" {recorded} and run theme {theme}."
                )
                findings.append(Finding("seeds", "fail", says, source.where(node)))
        for value, source, node in values[1:]:
            says = (
                f"SEED changes to {value} in the middle of the notebook: keep one seed."
            )
            findings.append(Finding("seeds", "human", says, source.where(node)))
    if look.notebooks and not findings:
        same = f" ({recorded}, as in the record)" if recorded is not None else ""
        findings.append(
            Finding("seeds", "pass", f"Every notebook fixes its seed{same}.")
        )
    return findings


def _seeding(
    theme: int, notebook: Notebook, sources: list[Source], values: list
) -> list[Finding]:
    """Whether the seed is set at all: through utils.start, or by the
    group's own calls.
    """
    starts = [
        call
        for source in sources
        for call in _calls(source, "start")
        if _passes_seed(call)
    ]
    own = [
        call
        for source in sources
        for call in _calls(source, "manual_seed", "set_seed", "seed_everything")
    ]
    if starts and values:
        return []
    if own or starts:
        says = (
            f"Theme {theme} sets a seed, but not through SEED and utils.start: look"
            " whether all sources are fixed."
        )
        return [Finding("seeds", "human", says, shown(notebook.path))]
    says = f"Theme {theme} fixes no seed: define SEED and pass it to utils.start."
    return [Finding("seeds", "fail", says, shown(notebook.path))]


def _passes_seed(call: ast.Call) -> bool:
    return any(keyword.arg == "seed" for keyword in call.keywords)


def _seed_values(tree: ast.Module) -> list[tuple[int, ast.AST]]:
    """Whole numbers that top-level statements assign to SEED."""
    found = []
    for node in tree.body:
        targets = getattr(node, "targets", [getattr(node, "target", None)])
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and "SEED" in [
            getattr(name, "id", "") for name in targets
        ]:
            if isinstance(node.value, ast.Constant) and type(node.value.value) is int:
                found.append((node.value.value, node))
    return found


def _injected_seed(notebook: Notebook | None) -> int | None:
    """The seed that the runner gave to an executed copy."""
    for cell in notebook.code if notebook else ():
        if "injected-parameters" in cell.tags:
            try:
                return next(
                    (value for value, _ in _seed_values(parse_cell(cell.source))), None
                )
            except NOT_PYTHON:
                return None
    return None


# --------------------------------------------------------------------------------------
# Report
# --------------------------------------------------------------------------------------


def report(look: Look) -> list[Finding]:
    """A PDF of 40 to 100 pages with the twelve sections in order; a draft is said to be
    one, and is no failure.
    """
    path = _report_file(look)
    if path is None:
        says = (
            "There is no report: write report/sections/*.typ and run `python course.py"
            " report`."
        )
        return [Finding("report", "fail", says, "report", 1)]
    try:
        pages, headings = read_pdf(look.read(path, 200 * MIB))
    except ImportError:
        says = (
            "Pages and sections were not looked at, as pypdf is not installed: `pip"
            " install pypdf`."
        )
        return [Finding("report", "human", says, shown(path), 1)]
    except SubmissionError as error:
        return [Finding("report", "fail", str(error), shown(path), 1)]
    low, high = PAGES
    verdict, advice = (
        ("pass", "")
        if low <= pages <= high
        else ("human", f": the course asks for {low} to {high}")
    )
    findings = [
        Finding(
            "report", verdict, f"The report has {pages} pages{advice}.", shown(path), 1
        )
    ]
    return findings + _sections(pages, headings, shown(path)) + _draft(look, pages)


def _report_file(look: Look) -> Path | None:
    """The report: where the kit writes it, else the PDF (two folders down at most) of
    that name, else the largest.
    """
    pdfs = [
        path
        for path in look.submission.files
        if path.suffix.lower() == ".pdf" and len(path.parts) <= 3
    ]
    pdfs.sort(
        key=lambda path: (
            path != Path("report/report.pdf"),
            not re.search("report|rapport", path.name.lower()),
            -look.size(path),
        )
    )
    return pdfs[0] if pdfs else None


def _sections(pages: int, headings: list[tuple[str, int]], where: str) -> list[Finding]:
    """Missing sections, their order, and their lengths against the budget of the
    course.
    """
    begins = {}
    for title, page in headings:
        if (number := section_of(title)) is not None:
            # The last heading of that name after the sections before it: "Conclusion"
            # may close a theme, too.
            begins[number] = (
                page if number == 10 or number not in begins else begins[number]
            )
    findings = []
    if missing := [
        title for n, (title, _, _) in enumerate(SECTIONS) if n not in begins
    ]:
        says = (
            f"No heading was found for {', '.join(missing)}: look whether they are"
            " there, under another name."
        )
        findings.append(Finding("report", "human", says, where, 1))
    order = [begins[n] for n in sorted(begins)]
    if order != sorted(order):
        return [
            *findings,
            Finding(
                "report",
                "human",
                "The sections are not in the order of the course.",
                where,
                1,
            ),
        ]
    ends = {n: begins.get(n + 1) for n in begins}
    lengths = {
        n: max(end - begins[n], 1) for n, end in ends.items() if end and SECTIONS[n][2]
    }
    off = [
        f"{SECTIONS[n][0]} {pages} (asked: {SECTIONS[n][2][0]}–{SECTIONS[n][2][1]})"
        for n, pages in lengths.items()
        if not SECTIONS[n][2][0] <= pages <= SECTIONS[n][2][1]
    ]
    if off:
        findings.append(
            Finding(
                "report",
                "note",
                f"Pages outside the budget: {'; '.join(off)}.",
                where,
                1,
            )
        )
    if not missing:
        findings.append(
            Finding(
                "report", "pass", "The twelve sections are there, in order.", where, 1
            )
        )
    return findings


def _draft(look: Look, pages: int) -> list[Finding]:
    """What `course.py report` said when it built the PDF."""
    path = "report/report.json"
    try:
        told = json.loads(look.read(path, MIB)) if path in look.paths else {}
    except (ValueError, RecursionError, SubmissionError):
        return [
            Finding(
                "report",
                "note",
                "report.json is damaged: run `python course.py report` again.",
                path,
                1,
            )
        ]
    if not isinstance(told, dict) or not told:
        return []
    left = told.get("placeholders")
    left = len(left) if isinstance(left, list) else left if isinstance(left, int) else 0
    findings = []
    if told.get("draft") or left:
        what = (
            f"{left} placeholders left: write them"
            if left
            else "notices or missing figures: see what it prints"
        )
        says = f"Still a draft, with {what}, then run `python course.py report` again."
        findings.append(Finding("report", "human", says, path, 1))
    if errors := told.get("errors"):
        count = len(errors) if isinstance(errors, list) else "Some"
        says = (
            f"{count} sections have Typst errors: correct what the boxes in the PDF"
            " say."
        )
        findings.append(Finding("report", "human", says, path, 4))
    if isinstance(told.get("pages"), int) and told["pages"] != pages:
        says = (
            "report.json belongs to another PDF: run `python course.py report` again."
        )
        findings.append(Finding("report", "note", says, path, 1))
    return findings


# --------------------------------------------------------------------------------------
# Secrets and absolute paths
# --------------------------------------------------------------------------------------


def secrets(look: Look) -> list[Finding]:
    """Keys, tokens and passwords, by file name and in every text; shown by their first
    four characters only.
    """
    findings, searched, skipped, closed = [], 0, [], []
    for path in look.submission.files:
        if is_secret_file(path):
            findings.append(
                _secret(f"{shown(path.name)} holds credentials", shown(path))
            )
        elif path.suffix.lower() in ARCHIVES:
            inside = (
                secrets_in_zip(look.root, path)
                if path.suffix.lower() == ".zip"
                else None
            )
            closed += [path] if inside is None else []
            findings += [_secret(what, where) for what, where in inside or ()]
        elif path.suffix.lower() not in BINARY:
            size = look.size(path)
            if searched + size > MAX_SEARCHED or size > MAX_NOTEBOOK:
                skipped.append(path)
                continue
            searched += size
            findings += [
                _secret(what, where) for what, where in secrets_in(look.root, path)
            ]
    if skipped:
        says = (
            f"{len(skipped)} files were too large to search for secrets, such as"
            f" {shown(skipped[0])}."
        )
        findings.append(Finding("secrets", "note", says, criterion=0))
    if closed:
        says = (
            "Archives that were not searched for secrets:"
            f" {', '.join(map(shown, closed[:5]))}."
        )
        findings.append(Finding("secrets", "human", says, criterion=0))
    return findings or [
        Finding("secrets", "pass", "No key, token or password was found.", criterion=0)
    ]


def _secret(what: str, where: str) -> Finding:
    says = f"{what}: revoke it where it was issued, remove it, and hand in again."
    return Finding("secrets", "fail", says, where, 0)


PATHS = r"(?:/home/|/Users/|/root/|/mnt/|/media/|/kaggle/|/content/|[A-Za-z]:[\\/])\w"
# The mount point of Google Drive, and where the bootstrap cell puts the kit.
EXEMPT = re.compile(r"/content/(?:drive/?$|course-kit\b|dl-course-local\b)")


def absolute_paths(look: Look) -> list[Finding]:
    """Paths that exist on one machine only, in strings and shell lines of the group's
    code.
    """
    findings = []
    for source in look.sources:
        if source.path.parts[0] == "tests" and (utils.KIT / source.path).is_file():
            continue  # tests of another version of the kit name such paths on purpose
        documentation = {
            id(node.value) for node in source.nodes if isinstance(node, ast.Expr)
        }
        commands = {id(part) for call, _ in _commands(source) for part in call.args}
        settings = _settings(source)
        for node in source.nodes:
            if (
                not (isinstance(node, ast.Constant) and isinstance(node.value, str))
                or id(node) in documentation
            ):
                continue
            start = r"(?<![\w./:~-])" if id(node) in commands else "^"
            found = re.search(start + PATHS + r"[^\s\"']*", node.value)
            if found and not EXEMPT.match(found[0]):
                findings.append(_absolute(source, node, found[0], id(node) in settings))
    if look.sources and not findings:
        findings.append(
            Finding(
                "absolute paths", "pass", "No path of somebody's own machine was found."
            )
        )
    return findings


def _absolute(source: Source, node: ast.AST, path: str, setting: bool) -> Finding:
    if setting:
        says = (
            f"The parameters name a folder of one machine, {shown(path[:80])}: graders"
            " give their own."
        )
    elif path.startswith("/content/drive"):
        says = (
            f"{shown(path[:80])} is one person's Drive: set DRIVE = True and use"
            " course.home instead."
        )
    elif path.startswith("/content/"):
        says = (
            f"{shown(path[:80])} exists on Colab only: build the path from course.home"
            " or HOME."
        )
    else:
        says = (
            f"{shown(path[:80])} exists on one machine only: build the path from"
            " course.home or HOME."
        )
    of_colab = path.startswith("/content/") and not path.startswith("/content/drive")
    return Finding(
        "absolute paths",
        "note" if setting else "human" if of_colab else "fail",
        says,
        source.where(node),
    )


def _settings(source: Source) -> set[int]:
    """Values of SOURCE and HOME in the parameters cell, which may well be absolute."""
    if source.cell is None or "parameters" not in source.cell.tags:
        return set()
    return {
        id(node.value)
        for node in source.tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name) and target.id in ("SOURCE", "HOME")
    }


# --------------------------------------------------------------------------------------
# Record and artefacts
# --------------------------------------------------------------------------------------


def record(look: Look) -> list[Finding]:
    """The record is complete, and its figures are figures."""
    values, findings = look.submission.record, []
    if not values:
        return []  # opening it said why
    headline = values.get("headline", {})
    for name, value in headline.items():
        if problem := _odd_figure(name, value):
            says = (
                f"headline {shown(name)} is {shown(value)[:40]}, {problem}: run the"
                " theme that records it again."
            )
            findings.append(Finding("record", "fail", says, "exports/results.json", 3))
    if missing := [name for name in utils.HEADLINE_TAGS if name not in headline]:
        says = f"Headline figures that no theme recorded: {', '.join(missing)}."
        verdict = "human" if headline else "fail"
        findings.append(Finding("record", verdict, says, "exports/results.json", 3))
    without = [
        str(n) for n in range(1, 9) if not isinstance(values.get(f"theme{n}"), dict)
    ]
    if without:
        says = (
            f"No results of themes {', '.join(without)} are recorded: run their"
            " notebooks."
        )
        findings.append(Finding("record", "fail", says, "exports/results.json", 1))
    findings += contradictions(look) + _criteria(values) + _two_stories(look)
    if not any(finding.verdict == "fail" for finding in findings):
        says = (
            f"The record holds {len(headline)} headline figures, all of the right kind."
        )
        findings.append(Finding("record", "pass", says, "exports/results.json", 3))
    return findings


def _odd_figure(name: str, value) -> str | None:
    """What is wrong with a headline figure, or None."""
    if name not in utils.HEADLINE_TAGS:
        return "a figure that the course does not know"
    if name == "provider":
        return None if isinstance(value, str) else "which is no name"
    if name == "gate_passed":
        return None if isinstance(value, bool) else "neither true nor false"
    if type(value) not in (int, float) or (
        type(value) is float and not math.isfinite(value)
    ):
        return "which is no number"
    if name.endswith(("speedup", "_b1", "_b32")) or name.startswith("train_seconds"):
        return None if value > 0 else "which must be above 0"
    if name in ("onnx_max_abs_diff", "alerts_raised"):
        return None if value >= 0 else "which must not be negative"
    low = -1 if name.endswith("drop") else 0
    return None if low <= value <= 1 else f"outside {low} to 1"


def _criteria(values: dict) -> list[Finding]:
    """What the record says of the course's own criteria: the group's claim, not this
    check's.
    """
    rows = values.get("criteria")
    rows = (
        {theme: part for theme, part in rows.items() if isinstance(part, list)}
        if isinstance(rows, dict)
        else {}
    )
    rows = [
        (theme, row)
        for theme, part in rows.items()
        for row in part
        if isinstance(row, dict)
    ]
    if not rows:
        return [
            Finding(
                "record",
                "human",
                "No criteria are recorded: run the last cells of the notebooks.",
                "exports/results.json",
                2,
            )
        ]
    failed = [
        shown(f"{theme}: {row.get('name')}")
        for theme, row in rows
        if row.get("passed") is not True
    ]
    says = f"{len(rows) - len(failed)} of {len(rows)} recorded criteria are met"
    says += (
        f"; not met: {'; '.join(failed[:6])}{'; …' if len(failed) > 6 else ''}."
        if failed
        else "."
    )
    return [Finding("record", "note", says, "exports/results.json", 3)]


def _two_stories(look: Look) -> list[Finding]:
    if "course.json" not in look.paths:
        return []
    try:
        home = json.loads(look.read("course.json", MIB))
    except (ValueError, RecursionError, SubmissionError):
        return [
            Finding(
                "record",
                "human",
                "course.json is damaged: run a notebook again.",
                "course.json",
            )
        ]
    story = look.submission.story
    differ = [
        key
        for key in story
        if isinstance(home, dict) and home.get(key, story[key]) != story[key]
    ]
    if not differ:
        return []
    says = (
        f"course.json and the record differ in {', '.join(differ)}: one home holds one"
        " story. Run it again."
    )
    return [Finding("record", "fail", says, "course.json")]


def artefacts(look: Look) -> list[Finding]:
    """Files are those that the record speaks of: hashes, the model in service, what
    each section was measured on.
    """
    findings = [
        *_stored_models(look),
        *_models_named(look),
        *_service(look),
        *_measured_on(look),
    ]
    if not findings and look.submission.record:
        says = "Models, checkpoints and measurements fit each other by their hashes."
        findings.append(Finding("artefacts", "pass", says))
    return findings


def _digest(look: Look, path: str) -> str | None:
    """First 16 digits of a file's SHA-256, by which the course names it; None above
    MAX_MODEL.
    """
    return (
        utils.hash_file(look.root / path)[:16] if look.size(path) <= MAX_MODEL else None
    )


def _stored_models(look: Look) -> list[Finding]:
    """exports/models/<hash>.onnx, and the copies in service."""
    findings = []
    for path in sorted(
        path for path in look.paths if re.fullmatch(r"exports/models/[^/]+\.onnx", path)
    ):
        if (digest := _digest(look, path)) != Path(path).stem:
            says = (
                f"Its bytes have the hash {digest}, which must be its name: export it"
                " again (theme 4)."
            )
            findings.append(Finding("artefacts", "fail", says, shown(path)))
    for path in ("exports/model.onnx", "exports/model_int8.onnx"):
        if path in look.paths:
            digest = _digest(look, path)
            if f"exports/models/{digest}.onnx" not in look.paths:
                says = (
                    f"Its hash {digest} is none of exports/models/: run themes 4 and 7"
                    " again."
                )
                findings.append(Finding("artefacts", "fail", says, path))
    return findings


def _models_named(look: Look) -> list[Finding]:
    """Models that the record names are there, and the one in service comes from a
    checkpoint handed in.
    """
    findings, named = [], set()
    for theme in ("theme4", "theme7"):
        section = look.submission.record.get(theme)
        models = section.get("models") if isinstance(section, dict) else None
        named |= (
            {value for value in models.values() if isinstance(value, str)}
            if isinstance(models, dict)
            else set()
        )
    for digest in sorted(named):
        if f"exports/models/{digest}.onnx" not in look.paths:
            says = (
                f"The record speaks of exports/models/{shown(digest)[:16]}.onnx, which"
                " is not handed in."
            )
            findings.append(Finding("artefacts", "human", says, "exports/models"))
    if (
        "exports/model.onnx" in look.paths
        and look.size("exports/model.onnx") <= MAX_MODEL
    ):
        findings += _origin(look, "exports/model.onnx")
    return findings


def _origin(look: Look, path: str) -> list[Finding]:
    """The metadata of an exported model name its checkpoint, dataset and seed."""
    import onnx

    try:
        model = onnx.load_model_from_string(look.read(path, MAX_MODEL))
        about = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
    except Exception as error:  # foreign bytes: protobuf has errors of its own
        return [
            Finding(
                "artefacts",
                "fail",
                f"This is no ONNX model ({shown(error)[:80]}): run theme 4 again.",
                path,
            )
        ]
    findings = []
    weights = {
        _digest(look, name): name
        for name in look.paths
        if re.fullmatch(r"checkpoints/[^/]+\.pth", name)
    }
    if about.get("checkpoint") not in weights:
        says = (
            "It was exported from a checkpoint that is not handed in: hand in its .pth,"
            " or export it again."
        )
        findings.append(Finding("artefacts", "fail", says, path))
    story = look.submission.story
    for key in ("dataset", "seed"):
        if key in story and about.get(key) != story[key]:
            says = (
                f"Its {key} is {shown(about.get(key))[:40]}, the record's {story[key]}:"
                " run theme 4 again."
            )
            findings.append(Finding("artefacts", "fail", says, path))
    return findings


def _service(look: Look) -> list[Finding]:
    """The last promotion or rollback of the audit log put the file in place that is
    there.
    """
    path = "exports/audit.csv"
    if path not in look.paths or "exports/model.onnx" not in look.paths:
        return []
    try:
        look.read(path)  # bounded, before utils reads it
        audit = utils.read_audit(SimpleNamespace(exports=look.root / "exports"))
    except (utils.CourseError, ValueError) as error:
        return [
            Finding(
                "artefacts",
                "human",
                f"The audit log cannot be read ({shown(error)[:120]}).",
                path,
            )
        ]
    swaps = audit.loc[audit["event"].isin(["in service", "rollback"]), "model"]
    if len(swaps) and swaps.iloc[-1] != _digest(look, "exports/model.onnx"):
        says = (
            f"The audit log put {shown(swaps.iloc[-1])[:16]} in service, model.onnx is"
            " another: run theme 7 again."
        )
        return [Finding("artefacts", "fail", says, path)]
    return []


def _measured_on(look: Look) -> list[Finding]:
    """Sections whose inputs changed since, or are not handed in."""
    findings, there = [], {}
    for section, values in look.submission.record.items():
        for name, digest in inputs_of(values).items():
            if name not in look.paths:
                says = (
                    f"{shown(section)} was measured on {shown(name)}, which is not"
                    " handed in."
                )
                findings.append(
                    Finding("artefacts", "human", says, "exports/results.json")
                )
            elif look.size(name) <= MAX_MODEL:
                # only files of the submission, and of a size: a path is foreign text
                there.setdefault(section, {"inputs": {}})["inputs"][name] = digest
    stale = utils.stale_sections(look.root, there)
    return findings + [
        Finding("artefacts", "fail", shown(says), "exports/results.json")
        for says in stale
    ]


# --------------------------------------------------------------------------------------
# What the group changed, and size
# --------------------------------------------------------------------------------------


def kit_files(look: Look) -> list[Finding]:
    """Which of the kit's files differ: what the group wrote itself, for a person to
    read.
    """
    if look.root.resolve() == utils.KIT:
        # a group that checks its own copy of the kit: nothing to compare with
        return []
    findings, same, plumbing = [], 0, []
    for path, text in look.modules.items():
        if (kit := _kit_text(path)) is None:
            lines = sum(bool(line.strip()) for line in text.splitlines())
            findings.append(
                Finding("kit files", "note", f"New, lines: {lines}.", shown(path))
            )
        elif kit != text and path.parts[0] in ("kit", "tools", "tests", "benchmarks"):
            plumbing.append(path)
        elif kit != text:
            findings.append(_changed(path, kit.splitlines(), text.splitlines()))
        else:
            same += 1
    for theme, notebook in look.notebooks.items():
        own = utils.KIT / "notebooks" / f"theme{theme}_{THEMES[theme]}.ipynb"
        if own.is_file():
            kit, text = (
                _lines(book)
                for book in (
                    read_notebook(utils.KIT, own.relative_to(utils.KIT)),
                    notebook,
                )
            )
            if kit == text:
                same += 1
            else:
                findings.append(_changed(notebook.path, kit, text))
    if plumbing:
        says = (
            f"{len(plumbing)} files of tools/, tests/ or benchmarks/ differ: another"
            " version of the kit, or edits."
        )
        findings.append(
            Finding("kit files", "note", says, ", ".join(map(shown, plumbing[:4])))
        )
    if same:
        findings.append(
            Finding("kit files", "note", f"{same} files are the kit's own, unchanged.")
        )
    return findings


def _lines(notebook: Notebook) -> list[str]:
    cells = (cell for cell in notebook.cells if "injected-parameters" not in cell.tags)
    return [line for cell in cells for line in cell.source.strip().splitlines()]


def _changed(path: Path, kit: list[str], text: list[str]) -> Finding:
    """Counted by content, as difflib takes hours on a hostile file: moved lines are no
    change.
    """
    added, removed = Counter(text) - Counter(kit), Counter(kit) - Counter(text)
    says = (
        f"Differs from the kit: lines added {sum(added.values())}, removed"
        f" {sum(removed.values())}."
    )
    return Finding("kit files", "note", says, shown(path))


IMAGES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".npy"}
MAX_SIZE = 500 * MIB


def size(look: Look) -> list[Finding]:
    """How large it is, what in it nobody needs, and whether pixel data came along."""
    sizes = {path: look.size(path) for path in look.submission.files}
    needed = (is_code, is_artefact, is_report, is_check)
    junk = {
        path: n
        for path, n in sizes.items()
        if not any(of_use(path) for of_use in needed)
    }
    pixels = {path: n for path, n in junk.items() if path.suffix.lower() in IMAGES}
    junk = {path: n for path, n in junk.items() if path not in pixels}
    findings, total = [], sum(sizes.values())
    if len(pixels) > 20 or any(path.parts[0] == "data" for path in pixels):
        says = (
            f"{len(pixels):,} files of pixel data ({_mib(sum(pixels.values()))}): leave"
            " the dataset out."
        )
        findings.append(
            Finding("size", "note", says, shown(next(iter(pixels)).parent), 0)
        )
    if junk:
        largest = sorted(junk, key=junk.get, reverse=True)[:5]
        names = ", ".join(f"{shown(path)} ({_mib(junk[path])})" for path in largest)
        verdict = "human" if sum(junk.values()) > MAX_SIZE else "note"
        says = (
            f"{len(junk):,} files ({_mib(sum(junk.values()))}) are neither code nor"
            f" results; the largest: {names}."
        )
        findings.append(Finding("size", verdict, says, criterion=0))
    verdict, advice = (
        ("pass", "")
        if total <= MAX_SIZE
        else ("human", ": hand in what `python course.py pack` makes")
    )
    findings.append(
        Finding(
            "size",
            verdict,
            f"{len(sizes):,} files, {_mib(total)}{advice}.",
            criterion=0,
        )
    )
    return findings


def _mib(count: int) -> str:
    return (
        f"{count / MIB:,.1f} MiB" if count >= MIB / 10 else f"{count / 1024:,.1f} KiB"
    )


CHECKS = {
    "secrets": secrets,
    "record": record,
    "required files": required_files,
    "notebooks": notebooks,
    "environment": environment,
    "seeds": seeds,
    "artefacts": artefacts,
    "absolute paths": absolute_paths,
    "report": report,
    "kit files": kit_files,
    "size": size,
}


def checks(submission: Submission) -> list[Finding]:
    """All findings, worst first; a check that a hostile file breaks is itself a
    finding, and the others go on.
    """
    look, findings = Look(submission), list(submission.findings)
    for name, check in CHECKS.items():
        try:
            findings += few(check(look))
        except Exception as error:
            # whatever a foreign file brought about: a grader must see the rest
            says = (
                f"This check broke off ({type(error).__name__}: {shown(error)[:80]}):"
                " look by hand."
            )
            findings.append(
                Finding(
                    name, "fail" if name == "record" else "human", says, criterion=0
                )
            )
    others = [finding for finding in look.unreadable if finding.check != "notebooks"]
    return worst_first(findings + few(others))
