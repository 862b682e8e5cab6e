"""A submission with what several checks need, each file read once."""

import ast
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from kit.files import KIT
from tools.grading.finding import Check, Finding
from tools.grading.submission import Submission, is_code
from tools.grading.themes import THEMES, by_theme, is_copy, theme_of
from tools.shared.foreign import (
    MAX_FILE,
    MIB,
    SubmissionError,
    decode,
    read,
    read_json,
    shown,
)
from tools.shared.parsing import (
    MAX_NOTEBOOK,
    NOT_PYTHON,
    Cell,
    Notebook,
    Source,
    parse_cell,
    read_notebook,
)

RECORD = "exports/results.json"
MAX_NOTEBOOKS, MAX_MODULES = 256 * MIB, 32 * MIB  # all of them together
MAX_SECONDS, MAX_PARSED = 40, 4 * MIB  # of parsing; a tree is 200 times its text
THEME_HEADING = re.compile(r"\bth[eéè]me[\s_:#-]*0?([1-8])(?!\d)", re.IGNORECASE)
FILES, NOTEBOOKS = Check("required files"), Check("notebooks")


@dataclass
class Look:
    """What the checks look at.

    Attributes
    ----------
    unreadable : list of Finding
        Notebooks, modules and cells that could not be read, as far as somebody asked
        for them.
    unread : list of str
        Places that were not reached in MAX_SECONDS or MAX_PARSED.
    """

    submission: Submission
    unreadable: list[Finding] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)
    notebook_bytes: int = 0
    read_notebooks: dict[Path, Notebook | None] = field(default_factory=dict)
    parsed: int = 0

    @property
    def root(self) -> Path:
        return self.submission.root

    @cached_property
    def paths(self) -> set[str]:
        return {path.as_posix() for path in self.submission.files}

    def read(self, path: Path | str, most: int = MAX_FILE) -> bytes:
        return read(self.root, Path(path), most)

    def read_json(self, path: Path | str):
        return read_json(self.root, Path(path), MIB)

    def size(self, path: Path | str) -> int:
        try:
            return (self.root / path).lstat().st_size
        except OSError:
            return 0

    @cached_property
    def places(self) -> dict[int, Path]:
        """Path of the notebook that counts for each theme: by its name, else by what
        its first heading says.
        """
        written = [path for path in self.written if path.suffix == ".ipynb"]
        named = {theme: paths[0] for theme, paths in by_theme(written).items()}
        unnamed = [path for path in written if theme_of(path) is None]
        for path in unnamed if len(named) < len(THEMES) else ():
            if theme := self._told_theme(path):
                named.setdefault(theme, path)
        return dict(sorted(named.items()))

    @cached_property
    def written(self) -> list[Path]:
        """What the group writes: notebooks, modules, settings, words."""
        return [path for path in self.submission.files if is_code(path)]

    def _told_theme(self, path: Path) -> int | None:
        """The theme that the first headings of a notebook speak of."""
        notebook = self._open(path)
        first = [text for _, text in headings(notebook)][:3] if notebook else []
        told = next(filter(None, map(THEME_HEADING.search, first)), None)
        return int(told[1]) if told else None

    @cached_property
    def notebooks(self) -> dict[int, Notebook]:
        return self._opened(self.places)

    @cached_property
    def executed(self) -> dict[int, Notebook]:
        """The copies that a run of the course left in exports/notebooks/."""
        folder = Path("exports/notebooks")
        copies = [path for path in self.submission.files if path.parent == folder]
        found = by_theme(copies)
        return self._opened({theme: paths[0] for theme, paths in found.items()})

    @cached_property
    def others(self) -> list[Notebook]:
        """Notebooks that belong to no theme, or are a theme's second one."""
        counted = {*self.places.values(), *self.copies}
        extra = [
            path
            for path in self.written
            if path.suffix == ".ipynb" and path not in counted
        ]
        return list(self._opened(dict(enumerate(extra))).values())

    @cached_property
    def copies(self) -> list[Path]:
        """Copies and older states of a theme's notebook, which are not judged."""
        written = [path for path in self.written if path.suffix == ".ipynb"]
        return [
            path
            for theme, paths in by_theme(written).items()
            for path in paths
            if path != self.places[theme] and is_copy(path, self.places[theme])
        ]

    def _opened(self, places: dict[int, Path]) -> dict[int, Notebook]:
        found = {key: self._open(path) for key, path in places.items()}
        return {key: notebook for key, notebook in found.items() if notebook}

    def _open(self, path: Path) -> Notebook | None:
        """A notebook, read once."""
        if path in self.read_notebooks:
            return self.read_notebooks[path]
        size, found = self.size(path), None
        self.notebook_bytes += size if size <= MAX_NOTEBOOK else 0
        try:
            if self.notebook_bytes > MAX_NOTEBOOKS:
                raise SubmissionError(
                    "Not read, as the notebooks together are too large: clear their"
                    " outputs."
                )
            found = read_notebook(self.root, path)
        except SubmissionError as error:
            self.unreadable.append(NOTEBOOKS.fail(str(error), shown(path)))
        self.read_notebooks[path] = found
        return found

    @cached_property
    def modules(self) -> dict[Path, str]:
        """Text of each Python module of the submission."""
        found, total = {}, 0
        for path in self.written:
            if path.suffix != ".py":
                continue
            size = self.size(path)
            total += size if size <= MIB else 0  # a larger one is not read
            try:
                if total > MAX_MODULES:
                    raise SubmissionError(
                        "Not read, as the modules together are too large to be written"
                        " by hand."
                    )
                found[path] = decode(self.read(path, MIB))
            except SubmissionError as error:
                self.unreadable.append(FILES.human(str(error), shown(path)))
        return found

    @cached_property
    def sources(self) -> list[Source]:
        """Python that the group may have written: cells, and modules that are not the
        kit's own.
        """
        until = time.monotonic() + MAX_SECONDS
        parsed = (
            self._parse(path, cell, text, until)
            for path, cell, text in self._written_by_the_group()
        )
        return [source for source in parsed if source]

    @cached_property
    def on_the_kit(self) -> bool:
        """Whether notebooks start as the kit's do."""
        return any(any(starts(source)) for source in self.sources)

    def _written_by_the_group(self) -> Iterator[tuple[Path, Cell | None, str]]:
        for notebook in [*self.notebooks.values(), *self.others]:
            for cell in notebook.code:
                if "injected-parameters" not in cell.tags:
                    yield notebook.path, cell, cell.source
        for path, text in self.modules.items():
            if text != kit_text(path):
                yield path, None, text

    def _parse(
        self, path: Path, cell: Cell | None, text: str, until: float
    ) -> Source | None:
        where = f"{shown(path)}, cell {cell.number}" if cell else shown(path)
        self.parsed += len(text)
        if time.monotonic() > until or self.parsed > MAX_PARSED:
            self.unread.append(where)
            return None
        try:
            tree = parse_cell(text) if cell else ast.parse(text)
        except (*NOT_PYTHON, RuntimeError) as error:
            # RuntimeError: IPython gives up on hundreds of magics
            says = (
                "This does not parse as Python"
                f" ({shown(error) or type(error).__name__}): correct it and run it."
            )
            check = NOTEBOOKS if cell else FILES
            self.unreadable.append(check.human(says, where))
            return None
        return Source(path, cell, tree, list(ast.walk(tree)))


def kit_text(path: Path) -> str | None:
    """The kit's own file of that name, if there is one."""
    file = KIT / path
    if path.suffix != ".py" or not file.is_file():
        return None
    return file.read_text(encoding="utf-8")


def headings(notebook: Notebook) -> Iterator[tuple[Cell, str]]:
    """Headings of a notebook's text, each with its cell."""
    for cell in notebook.cells:
        if cell.kind == "markdown":
            for line in re.findall(r"^ {0,3}#{1,6}[ \t]*(.+)$", cell.source, re.M):
                yield cell, line


def calls(source: Source, *names: str) -> Iterator[ast.Call]:
    """Calls of a function or method of one of these names."""
    for node in source.nodes:
        if isinstance(node, ast.Call):
            name = getattr(node.func, "attr", getattr(node.func, "id", None))
            if name in names:
                yield node


def starts(source: Source) -> Iterator[ast.Call]:
    """Calls of utils.start that give a seed."""
    for call in calls(source, "start"):
        if any(keyword.arg == "seed" for keyword in call.keywords):
            yield call


def commands(source: Source) -> Iterator[tuple[ast.Call, str]]:
    """Shell lines and magics of a cell, as text."""
    shells = ("system", "getoutput", "run_line_magic", "run_cell_magic")
    for call in calls(source, *shells):
        constants = [part.value for part in call.args if isinstance(part, ast.Constant)]
        yield call, " ".join(word for word in constants if isinstance(word, str))
