"""Looking at a page as a picky person would: one script that measures what is on it, and a walk with the Tab key."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from playwright.sync_api import Page

Theme = Literal["light", "dark"]

THEMES: tuple[Theme, ...] = ("light", "dark")
SIZES = {320: 640, 1280: 900}
SCREENSHOTS = os.environ.get("BROKER_SCREENSHOTS")
"""A folder; every state × theme × width is written there as a picture."""

MOST_STOPS = 60
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
  for (const e of all.filter((e) => e.matches('input:not([type=hidden], [type=radio], [type=checkbox]), select'))) {
    const found = contrast(rgba(getComputedStyle(e).borderTopColor), behind(e.parentElement));
    if (found < 3) problems.push(`edge of ${found.toFixed(2)}:1: ${name(e)}`);
  }
  return problems;
}
"""

FOCUSED = """
() => {
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
    seen: Boolean(top && (e.contains(top) || top.contains(e))),
    key: [...document.querySelectorAll('*')].indexOf(e),
  };
}
"""


def problems(page: Page, name: str) -> list[str]:
    """Return what is wrong with a page in any theme and size: width, headings, targets, contrast."""
    found: dict[str, None] = {}
    for theme in THEMES:
        page.emulate_media(color_scheme=theme)
        for width, height in SIZES.items():
            page.set_viewport_size({"width": width, "height": height})
            found |= dict.fromkeys(f"{theme} {width}: {each}" for each in page.evaluate(MEASURE))
            if SCREENSHOTS:
                page.screenshot(path=Path(SCREENSHOTS) / f"{name}-{theme}-{width}.png", full_page=True)
    return list(found)


def walk(page: Page) -> tuple[list[dict[str, Any]], list[str]]:
    """Go through a page with the Tab key; return the stops, and what is wrong with them."""
    page.evaluate("() => { document.activeElement?.blur(); getSelection()?.removeAllRanges(); scrollTo(0, 0) }")
    stops: list[dict[str, Any]] = []
    for _ in range(MOST_STOPS):
        page.keyboard.press("Tab")
        stop = page.evaluate(FOCUSED)
        if stop is None or stop["key"] in {each["key"] for each in stops}:
            break
        stops.append(stop)
    wrong = [f"focus does not show: {stop['name']}" for stop in stops if stop["outline"] < 2]
    wrong += [f"focus is covered: {stop['name']}" for stop in stops if not stop["seen"]]
    return stops, wrong
