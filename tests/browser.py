"""A headless Chromium for tests of pages; skipped where there is none."""

import html.parser
import shutil
import subprocess
import tempfile

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--no-first-run", "--hide-scrollbars",
         "--virtual-time-budget=4000"]


def chromium(*arguments):
    """What a Chromium with a profile of its own prints."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip(f"no browser to open the page in: none of {', '.join(NAMES)} is installed")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        done = subprocess.run([program, *FLAGS, f"--user-data-dir={profile}", *arguments],
                              capture_output=True, timeout=240, check=True)
    return done.stdout.decode()


class Element:
    def __init__(self, tag, attributes, parent):
        self.tag, self.attributes, self.parent, self.children = tag, attributes, parent, []

    @property
    def text(self):
        return "".join(child if isinstance(child, str) else child.text for child in self.children)

    def all(self, tag=None, **attributes):
        """The elements inside with this tag and these attributes."""
        for child in self.children:
            if isinstance(child, Element):
                if tag in (None, child.tag) and attributes.items() <= child.attributes.items():
                    yield child
                yield from child.all(tag, **attributes)

    def one(self, tag=None, **attributes):
        found, = self.all(tag, **attributes)
        return found


class _Reader(html.parser.HTMLParser):
    EMPTY = ("meta", "br", "input", "link", "img", "hr")

    def __init__(self):
        super().__init__()
        self.place = self.root = Element("", {}, None)

    def handle_starttag(self, tag, attributes):
        element = Element(tag, dict(attributes), self.place)
        self.place.children.append(element)
        if tag not in self.EMPTY:
            self.place = element

    def handle_endtag(self, tag):
        while tag not in self.EMPTY and self.place.parent is not None:
            self.place, closed = self.place.parent, self.place.tag
            if closed == tag:
                return

    def handle_data(self, data):
        self.place.children.append(data)


def opened(path, fragment=""):
    """The page as the browser has it once its scripts have run."""
    reader = _Reader()
    reader.feed(chromium("--dump-dom", f"{path.as_uri()}{fragment}"))
    return reader.root
