"""The charts, one per file; `draw_all` finds, draws and saves them, so no list is needed.

A chart's module has a docstring whose first line is its caption, a POSITION in the report's order, and `draw(run,
layout) -> Figure | None` (None if the run has no data for it).
"""

import importlib
import io
import pkgutil
from dataclasses import dataclass
from types import ModuleType

from matplotlib.figure import Figure

from analysis.load import Run
from analysis.plotting.chart_style import PHONE, style
from analysis.point_names import Layout
from sweep.disk import run_files


@dataclass(frozen=True)
class SavedFigure:
    name: str
    caption: str
    svg: str
    finding: str  # the finding, if established, else the chart's label
    phone: str = ""  # the SVG with one panel in a row; empty without a finding


def draw_all(run: Run, layout: Layout, target: run_files.RunPaths | None = None) -> list[SavedFigure]:
    """Draw and save every chart that has data in this run, in its folder or another. Remove stale charts."""
    paths = target or run.paths
    saved: list[SavedFigure] = []
    with style():
        for name, module in _modules():
            figure = module.draw(run, layout)
            if figure is None:
                for suffix in ("svg", "png"):
                    (paths.figures / f"{name}.{suffix}").unlink(missing_ok=True)
            else:
                caption = (module.__doc__ or name).strip().splitlines()[0]
                finding = str(figure.get_label())
                phone = _for_phones(module, run, layout) if finding else ""
                saved.append(SavedFigure(name, caption, _save(paths, name, figure), finding, phone))
    return saved


def _modules() -> list[tuple[str, ModuleType]]:
    names = [module.name for module in pkgutil.iter_modules(__path__)]
    modules = [(name, importlib.import_module(f"{__name__}.{name}")) for name in names]
    return sorted(modules, key=lambda item: (item[1].POSITION, item[0]))


def _for_phones(module: ModuleType, run: Run, layout: Layout) -> str:
    with style(PHONE):
        return _svg(module.draw(run, layout))


def _save(paths: run_files.RunPaths, name: str, figure: Figure) -> str:
    """Write NAME.svg and NAME.png; return the SVG's text."""
    svg, png = _svg(figure), io.BytesIO()
    figure.savefig(png, format="png", dpi=200, facecolor="white")
    run_files.write_whole(paths, paths.figures / f"{name}.svg", svg)
    run_files.write_whole(paths, paths.figures / f"{name}.png", png.getvalue())
    return svg


def _svg(figure: Figure) -> str:
    svg = io.StringIO()
    figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None})
    return svg.getvalue()
