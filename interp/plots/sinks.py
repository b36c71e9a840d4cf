"""Attention sinks: two maps beside each other, profiles by layer, sparsity against length, and sinks over training."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter

from interp.plots.heads import heat_map
from interp.plots.style import HUES, LINES, SHARE, finish, new_axes, panels, styled


@styled
def two_maps(
    maps: Mapping[str, Float[np.ndarray, "layer head"]],
    label: str,
    limits: tuple[float, float] = SHARE,
) -> list[Axes]:
    """Maps of one number a head beside each other, by title, on one scale."""
    n_layers = max(len(values) for values in maps.values())
    _, axes = panels(len(maps), 1.3 + min(0.26 * max(n_layers, 4), 3.2))
    for i, (ax, (title, values)) in enumerate(zip(axes, maps.items(), strict=True)):
        last = i == len(maps) - 1
        heat_map(values, label, ax, signed=False, limits=limits, annotated=False, bar=last)
        every = -(-n_layers // 15)
        ax.set_yticks(np.arange(0, len(values), every) + 0.5, [str(n) for n in range(0, len(values), every)])
        ax.set(xlabel="head", ylabel="" if i else "layer", title=title)
    finish(axes)
    return axes


@styled
def layer_profiles(measures: Mapping[str, Mapping[str, Float[np.ndarray, " layer"]]]) -> list[Axes]:
    """A panel for each measure, in it a line over the layers for each series; names ending in `first` share a hue.

    Measures whose label says times have a logarithmic axis; those that say % go from 0 to 100.
    """
    labels = list(dict.fromkeys(name for series in measures.values() for name in series))
    figure, axes = panels(len(measures), 2.9, legend_rows=1 + len(labels) // 4)
    styles: dict[str, dict[str, Any]] = {
        name: {"color": HUES[i % len(HUES)], "linestyle": LINES[i // len(HUES) % 4]} for i, name in enumerate(labels)
    }
    for ax, (measure, series) in zip(axes, measures.items(), strict=True):
        for name, values in series.items():
            ax.plot(np.arange(len(values)), values, label=name, linewidth=1.3, **styles[name])
        ax.set(xlabel="layer", ylabel=measure)
        if "times" in measure:
            ax.set_yscale("log")
        if "%" in measure:
            ax.set_ylim(SHARE)
    handles = {label: line for ax in axes for line, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4)
    finish(axes)
    return axes


@styled
def sparsity_by_length(
    lengths: Sequence[int], measures: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]]
) -> list[Axes]:
    """Measures of sparsity in percent against the number of keys: a panel each, means with standard errors."""
    labels = list(dict.fromkeys(name for series in measures.values() for name in series))
    figure, axes = panels(len(measures), 3.0, legend_rows=1)
    for ax, (measure, series) in zip(axes, measures.items(), strict=True):
        for name, (mean, error) in series.items():
            i = labels.index(name)
            style: dict[str, Any] = {
                "color": HUES[i % len(HUES)],
                "linestyle": LINES[i % 2],
                "marker": "o",
                "markersize": 3,
            }
            ax.errorbar(lengths, mean, yerr=np.nan_to_num(np.array(error)), label=name, capsize=2, **style)
        ax.set(xscale="log", xlabel="keys (tokens of the sequence)", ylabel=measure, ylim=SHARE)
        ax.set_xticks(list(lengths), [f"{n:,}" for n in lengths])
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.tick_params(axis="x", which="minor", length=0)
    handles = {label: line for ax in axes for line, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4)
    finish(axes)
    return axes


@styled
def over_steps(
    measures: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]], columns: int = 4
) -> list[Axes]:
    """Measures against the steps of a training: a panel each, in it steps and values of each series by name.

    The axis is logarithmic and keeps step 0 at its left end.  Measures that say % go from 0 to 100; those that say
    times are logarithmic.
    """
    labels = list(dict.fromkeys(name for series in measures.values() for name in series))
    figure, axes = panels(len(measures), 3.0, legend_rows=-(-len(labels) // columns))
    for ax, (measure, series) in zip(axes, measures.items(), strict=True):
        for name, (steps, values) in series.items():
            i = labels.index(name)
            style: dict[str, Any] = {
                "color": HUES[i % len(HUES)],
                "linestyle": LINES[i // len(HUES) % 4],
                "linewidth": 1.3,
            }
            ax.plot(steps, values, label=name, marker="o", markersize=2.5, **style)
        ax.set_xscale("symlog", linthresh=1.0, linscale=0.4)
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.set(xlabel="steps of training", ylabel=measure)
        if "%" in measure:
            ax.set_ylim(SHARE)
        if "times" in measure:
            ax.set_yscale("log")
    handles = {label: line for ax in axes for line, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=columns)
    finish(axes)
    return axes


@styled
def mass_against_addition(
    mass: Float[np.ndarray, "layer head"], adds: Float[np.ndarray, "layer head"], title: str, ax: Axes | None = None
) -> Axes:
    """What a head gives to the first token against how much it adds to the residual stream; dark: late layers."""
    ax = new_axes(ax, 3.6)
    layers = np.repeat(np.arange(len(mass)), mass.shape[1])
    dots = ax.scatter(100 * mass.ravel(), adds.ravel(), c=layers, cmap="viridis_r", s=9, linewidth=0)
    ax.figure.colorbar(dots, ax=ax, label="layer")
    ax.axhline(1, color="0.6", linewidth=0.8, linestyle=":")
    ax.set(xlim=SHARE, xlabel="attention to the first token (%)", ylabel="what the head adds (mean head of layer: 1)")
    ax.set(yscale="log", title=title)
    low, high = ax.get_ylim()
    ticks = [t for t in (0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0) if low <= t <= high]
    ax.set_yticks(ticks, [f"{t:g}" for t in ticks])
    ax.yaxis.set_minor_formatter(NullFormatter())
    finish(ax)
    return ax
