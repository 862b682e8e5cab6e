"""Which notebook is which theme: by its name, whatever folder it stands in, and never
a copy in the place of the real one.
"""

import re
from collections.abc import Iterable
from pathlib import Path

from kit.names import original, plain

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
NAMED = re.compile(r"(?<![a-z])th[eéè]me[ _-]*0?([1-8])(?!\d)(.*)\.ipynb")
LEFT_BEHIND = re.compile(
    r"(?<![a-z])(old|backup|archives?|anciens?|sauvegardes?|brouillons?|drafts?|bak"
    r"|obsolete|tmp|corbeille|trash)(?![a-z])"
)


def theme_of(path: Path) -> int | None:
    """The theme that a notebook's name says."""
    named = NAMED.search(original(path.name))
    if named:
        return int(named[1])
    name = _words(path.name)
    of_stem = [theme for theme, stem in THEMES.items() if stem in name]
    is_notebook = path.suffix.lower() == ".ipynb"
    return of_stem[0] if is_notebook and len(of_stem) == 1 else None


def _words(name: str) -> str:
    return re.sub(r"[\W_]+", "_", original(name))


def is_left_behind(path: Path) -> bool:
    """Whether a name or folder says that this is an older state."""
    return any(LEFT_BEHIND.search(plain(part)) for part in path.parts)


def by_theme(paths: Iterable[Path]) -> dict[int, list[Path]]:
    """The notebooks of each theme, the one that counts first: the course's own name,
    a copy of it, other names; what was left behind last.
    """
    found: dict[int, list[Path]] = {}
    for path in paths:
        aside = ".failed" in path.name or "further" in path.parts  # the kit's extras
        if not aside and (theme := theme_of(path)):
            found.setdefault(theme, []).append(path)
    return {theme: sorted(found[theme], key=_rank) for theme in sorted(found)}


def _rank(path: Path) -> tuple:
    theme, name = theme_of(path), _words(path.name)
    own, copied = THEMES[theme], original(path.name) != plain(path.name)
    if path.name == f"theme{theme}_{own}.ipynb":
        likeness = 0
    elif NAMED.search(original(path.name)):
        likeness = 1 + copied if own in name else 3 + copied
    else:
        likeness = 5 + copied
    folder = path.parent != Path("notebooks"), len(path.parts)
    return is_left_behind(path), likeness, *folder, path


def is_copy(path: Path, of: Path) -> bool:
    """Whether a notebook is an older state or another copy of one that counts."""
    return is_left_behind(path) or original(path.name) == original(of.name)
