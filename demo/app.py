"""The page: three tabs in Gradio, each a few inputs and the HTML that answers them."""

import threading
from pathlib import Path

import gradio as gr
import numpy as np

import utils
from demo import logs, pages, pictures
from demo.replay import SEVERITIES, Replay, plot_curve
from demo.service import Service, answer
from kit import figures

CSS = Path(__file__).with_name("look.css")
EXAMPLES = 12
# Every picture is a button; a click tells its number. Template and listener run in the
# visitor's browser.
TEMPLATE = (
    '<div class="examples">{{#each value}}<button type="button"'
    ' data-number="{{this.number}}" aria-label="{{this.alt}}"><img src="{{this.src}}"'
    ' alt=""></button>{{/each}}</div>'
)
LISTENER = (
    "element.addEventListener('click', event => { const chosen ="
    " event.target.closest('button'); if (chosen) trigger('select', {number:"
    " Number(chosen.dataset.number)}); });"
)
# One piece of work at a time: two cores, and Matplotlib's figures belong to the whole
# process.
ALONE = {
    "concurrency_id": "work",
    "concurrency_limit": 1,
    "api_visibility": "private",
    "show_progress": "minimal",
}


def told(work):
    """A handler whose CourseError becomes a sentence on the page, and one line in the
    server's window.
    """

    def handler(*values):
        try:
            return work(*values)
        except utils.CourseError as error:
            print(f"refused: {error}", flush=True)
            return pages.message(str(error))

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
    data, rng = service.data, np.random.default_rng(service.course.seed)
    rows = rng.permutation(data.where("production"))
    by_class = [
        rows[data.labels[rows] == k][: EXAMPLES // len(data.classes)]
        for k in range(len(data.classes))
    ]
    return rng.permutation(np.concatenate(by_class))


def content_of(service: Service, row: int) -> bytes:
    """The file of an example, as a client would send it; where the images are gone, its
    cached pixels.
    """
    path = service.course.root / service.data.index["path"].iloc[row]
    if path.exists():
        return path.read_bytes()
    return pages.png(np.array(service.data.pixels[row]))


def answer_page(service: Service, content: bytes, label: str | None = None) -> str:
    model = service.model
    pixels, decode_ms, notes = pictures.read_picture(
        content, model.size, model.channels
    )
    return pages.answer_page(service, answer(service, pixels, decode_ms, notes), label)


def picture_tab(service: Service) -> None:
    """One picture: upload or example, and everything about it."""
    with gr.Row():
        with gr.Column(min_width=280, scale=2):
            upload = gr.File(
                label=f"Your picture, up to {pictures.MAX_BYTES >> 20} MB",
                file_count="multiple",
                height=150,
                elem_id="upload",
            )
            gr.Markdown(
                "or a picture of pool *production*, which no training has seen:"
            )
            rows = chosen_rows(service) if service.data else []
            shown = pages.examples(service.data.pixels[rows]) if service.data else []
            gallery = gr.HTML(
                shown, html_template=TEMPLATE, js_on_load=LISTENER, elem_id="examples"
            )
            if "images" in service.missing:
                gr.HTML(
                    pages.message(f"No examples: {service.missing['images']}", "note")
                )
        with gr.Column(min_width=320, scale=3):
            result = gr.HTML(
                '<p class="quiet">Choose a picture: the answer comes here.</p>',
                elem_id="answer",
            )

    def pick(event: gr.EventData):
        row = rows[event.number]
        return told(answer_page)(
            service,
            content_of(service, row),
            service.model.classes[service.data.labels[row]],
        )

    upload.upload(
        lambda paths: (None, told(lambda: answer_page(service, read_upload(paths)))()),
        upload,
        [upload, result],
        **ALONE,
    )
    gallery.select(pick, None, result, **ALONE)


def drift_tab(service: Service) -> None:
    """The same pictures under a growing drift."""
    try:
        replay = Replay(service)
    except utils.CourseError as error:
        gr.HTML(pages.message(f"No drift to show: {error}", "note"))
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
    chart, window = gr.HTML(elem_id="chart"), gr.HTML(elem_id="window")

    def show(name, level):
        drift, look = utils.DRIFTS[name], replay.look(name, int(level))
        title = (
            f"{name.replace('_', ' ')}, windows of {len(look.labels)} production"
            " pictures"
        )
        figure = plot_curve(replay.curve(name), int(level), replay.policy, title)
        size = f" Here: {drift.label(int(level))}." if level else ""
        return (
            f"<p>{drift.says}{size}</p>"
            + pages.drawing(figure, f"Confidence, accuracy and p-values: {title}"),
            pages.window_page(look, service.model.classes, int(level), replay.policy),
        )

    def shown(name, level):
        try:
            return show(name, level)
        except utils.CourseError as error:
            return pages.message(str(error)), ""

    # the old picture stays until the new one is there: no flicker
    steady = ALONE | {"show_progress": "hidden"}
    for change in (kind.change, severity.change):
        change(
            shown,
            [kind, severity],
            [chart, window],
            trigger_mode="always_last",
            **steady,
        )
    chart.value, window.value = shown(replay.kinds[0], 0)


def log_tab(service: Service) -> None:
    """What production said: rolling statistics, alerts, last lines."""
    home = service.course.home
    with gr.Row():
        run = gr.Dropdown([], label="Run", elem_id="run", scale=4, min_width=280)
        again = gr.Button("Read again", scale=1, min_width=120)
    page = gr.HTML(elem_id="log")

    def show(chosen):
        journal = logs.read_journal(home)
        labels = logs.list_runs(journal, home)
        chosen = chosen if chosen in labels else logs.first_run(labels)
        windows, alerts = logs.windows_of(journal, chosen, home)
        title = (
            f"{labels[chosen].rsplit(' · ', 1)[0]}; windows of 30 minutes, triangles:"
            " alerts that fire"
        )
        figure = figures.plot_dashboard(windows, alerts, title=title)
        lines = journal.log[journal.log["run_id"] == chosen]
        html = (
            f"{pages.drawing(figure, 'Six panels of rolling statistics', 90)}"
            f"<h2>Alerts</h2>{pages.alerts_table(alerts)}"
            "<h2>Last lines of the log</h2>"
            f"{pages.log_tail(lines, service.model.classes)}"
        )
        return [(label, name) for name, label in labels.items()], chosen, html

    def shown(chosen):
        try:
            return show(chosen)
        except utils.CourseError as error:
            return [], None, pages.message(str(error).replace(f"{home}/", ""))

    def update(chosen):
        choices, chosen, html = shown(chosen)
        return gr.update(choices=choices, value=chosen), html

    run.choices, run.value, page.value = shown(None)
    run.input(update, run, [run, page], **ALONE)
    again.click(update, run, [run, page], **ALONE)


def build(service: Service) -> gr.Blocks:
    """The whole page."""
    with gr.Blocks(
        title=pages.TITLES[service.course.dataset],
        analytics_enabled=False,
        delete_cache=(30, 30),
    ) as page:
        gr.HTML(pages.banner(service), elem_classes="sticky", padding=False)
        with gr.Tab("One picture"):
            picture_tab(service)
        with gr.Tab("Drift"):
            drift_tab(service)
        with gr.Tab("Production log"):
            log_tab(service)
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
