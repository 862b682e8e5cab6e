"""Build one PDF from the group's own text and from what the notebooks left in exports/.

The group writes in HOME/report/sections/, HOME/report/group.toml and
HOME/report/references.bib. Each is made once, from report/templates/, and never written
again. A figure, a table, a section or a bibliography that cannot be used becomes a
visible box: the PDF is always built, a draft included, or the old one stays.
"""

from tools.shared import options as shared


def main(arguments: list[str]) -> int:
    parser = shared.parser("report", __doc__)
    shared.add_home(parser)
    lang = "default: what report/group.toml says, else fr"
    parser.add_argument("--lang", choices=("fr", "en"), help=lang)
    final = "without page budgets and frames of placeholders"
    parser.add_argument("--final", action="store_true", help=final)
    options = parser.parse_args(arguments)
    from tools.report.build import build

    build(shared.home(options.home), options.lang, options.final)
    return 0
