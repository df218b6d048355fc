"""Looking at a page as a picky person would: axe, our own measurements, a walk with the Tab key, and its markup."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import html5lib
from html5lib.constants import E as PARSE_ERRORS
from html5lib.html5parser import HTMLParser
from playwright.sync_api import Page

Theme = Literal["light", "dark"]

THEMES: tuple[Theme, ...] = ("light", "dark")
SIZES = {320: 640, 1280: 900}
SCREENSHOTS = os.environ.get("BROKER_SCREENSHOTS")
"""A folder; every state × theme × width is written there as a picture, and its markup for validators of every kind."""

RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
"""What axe looks for. Named one by one: left to itself it leaves out the size of targets."""

AXE = """
async (rules) => {
  const {violations} = await axe.run(document, {runOnly: {type: 'tag', values: rules}, resultTypes: ['violations']});
  return violations.flatMap(({id, nodes}) => nodes.map(({target, failureSummary}) =>
    `axe ${id}: ${target.join(' ')}: ${(failureSummary || '').split('\\n').slice(1, 2).join('').trim()}`));
}
"""

MOST_STOPS = 90
"""More presses of Tab than any page here needs."""

# Everything is measured in the page, in one go. Contrast is that of WCAG 2.2: text 4.5:1 (large text 3:1), edges of
# fields 3:1 against what surrounds them. A colour that is see-through is laid over what lies behind it.
MEASURE = """
() => {
  const shown = (e) => e.checkVisibility({visibilityProperty: true}) && e.getClientRects().length > 0;
  const name = (e) => `${e.tagName.toLowerCase()}${e.className && e.className.baseVal === undefined
    ? '.' + String(e.className).trim().replaceAll(' ', '.') : ''} “${(e.textContent || '').trim().slice(0, 30)}”`;
  const rgba = (text) => {
    const [r, g, b, a = 1] = text.match(/[\\d.]+/g).map(Number);
    return [r, g, b, a];
  };
  const over = ([r, g, b, a], [R, G, B]) => [r * a + R * (1 - a), g * a + G * (1 - a), b * a + B * (1 - a), 1];
  const behind = (e) => {
    if (!e) return rgba(getComputedStyle(document.documentElement).backgroundColor)[3]
      ? rgba(getComputedStyle(document.documentElement).backgroundColor)
      : matchMedia('(prefers-color-scheme: dark)').matches ? [18, 18, 18, 1] : [255, 255, 255, 1];
    const own = rgba(getComputedStyle(e).backgroundColor);
    return own[3] === 1 ? own : over(own, behind(e.parentElement));
  };
  const light = ([r, g, b]) => {
    const [R, G, B] = [r, g, b].map((c) => c / 255).map((c) => c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4);
    return .2126 * R + .7152 * G + .0722 * B;
  };
  const contrast = (a, b) => {
    const [x, y] = [light(a), light(b)].sort((m, n) => n - m);
    return (x + .05) / (y + .05);
  };
  const all = [...document.body.querySelectorAll('*')].filter(shown);
  const problems = [];

  const root = document.documentElement;
  if (root.scrollWidth > innerWidth) problems.push(`scrolls sideways: ${root.scrollWidth} > ${innerWidth}`);
  for (const e of all) {
    const box = e.getBoundingClientRect();
    if (e.closest('.skip, thead') || !(box.width && box.height)) continue;
    if (box.right > innerWidth + .5 || box.left < -.5) problems.push(`sticks out: ${name(e)}`);
  }

  const headings = [...document.querySelectorAll('h1')].filter(shown);
  if (headings.length !== 1) problems.push(`${headings.length} h1`);
  if (!document.title.trim()) problems.push('no title');
  if (!/^[a-z]{2}/.test(root.lang)) problems.push('no language');
  const ids = [...document.querySelectorAll('[id]')].map((e) => e.id);
  for (const id of new Set(ids.filter((id, n) => ids.indexOf(id) !== n))) problems.push(`id twice: ${id}`);
  for (const e of document.querySelectorAll('[aria-labelledby], [aria-describedby]')) {
    for (const attribute of ['aria-labelledby', 'aria-describedby']) {
      for (const id of (e.getAttribute(attribute) || '').split(' ').filter(Boolean)) {
        if (!ids.includes(id)) problems.push(`${attribute} leads nowhere: ${id}`);
      }
    }
  }

  const targets = all.filter((e) => e.matches('a[href], button, input:not([type=hidden]), select, textarea, summary')
    && !e.closest('.skip'));
  for (const e of targets) {
    const box = (e.closest('label') || e).getBoundingClientRect();
    const least = e.matches('.button') ? 44 : 24;
    if (box.height < least - .1 || box.width < 24) {
      problems.push(`target of ${box.width.toFixed(1)} × ${box.height.toFixed(1)} px: ${name(e)}`);
    }
  }

  for (const e of all) {
    const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!own || e.closest('.skip')) continue;
    const style = getComputedStyle(e), ground = behind(e);
    const large = parseFloat(style.fontSize) >= 24 || (parseFloat(style.fontSize) >= 18.66 && style.fontWeight >= 700);
    const found = contrast(over(rgba(style.color), ground), ground);
    if (found < (large ? 3 : 4.5)) problems.push(`text of ${found.toFixed(2)}:1: ${name(e)}`);
  }
  const fields = 'input:not([type=hidden], [type=radio], [type=checkbox]), select, textarea, .choice, .button';
  for (const e of all.filter((e) => e.matches(fields))) {
    const around = behind(e.parentElement);
    const found = Math.max(contrast(rgba(getComputedStyle(e).borderTopColor), around), contrast(behind(e), around));
    if (found < 3) problems.push(`edge of ${found.toFixed(2)}:1: ${name(e)}`);
  }
  for (const e of all.filter((e) => e.matches('svg.icon'))) {
    const found = contrast(rgba(getComputedStyle(e).stroke), behind(e.parentElement));
    if (found < 3) problems.push(`icon of ${found.toFixed(2)}:1: in ${name(e.parentElement)}`);
  }
  // A pattern's lines and dots are what is seen of it, so they are marks as well as its edge is.
  for (const e of document.querySelectorAll('.chart .mark, .length .mark, .legend .mark, pattern *')) {
    const style = getComputedStyle(e), ground = behind(document.querySelector('figure'));
    const colors = [style.fill, style.stroke].filter((color) => /^rgb/.test(color) && rgba(color)[3]);
    const found = Math.max(0, ...colors.map((color) => contrast(rgba(color), ground)));
    if (found < 3) problems.push(`mark of ${found.toFixed(2)}:1: ${e.getAttribute('class')}`);
  }
  for (const e of all.filter((e) => e.matches('svg text'))) {
    const box = e.getBoundingClientRect(), around = e.ownerSVGElement.getBoundingClientRect();
    const sides = [box.left - around.left, around.right - box.right, box.top - around.top, around.bottom - box.bottom];
    if (Math.min(...sides) < -1) problems.push(`outside its chart: ${name(e)}`);
  }
  return problems;
}
"""

# With letters twice as large nothing may be cut off and nothing may lie beside the screen.
LARGE = """
() => {
  const root = document.documentElement;
  root.style.fontSize = '200%';
  const problems = [];
  if (root.scrollWidth > innerWidth) problems.push(`scrolls sideways: ${root.scrollWidth} > ${innerWidth}`);
  for (const e of document.body.querySelectorAll('*')) {
    if (!e.checkVisibility({visibilityProperty: true})) continue;
    if (e.closest('.skip, .unseen, thead, pre') || e instanceof SVGElement) continue;
    const clips = getComputedStyle(e).overflowX !== 'visible' && !e.matches('input, select, textarea');
    if (clips && (e.scrollWidth > e.clientWidth + 1 || e.scrollHeight > e.clientHeight + 1)) {
      problems.push(`cut off: ${e.tagName.toLowerCase()} “${(e.textContent || '').trim().slice(0, 30)}”`);
    }
    if (e.getBoundingClientRect().right > innerWidth + .5) {
      problems.push(`sticks out: ${e.tagName.toLowerCase()} “${(e.textContent || '').trim().slice(0, 30)}”`);
    }
  }
  root.style.fontSize = '';
  return problems;
}
"""

FOCUSED = """
() => {
  const grounds = (e) => {
    for (let at = e.parentElement; at; at = at.parentElement) {
      const color = getComputedStyle(at).backgroundColor;
      if (!/, 0\\)$|transparent/.test(color)) return color;
    }
    return matchMedia('(prefers-color-scheme: dark)').matches ? 'rgb(18, 18, 18)' : 'rgb(255, 255, 255)';
  };
  const e = document.activeElement;
  if (!e || e === document.body || e === document.documentElement) return null;
  const style = getComputedStyle(e), box = e.getBoundingClientRect();
  const x = box.left + box.width / 2, y = box.top + Math.min(box.height / 2, 10);
  const top = document.elementFromPoint(x, y);
  return {
    text: (e.textContent || '').trim(),
    name: `${e.tagName.toLowerCase()} “${(e.textContent || e.name || '').trim().slice(0, 30)}”`,
    primary: e.matches('.button-primary'),
    outline: style.outlineStyle === 'none' ? 0 : parseFloat(style.outlineWidth),
    ring: style.outlineColor,
    ground: grounds(e),
    seen: Boolean(top && (e.contains(top) || top.contains(e))),
    key: [...document.querySelectorAll('*')].indexOf(e),
  };
}
"""


@cache
def axe_core() -> str:
    """Return the script of axe-core that its package carries."""
    return files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8")


def problems(page: Page, name: str) -> list[str]:
    """Return what axe and our own measurements find wrong with a page in any theme and size."""
    found: dict[str, None] = {}
    page.evaluate(axe_core())
    for theme in THEMES:
        page.emulate_media(color_scheme=theme)
        for width, height in SIZES.items():
            page.set_viewport_size({"width": width, "height": height})
            measured = page.evaluate(MEASURE) + page.evaluate(AXE, RULES)
            found |= dict.fromkeys(f"{theme} {width}: {each}" for each in measured)
            if SCREENSHOTS:
                page.screenshot(path=Path(SCREENSHOTS) / f"{name}-{theme}-{width}.png", full_page=True)
    page.set_viewport_size({"width": 640, "height": 450})
    found |= dict.fromkeys(f"zoomed to 200 %: {each}" for each in page.evaluate(MEASURE))
    page.set_viewport_size({"width": 320, "height": 640})
    found |= dict.fromkeys(f"letters of 200 %: {each}" for each in page.evaluate(LARGE))
    return list(found)


def walk(page: Page) -> tuple[list[dict[str, Any]], list[str]]:
    """Go through a page with the Tab key; return the stops, and what is wrong with them."""
    page.evaluate("() => { document.activeElement?.blur(); getSelection()?.removeAllRanges(); scrollTo(0, 0) }")
    stops: list[dict[str, Any]] = []
    for _ in range(MOST_STOPS):
        page.keyboard.press("Tab")
        stop = page.evaluate(FOCUSED)
        if stops and stop is not None and stop["key"] == stops[-1]["key"]:
            # Day, month and year of a date are stops of their own inside one field.
            continue
        if stop is None or stop["key"] in {each["key"] for each in stops}:
            break
        stops.append(stop)
    wrong = [f"focus does not show: {stop['name']}" for stop in stops if stop["outline"] < 2]
    wrong += [f"focus is covered: {stop['name']}" for stop in stops if not stop["seen"]]
    wrong += [
        f"focus ring of {_contrast(stop['ring'], stop['ground']):.2f}:1: {stop['name']}"
        for stop in stops
        if stop["outline"] >= 2 and _contrast(stop["ring"], stop["ground"]) < 3
    ]
    return stops, wrong


def _contrast(one: str, other: str) -> float:
    lights = sorted((_luminance(one), _luminance(other)))
    return (lights[1] + 0.05) / (lights[0] + 0.05)


def _luminance(color: str) -> float:
    channels = [int(part) / 255 for part in re.findall(r"\d+", color)[:3]]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")


def markup(text: str, name: str) -> list[str]:
    """Return what is wrong with a page's markup as it was sent: a strict HTML parser, and rules of our own."""
    if SCREENSHOTS:
        (Path(SCREENSHOTS) / f"{name}.html").write_text(text)
    parser = HTMLParser(tree=html5lib.getTreeBuilder("etree"), namespaceHTMLElements=False)
    tree = parser.parse(text)
    wrong = [f"markup line {line}: {PARSE_ERRORS[code] % told}" for (line, _), code, told in parser.errors]
    for element in tree.iter():
        # A comment's tag is no text.
        if isinstance(element.tag, str):
            wrong += _wrong_element(element.tag, element.attrib, "".join(element.itertext()).strip(), len(element))
    return wrong


def _wrong_element(tag: str, attributes: dict[str, str], text: str, children: int) -> Iterator[str]:
    for attribute in attributes:
        if attribute == "style" or attribute.startswith("on"):
            yield f"{attribute} on <{tag}>"
    if tag == "img" and "alt" not in attributes:
        yield "an image without alt"
    if tag == "time" and not MOMENT.fullmatch(attributes.get("datetime", "")):
        yield f"a time without its moment: {text}"
    if tag in {"p", "li", "dd", "ul", "h2"} and not text and not children:
        yield f"an empty <{tag}>"
