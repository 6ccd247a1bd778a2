"""Write the report and parse its HTML."""

from html.parser import HTMLParser
from pathlib import Path

from kp_ray.config.schema import Config
from kp_ray.reporting.page import write_report


class Page(HTMLParser):
    """The parts of an HTML page.

    Attributes:
        tags: names of all elements.
        sections: ids of the sections.
        loaded_urls: URLs that a browser loads with the page.
        links: targets of the links.
        alts: alternative texts of the images.
        text: all text, with single spaces between words.
    """

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sections: list[str] = []
        self.loaded_urls: list[str] = []
        self.links: list[str] = []
        self.alts: list[str] = []
        self.text = ""
        self.feed(html)
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Record the element's tag, and its id, URLs or alternative text."""
        values = {key: value or "" for key, value in attrs}
        self.tags.append(tag)
        if tag == "section":
            self.sections.append(values["id"])
        if tag == "a":
            self.links.append(values["href"])
        else:
            url_attributes = ("src", "href", "srcset", "data", "poster")
            self.loaded_urls += [values[key] for key in url_attributes if key in values]
        if tag == "img":
            self.alts.append(values["alt"])

    def handle_data(self, data: str) -> None:
        """Append text to `text`."""
        self.text += f"{data} "


def write_page(config: Config) -> Page:
    """Write the report of a run folder and parse it."""
    path = Path(write_report(config))
    assert path == Path(config.run_dir) / "report.html"
    return Page(path.read_text(encoding="utf-8"))
