"""A table in, a figure out. What a figure says was counted before: in the cell, or
in utils."""

from kit.figures.deployment import latency, pareto, steps
from kit.figures.look import COLOURS, image_grid, style
from kit.figures.monitoring import (
    alarm_rates,
    dashboard,
    drifts,
    estimates,
    heat_maps,
    streams,
)
from kit.figures.retraining import (
    candidates,
    gate,
    learning_curve,
    robustness,
    timeline,
    tradeoff,
)
from kit.figures.training import confusion, effects, heat, history, search, transfer

style()
