// Everything works without this file. It adds: relative times, button text while leaving, fewer reloads.
(() => {
  "use strict";

  const units = [["day", 86400], ["hour", 3600], ["minute", 60]];
  const words = new Intl.RelativeTimeFormat(document.documentElement.lang || "en", { numeric: "auto" });
  for (const element of document.querySelectorAll("time[data-relative]")) {
    const seconds = (Date.parse(element.dateTime) - Date.now()) / 1000;
    const [unit, size] = units.find(([, size]) => Math.abs(seconds) >= size) || ["second", 1];
    element.title = element.textContent;
    element.textContent = words.format(Math.round(seconds / size), unit);
  }

  // A second press while the browser leaves does nothing; coming back with the Back button starts afresh.
  document.addEventListener("submit", (event) => {
    const button = event.submitter;
    if (!button || !button.dataset.busy) return;
    if (button.getAttribute("aria-busy") === "true") return event.preventDefault();
    button.dataset.label = button.textContent;
    button.textContent = button.dataset.busy;
    button.setAttribute("aria-busy", "true");
  });
  addEventListener("pageshow", () => {
    for (const button of document.querySelectorAll("[aria-busy=true][data-label]")) {
      button.textContent = button.dataset.label;
      button.removeAttribute("aria-busy");
    }
  });

  // What people may have to quote can be copied.
  for (const button of navigator.clipboard ? document.querySelectorAll("[data-copy]") : []) {
    button.classList.add("ready");
    button.addEventListener("click", async () => {
      await navigator.clipboard.writeText(button.dataset.copy);
      button.setAttribute("aria-label", button.textContent = button.dataset.copied);
    });
  }

  // In a window that another page opened, there is a way to close it; where that is refused, the page stays as it is.
  if (window.opener || window.name.startsWith("broker-connect-")) {
    for (const part of document.querySelectorAll(".popup")) part.hidden = false;
    for (const button of document.querySelectorAll("[data-close]")) button.addEventListener("click", () => window.close());
  }

  // An address to copy is selected as soon as it is reached.
  for (const field of document.querySelectorAll("input[data-select]")) field.addEventListener("focus", () => field.select());

  // A pending page looks again after 2, 4, 8 … seconds, for two minutes, and reloads only when something changed.
  const pending = document.querySelector("[data-poll]");
  const look = async (wait, spent) => {
    if (spent >= 120) return;
    await new Promise((done) => setTimeout(done, wait * 1000));
    let stage = pending.dataset.poll;
    try {
      const text = await (await fetch(location.href, { credentials: "same-origin" })).text();
      const found = new DOMParser().parseFromString(text, "text/html").querySelector("[data-stage]");
      if (found) stage = found.dataset.stage;
    } catch { /* offline for a moment: look again later */ }
    if (stage !== pending.dataset.poll) return location.replace(location.href);
    look(Math.min(wait * 2, 16), spent + wait);
  };
  if (pending) look(2, 0);
})();
