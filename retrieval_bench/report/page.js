"use strict";
(() => {
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const byId = (id) => document.getElementById(id);

  // Sorting: numbers by value, empty cells last whichever way; the rank within a protocol is given by the page as it comes.
  const value = (cell) => {
    const text = cell.textContent.trim();
    const number = parseFloat(text.replace(/,/g, ""));
    return /^[-+]?[\d,.]/.test(text) && !Number.isNaN(number) ? number : text === "-" || text === "" ? null : text;
  };
  const compare = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b)));

  const sort = (head) => {
    const heads = [...head.parentElement.children];
    const column = heads.indexOf(head);
    const body = head.closest("table").tBodies[0];
    const numeric = [...body.rows].some((row) => typeof value(row.cells[column]) === "number");
    const first = numeric ? "descending" : "ascending";
    const other = numeric ? "ascending" : "descending";
    const order = head.getAttribute("aria-sort") === first ? other : first;
    heads.forEach((cell) => cell.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", order);
    const rows = [...body.rows].map((row) => ({ row, key: value(row.cells[column]) }));
    rows.sort((a, b) => {
      if (a.key === null || b.key === null) return (a.key === null) - (b.key === null);
      return compare(a.key, b.key) * (order === "ascending" ? 1 : -1);
    });
    body.append(...rows.map(({ row }) => row));
  };
  all("th .sort").forEach((button) => button.addEventListener("click", () => sort(button.parentElement)));

  // Filtering: rows that hold all words, in the chosen protocol.
  const filter = () => {
    const words = byId("filter").value.toLowerCase().split(/[\s,]+/).filter(Boolean);
    const chosen = byId("protocol").value;
    let shown = 0;
    document.body.classList.toggle("filtering", words.length > 0);
    all("section.protocol").forEach((section) => {
      let here = 0;
      all("tbody tr", section).forEach((row) => {
        const text = row.textContent.toLowerCase();
        row.hidden = !words.every((word) => text.includes(word));
        here += !row.hidden;
      });
      section.hidden = (chosen !== "" && section.id !== chosen) || here === 0;
      shown += section.hidden ? 0 : here;
    });
    all("section.reported").forEach((section) => { section.hidden = words.length > 0 || chosen !== ""; });
    byId("shown").textContent = words.length || chosen ? `${shown} row${shown === 1 ? "" : "s"}` : "";
  };
  byId("filter").addEventListener("input", filter);
  byId("protocol").addEventListener("change", filter);
  all(".switch input").forEach((box) => {
    const show = () => box.closest("section").classList.toggle("all", box.checked);
    box.addEventListener("change", show);
    show();  // browsers keep what was ticked when a page is loaded again
  });

  // Links: what a filter or a fold hides is shown when a link leads to it.
  const reveal = (hash) => {
    const target = hash.length > 1 && byId(decodeURIComponent(hash.slice(1)));
    if (!target) return;
    if (target.closest("section[hidden]")) {
      byId("filter").value = byId("protocol").value = "";
      filter();
    }
    for (let part = target.closest("details"); part; part = part.parentElement.closest("details")) part.open = true;
    target.scrollIntoView();
  };
  document.addEventListener("click", (event) => {
    const link = event.target.closest('a[href^="#"]');
    if (link) reveal(link.getAttribute("href"));
  });
  addEventListener("hashchange", () => reveal(location.hash));
  document.querySelector("form.controls").addEventListener("submit", (event) => event.preventDefault());

  // Theme: as the system, light or dark; remembered where the browser allows it.
  const themes = { "": "system", light: "light", dark: "dark" };
  const store = { get: () => { try { return localStorage.getItem("theme") || ""; } catch { return ""; } },
                  set: (theme) => { try { localStorage.setItem("theme", theme); } catch { /* a private window */ } } };
  const show = (theme) => {
    if (theme) document.documentElement.dataset.theme = theme;
    else delete document.documentElement.dataset.theme;
    byId("theme").textContent = `Theme: ${themes[theme]}`;
  };
  byId("theme").addEventListener("click", () => {
    const names = Object.keys(themes);
    const next = names[(names.indexOf(document.documentElement.dataset.theme || "") + 1) % names.length];
    store.set(next);
    show(next);
  });
  show(store.get() in themes ? store.get() : "");

  // Galleries: pictures are put in when one is opened, and enlarged when one is selected.
  let pictures = null;
  all("details.gallery").forEach((gallery) => gallery.addEventListener("toggle", () => {
    if (!gallery.open) return;
    pictures ??= JSON.parse(byId("thumbnails").textContent);
    all("img[data-thumbnail]", gallery).forEach((image) => {
      image.src = `data:image/webp;base64,${pictures[image.dataset.thumbnail]}`;
      image.removeAttribute("data-thumbnail");
    });
  }));
  const viewer = byId("viewer");
  document.addEventListener("click", (event) => {
    const image = event.target.closest(".enlarge")?.querySelector("img");
    if (event.target === viewer) viewer.close();
    if (!image) return;
    viewer.querySelector("img").src = image.src;
    viewer.querySelector("img").alt = image.alt;
    viewer.querySelector("p").textContent = `${image.alt} (${image.dataset.path})`;
    viewer.showModal();
  });
  filter();  // a browser may have kept its words
  reveal(location.hash);
})();
