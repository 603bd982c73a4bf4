"""How models were trained: loss and accuracy over epochs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from certbench.figures import style
from certbench.params import param

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from certbench.figures.data import FigureData

version = 1

needs = ("training",)

section = "models"

about = (
    "Loss and accuracy in each epoch, on the data that the rows name (training data by default)."
)


@dataclass(frozen=True)
class Params:
    """What is drawn."""

    log_loss: bool = param(True, help="logarithmic axis of the loss")


def draw(data: FigureData, params: Params) -> Figure:
    """A panel for the loss and one for the accuracy."""
    frame = data.training
    frame = frame[frame["loss"].notna() | frame["accuracy"].notna()]
    if frame.empty:
        return style.nothing("No model was trained yet")
    models = [model for model, _ in data.looks.sort((model, None) for model in frame["model"])]
    from matplotlib.ticker import MaxNLocator

    sheet = style.Sheet()
    entries = [
        style.handle(data.looks.of(model), model, marker="", linestyle="-") for model in models
    ]
    loss = sheet.panel("Training loss", 1.6)
    accuracy = sheet.panel("Accuracy while training", 1.6, xlabel="epoch", key=entries)
    for model in models:
        rows = frame[frame["model"].eq(model)].sort_values("epoch")
        colour = data.looks.colour(model)
        marker = "o" if len(rows) == 1 else ""
        for axes, column in ((loss, "loss"), (accuracy, "accuracy")):
            axes.plot(rows["epoch"], rows[column], color=colour, marker=marker)
    if params.log_loss and (frame["loss"].dropna() > 0).all():
        from matplotlib.ticker import FuncFormatter, NullFormatter

        loss.set_yscale("log")
        loss.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        loss.yaxis.set_minor_formatter(NullFormatter())
    style.percent_axis(accuracy.yaxis)
    accuracy.set_ylim(0, 1.02)
    for axes in (loss, accuracy):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlim(left=0)
        style.despine(axes)
    return sheet.done()
