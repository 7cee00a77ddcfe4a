"""The tab of the studies: which reports there are under the root of the runs, and what they say."""

import html
from typing import Any

import panel as pn

from dsv2.explore import studies
from dsv2.explore.look import html_pane
from dsv2.paths import runs_root


class Browser:
    """A list of reports and the one that is chosen. One for every visitor of the page."""

    def __init__(self) -> None:
        self.found: dict[str, studies.Report] = {}
        self.which = pn.widgets.Select(name="Study", width=360)
        again = pn.widgets.Button(name="Look again", width=100, align="end")
        again.on_click(self.refresh)
        self.which.param.watch(self._show, "value")
        self.verdict, self.results, self.frame = html_pane(), html_pane(), html_pane()
        self.column = pn.Column(
            pn.Row(self.which, again), self.verdict, self.results, self.frame, sizing_mode="stretch_width"
        )
        self.refresh()

    def refresh(self, *_: Any) -> None:
        """Look for reports; the chosen one stays chosen."""
        self.found = {report.name: report for report in studies.reports(runs_root())}
        kept = self.which.value if self.which.value in self.found else next(iter(self.found), None)
        self.which.param.update(options=list(self.found), value=kept)
        self._show()

    def _show(self, *_: Any) -> None:
        report = self.found.get(self.which.value)
        if report is None:
            root = html.escape(str(runs_root().resolve()))
            how = "<code>python -m ablations.run sweep=balance_losses</code> makes one"
            parts = [f"<p>No report in {root} yet; {how}.</p>", "", ""]
        else:
            where = html.escape(str(report.folder.resolve() / "report.html"))
            try:
                parts = [
                    f'<p class="verdict">{html.escape(studies.headline(report))}</p>',
                    f'<p class="note">Mean ± standard deviation over seeds.</p>{studies.results(report)}',
                    f'<h2>The whole report</h2><p class="note">{where}</p>{studies.frame(report)}',
                ]
            except (ValueError, OSError) as error:
                parts = [f'<p class="message">{html.escape(str(error))}</p>', "", ""]
        self.verdict.object, self.results.object, self.frame.object = parts
