"""How things show themselves in a notebook: HTML with a static picture in it, which a script, if it may run, replaces.

What is shown is put in as text: captions may hold markup of their own.
"""

import base64
import io
import json
from collections.abc import Sequence
from hashlib import sha256
from html import escape
from importlib.resources import files
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from interp.plots.style import figure_of

RAMP = ((255, 255, 255), (205, 226, 244), (150, 196, 232), (104, 165, 217))
"""From low to high values behind dark text: one hue that darkens, so that it does without colour vision."""
STATIC_DPI = 80


def shade(value: float, low: float, high: float) -> str:
    """The colour of a value on the ramp, as CSS."""
    x = min(1.0, max(0.0, (value - low) / ((high - low) or 1.0))) * (len(RAMP) - 1)
    i = min(len(RAMP) - 2, int(x))
    mixed = (round(a + (x - i) * (b - a)) for a, b in zip(RAMP[i], RAMP[i + 1], strict=True))
    return f"rgb({','.join(map(str, mixed))})"


def figure_png(ax: Axes | Sequence[Axes]) -> bytes:
    """A figure as PNG, small enough for a notebook; it is closed."""
    figure, file = figure_of(ax), io.BytesIO()
    figure.savefig(file, dpi=STATIC_DPI, format="png", metadata={"Software": None})
    plt.close(figure)
    return file.getvalue()


def interactive(script: str, data: dict[str, Any], static: bytes, alt: str) -> str:
    """A static picture that a script of `interp/views/scripts`, given the data, replaces by something to point at."""
    code = (files("interp.views") / "scripts" / script).read_text(encoding="utf-8")
    told = json.dumps(data).replace("<", "\\u003c")
    mark = sha256(told.encode()).hexdigest()[:12]
    image = f'<img alt="{escape(alt)}" src="data:image/png;base64,{base64.b64encode(static).decode()}">'
    run = f"document.querySelectorAll('[data-interp=\"{mark}\"]:not([data-on])')"
    return (
        f'<div data-interp="{mark}">{image}</div>\n<script>(() => {{\n{code}\nconst data = {told};\n'
        f"{run}.forEach(place => {{ place.dataset.on = 1; show(place, data); }});\n}})();</script>"
    )
