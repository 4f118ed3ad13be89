// Looks at the living part of the page every two seconds and puts in what has changed.
"use strict";

(() => {
  const EVERY_MS = 2000;
  const part = document.getElementById("part");
  const bar = document.getElementById("bar");
  const pulse = document.getElementById("pulse");
  const address = document.body.dataset.poll;

  let touched = false; // somebody writes an answer: it stays until it is sent
  part.addEventListener("input", () => { touched = true; });

  // Both texts were escaped by the server; scripts in them would not run by our own policy.
  function put(place, html) {
    const focused = document.activeElement && document.activeElement.id;
    const open = [...place.querySelectorAll("details")].map((one) => one.open);
    place.innerHTML = html;
    place.querySelectorAll("details").forEach((one, at) => { if (open[at]) one.open = true; });
    if (focused) document.getElementById(focused)?.focus({ preventScroll: true });
  }

  let shownBar = "";
  async function look() {
    const answer = await fetch(address, { headers: { accept: "application/json" } });
    if (answer.status === 401) return "This session is over. Open the address the command printed.";
    if (!answer.ok) return `The dashboard answered ${answer.status}.`;
    const found = await answer.json();
    if (found.bar !== shownBar) { shownBar = found.bar; put(bar, found.bar); }
    if (found.key === part.dataset.key) return "Up to date.";
    if (touched) return "Something has changed; it shows when your answer is sent or the page is loaded again.";
    put(part, found.html);
    part.dataset.key = found.key;
    return "Up to date.";
  }

  async function keepLooking() {
    for (;;) {
      await new Promise((done) => setTimeout(done, EVERY_MS));
      if (document.hidden) continue;
      let said;
      try { said = await look(); } catch { said = "The dashboard does not answer."; }
      if (pulse.textContent !== said) pulse.textContent = said;
    }
  }

  // j and k go down and up the rows, Enter opens one as any link.
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.closest("input, textarea, select")) return;
    const step = { j: 1, k: -1 }[event.key];
    if (!step) return;
    const rows = [...document.querySelectorAll("a.row")];
    const at = rows.indexOf(document.activeElement);
    rows[at < 0 ? 0 : Math.min(Math.max(at + step, 0), rows.length - 1)]?.focus();
  });

  keepLooking();
})();
