"""Pictures and figures: what is drawn, not where it is kept."""

from __future__ import annotations

from lossy_mlflow.plots.grid import image_grid, reconstruction_grid

__all__ = ["image_grid", "reconstruction_grid"]
