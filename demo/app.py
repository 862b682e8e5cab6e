"""The page: three tabs in Gradio."""

import io
import threading
from pathlib import Path

import gradio as gr
import numpy as np

import utils
from demo import drift, logs, pages, pictures
from demo.service import Service, answer
from kit import figures
from kit.drifts import DRIFTS

CSS = Path(__file__).with_name("look.css")
EXAMPLES = 12
# One piece of work at a time: two cores, and Matplotlib's figures belong to the whole
# process.
ALONE = {
    "concurrency_id": "work",
    "concurrency_limit": 1,
    "api_visibility": "private",
    "show_progress": "minimal",
}
# pictures to look at or to choose, not to open or to take along
LOOK = {
    "show_label": False,
    "allow_preview": False,
    "interactive": False,
    "buttons": [],
}
# the old picture stays until the new one is there: no flicker
STEADY = ALONE | {"show_progress": "hidden", "trigger_mode": "always_last"}


def told(work, parts: int = 4):
    """A handler whose CourseError becomes a sentence in the first of its parts, the
    others left empty, and one line in the server's window.
    """

    def handler(*values):
        try:
            return work(*values)
        except utils.CourseError as error:
            print(f"refused: {error}", flush=True)
            return f"**{error}**", *[None] * (parts - 1)

    return handler


def read_upload(paths: list[str] | None) -> bytes:
    """The bytes of the one file that was sent; whatever was sent is removed from the
    disk.
    """
    files = [Path(path) for path in paths or []]
    try:
        if len(files) != 1:
            raise pictures.Refused(
                f"{len(files)} files were sent, and one gets one answer: send a single"
                " picture."
            )
        with files[0].open("rb") as file:
            return file.read(pictures.MAX_BYTES + 1)
    except OSError as error:
        # Gradio names files by their content: the same picture of another visitor is
        # this file
        raise pictures.Refused(
            "The file was gone before it was read, as somebody sent the same one at the"
            " same time: send it again."
        ) from error
    finally:
        for file in files:
            file.unlink(missing_ok=True)


def chosen_rows(service: Service) -> np.ndarray:
    """Pictures of pool production to try, classes in turn, the same ones every time."""
    if service.data is None:
        return np.array([], dtype=int)
    data, rng = service.data, np.random.default_rng(service.course.seed)
    rows = rng.permutation(data.where("production"))
    each = EXAMPLES // len(data.classes)
    by_class = [rows[data.labels[rows] == k][:each] for k in range(len(data.classes))]
    return rng.permutation(np.concatenate(by_class))


def content_of(service: Service, row: int) -> bytes:
    """The file of an example, as a client would send it; where the images are gone, its
    cached pixels.
    """
    path = service.course.root / service.data.index["path"].iloc[row]
    if path.exists():
        return path.read_bytes()
    buffer = io.BytesIO()
    pages.image_of(np.array(service.data.pixels[row])).save(buffer, "PNG")
    return buffer.getvalue()


def answered(service: Service, content: bytes, label: str | None = None) -> tuple:
    """Values for the parts of the answer, in the order of `answer_parts`."""
    model = service.model
    pixels, decode_ms, notes = pictures.read_picture(
        content, model.size, model.channels
    )
    found = answer(service, pixels, decode_ms, notes)
    probabilities = dict(
        zip(model.classes, map(float, found.probabilities), strict=True)
    )
    return (
        pages.verdict(service, found, label),
        probabilities,
        pages.heat(service, found),
        pages.comparison(service, found),
    )


def answer_parts() -> list:
    """Where the answer to one picture is shown. A figure travels inside the page:
    nothing of an upload is stored to be shown.
    """
    return [
        gr.Markdown("Choose a picture: the answer comes here.", elem_id="answer"),
        gr.Label(label="Calibrated probabilities", elem_id="probabilities"),
        gr.Plot(show_label=False, elem_id="heat"),
        gr.Markdown(elem_id="unlike"),
    ]


def picture_tab(service: Service) -> None:
    """One picture: upload or example, and everything about it."""
    rows = chosen_rows(service)
    with gr.Row():
        with gr.Column(min_width=280, scale=2):
            upload = gr.File(
                label=f"Your picture, up to {pictures.MAX_BYTES >> 20} MB",
                file_count="multiple",
                height=150,
                elem_id="upload",
            )
            gr.Markdown("or one of pool *production*, which no training has seen:")
            gallery = gr.Gallery(
                [pages.image_of(service.data.pixels[row]) for row in rows],
                elem_id="examples",
                columns=3,
                **LOOK,
            )
            if "images" in service.missing:
                gr.Markdown(f"*No examples: {service.missing['images']}*")
        with gr.Column(min_width=320, scale=3):
            parts = answer_parts()

    def pick(event: gr.SelectData):
        row = rows[event.index]
        label = service.model.classes[service.data.labels[row]]
        return told(answered)(service, content_of(service, row), label)

    read = told(lambda paths: answered(service, read_upload(paths)))
    # the field is ready for the next picture, whatever comes of this one
    upload.upload(lambda paths: (None, *read(paths)), upload, [upload, *parts], **ALONE)
    gallery.select(pick, None, parts, **ALONE)


def drift_tab(service: Service) -> None:
    """The same pictures under a growing drift."""
    kinds, classes = utils.drifts_of(service.course.dataset), service.model.classes
    try:
        look = drift.looker(service)
        begin = drifted(look, classes, kinds[0], 0)
    except utils.CourseError as error:
        gr.Markdown(f"*No drift to show: {error}*")
        return
    with gr.Row():
        kind = gr.Dropdown(kinds, value=kinds[0], label="Kind", elem_id="kind")
        levels = min(drift.SEVERITIES), max(drift.SEVERITIES)
        severity = gr.Slider(
            *levels, value=0, step=1, label="Severity", elem_id="severity"
        )
    shape = {"columns": 4, "object_fit": "contain"}
    parts = [
        gr.Markdown(begin[0], elem_id="window"),
        gr.Gallery(begin[1], elem_id="pictures", **shape, **LOOK),
    ]
    show = told(lambda *asked: drifted(look, classes, *asked), 2)
    for change in (kind.change, severity.change):
        change(show, [kind, severity], parts, **STEADY)


def drifted(look, classes, name: str, level: int) -> tuple:
    """Values for the parts of the tab of drift."""
    seen, kind = look(name, int(level)), DRIFTS[name]
    size = f" Here: {kind.label(level)}." if level else ""
    says = f"{kind.says}{size}\n\n{pages.window(seen, level)}"
    return says, pages.window_pictures(seen, classes)


def log_tab(service: Service) -> None:
    """What production said: rolling statistics, alerts, last lines."""
    choices, chosen, note, figure, alerts, lines = logged(service, None)
    with gr.Row():
        run = gr.Dropdown(choices, value=chosen, label="Run", elem_id="run", scale=4)
        again = gr.Button("Read again", scale=1, min_width=120)
    parts = [
        gr.Markdown(note),
        gr.Plot(figure, show_label=False, elem_id="dashboard"),
        gr.Dataframe(alerts, label="Alerts", wrap=True, elem_id="alerts"),
        gr.Dataframe(lines, label="Last lines of the log", elem_id="lines"),
    ]

    def update(chosen):
        choices, chosen, *values = logged(service, chosen)
        return gr.update(choices=choices, value=chosen), *values

    run.input(update, run, [run, *parts], **ALONE)
    again.click(update, run, [run, *parts], **ALONE)


def logged(service: Service, chosen: str | None) -> tuple:
    """Choices and choice of the run, and values for the parts of the tab of the log."""
    home = service.course.home
    try:
        log, alerts = logs.read_both(home)
    except utils.CourseError as error:
        return [], None, f"**{str(error).replace(f'{home}/', '')}**", None, None, None
    labels = logs.list_runs(log, alerts)
    chosen = chosen if chosen in labels else next(iter(labels))
    own = alerts[alerts["run_id"] == chosen]
    title = f"{labels[chosen].split(' · ')[0]}; triangles: alerts that fire"
    figure = figures.dashboard(logs.windows_of(log, chosen, home), own, title=title)
    return (
        [(label, name) for name, label in labels.items()],
        chosen,
        "",
        pages.closed(figure),
        pages.alerts_table(own),
        pages.log_tail(log[log["run_id"] == chosen], service.model.classes),
    )


def build(service: Service) -> gr.Blocks:
    """The whole page."""
    title = pages.TITLES[service.course.dataset]
    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(30, 30)) as page:
        gr.Markdown(pages.banner(service), elem_classes="sticky")
        for name, fill in {
            "One picture": picture_tab,
            "Drift": drift_tab,
            "Production log": log_tab,
        }.items():
            with gr.Tab(name):
                fill(service)
    return page


def serve(service: Service, host: str, port: int, share: bool = False) -> None:
    """Listen until Ctrl+C."""
    page = build(service)
    page.queue(max_size=32)
    sans, mono = ["system-ui", "sans-serif"], ["ui-monospace", "monospace"]
    page.launch(
        server_name=host,
        server_port=port,
        share=share,
        quiet=True,
        prevent_thread_lock=True,
        ssr_mode=False,
        footer_links=[],
        run_history=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
        max_file_size=5 * pictures.MAX_BYTES,
        theme=gr.themes.Default(font=sans, font_mono=mono),  # none from the network
        css_paths=CSS,
    )
    print(
        f"Demo on http://{host}:{port} (model {service.model.hash}); Ctrl+C ends it.",
        flush=True,
    )
    if share:
        print(
            f"Anybody who knows it may use {page.share_url}: it leads through a server"
            " of Gradio's makers."
        )
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        print("Ended.")
    finally:
        page.close(verbose=False)
