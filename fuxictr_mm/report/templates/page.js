"use strict";
(() => {
  // The page is whole without this script: it adds the theme button and sorting.
  const root = document.documentElement;
  const themes = ["auto", "light", "dark"];
  const toggle = document.getElementById("theme");
  const remember = (theme) => { try { localStorage.setItem("theme", theme); } catch { /* a page from disk may not */ } };
  const recall = () => { try { return localStorage.getItem("theme"); } catch { return null; } };
  const setTheme = (theme) => {
    if (theme === "auto") delete root.dataset.theme; else root.dataset.theme = theme;
    toggle.textContent = `Theme: ${theme}`;
    toggle.value = theme;
  };
  setTheme(themes.includes(recall()) ? recall() : "auto");
  toggle.hidden = false;
  toggle.addEventListener("click", () => {
    const next = themes[(themes.indexOf(toggle.value) + 1) % themes.length];
    setTheme(next);
    remember(next);
  });

  const said = document.getElementById("said");
  const valueOf = (row, column) => {
    const cell = row.cells[column];
    return "value" in cell.dataset ? parseFloat(cell.dataset.value) : cell.textContent.trim().toLowerCase();
  };
  const compare = (a, b) => typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
  const isMissing = (value) => value === "" || Number.isNaN(value);

  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const numbers = "number" in head.dataset;
        const before = head.getAttribute("aria-sort");
        const order = before === null ? (numbers ? "descending" : "ascending") : before === "ascending" ? "descending" : "ascending";
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", order);
        const body = table.tBodies[0];
        const rows = [...body.rows].sort((first, second) => {
          const [a, b] = [valueOf(first, column), valueOf(second, column)];
          if (isMissing(a) || isMissing(b)) return isMissing(a) - isMissing(b);
          return order === "ascending" ? compare(a, b) : compare(b, a);
        });
        body.append(...rows);
        said.textContent = `Sorted by ${button.textContent.trim()}, ${order}`;
      });
    });
  }
})();
