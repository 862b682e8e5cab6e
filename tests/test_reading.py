"""The notebooks as a text: terms of themes 5 to 8 have their French name."""

import re

import pytest
from support.books import cells

# What a French student looks up first, by the theme that introduces it.
TERMS = {
    5: (
        "journalisation, règles d'alerte, fenêtre, erreurs types, fiche réflexe, "
        "budget d'erreur, objectif de niveau de service, pas de temps"
    ),
    6: (
        "dérive, valeur p, fonctions de répartition, noyau, test de permutation, "
        "hypothèse nulle, puissance, règle de décision, sans biais"
    ),
    7: (
        "budget d'annotation, oubli catastrophique, affinage, témoin, "
        "déploiement fantôme, marge, porte de validation, mise en service, "
        "journal d'audit"
    ),
    8: (
        "compromis, tests appariés, front de Pareto, robustesse, maturité, "
        "fiche de modèle"
    ),
}


@pytest.mark.parametrize("theme", TERMS)
def test_terms_have_their_french_name(theme):
    book = cells(f"theme{theme}")
    prose = "\n\n".join(cell.source for cell in book if cell.cell_type == "markdown")
    text = prose.replace("**", "").replace("\n", " ")
    italic = " ".join(re.findall(r"\*([^*]+)\*", text))
    assert not [term for term in TERMS[theme].split(", ") if term not in italic]
