"""The notebooks as a text: every section of themes 5 to 8 tells what to look at, and
its terms have a French name.
"""

import re
from pathlib import Path

import nbformat
import pytest

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"
THEMES = {
    theme: nbformat.read(next(NOTEBOOKS.glob(f"theme{theme}_*.ipynb")), 4).cells
    for theme in (5, 6, 7, 8)
}
# What a French student looks up first, by the theme that introduces it.
TERMS = {
    5: (
        "journalisation",
        "règles d'alerte",
        "fenêtre",
        "erreurs types",
        "fiche réflexe",
        "budget d'erreur",
        "objectif de niveau de service",
        "pas de temps",
    ),
    6: (
        "dérive",
        "valeur p",
        "fonctions de répartition",
        "noyau",
        "test de permutation",
        "hypothèse nulle",
        "puissance",
        "règle de décision",
        "sans biais",
    ),
    7: (
        "budget d'annotation",
        "oubli catastrophique",
        "affinage",
        "témoin",
        "déploiement fantôme",
        "marge",
        "porte de validation",
        "mise en service",
        "journal d'audit",
    ),
    8: (
        "compromis",
        "tests appariés",
        "front de Pareto",
        "robustesse",
        "maturité",
        "fiche de modèle",
    ),
}


def prose(theme: int) -> str:
    return "\n\n".join(
        cell.source for cell in THEMES[theme] if cell.cell_type == "markdown"
    )


@pytest.mark.parametrize("theme", THEMES)
def test_every_section_with_code_says_what_to_look_at(theme):
    """The last section of theme 8 asks questions and runs nothing."""
    whole = "\n\n".join(
        ("CODE " if cell.cell_type == "code" else "") + cell.source
        for cell in THEMES[theme]
    )
    sections = re.split(r"\n## ", whole)[1:]
    numbered = [
        section
        for section in sections
        if re.match(r"\d+ · ", section) and "\nCODE " in section
    ]
    silent = [
        section.splitlines()[0]
        for section in numbered
        if "*What to look at:*" not in section
    ]
    assert len(numbered) >= 8 and not silent


@pytest.mark.parametrize("theme", THEMES)
def test_terms_have_their_french_name(theme):
    italic = " ".join(
        re.findall(r"\*([^*]+)\*", prose(theme).replace("**", "").replace("\n", " "))
    )
    assert not [term for term in TERMS[theme] if term not in italic]


@pytest.mark.parametrize("theme", THEMES)
def test_lines_are_short(theme):
    assert not [
        line
        for line in prose(theme).splitlines()
        if len(line) > 120 and "https://" not in line
    ]
