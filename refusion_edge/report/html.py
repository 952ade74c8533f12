"""Reports as self-contained HTML pages: the template engine and the shared style."""

from __future__ import annotations

from importlib import resources

from refusion_edge._version import __version__
from refusion_edge.machine import require


def require_engine() -> None:
    """Check that pages can be rendered, before the work whose results they show.

    Raises:
        MissingDependencyError: Jinja is not installed.
    """
    require("jinja2", "eval", "an HTML report")


def render(package: str, template: str, **values: object) -> str:
    """Fill a template.

    Args:
        package: Package that contains the template.
        template: Its file name.
        values: Its variables; ``version`` and ``style`` are added.

    Returns:
        Self-contained HTML.

    Raises:
        MissingDependencyError: Jinja is not installed.
    """
    jinja2 = require("jinja2", "eval", "an HTML report")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    text = resources.files(package).joinpath(template).read_text(encoding="utf-8")
    style = resources.files("refusion_edge.report").joinpath("page.css").read_text(encoding="utf-8")
    html: str = environment.from_string(text).render(version=__version__, style=style, **values)
    return html
