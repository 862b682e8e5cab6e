"""The page: three tabs in Gradio."""

import io
import threading
from pathlib import Path

import gradio as gr
import numpy as np

import utils
from demo import logs, pages, pictures
from demo.replay import SEVERITIES, Replay, plot_curve
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


def told(work):
    """A handler whose CourseError becomes a sentence in the first of its five parts,
    the others left empty, and one line in the server's window.
    """

    def handler(*values):
        try:
            return work(*values)
        except utils.CourseError as error:
            print(f"refused: {error}", flush=True)
            return f"**{error}**", None, None, None, None

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
        pages.comparison_table(found),
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
        gr.Dataframe(show_label=False, wrap=True, interactive=False),
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
    try:
        replay = Replay(service)
        begin = drifted(replay, replay.kinds[0], 0)
    except utils.CourseError as error:
        gr.Markdown(f"*No drift to show: {error}*")
        return
    with gr.Row():
        kind = gr.Dropdown(
            replay.kinds, value=replay.kinds[0], label="Kind of drift", elem_id="kind"
        )
        severity = gr.Slider(
            min(SEVERITIES),
            max(SEVERITIES),
            value=0,
            step=1,
            label="Severity",
            elem_id="severity",
        )
    parts = [
        gr.Markdown(begin[0]),
        gr.Plot(begin[1], show_label=False, elem_id="chart"),
        gr.Markdown(begin[2], elem_id="window"),
        gr.Dataframe(begin[3], show_label=False, wrap=True),
        gr.Gallery(
            begin[4],
            elem_id="pictures",
            columns=4,
            object_fit="contain",
            **LOOK,
        ),
    ]
    for change in (kind.change, severity.change):
        show = told(lambda name, level: drifted(replay, name, int(level)))
        change(show, [kind, severity], parts, **STEADY)


def drifted(replay: Replay, name: str, level: int) -> tuple:
    """Values for the parts of the tab of drift."""
    drift, look = DRIFTS[name], replay.look(name, level)
    title = (
        f"{name.replace('_', ' ')}, windows of {len(look.labels)} production pictures"
    )
    figure = plot_curve(replay.curve(name), level, replay.policy, title)
    size = f" Here: {drift.label(level)}." if level else ""
    return (
        drift.says + size,
        pages.closed(figure),
        pages.window(look, level, replay.policy),
        pages.window_table(look, replay.policy),
        pages.window_pictures(look, replay.service.model.classes),
    )


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
        journal = logs.read_journal(home)
    except utils.CourseError as error:
        return [], None, f"**{str(error).replace(f'{home}/', '')}**", None, None, None
    labels = logs.list_runs(journal, home)
    chosen = chosen if chosen in labels else logs.first_run(labels)
    windows, alerts = logs.windows_of(journal, chosen, home)
    title = (
        f"{labels[chosen].rsplit(' · ', 1)[0]}; windows of 30 minutes, triangles:"
        " alerts that fire"
    )
    lines = journal.log[journal.log["run_id"] == chosen]
    return (
        [(label, name) for name, label in labels.items()],
        chosen,
        "",
        pages.closed(figures.dashboard(windows, alerts, title=title)),
        pages.alerts_table(alerts),
        pages.log_tail(lines, service.model.classes),
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
    # none from the network
    fonts = {
        "font": ["system-ui", "sans-serif"],
        "font_mono": ["ui-monospace", "monospace"],
    }
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
        theme=gr.themes.Default(**fonts),
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
