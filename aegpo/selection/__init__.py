"""Selection: which of the images that were drawn are trained on."""

from aegpo.selection.by_advantage import ByAdvantage
from aegpo.selection.extremes import Extremes
from aegpo.selection.previews import Previews
from aegpo.selection.selection import AllImages, Selection

__all__ = ["AllImages", "ByAdvantage", "Extremes", "Previews", "Selection"]
