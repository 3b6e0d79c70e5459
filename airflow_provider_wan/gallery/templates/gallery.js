// SPDX-License-Identifier: Apache-2.0
// Keys, loading states, and Airflow's choice of dark or light; keeps the tab up to date; filters and sorts a contact
// sheet, which has no server. Nothing from the server is ever put into the page as markup.
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
  const all = (selector) => [...document.querySelectorAll(selector)];

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
    if (link.hasAttribute("download")) outer.download = link.download;
    host.body.append(outer);
    outer.click();
    outer.remove();
  };
  addEventListener("click", leave);
  addEventListener("auxclick", leave);

  // -- keys: they act on a clip that has the focus; within it, a video and a link keep their own ---------------------
  const clips = () => all("[data-clip]").filter((clip) => clip.checkVisibility());
  const focusOn = (clip) => {
    all("[data-clip][tabindex='0']").forEach((other) => { other.tabIndex = -1; });
    clip.tabIndex = 0;
    clip.focus();
    clip.scrollIntoView({ block: "nearest" });
  };
  const neighbour = (clip, key) => {
    const shown = clips(), here = shown.indexOf(clip), from = clip.getBoundingClientRect();
    if (key === "Home") return shown[0];
    if (key === "End") return shown[shown.length - 1];
    if (key === "ArrowRight") return shown[here + 1];
    if (key === "ArrowLeft") return shown[here - 1];
    const down = key === "ArrowDown";
    const distance = (other) => {
      const to = other.getBoundingClientRect();
      const rows = down ? to.top - from.bottom : from.top - to.bottom;
      return rows < -1 ? Infinity : rows * 1000 + Math.abs(to.left - from.left);
    };
    const [best] = shown.map((other) => [distance(other), other]).sort((one, two) => one[0] - two[0]);
    return best[0] < Infinity ? best[1] : undefined;
  };
  addEventListener("keydown", (event) => {
    const clip = event.target;
    if (!clip.matches || !clip.matches("[data-clip]") || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === " ") {
      const video = clip.querySelector("video");
      if (video && video.paused) video.play().catch(() => {});
      else if (video) video.pause();
    } else if (/^(Arrow(Left|Right|Up|Down)|Home|End)$/.test(event.key)) {
      const next = neighbour(clip, event.key);
      if (next) focusOn(next);
    } else return;
    event.preventDefault();
  });
  addEventListener("focusin", (event) => {
    const clip = event.target.closest && event.target.closest("[data-clip]");
    if (!clip) return;
    all("[data-clip][tabindex='0']").forEach((other) => { other.tabIndex = -1; });
    clip.tabIndex = 0;
  });

  // -- loading states ------------------------------------------------------------------------------------------------
  const busy = (video, is) => { video.parentElement.ariaBusy = String(is); };
  const watchVideo = (video) => {
    video.addEventListener("waiting", () => busy(video, true));
    for (const name of ["playing", "pause", "canplay"]) video.addEventListener(name, () => busy(video, false));
    video.addEventListener("error", () => {
      busy(video, false);
      const text = "This video cannot be loaded. It may have been moved, or its bucket cannot be read.";
      video.after(Object.assign(document.createElement("p"), { className: "error", textContent: text }));
    }, { once: true });
  };
  // Without a poster frame, the first frame of a video that comes into view takes its place.
  const firstFrames = new IntersectionObserver((seen) => {
    for (const { isIntersecting, target } of seen) if (isIntersecting) {
      target.preload = "metadata";
      firstFrames.unobserve(target);
    }
  });
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
  const load = () => { document.body.ariaBusy = "true"; };
  addEventListener("pageshow", () => { document.body.ariaBusy = "false"; });

  // -- a contact sheet: the links and the form that ask the server in the tab are answered here ----------------------
  const local = () => {
    const chosen = { view: (all("[data-view]")[0] || { dataset: {} }).dataset.view };
    const order = new Map(all("[data-clip]").map((clip, number) => [clip, number]));
    const form = document.querySelector("form");
    const matches = ({ dataset: of }) => (!chosen.state || chosen.state === "all" || of.state === chosen.state)
      && of.names.includes((chosen.name || "").trim().toLowerCase())
      && (!chosen.model || of.model === chosen.model) && (!chosen.verdict || of.checks === chosen.verdict)
      && (!+chosen.cost || +of.cost >= +chosen.cost) && (!+chosen.seconds || +of.time >= +chosen.seconds);
    const compare = (one, two) => {
      const key = (chosen.sort || "").replace("-", ""), sign = (chosen.sort || "").startsWith("-") ? -1 : 1;
      const [a, b] = [one.dataset[key] || "", two.dataset[key] || ""];
      if (!key || a === b) return order.get(one) - order.get(two);
      if (!a || !b) return a ? -1 : 1;
      return sign * (key === "cost" || key === "time" ? a - b : a.localeCompare(b));
    };
    const show = () => {
      const moved = new Set();
      for (const clip of [...order.keys()].sort(compare)) {
        clip.hidden = !matches(clip);
        const item = clip.matches(".take") ? clip.closest("tr") : clip;
        if (clip.hidden || moved.has(item)) continue;
        moved.add(item);
        item.parentElement.append(item);
      }
      for (const view of all("[data-view]")) view.hidden = view.dataset.view !== chosen.view;
      for (const row of all(".compare tbody tr")) row.hidden = !row.querySelector(".take:not([hidden])");
      for (const link of all("nav a[data-key]")) {
        const is = link.dataset.value === (chosen[link.dataset.key] || "all");
        link.classList.toggle("here", is);
        if (is) link.ariaCurrent = "true"; else link.removeAttribute("aria-current");
      }
      for (const link of all("thead a[data-key]")) {
        const sort = (chosen.sort || "").replace("-", "") === link.dataset.value;
        const head = link.closest("th");
        if (sort) head.ariaSort = chosen.sort.startsWith("-") ? "descending" : "ascending";
        else head.removeAttribute("aria-sort");
      }
      const count = clips().length;
      document.querySelector(".found").textContent = count < order.size / 2 ? `${count} found` : "";
      document.querySelector(".empty").hidden = count > 0;
      form.elements.sort.value = chosen.sort || "";
      const first = clips()[0];
      if (first && !clips().some((clip) => clip.tabIndex === 0)) first.tabIndex = 0;
    };
    addEventListener("click", (event) => {
      const link = event.target.closest("a[data-key]");
      if (!link) return;
      event.preventDefault();
      const { key, value } = link.dataset;
      chosen[key] = key === "sort" && chosen.sort === value ? `-${value}` : value;
      show();
    });
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      Object.assign(chosen, Object.fromEntries(new FormData(form)));
      show();
    });
    all(".needs-script").forEach((part) => { part.hidden = false; });
    show();
  };

  // -- the tab: it is updated while something can change -------------------------------------------------------------
  const stayUpToDate = (live) => {
    // A reload would also cancel the way to another page.
    const inUse = () => document.body.ariaBusy === "true"
      || all("video").some((video) => video.currentTime > 0 || !video.paused)
      || document.activeElement.matches("input, select, [data-clip]");
    const update = async () => {
      if (!document.hidden) try {
        const answer = await fetch(live, { credentials: "same-origin" });
        if (answer.ok) {
          const news = await answer.json();
          for (const cell of all("[data-request]")) {
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
  };

  addEventListener("DOMContentLoaded", () => {
    all("img").forEach(watchPicture);
    for (const video of all("video")) {
      watchVideo(video);
      const withoutPoster = () => { video.removeAttribute("poster"); firstFrames.observe(video); };
      if (video.poster) Object.assign(new Image(), { onerror: withoutPoster, src: video.poster });
      else withoutPoster();
    }
    const { live, local: isLocal } = document.body.dataset;
    if (isLocal !== undefined) { if (document.querySelector("form")) local(); return; }
    if (live) stayUpToDate(live);
    addEventListener("submit", load);
    addEventListener("click", (event) => {
      const link = event.target.closest("a[href^='?']");
      if (link && !event.ctrlKey && !event.metaKey && !event.shiftKey) load();
    });
  });
})();
