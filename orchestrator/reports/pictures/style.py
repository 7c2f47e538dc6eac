"""What every picture shares: colours, sizes, an empty figure, and its bytes."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


# The colours of Okabe and Ito, which people with any kind of colour blindness tell apart; shape or line differ too.
BLUE, VERMILION, GREEN, PURPLE, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#595959"
# A panel is 4 inches wide and 600 pixels: letters of 9 points are 12 pixels high where it is shown 400 pixels wide.
PANEL_INCHES = (4.0, 3.1)
DPI = 150
SMALL, NORMAL = 8, 9
LEGEND_ROW_POINTS = 11.5
LEGEND_LETTERS, HANDLE_LETTERS = 58, 6
"""That stand beside each other over a panel, and how many a line's sample takes."""
Place = Literal["above", "below"]
"""Of a legend: between the title and its panel, or under the last panel; inside it would cover something."""


@dataclass(frozen=True)
class Picture:
    """A drawn picture: the stem of its file's name, what it shows in a sentence, and the PNG."""

    name: str
    caption: str
    png: bytes


def new_figure(panels: int = 1, height: float | Sequence[float] = PANEL_INCHES[1]) -> tuple[Figure, list[Axes]]:
    """A figure with panels above each other on one x axis, each `height` inches high, or each as high as `height` says.

    It belongs to nobody else (no pyplot), so that several threads can draw at once.
    """
    from matplotlib.figure import Figure

    heights = list(height) if isinstance(height, Sequence) else [height] * panels
    figure = Figure(figsize=(PANEL_INCHES[0], sum(heights)), dpi=DPI, layout="constrained")
    return figure, list(figure.subplots(panels, 1, squeeze=False, sharex=True, height_ratios=heights)[:, 0])


def finish(axes: Axes, title: str, xlabel: str, ylabel: str, *, legend: Place | None = None) -> None:
    """Title, labels and type sizes of a panel, and its legend where a place for it is given."""
    rows = _legend_above(axes) if legend == "above" else 0
    axes.set_title(title, fontsize=NORMAL, loc="left", pad=4 + LEGEND_ROW_POINTS * rows)
    # Panels above each other share their x axis; it is named once.
    if axes.get_subplotspec().is_last_row():  # type: ignore[union-attr]
        axes.set_xlabel(xlabel, fontsize=NORMAL)
    axes.set_ylabel(ylabel, fontsize=NORMAL)
    axes.tick_params(labelsize=SMALL)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if legend == "below":
        handles, labels = axes.get_legend_handles_labels()
        axes.figure.legend(handles, labels, fontsize=SMALL, loc="outside lower center", frameon=False, ncols=3)


def _legend_above(axes: Axes) -> int:
    """A legend on top of the panel, and how many rows it has."""
    handles, labels = axes.get_legend_handles_labels()
    if not handles:
        return 0
    longest = max(map(len, labels))
    columns = min(len(labels), max(1, LEGEND_LETTERS // (longest + HANDLE_LETTERS)))
    axes.legend(
        handles, labels, fontsize=SMALL, loc="lower left", bbox_to_anchor=(0, 1), frameon=False, ncols=columns,
        borderpad=0, borderaxespad=0.3, handlelength=1.6, columnspacing=1.0, labelspacing=0.25,
    )  # fmt: skip
    return math.ceil(len(labels) / columns)


def png(figure: Figure) -> bytes:
    """The PNG; without the version of matplotlib, the only thing in it that does not come from the figure."""
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def data_uri(png: bytes) -> str:
    """A PNG inside Markdown: the Prefect UI shows it so, and strips inline SVG."""
    return "data:image/png;base64," + base64.b64encode(png).decode()


class Measured(Protocol):
    """An accuracy with its interval, whatever it is of."""

    @property
    def accuracy(self) -> float | None: ...
    @property
    def ci(self) -> tuple[float, float]: ...


class Bar(NamedTuple):
    """The least that is `Measured`."""

    accuracy: float
    ci: tuple[float, float]


def value_and_error(measured: Sequence[Measured]) -> tuple[list[float], list[float], list[float]]:
    """Accuracies, and how far their intervals go below and above; nothing is drawn where there was nothing."""
    values = [math.nan if found.accuracy is None else found.accuracy for found in measured]
    intervals = [found.ci for found in measured]
    below = [value - low for value, (low, _) in zip(values, intervals, strict=True)]
    above = [high - value for value, (_, high) in zip(values, intervals, strict=True)]
    return values, below, above


def errorbars(axes: Axes, x: Sequence[float], measured: Sequence[Measured], **style: Any) -> None:
    """Points of accuracy with their intervals."""
    values, below, above = value_and_error(measured)
    axes.errorbar(list(x), values, yerr=[below, above], markersize=4.5, capsize=2.5, linewidth=1.1, **style)
