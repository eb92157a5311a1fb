"""The page: Panel widgets around an `Explorer`, and the chosen heads.

Panel's server and notebook extension ship all scripts and styles, including plotly's, so that the
page works offline; Gradio's do not. Text from the model and the reader is escaped by a template.
"""

import asyncio
from typing import Any, cast

import panel as pn
import param

from interp.errors import UserError
from interp.explore.explorer import Explorer, heads_text, read_heads_text
from interp.heads.headset import HeadSet, Site
from interp.interventions.head_constraint import Constraint, Mode
from interp.report.page import render_part, template_text

FEWEST_STEPS = 12
"""The slider's maximum is a quarter of the heads, but at least this."""
PAUSE = 0.1
"""Seconds for the browser to show that the model is running, before it runs."""
_WIDE: Any = {"sizing_mode": "stretch_width"}


class View:
    """The page of one browser tab; ``layout`` is the Panel object to show."""

    def __init__(self, explorer: Explorer) -> None:
        pn.extension("plotly")
        self.explorer = explorer
        start = explorer.start
        self.chosen: HeadSet = start.heads
        self._style = [template_text("report.css.j2"), template_text("explore.css.j2")]
        self._make_question()
        self._make_heads(start)
        self._show_site(start.heads.site)
        self._show_heads()
        self._connect()
        self.layout = self._lay_out()

    @property
    def constraint(self) -> Constraint:
        """The constraint of the widgets, in the first constraint's decoding steps.

        Raises UserError for an invalid combination.
        """
        mode = cast(Mode, self.mode.value)
        steps = self.explorer.start.decoding_steps if self.chosen.site == "attention" else None
        factor = float(self.factor.value) if mode == "scale" else 0.0
        return Constraint(self.chosen, mode, factor, steps)

    async def ask(self, *_: Any) -> None:
        """Ask the question in the box, and show the answers or an error message."""
        self.button.loading = True
        trains = not (self.words.value_input.strip() or self.explorer.detector_is_ready)
        first = " A detector of false premises is trained first, once." if trains else ""
        self._say(f"Asking …{first}")
        await asyncio.sleep(PAUSE)
        try:
            answers = self.explorer.ask(
                self.question.value_input, self.constraint, words=self.words.value_input
            )
            self.answers.object = render_part("explore.html.j2", answers=answers)
        except UserError as error:
            self._say(str(error), wrong=True)
        finally:
            self.button.loading = False

    def choose(self, heads: HeadSet) -> None:
        """Choose heads, and frame them in the heat map."""
        self.chosen = heads
        self._show_heads()

    def _make_question(self) -> None:
        self.question = pn.widgets.TextInput(
            label="Question", placeholder="Why is Paris the capital of Germany?", **_WIDE
        )
        examples = self.explorer.examples()
        self.example = pn.widgets.Select(
            label="Or an example that the search never saw",
            options={"": "", **{example: example for example in examples}},
            visible=bool(examples),
            **_WIDE,
        )
        self.words = pn.widgets.TextInput(
            label="Words that may be false", placeholder="empty: the detector finds them", **_WIDE
        )
        self.button = pn.widgets.Button(label="Ask", color="primary", width=120)
        self.answers = self._html("", **_WIDE)

    def _make_heads(self, start: Constraint) -> None:
        self.site = pn.widgets.Select(
            label="Site", options=list(self.explorer.sites), value=start.heads.site, width=130
        )
        self.mode = pn.widgets.Select(label="Mode", options=[start.mode], width=130)
        self.mode.value = start.mode
        self.factor = pn.widgets.FloatInput(
            label="Factor", value=start.factor, step=0.1, width=110, visible=start.mode == "scale"
        )
        self.count = pn.widgets.IntSlider(label="Largest effects", start=0, end=1, **_WIDE)
        self.heads = pn.widgets.TextInput(**_WIDE)
        self.problem = self._html("", **_WIDE)
        self.map = pn.pane.Plotly(None, config={"displayModeBar": False}, **_WIDE)

    def _connect(self) -> None:
        self.button.on_click(self.ask)
        self.question.param.watch(self.ask, "enter_pressed")
        self.words.param.watch(self.ask, "enter_pressed")
        self.example.param.watch(self._take_example, "value")
        self.site.param.watch(self._take_site, "value")
        self.mode.param.watch(self._take_mode, "value")
        self.count.param.watch(self._take_count, "value_throttled")
        self.heads.param.watch(self._take_text, "value")
        self.map.param.watch(self._take_click, "click_data", onlychanged=False)

    def _take_example(self, event: param.parameterized.Event) -> None:
        if event.new:
            self.question.value = event.new
            self.words.value = ""

    def _take_site(self, event: param.parameterized.Event) -> None:
        self._show_site(event.new)
        count = min(len(self.chosen), self.count.end)
        self.choose(self.explorer.marked(event.new) or self.explorer.top(event.new, count))

    def _take_mode(self, event: param.parameterized.Event) -> None:
        self.factor.visible = event.new == "scale"

    def _take_count(self, event: param.parameterized.Event) -> None:
        self.choose(self.explorer.top(self.chosen.site, event.new))

    def _take_text(self, event: param.parameterized.Event) -> None:
        if event.new == heads_text(self.chosen):
            return  # this page wrote the text
        try:
            self.choose(self.explorer.choose(self.chosen.site, read_heads_text(event.new)))
        except UserError as error:
            self.problem.object = _message(str(error), wrong=True)

    def _take_click(self, event: param.parameterized.Event) -> None:
        points = (event.new or {}).get("points") or []
        if points and isinstance(points[0].get("x"), int) and isinstance(points[0].get("y"), int):
            head = (points[0]["y"], points[0]["x"])
            self.choose(self.explorer.toggle(self.chosen, head))

    def _show_site(self, site: Site) -> None:
        """Set the modes and the slider's maximum, which depend on the site."""
        modes = self.explorer.modes(site)
        self.mode.options = list(modes)
        if self.mode.value not in modes:
            self.mode.value = modes[0]
        n_heads = self.explorer.n_heads(site)
        self.count.end = min(n_heads, max(FEWEST_STEPS, n_heads // 4))
        self.count.value = min(len(self.chosen), self.count.end)

    def _show_heads(self) -> None:
        """Show the chosen heads in the text, the slider and the heat map."""
        number = len(self.chosen)
        self.heads.label = f"Chosen: {number} head{'' if number == 1 else 's'} (layer.head)"
        self.heads.value = heads_text(self.chosen)
        self.problem.object = ""
        if number <= self.count.end:
            self.count.value = number
        figure = self.explorer.figure(self.chosen)
        layout = figure.to_plotly_json()["layout"]
        self.map.height = int(layout["height"])
        self.map.max_width = int(layout["width"])
        self.map.object = figure.update_layout(width=None, autosize=True)

    def _say(self, text: str, *, wrong: bool = False) -> None:
        self.answers.object = _message(text, wrong=wrong)

    def _html(self, text: str, **options: Any) -> Any:
        return pn.pane.HTML(text, stylesheets=self._style, **options)

    def _lay_out(self) -> pn.Column:
        """Question and answers beside the heads, or above them on a narrow page."""
        map_width = self.map.max_width or 0
        basis = 340 if map_width <= 560 else map_width  # a wide map gets a separate row
        asking = pn.Column(
            self.question,
            self.example,
            self.words,
            self.button,
            self.answers,
            styles={"flex": "1 1 340px", "min-width": "0"},
            **_WIDE,
        )
        choosing = pn.Column(
            pn.FlexBox(self.site, self.mode, self.factor),
            self.count,
            self.heads,
            self.problem,
            self._html('<p class="small">Click a cell to take a head or to leave it out.</p>'),
            self.map,
            styles={
                "flex": f"1 1 {basis}px",
                "min-width": "0",
                "max-width": f"{max(560, map_width)}px",
            },
            **_WIDE,
        )
        heading = self._html(
            render_part("explore_heading.html.j2", model=self.explorer.name), **_WIDE
        )
        return pn.Column(heading, pn.FlexBox(asking, choosing, gap="12px 32px", **_WIDE), **_WIDE)


def _message(text: str, *, wrong: bool) -> str:
    return render_part("explore_message.html.j2", text=text, wrong=wrong)
