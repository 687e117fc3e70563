"""How things look, decided once: a colour, marker and line style for every method and every group of examples.

The hues are those of Okabe and Ito (2008), which stay apart for readers with any of the common colour-vision deficiencies.
Line style and marker repeat the information, so that a figure survives a black-and-white printer.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import matplotlib as mpl
from matplotlib.colors import to_hex, to_rgb

BLACK = "#000000"
GREY = "#7a7a7a"
ORANGE = "#e69f00"
SKY = "#56b4e9"
GREEN = "#009e73"
BLUE = "#0072b2"
VERMILION = "#d55e00"
PURPLE = "#b5588f"  # a darker shade of Okabe and Ito's #cc79a7, which is faint as a thin line

STAR = "#f0e442"

SOLID = "-"
DASHED = (0, (3.6, 1.6))
DOTTED = (0, (1.2, 1.2))
DASH_DOT = (0, (5.0, 1.4, 1.2, 1.4))
LONG_DASH = (0, (8.0, 2.6))
DASH_DOT_DOT = (0, (5.0, 1.4, 1.2, 1.4, 1.2, 1.4))

LineStyle = str | tuple[int, tuple[float, ...]]
Marker = str | tuple[int, int, int]


@dataclass(frozen=True)
class Look:
    """The fixed look of one thing: its label, colour, marker and line style.

    Example:
        >>> METHOD_STYLES["1-sam"].label
        '1-SAM'
    """

    label: str
    color: str
    marker: Marker
    linestyle: LineStyle

    def line(self) -> dict[str, Any]:
        """Return the keyword arguments of `Axes.plot` for this look.

        Example:
            >>> GROUP_STYLES["test"].line()["color"]
            '#000000'
        """
        return {"color": self.color, "marker": self.marker, "linestyle": self.linestyle}


METHOD_STYLES: dict[str, Look] = {
    "sgd": Look("SGD", BLACK, "o", SOLID),
    "sam": Look("SAM", BLUE, "s", DASHED),
    "m-sam": Look("m-SAM", ORANGE, "p", LONG_DASH),
    "1-sam": Look("1-SAM", VERMILION, "^", SOLID),
    "l-sam": Look("L-SAM", SKY, "v", DASH_DOT),
    "j-sam": Look("J-SAM", GREEN, "D", LONG_DASH),
    "reg-sgd": Look("Regularised SGD", PURPLE, "P", DASH_DOT_DOT),
    "esam": Look("ESAM", ORANGE, "X", SOLID),
    "looksam": Look("LookSAM", SKY, "<", SOLID),
    "looklayersam": Look("Look-LayerSAM", SKY, ">", DASHED),
    "saf": Look("SAF", GREEN, "d", DASHED),
    "mesa": Look("MESA", GREEN, "h", DOTTED),
    "ssam-f": Look("SSAM-F", BLUE, "*", DOTTED),
    "ssam-d": Look("SSAM-D", BLUE, "8", DASH_DOT),
    "f-sam": Look("F-SAM", PURPLE, "H", SOLID),
    "ausam": Look("AUSAM", ORANGE, (4, 1, 0), DASH_DOT),
    "asam": Look("ASAM", BLUE, (6, 1, 0), LONG_DASH),
    "gsam": Look("GSAM", VERMILION, (3, 2, 0), DASHED),
    "saner": Look("SANER", VERMILION, (3, 0, 180), DOTTED),
    "vasso": Look("VaSSO", PURPLE, (5, 1, 36), DASHED),
    "gnp": Look("GNP", GREY, (8, 1, 0), DASHED),
    "random-sam": Look("Random SAM", GREY, (4, 2, 0), DOTTED),
}
"""One look per method of the registry; the order is the order of panels and legends."""

GROUP_STYLES: dict[str, Look] = {
    "clean": Look("clean train", BLUE, "s", DASHED),
    "noisy": Look("noisy train, wrong label fitted", VERMILION, "^", DASH_DOT),
    "test": Look("test", BLACK, "o", SOLID),
    "all": Look("all train", GREY, "o", SOLID),
}
"""Examples with a right observed label, with a wrong one, and the test examples (whose labels are clean)."""

PREDICTION_STYLES: dict[str, Look] = {
    "predicts_true": Look("true class", GREEN, "D", SOLID),
    "predicts_observed": Look("wrong observed label (memorised)", VERMILION, "^", DASH_DOT),
    "predicts_other": Look("another class", GREY, "o", DOTTED),
}
"""What a wrongly labelled example is taken for; memorised has the colour of the noisy group, since it is its accuracy."""

SELECTION_STYLES: dict[str, Look] = {
    "oracle": Look("best on test (oracle)", BLACK, "*", ""),
    "validation": Look("selected on noisy validation", BLACK, "D", ""),
    "last": Look("last", BLACK, "s", ""),
}
"""The three early-stopping points."""

_SPARE_COLORS = (ORANGE, SKY, GREEN, BLUE, VERMILION, PURPLE, GREY)
_SPARE_LINES = (DASHED, DOTTED, DASH_DOT, LONG_DASH, DASH_DOT_DOT)
_SPARE_MARKERS = ("o", "s", "^", "v", "D", "P", "X", "p", "h", "*")


def method_style(name: str, variant: int = 0) -> Look:
    """Return the look of a method: the same on every figure, in every process.

    A name outside the registry (a method of the user's own) gets a look derived from a checksum of the name.

    Args:
        name: Method name, as in `noisesam.methods.names()`.
        variant: 0 for the method itself; 1, 2, ... for further settings of it on the same Axes, which keep the marker and
            take a lighter shade and another line style.

    Returns:
        The look.

    Example:
        >>> method_style("sgd").color, method_style("sgd", variant=1).color
        ('#000000', '#595959')
        >>> method_style("my-method") == method_style("my-method")
        True
    """
    look = METHOD_STYLES.get(name)
    if look is None:
        code = zlib.crc32(name.encode())
        look = Look(
            name,
            _SPARE_COLORS[code % len(_SPARE_COLORS)],
            _SPARE_MARKERS[code // 7 % len(_SPARE_MARKERS)],
            _SPARE_LINES[code // 70 % len(_SPARE_LINES)],
        )
    if variant == 0:
        return look
    lines = [line for line in (SOLID, *_SPARE_LINES) if line != look.linestyle]
    share = 0.35 * (1 + (variant - 1) % 2)
    red, green, blue = (channel + share * (1 - channel) for channel in to_rgb(look.color))
    return replace(look, color=to_hex((red, green, blue)), linestyle=lines[(variant - 1) % len(lines)])


RC: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # ships with matplotlib, so a figure looks the same everywhere
    "font.size": 9.0,
    "axes.titlesize": 9.5,
    "axes.labelsize": 9.0,
    "xtick.labelsize": 8.0,
    "ytick.labelsize": 8.0,
    "legend.fontsize": 8.0,
    "legend.title_fontsize": 8.0,
    "legend.frameon": False,
    "legend.handlelength": 4.2,
    "figure.titlesize": 10.0,
    "figure.dpi": 100.0,
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "axes.edgecolor": "#333333",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "grid.color": "#e3e3e3",
    "grid.linewidth": 0.6,
    "grid.linestyle": "-",
    "xtick.direction": "out",
    "ytick.direction": "out",
    "lines.linewidth": 1.4,
    "lines.markersize": 4.0,
    "savefig.facecolor": "white",
    "pdf.fonttype": 42,  # text stays text: it can be searched and edited
    "pdf.compression": 6,
    "text.usetex": False,
    "mathtext.fontset": "dejavusans",
}


@contextmanager
def style() -> Iterator[None]:
    """Draw in the look of this package, and leave the user's `matplotlib.rcParams` as they were.

    Example:
        >>> import matplotlib
        >>> before = matplotlib.rcParams["font.size"]
        >>> with style():
        ...     inside = matplotlib.rcParams["font.size"]
        >>> inside, matplotlib.rcParams["font.size"] == before
        (9.0, True)
    """
    with mpl.rc_context(RC):
        yield
