// SPDX-License-Identifier: Apache-2.0
// Follows Airflow's choice of dark or light, and keeps the page up to date.
// Nothing from the server is ever put into the page as markup.
(() => {
  const root = document.documentElement;
  const osDark = matchMedia("(prefers-color-scheme: dark)");
  let host = null;
  try { if (parent !== window) host = parent.document; } catch (e) { host = null; }
  const paint = () => {
    const top = host && host.documentElement;
    const dark = top ? top.classList.contains("dark") || top.style.colorScheme === "dark" : osDark.matches;
    root.dataset.theme = dark ? "dark" : "light";
  };
  paint();
  osDark.addEventListener("change", paint);
  if (host) {
    const changes = { attributes: true, attributeFilter: ["class", "style"] };
    new MutationObserver(paint).observe(host.documentElement, changes);
  }

  // Airflow's frame allows no link out of it, so such a link is followed in the page around it.
  const leave = (event) => {
    const link = event.target.closest && event.target.closest("a[data-leave]");
    if (!link || !host || event.button > 1) return;
    event.preventDefault();
    const inNewTab = link.dataset.leave === "blank" || event.ctrlKey || event.metaKey || event.button === 1;
    const outer = host.createElement("a");
    outer.href = link.href;
    outer.rel = "noopener noreferrer";
    outer.target = inNewTab ? "_blank" : "_self";
    host.body.append(outer);
    outer.click();
    outer.remove();
  };
  addEventListener("click", leave);
  addEventListener("auxclick", leave);

  // A picture that is not ready yet is answered with 503 and Retry-After.
  const watchPicture = (image) => {
    const source = image.src;
    const retry = async () => {
      let answer = null;
      try { answer = await fetch(source, { credentials: "same-origin" }); } catch (e) { /* no preview */ }
      if (answer && answer.ok) { image.src = source; return; }
      if (answer && answer.status === 503) {
        setTimeout(retry, 1000 * Number(answer.headers.get("Retry-After") || 2));
        return;
      }
      const none = Object.assign(document.createElement("div"), { className: "none small", textContent: "no preview" });
      image.replaceWith(none);
    };
    if (image.complete && source && !image.naturalWidth) retry();
    else image.addEventListener("error", retry, { once: true });
  };

  addEventListener("DOMContentLoaded", () => {
    document.querySelectorAll("img").forEach(watchPicture);
    const live = document.body.dataset.live;
    if (!live) return;
    const inUse = () => [...document.querySelectorAll("video")].some((v) => v.currentTime > 0 || !v.paused)
      || document.activeElement instanceof HTMLInputElement;
    const update = async () => {
      if (!document.hidden) try {
        const answer = await fetch(live, { credentials: "same-origin" });
        if (answer.ok) {
          const news = await answer.json();
          for (const cell of document.querySelectorAll("[data-request]")) {
            const text = news.states[cell.dataset.request];
            if (text) cell.textContent = text;
          }
          if (news.progress) document.querySelector(".progress").textContent = news.progress;
          if (news.version !== document.body.dataset.version && !inUse()) { location.reload(); return; }
        } else if (answer.status === 401 || answer.status === 403) return;
      } catch (e) { /* the next update may work */ }
      setTimeout(update, 10000);
    };
    setTimeout(update, 500);
  });
})();
