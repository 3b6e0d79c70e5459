# SPDX-License-Identifier: Apache-2.0
"""The look of the pages, and the little that their script does."""

from __future__ import annotations

CSS = """
:root { color-scheme: light; --bg: #ffffff; --card: #f6f7f9; --line: #d9dde3; --text: #1d2430; --dim: #5a6575;
  --link: #0b62c4; --good: #146c3c; --wait: #8a5300; --bad: #b3261e; --chosen: #e3eefb; }
:root[data-theme="dark"] { color-scheme: dark; --bg: #161d2d; --card: #1f2839; --line: #3a465c; --text: #e7ebf1;
  --dim: #a2adbd; --link: #7db4ff; --good: #6fd19b; --wait: #f0b95f; --bad: #ff8f86; --chosen: #23354d; }
@media (prefers-color-scheme: dark) { :root:not([data-theme]) { color-scheme: dark; --bg: #161d2d;
  --card: #1f2839; --line: #3a465c; --text: #e7ebf1; --dim: #a2adbd; --link: #7db4ff; --good: #6fd19b;
  --wait: #f0b95f; --bad: #ff8f86; --chosen: #23354d; } }
* { box-sizing: border-box; }
body { margin: 0; padding: 16px; background: var(--bg); color: var(--text);
  font: 14px/1.45 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif; }
h1 { font-size: 18px; margin: 0 0 4px; } a { color: var(--link); }
.sum { color: var(--dim); margin: 0 0 12px; } .dim { color: var(--dim); }
.figures { margin: -6px 0 12px; white-space: pre-line; } .figures:empty { display: none; }
nav { display: flex; flex-wrap: wrap; gap: 6px; margin: 0 0 14px; align-items: center; }
nav a, nav span.here { padding: 4px 10px; border: 1px solid var(--line); border-radius: 999px; text-decoration: none; }
nav span.here { background: var(--chosen); font-weight: 600; }
nav .gap { flex: 1; }
ul.cards { list-style: none; margin: 0; padding: 0; display: grid; gap: 14px;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 440px), 1fr)); }
li.card { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 10px; min-width: 0;
  content-visibility: auto; contain-intrinsic-size: auto 330px; }
.media { display: grid; grid-template-columns: 1fr 2fr; gap: 8px; align-items: start; }
.media img, .media video { width: 100%; border-radius: 4px; background: var(--line); display: block; }
.media img { aspect-ratio: 1; object-fit: cover; } .media video { aspect-ratio: 16/9; object-fit: contain; }
.none { aspect-ratio: 16/9; border: 1px dashed var(--line); border-radius: 4px; display: grid; place-items: center;
  color: var(--dim); padding: 8px; text-align: center; }
.none.small { aspect-ratio: 1; }
.films { display: grid; gap: 8px; min-width: 0; }
.prompt { margin: 8px 0 4px; overflow-wrap: anywhere; max-height: 6em; overflow-y: auto; white-space: pre-wrap; }
.error { margin: 6px 0; color: var(--bad); overflow-wrap: anywhere; max-height: 8em; overflow-y: auto; }
dl { display: grid; grid-template-columns: auto 1fr; gap: 1px 10px; margin: 6px 0 0; color: var(--dim);
  font-size: 13px; }
dd { margin: 0; overflow-wrap: anywhere; color: var(--text); } .state { font-weight: 600; }
.landed, .succeeded { color: var(--good); } .open { color: var(--wait); } .bad { color: var(--bad); }
@media (max-width: 480px) { body { padding: 10px; } .media { grid-template-columns: 1fr; }
  .media img { max-width: 40%; } .none.small { max-width: 40%; } }
"""

#: Follows Airflow's choice of dark or light, and keeps what is in progress up to date. Nothing from the server is
#: ever put into the page as markup.
SCRIPT = """
(() => {
  const root = document.documentElement;
  const osDark = matchMedia("(prefers-color-scheme: dark)");
  let host = null;
  try { if (parent !== window) host = parent.document.documentElement; } catch (e) { host = null; }
  const paint = () => {
    const dark = host ? host.classList.contains("dark") || host.style.colorScheme === "dark" : osDark.matches;
    root.dataset.theme = dark ? "dark" : "light";
  };
  paint();
  osDark.addEventListener("change", paint);
  if (host) new MutationObserver(paint).observe(host, { attributes: true, attributeFilter: ["class", "style"] });

  addEventListener("DOMContentLoaded", () => {
    for (const image of document.querySelectorAll("img")) {
      const gone = () => { image.replaceWith(Object.assign(document.createElement("div"),
        { className: "none small", textContent: "no preview" })); };
      if (image.complete && image.src && !image.naturalWidth) gone();
      else image.addEventListener("error", gone, { once: true });
    }
    const live = document.body.dataset.live;
    if (!live) return;
    const playing = () => [...document.querySelectorAll("video")].some(v => v.currentTime > 0 || !v.paused);
    const look = async () => {
      if (!document.hidden) try {
        const answer = await fetch(live, { credentials: "same-origin" });
        if (answer.ok) {
          const news = await answer.json();
          for (const cell of document.querySelectorAll("[data-request]")) {
            const word = news.words[cell.dataset.request];
            if (word) cell.textContent = word;
          }
          if (news.figures) document.querySelector(".figures").textContent = news.figures;
          if (news.version !== document.body.dataset.version && !playing()) { location.reload(); return; }
        } else if (answer.status === 401 || answer.status === 403) return;
      } catch (e) { /* the next look may work */ }
      setTimeout(look, 10000);
    };
    setTimeout(look, 500);
  });
})();
"""
