// For the host's own pages: opens connect links in a popup and says how it ended. Without it the links simply work.
//
//   <script src="https://connect.example.com/static/connect.js" defer></script>
//   <a href="{connect link}" data-broker-connect>Connect Stripe</a>
//
// Put it on the page that `return_url` leads to as well. The popup ends there, on the host's own origin, and tells the
// page that opened it; nothing passes between two origins. The link then fires one of these events, which bubble, with
// {status, ref} as their detail:
//
//   broker:success   connected                           broker:denied   the person said no
//   broker:pending   under way: ask your backend later   broker:error    it did not work
//   broker:unknown   the popup seems to be gone and said nothing: ask your backend. It may still be open, since some
//                    providers' pages cut the tie to their opener; another event may follow.
(() => {
  "use strict";
  if (!window.BroadcastChannel) return;

  const NAME = "broker-connect";
  const ours = (name) => typeof name === "string" && name.startsWith(`${NAME}-`);
  const WAITING = ["pending", "import_failed", "awaiting_approval", "opened", "left", "redeeming", "held"];
  const OUTCOMES = { ok: "success", unknown: "success", denied: "denied" };
  const channel = new BroadcastChannel(NAME);
  let asked = null;
  let popup = null;
  let name = "";

  const tell = (link, event, detail) => link.dispatchEvent(new CustomEvent(`broker:${event}`, { bubbles: true, detail }));

  // --- the page with the links -----------------------------------------------------------------------

  document.addEventListener("click", (event) => {
    const link = event.target.closest && event.target.closest("a[data-broker-connect]");
    if (!link || event.defaultPrevented || event.button || event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return;
    // Straight to the address and straight from the click: anything later is blocked, or sent without an origin.
    name = `${NAME}-${crypto.getRandomValues(new Uint32Array(2)).join("")}`;
    popup = window.open(link.href, name, "popup,width=520,height=720");
    if (!popup) return;
    event.preventDefault();
    asked = link;
  });

  // The person is back on this page. A window that says it is closed may be open all the same: this is no failure.
  addEventListener("focus", () => {
    const link = asked;
    if (link && popup && popup.closed) setTimeout(() => { if (asked === link) tell(link, "unknown", {}); }, 1000);
  });

  channel.addEventListener("message", ({ data }) => {
    if (!data || data.heard || !asked || typeof data.status !== "string") return;
    // Another tab's popup. Where a provider's page made the browser forget the name, there is nothing to compare.
    if (ours(data.name) && data.name !== name) return;
    const link = asked;
    asked = null;
    const detail = { status: data.status, ref: String(data.ref || "") };
    channel.postMessage({ heard: data.ref });
    tell(link, OUTCOMES[data.status] || (WAITING.includes(data.status) ? "pending" : "error"), detail);
  });

  // --- the page that people come back to -------------------------------------------------------------

  const back = new URLSearchParams(location.search);
  const [status, ref] = [back.get("status"), back.get("ref")];
  if (!status || !ref) return;
  // Only a page that waits for this answers; where there is none, this is no popup and stays.
  channel.addEventListener("message", ({ data }) => { if (data && data.heard === ref) window.close(); });
  channel.postMessage({ status, ref, name: ours(window.name) ? window.name : "" });
})();
